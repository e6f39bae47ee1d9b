//! The statements of all tables, built once.

use std::sync::Arc;

use polybus_core::Result;

use super::{
    CLOCK, Sqlite, inbox::MarkSql, inbox_table::InboxSql, job::JobSql, lease::LeaseSql, log::LogSql, outbox::InsertSql,
    outbox_read::ReadSql, outbox_stats::StatsSql, outbox_table::TableSql, parked::ParkedSql, schema::SchemaSql,
    sequence::SequenceSql, sequence_table::SequencesSql,
};
use crate::{clock::ClockOffset, names::Names};

/// The statements of all tables.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) names: Names,
    pub(super) schema: SchemaSql,
    pub(super) lease: LeaseSql,
    pub(super) outbox: InsertSql,
    pub(super) read: ReadSql,
    pub(super) table: TableSql,
    pub(super) stats: StatsSql,
    pub(super) parked: ParkedSql,
    pub(super) mark: MarkSql,
    pub(super) inbox: InboxSql,
    pub(super) sequence: SequenceSql,
    pub(super) sequences: SequencesSql,
    pub(super) job: JobSql,
    pub(super) log: LogSql,
}

impl Sqlite {
    pub(super) fn statements(&self) -> Result<Arc<Statements>> {
        let offset = self.0.offset.get();
        if let Some(built) = self.0.statements.get(offset) {
            return Ok(built);
        }
        let names = Names::new("main", &self.0.prefix, ClockOffset::expression(CLOCK, offset))?;
        let built = Statements {
            schema: SchemaSql::new(&names),
            lease: LeaseSql::new(&names),
            outbox: InsertSql::new(&names),
            read: ReadSql::new(&names),
            table: TableSql::new(&names),
            stats: StatsSql::new(&names),
            parked: ParkedSql::new(&names),
            mark: MarkSql::new(&names),
            inbox: InboxSql::new(&names),
            sequence: SequenceSql::new(&names),
            sequences: SequencesSql::new(&names),
            job: JobSql::new(&names),
            log: LogSql::new(&names),
            names,
        };
        Ok(self.0.statements.put(offset, built))
    }
}

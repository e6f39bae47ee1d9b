//! The statements of all tables, built once.

use std::sync::Arc;

use polybus_core::Result;

use super::{
    CLOCK, Postgres, inbox::MarkSql, inbox_table::InboxSql, job::JobSql, lease::LeaseSql, log::LogSql,
    outbox::InsertSql, outbox_read::ReadSql, outbox_stats::StatsSql, outbox_table::TableSql, parked::ParkedSql,
    schema::SchemaSql, sequence::SequenceSql, sequence_table::SequencesSql,
};
use crate::{clock::ClockOffset, names::Names};

/// The statements of all tables.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) names: Names,
    /// The schema's name as it is, which [`Names`] holds quoted.
    pub(super) schema_name: String,
    pub(super) schema: SchemaSql,
    pub(super) lease: LeaseSql,
    pub(super) outbox: InsertSql,
    pub(super) read: ReadSql,
    pub(super) table: TableSql,
    pub(super) stats: StatsSql,
    pub(super) parked: ParkedSql,
    pub(super) job: JobSql,
    pub(super) log: LogSql,
    pub(super) mark: MarkSql,
    pub(super) inbox: InboxSql,
    pub(super) sequence: SequenceSql,
    pub(super) sequences: SequencesSql,
}

impl Statements {
    pub(super) fn new(schema: &str, prefix: &str, offset: i64) -> Result<Self> {
        let names = Names::new(schema, prefix, ClockOffset::expression(CLOCK, offset))?;
        Ok(Self {
            schema_name: schema.to_owned(),
            schema: SchemaSql::new(&names),
            lease: LeaseSql::new(&names),
            outbox: InsertSql::new(&names),
            read: ReadSql::new(&names),
            table: TableSql::new(&names),
            stats: StatsSql::new(&names),
            parked: ParkedSql::new(&names),
            job: JobSql::new(&names),
            log: LogSql::new(&names),
            mark: MarkSql::new(&names),
            inbox: InboxSql::new(&names),
            sequence: SequenceSql::new(&names),
            sequences: SequencesSql::new(&names),
            names,
        })
    }
}

impl Postgres {
    pub(super) async fn statements(&self) -> Result<Arc<Statements>> {
        let offset = self.0.options.offset.get();
        if let Some(built) = self.0.statements.get(offset) {
            return Ok(built);
        }
        let schema = match &self.0.options.schema {
            Some(schema) => schema,
            None => self.0.found_schema.get_or_try_init(|| self.find_schema()).await?,
        };
        Ok(self.0.statements.put(offset, Statements::new(schema, &self.0.options.prefix, offset)?))
    }
}

//! Consumers, and the marks that are too old.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{InboxTable, micros};

use super::{
    MySql,
    control_conn::{decoded, text},
    literals::{Value, byte_strings, fill},
    reading,
};
use crate::consumer::same_source;

statements! {
    InboxSql {
        consumer = "SELECT id, source FROM {consumer} WHERE name = ?1";
        register = "INSERT INTO {consumer} (name, source) VALUES (?1, ?2) ON DUPLICATE KEY UPDATE id = id";
        old = "SELECT hour, `key` FROM {inbox} FORCE INDEX (by_age)
            WHERE consumer = ?1 AND at < {now} - ?2 ORDER BY at LIMIT ?3";
        // By primary key and in its order: a range would wait for marks that handlers are just setting. Another sweep may
        // have deleted a mark, and a late copy set it anew.
        delete = "DELETE FROM {inbox} WHERE consumer = ?1 AND hour = ?2 AND `key` IN (?3) AND at < {now} - ?4
            ORDER BY `key`";
        marks = "SELECT COUNT(*) FROM (SELECT 1 FROM {inbox} WHERE consumer = ?1 LIMIT ?2) AS m";
    }
}

/// How many keys one DELETE names.
const KEYS: usize = 500;

pub(super) struct Inbox(pub(super) MySql);

#[async_trait]
impl InboxTable for Inbox {
    async fn register(&self, consumer: &str, source: &str) -> Result<i32> {
        const OPERATION: &str = "inbox.register";
        let sql = self.0.statements().await?;
        let select = fill(sql.inbox.consumer.as_str(), &[consumer.into()]);
        // The INSERT alone would draw a number at each start.
        for register in [true, false] {
            let known: Vec<(i32, Vec<u8>)> = decoded(&self.0.look(OPERATION, &select).await?.rows, OPERATION)?;
            if let Some((id, known)) = known.into_iter().next() {
                return same_source((id, text(known)), consumer, source);
            }
            if register {
                let insert = fill(sql.inbox.register.as_str(), &[consumer.into(), source.into()]);
                self.0.run(OPERATION, &insert).await?;
            }
        }
        Err(reading(OPERATION)(sqlx::Error::RowNotFound))
    }

    async fn sweep(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        const OPERATION: &str = "inbox.sweep";
        let sql = self.0.statements().await?;
        let consumer = i64::from(consumer);
        let old = [consumer.into(), micros(older_than).into(), i64::from(limit).into()];
        let old = self.0.look(OPERATION, &fill(sql.inbox.old.as_str(), &old)).await?;
        let mut hours: BTreeMap<i32, Vec<Vec<u8>>> = BTreeMap::new();
        for (hour, key) in decoded::<(i32, Vec<u8>)>(&old.rows, OPERATION)? {
            hours.entry(hour).or_default().push(key);
        }
        let mut swept = 0;
        for (hour, mut keys) in hours {
            keys.sort_unstable();
            for keys in keys.chunks(KEYS) {
                let keys = byte_strings(keys.iter().map(Vec::as_slice));
                let age = micros(older_than);
                let values = [consumer.into(), i64::from(hour).into(), Value::Sql(&keys), age.into()];
                swept += self.0.run(OPERATION, &fill(sql.inbox.delete.as_str(), &values)).await?.affected;
            }
        }
        Ok(swept)
    }

    async fn marks(&self, consumer: i32, cap: u32) -> Result<u64> {
        const OPERATION: &str = "inbox.marks";
        let sql = self.0.statements().await?;
        let count = fill(sql.inbox.marks.as_str(), &[i64::from(consumer).into(), i64::from(cap).into()]);
        let marks: Vec<(i64,)> = decoded(&self.0.look(OPERATION, &count).await?.rows, OPERATION)?;
        Ok(marks.first().map_or(0, |(marks,)| marks.unsigned_abs()))
    }
}

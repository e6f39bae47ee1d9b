//! How far keys have come, for those who wait and those who look, and the rows that are too old.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{GuardKey, GuardedKey, SequenceTable, StoredGap, micros};

use super::{
    MySql,
    control_conn::{decoded, text},
    literals::{Value, byte_strings, fill},
    reading,
};
use crate::sequence::gap;

statements! {
    SequencesSql {
        next = "SELECT next_n FROM {sequence_progress} WHERE consumer = ? AND `key` = ? AND missing IS NOT NULL";
        // Not each time: a key that stands still may have many messages.
        note = "UPDATE {sequence_progress} SET told_at = ?3, seen_at = {now}
            WHERE consumer = ?1 AND `key` = ?2 AND (told_at <> ?3 OR seen_at < {now} - 3600000000)";
        told = "SELECT told_at FROM {sequence_progress} WHERE consumer = ?1 AND `key` = ?2";
        make = "INSERT INTO {sequence_progress} (consumer, `key`, source, okey, first_n, next_n, seen_at)
            VALUES (?1, ?2, ?3, ?4, 0, 0, {now}) ON DUPLICATE KEY UPDATE consumer = consumer";
        gaps = "SELECT `key`, source, okey, first_n, next_n, missing, aside, told_at FROM {sequence_progress}
            WHERE consumer = ?1 AND missing <> '' AND `key` > ?2 ORDER BY `key` LIMIT ?3";
        first_gaps = "SELECT `key`, source, okey, first_n, next_n, missing, aside, told_at FROM {sequence_progress}
            WHERE consumer = ?1 AND missing <> '' ORDER BY `key` LIMIT ?2";
        // By primary key and in its order, as all deletes are. A row may have been used since it was found.
        old_progress = "SELECT `key` FROM {sequence_progress} WHERE consumer = ?1 AND seen_at < {now} - ?2 LIMIT ?3";
        sweep_progress = "DELETE FROM {sequence_progress}
            WHERE consumer = ?1 AND `key` IN (?2) AND seen_at < {now} - ?3 ORDER BY `key`";
        old_numbers = "SELECT address, okey FROM {sequence} WHERE used_at < {now} - ?1 LIMIT ?2";
        sweep_numbers = "DELETE FROM {sequence}
            WHERE address = ?1 AND okey IN (?2) AND used_at < {now} - ?3 ORDER BY okey";
    }
}

/// How many keys one DELETE names.
const KEYS: usize = 500;

pub(super) struct Sequences(pub(super) MySql);

#[async_trait]
impl SequenceTable for Sequences {
    /// On the application's pool: those who wait look often, and a lease must not wait for them.
    async fn next(&self, key: &GuardKey) -> Result<Option<i64>> {
        const OPERATION: &str = "sequence.next";
        let sql = self.0.statements().await?;
        let mut conn = self.0.0.pool.acquire().await.map_err(reading(OPERATION))?;
        let select = sqlx::query_scalar(sql.sequences.next.clone()).bind(key.consumer).bind(&key.key[..]);
        select.fetch_optional(&mut *conn).await.map_err(reading(OPERATION))
    }

    async fn note_stopped(&self, key: &GuardKey, of: &GuardedKey<'_>, next: i64) -> Result<bool> {
        const OPERATION: &str = "sequence.note";
        let sql = self.0.statements().await?;
        let values = || vec![key.consumer.into(), Value::Bytes(&key.key)];
        let told = self.0.look(OPERATION, &fill(sql.sequences.told.as_str(), &values())).await?;
        let told: Vec<(i64,)> = decoded(&told.rows, OPERATION)?;
        if told.is_empty() {
            let make = [values(), vec![of.source.into(), of.key.into()]].concat();
            self.0.run(OPERATION, &fill(sql.sequences.make.as_str(), &make)).await?;
        }
        let note = [values(), vec![next.into()]].concat();
        let noted = self.0.run(OPERATION, &fill(sql.sequences.note.as_str(), &note)).await?.affected > 0;
        Ok(noted && told.first() != Some(&(next,)))
    }

    async fn gaps(&self, consumer: i32, after: Option<[u8; 16]>, limit: u32) -> Result<Vec<StoredGap>> {
        const OPERATION: &str = "sequence.gaps";
        let sql = self.0.statements().await?;
        let limit = i64::from(limit).into();
        let select = match &after {
            Some(after) => fill(sql.sequences.gaps.as_str(), &[consumer.into(), Value::Bytes(after), limit]),
            None => fill(sql.sequences.first_gaps.as_str(), &[consumer.into(), limit]),
        };
        let answer = self.0.look(OPERATION, &select).await?;
        type Row = (Vec<u8>, Vec<u8>, Vec<u8>, i64, i64, Option<Vec<u8>>, Vec<u8>, i64);
        let row = |(key, source, okey, first, next, missing, aside, told_at): Row| {
            gap((key, text(source), okey, first, next, missing.map(text), text(aside), told_at))
        };
        Ok(decoded::<Row>(&answer.rows, OPERATION)?.into_iter().filter_map(row).collect())
    }

    async fn sweep_progress(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        const OPERATION: &str = "sequence.sweep";
        let sql = self.0.statements().await?;
        let age = micros(older_than);
        let old = [consumer.into(), age.into(), i64::from(limit).into()];
        let old = self.0.look(OPERATION, &fill(sql.sequences.old_progress.as_str(), &old)).await?;
        let mut keys: Vec<(Vec<u8>,)> = decoded(&old.rows, OPERATION)?;
        keys.sort_unstable();
        let mut swept = 0;
        for keys in keys.chunks(KEYS) {
            let keys = byte_strings(keys.iter().map(|(key,)| key.as_slice()));
            let delete = fill(sql.sequences.sweep_progress.as_str(), &[consumer.into(), Value::Sql(&keys), age.into()]);
            swept += self.0.run(OPERATION, &delete).await?.affected;
        }
        Ok(swept)
    }

    async fn sweep_numbers(&self, older_than: Duration, limit: u32) -> Result<u64> {
        const OPERATION: &str = "sequence.sweep";
        let sql = self.0.statements().await?;
        let age = micros(older_than);
        let old = fill(sql.sequences.old_numbers.as_str(), &[age.into(), i64::from(limit).into()]);
        let old = self.0.look(OPERATION, &old).await?;
        let mut addresses: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for (address, key) in decoded::<(Vec<u8>, Vec<u8>)>(&old.rows, OPERATION)? {
            addresses.entry(address).or_default().push(key);
        }
        let mut swept = 0;
        for (address, mut keys) in addresses {
            keys.sort_unstable();
            for keys in keys.chunks(KEYS) {
                let keys = byte_strings(keys.iter().map(Vec::as_slice));
                let values = [Value::Bytes(&address), Value::Sql(&keys), age.into()];
                swept += self.0.run(OPERATION, &fill(sql.sequences.sweep_numbers.as_str(), &values)).await?.affected;
            }
        }
        Ok(swept)
    }
}

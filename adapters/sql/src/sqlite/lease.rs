//! Leases and members.

use std::{collections::HashSet, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{Lease, LeaseTable, micros};

use super::{Sqlite, reading, write_queue::Turn};

statements! {
    LeaseSql {
        held = "SELECT name FROM {lease} WHERE until_at > {now} AND until_at <= {now} + term";
        acquire = "INSERT INTO {lease} AS l (name, owner, token, until_at, term) VALUES (?1, ?2, 1, {now} + ?3, ?3)
            ON CONFLICT (name) DO UPDATE
            SET owner = excluded.owner, token = l.token + 1, until_at = excluded.until_at, term = excluded.term
            WHERE l.until_at <= {now} OR l.until_at > {now} + l.term
            RETURNING token";
        renew = "UPDATE {lease} SET until_at = {now} + ?4, term = ?4 WHERE name = ?1 AND owner = ?2 AND token = ?3";
        release = "UPDATE {lease} SET owner = '', until_at = 0 WHERE name = ?1 AND owner = ?2 AND token = ?3";
        join = "INSERT INTO {member} (grp, member, until_at, term) VALUES (?1, ?2, {now} + ?3, ?3)
            ON CONFLICT (grp, member) DO UPDATE SET until_at = excluded.until_at, term = excluded.term";
        // An end that far ahead is one from before the clock was set back.
        remove = "DELETE FROM {member} WHERE grp = ?1 AND (until_at <= {now} OR until_at > {now} + term)";
        members = "SELECT count(*) FROM {member} WHERE grp = ?1";
        leave = "DELETE FROM {member} WHERE grp = ?1 AND member = ?2";
    }
}

pub(super) struct Leases(pub(super) Sqlite);

#[async_trait]
impl LeaseTable for Leases {
    async fn acquire(&self, names: &[String], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        const OPERATION: &str = "lease.acquire";
        let (sql, term) = (self.0.statements()?, micros(term));
        // Most calls find nothing that is free, and need no turn to write.
        let held: Vec<String> = {
            let mut conn = self.0.reader(OPERATION).await?;
            sqlx::query_scalar(sql.lease.held.clone()).fetch_all(&mut *conn).await.map_err(reading(OPERATION))?
        };
        let held: HashSet<&str> = held.iter().map(String::as_str).collect();
        let free: Vec<&String> = names.iter().filter(|name| !held.contains(name.as_str())).collect();
        if free.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.0.begin_in_turn(Turn::Urgent, OPERATION).await?;
        let mut leases = Vec::new();
        for name in free {
            let token: Option<i64> = sqlx::query_scalar(sql.lease.acquire.clone())
                .bind(name)
                .bind(owner)
                .bind(term)
                .fetch_optional(&mut *tx)
                .await
                .map_err(reading(OPERATION))?;
            leases.extend(token.map(|token| Lease { name: name.clone(), token }));
        }
        tx.commit().await?;
        Ok(leases)
    }

    async fn renew(&self, leases: &[Lease], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        const OPERATION: &str = "lease.renew";
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let sql = self.0.statements()?;
        let mut tx = self.0.begin_in_turn(Turn::Urgent, OPERATION).await?;
        let mut kept = Vec::new();
        for lease in leases {
            let done = sqlx::query(sql.lease.renew.clone())
                .bind(&lease.name)
                .bind(owner)
                .bind(lease.token)
                .bind(micros(term))
                .execute(&mut *tx)
                .await
                .map_err(reading(OPERATION))?;
            if done.rows_affected() > 0 {
                kept.push(lease.clone());
            }
        }
        tx.commit().await?;
        Ok(kept)
    }

    async fn release(&self, leases: &[Lease], owner: &str) -> Result<()> {
        const OPERATION: &str = "lease.release";
        if leases.is_empty() {
            return Ok(());
        }
        let sql = self.0.statements()?;
        let mut tx = self.0.begin_in_turn(Turn::Urgent, OPERATION).await?;
        for lease in leases {
            sqlx::query(sql.lease.release.clone())
                .bind(&lease.name)
                .bind(owner)
                .bind(lease.token)
                .execute(&mut *tx)
                .await
                .map_err(reading(OPERATION))?;
        }
        tx.commit().await
    }

    async fn join(&self, group: &str, member: &str, term: Duration) -> Result<u32> {
        const OPERATION: &str = "lease.join";
        let (sql, term) = (self.0.statements()?, micros(term));
        let mut tx = self.0.begin_in_turn(Turn::Urgent, OPERATION).await?;
        let upsert = sqlx::query(sql.lease.join.clone()).bind(group).bind(member).bind(term);
        upsert.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        let remove = sqlx::query(sql.lease.remove.clone()).bind(group);
        remove.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        let members: i64 = sqlx::query_scalar(sql.lease.members.clone())
            .bind(group)
            .fetch_one(&mut *tx)
            .await
            .map_err(reading(OPERATION))?;
        tx.commit().await?;
        Ok(u32::try_from(members).unwrap_or(u32::MAX))
    }

    async fn leave(&self, group: &str, member: &str) -> Result<()> {
        const OPERATION: &str = "lease.leave";
        let sql = self.0.statements()?;
        let mut tx = self.0.begin_in_turn(Turn::Urgent, OPERATION).await?;
        let delete = sqlx::query(sql.lease.leave.clone()).bind(group).bind(member);
        delete.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        tx.commit().await
    }
}

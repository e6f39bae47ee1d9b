//! Leases and members.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{Lease, LeaseTable, micros};

use super::Postgres;

statements! {
    LeaseSql {
        // An end further ahead than the holder's own term is one from before the clock was set back.
        // Held ones are left out first, or each look would lock their rows. All lock in the order of names.
        acquire = "INSERT INTO {lease} AS l (name, owner, token, until_at, term)
            SELECT n.name, $2, 1, {now} + $3::bigint, $3 FROM unnest($1::text[]) AS n (name)
            WHERE NOT EXISTS (
                SELECT 1 FROM {lease} h
                WHERE h.name = n.name AND h.until_at > {now} AND h.until_at <= {now} + h.term)
            ORDER BY n.name COLLATE \"C\"
            ON CONFLICT (name) DO UPDATE
            SET owner = excluded.owner, token = l.token + 1, until_at = excluded.until_at, term = excluded.term
            WHERE l.until_at <= {now} OR l.until_at > {now} + l.term
            RETURNING l.name, l.token";
        renew = "WITH mine AS MATERIALIZED (
                SELECT l.name FROM {lease} l JOIN unnest($1::text[], $2::bigint[]) AS n (name, token)
                    ON l.name = n.name AND l.token = n.token
                WHERE l.owner = $3 ORDER BY l.name FOR UPDATE OF l)
            UPDATE {lease} l SET until_at = {now} + $4::bigint, term = $4 FROM mine WHERE l.name = mine.name
            RETURNING l.name, l.token";
        release = "WITH mine AS MATERIALIZED (
                SELECT l.name FROM {lease} l JOIN unnest($1::text[], $2::bigint[]) AS n (name, token)
                    ON l.name = n.name AND l.token = n.token
                WHERE l.owner = $3 ORDER BY l.name FOR UPDATE OF l)
            UPDATE {lease} l SET owner = '', until_at = 0 FROM mine WHERE l.name = mine.name";
        join = "INSERT INTO {member} (grp, member, until_at, term) VALUES ($1, $2, {now} + $3::bigint, $3)
            ON CONFLICT (grp, member) DO UPDATE SET until_at = excluded.until_at, term = excluded.term";
        // An end that far ahead is one from before the clock was set back. Rows that another one removes or renews at
        // this moment are left to it.
        members = "WITH gone AS (
                SELECT m.member FROM {member} m
                WHERE m.grp = $1 AND m.member <> $2 AND (m.until_at <= {now} OR m.until_at > {now} + m.term)
                FOR UPDATE SKIP LOCKED),
            removed AS (DELETE FROM {member} m USING gone WHERE m.grp = $1 AND m.member = gone.member)
            SELECT 1 + count(*) FROM {member} m
            WHERE m.grp = $1 AND m.member <> $2 AND m.until_at > {now} AND m.until_at <= {now} + m.term";
        leave = "DELETE FROM {member} WHERE grp = $1 AND member = $2";
    }
}

pub(super) struct Leases(pub(super) Postgres);

fn columns(leases: &[Lease]) -> (Vec<&str>, Vec<i64>) {
    leases.iter().map(|lease| (lease.name.as_str(), lease.token)).unzip()
}

fn leases(rows: Vec<(String, i64)>) -> Vec<Lease> {
    rows.into_iter().map(|(name, token)| Lease { name, token }).collect()
}

#[async_trait]
impl LeaseTable for Leases {
    async fn acquire(&self, names: &[String], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        const OPERATION: &str = "lease.acquire";
        let sql = self.0.statements().await?;
        let mut conn = self.0.lease_conn(OPERATION).await?;
        let acquire = sqlx::query_as(sql.lease.acquire.clone()).bind(names).bind(owner).bind(micros(term));
        acquire.fetch_all(&mut *conn).await.map(leases).map_err(conn.committing())
    }

    async fn renew(&self, held: &[Lease], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        const OPERATION: &str = "lease.renew";
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let (names, tokens) = columns(held);
        let sql = self.0.statements().await?;
        let mut conn = self.0.lease_conn(OPERATION).await?;
        let renew = sqlx::query_as(sql.lease.renew.clone()).bind(names).bind(tokens).bind(owner).bind(micros(term));
        renew.fetch_all(&mut *conn).await.map(leases).map_err(conn.committing())
    }

    async fn release(&self, held: &[Lease], owner: &str) -> Result<()> {
        const OPERATION: &str = "lease.release";
        if held.is_empty() {
            return Ok(());
        }
        let (names, tokens) = columns(held);
        let sql = self.0.statements().await?;
        let mut conn = self.0.lease_conn(OPERATION).await?;
        let release = sqlx::query(sql.lease.release.clone()).bind(names).bind(tokens).bind(owner);
        release.execute(&mut *conn).await.map(drop).map_err(conn.committing())
    }

    async fn join(&self, group: &str, member: &str, term: Duration) -> Result<u32> {
        const OPERATION: &str = "lease.join";
        let sql = self.0.statements().await?;
        let mut conn = self.0.lease_conn(OPERATION).await?;
        // Two statements: in one, two members that remove each other would wait for each other.
        let join = sqlx::query(sql.lease.join.clone()).bind(group).bind(member).bind(micros(term));
        join.execute(&mut *conn).await.map_err(conn.committing())?;
        let members = sqlx::query_scalar(sql.lease.members.clone()).bind(group).bind(member);
        let members: i64 = members.fetch_one(&mut *conn).await.map_err(conn.committing())?;
        Ok(u32::try_from(members).unwrap_or(u32::MAX))
    }

    async fn leave(&self, group: &str, member: &str) -> Result<()> {
        const OPERATION: &str = "lease.leave";
        let sql = self.0.statements().await?;
        let mut conn = self.0.lease_conn(OPERATION).await?;
        let leave = sqlx::query(sql.lease.leave.clone()).bind(group).bind(member);
        leave.execute(&mut *conn).await.map(drop).map_err(conn.committing())
    }
}

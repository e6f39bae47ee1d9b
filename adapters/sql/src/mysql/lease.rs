//! Leases and members.

use std::{collections::HashMap, fmt::Write, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{Lease, LeaseTable, micros};

use super::{
    MySql,
    control_conn::{decoded, text},
    literals::{Value, byte_strings, fill},
};

statements! {
    LeaseSql {
        // An end further ahead than the holder's own term is one from before the clock was set back.
        held = "SELECT name, until_at > {now} AND until_at <= {now} + term FROM {lease} WHERE name IN (?1)";
        make = "INSERT INTO {lease} (name, owner, token, until_at, term) VALUES ?1
            ON DUPLICATE KEY UPDATE token = token";
        // The time is that at which a statement begins, and this one may wait. What another one has taken or renewed
        // meanwhile would look like the end of a clock that was set back: so the rows are locked first.
        lock = "UPDATE {lease} SET token = token WHERE name IN (?1) ORDER BY name";
        until = "SET @polybus_until = {now} + ?1";
        take = "UPDATE {lease} SET owner = ?2, token = token + 1, until_at = @polybus_until, term = ?3
            WHERE name IN (?1) AND (until_at <= {now} OR until_at > {now} + term) ORDER BY name";
        taken = "SELECT name, token FROM {lease} WHERE name IN (?1) AND owner = ?2 AND until_at = @polybus_until";
        mine = "SELECT name, token FROM {lease} WHERE name IN (?1) AND owner = ?2 AND (?3) ORDER BY name FOR UPDATE";
        renew = "UPDATE {lease} SET until_at = {now} + ?4, term = ?4
            WHERE name IN (?1) AND owner = ?2 AND (?3) ORDER BY name";
        release = "UPDATE {lease} SET owner = '', until_at = 0
            WHERE name IN (?1) AND owner = ?2 AND (?3) ORDER BY name";
        join = "INSERT INTO {member} (grp, member, until_at, term) VALUES (?1, ?2, {now} + ?3, ?3)
            ON DUPLICATE KEY UPDATE until_at = {now} + ?3, term = ?3";
        // An end that far ahead is one from before the clock was set back.
        members = "SELECT member, until_at > {now} AND until_at <= {now} + term FROM {member}
            WHERE grp = ?1 AND member <> ?2";
        // Locked first, for the same reason as leases.
        lock_members = "UPDATE {member} SET term = term WHERE grp = ?1 AND member IN (?2) ORDER BY member";
        remove = "DELETE FROM {member}
            WHERE grp = ?1 AND member IN (?2) AND (until_at <= {now} OR until_at > {now} + term) ORDER BY member";
        leave = "DELETE FROM {member} WHERE grp = ?1 AND member = ?2";
    }
}

pub(super) struct Leases(pub(super) MySql);

/// Names in the order in which all lock them.
fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn list(names: &[&str]) -> String {
    byte_strings(names.iter().map(|name| name.as_bytes()))
}

/// The names of leases, and a condition for each with its token.
fn held(leases: &[Lease]) -> (String, String) {
    let mut tokens = String::new();
    for (n, lease) in leases.iter().enumerate() {
        let or = if n > 0 { " OR " } else { "" };
        let name = byte_strings([lease.name.as_bytes()]);
        let _ = write!(tokens, "{or}name = {name} AND token = {}", lease.token);
    }
    (list(&sorted(leases.iter().map(|lease| lease.name.as_str()))), tokens)
}

fn leases(rows: Vec<(Vec<u8>, i64)>) -> Vec<Lease> {
    rows.into_iter().map(|(name, token)| Lease { name: text(name), token }).collect()
}

impl Leases {
    /// Those of these that may be free: not held by now, or not there yet.
    async fn not_held<'a>(&self, names: &'a [String]) -> Result<(Vec<&'a str>, Vec<&'a str>)> {
        const OPERATION: &str = "lease.acquire";
        let sql = self.0.statements().await?;
        let names = sorted(names.iter().map(String::as_str));
        let look = fill(sql.lease.held.as_str(), &[Value::Sql(&list(&names))]);
        let known: Vec<(Vec<u8>, i64)> = decoded(&self.0.look_for_lease(OPERATION, &look).await?.rows, OPERATION)?;
        let known: HashMap<Vec<u8>, bool> = known.into_iter().map(|(name, held)| (name, held != 0)).collect();
        let missing = names.iter().copied().filter(|name| !known.contains_key(name.as_bytes())).collect();
        let free = names.into_iter().filter(|name| known.get(name.as_bytes()) != Some(&true)).collect();
        Ok((missing, free))
    }

    /// Takes those of these that are free, in one text: locks that were held over a round trip would outlive a client
    /// that vanished in the middle.
    async fn take(&self, missing: &[&str], names: &[&str], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        const OPERATION: &str = "lease.acquire";
        let sql = self.0.statements().await?;
        let mut text = String::new();
        if !missing.is_empty() {
            let rows: Vec<String> =
                missing.iter().map(|name| format!("({}, '', 0, 0, 0)", byte_strings([name.as_bytes()]))).collect();
            text += &fill(sql.lease.make.as_str(), &[Value::Sql(&rows.join(","))]);
            text += "; ";
        }
        let names = list(names);
        let values = [Value::Sql(&names), owner.into(), micros(term).into()];
        let _ = write!(
            text,
            "{}; {}; {}; {}",
            fill(sql.lease.lock.as_str(), &values),
            fill(sql.lease.until.as_str(), &[micros(term).into()]),
            fill(sql.lease.take.as_str(), &values),
            fill(sql.lease.taken.as_str(), &values),
        );
        let answer = self.0.run_for_lease(OPERATION, &text).await?;
        decoded(&answer.rows, OPERATION).map(leases)
    }
}

#[async_trait]
impl LeaseTable for Leases {
    async fn acquire(&self, names: &[String], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        // Most calls find nothing that is free, and need to lock nothing.
        let (missing, free) = self.not_held(names).await?;
        if free.is_empty() {
            return Ok(Vec::new());
        }
        self.take(&missing, &free, owner, term).await
    }

    async fn renew(&self, leases_held: &[Lease], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        const OPERATION: &str = "lease.renew";
        if leases_held.is_empty() {
            return Ok(Vec::new());
        }
        let sql = self.0.statements().await?;
        let (names, tokens) = held(leases_held);
        let values = [Value::Sql(&names), owner.into(), Value::Sql(&tokens), micros(term).into()];
        let renew = format!("{}; {}", fill(sql.lease.mine.as_str(), &values), fill(sql.lease.renew.as_str(), &values));
        let answer = self.0.run_for_lease(OPERATION, &renew).await?;
        decoded(&answer.rows, OPERATION).map(leases)
    }

    async fn release(&self, leases: &[Lease], owner: &str) -> Result<()> {
        if leases.is_empty() {
            return Ok(());
        }
        let sql = self.0.statements().await?;
        let (names, tokens) = held(leases);
        let values = [Value::Sql(&names), owner.into(), Value::Sql(&tokens)];
        self.0.run_for_lease("lease.release", &fill(sql.lease.release.as_str(), &values)).await.map(drop)
    }

    async fn join(&self, group: &str, member: &str, term: Duration) -> Result<u32> {
        const OPERATION: &str = "lease.join";
        let sql = self.0.statements().await?;
        let values = [group.into(), member.into(), micros(term).into()];
        self.0.run_for_lease(OPERATION, &fill(sql.lease.join.as_str(), &values)).await?;
        let others = self.0.look_for_lease(OPERATION, &fill(sql.lease.members.as_str(), &values)).await?;
        let others: Vec<(Vec<u8>, i64)> = decoded(&others.rows, OPERATION)?;
        let mut gone: Vec<&[u8]> = others.iter().filter(|(_, lives)| *lives == 0).map(|(name, _)| &name[..]).collect();
        let living = others.len() - gone.len();
        if !gone.is_empty() {
            gone.sort_unstable();
            let values = [group.into(), Value::Sql(&byte_strings(gone))];
            let remove = [&sql.lease.lock_members, &sql.lease.remove].map(|sql| fill(sql.as_str(), &values));
            self.0.run_for_lease(OPERATION, &remove.join("; ")).await?;
        }
        Ok(u32::try_from(1 + living).unwrap_or(u32::MAX))
    }

    async fn leave(&self, group: &str, member: &str) -> Result<()> {
        let sql = self.0.statements().await?;
        let leave = fill(sql.lease.leave.as_str(), &[group.into(), member.into()]);
        self.0.run_for_lease("lease.leave", &leave).await.map(drop)
    }
}

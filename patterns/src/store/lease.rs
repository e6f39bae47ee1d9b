//! Leases: one process at a time does something, for as long as it says that it lives.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};

/// A lease that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it is for, such as `outbox/7`.
    pub name: String,
    /// Rises by one each time the lease changes hands.
    pub token: i64,
}

/// The leases of one database.
///
/// A lease cannot stop a process that was paused and goes on later: whatever it guards must bear a second holder for a
/// moment. The holder counts from before it sent the request, on its own monotonic clock, and stops its work at four
/// fifths.
#[async_trait]
pub trait LeaseTable: Send + Sync {
    /// Takes those of these leases that are free: never taken, run out, or with an end so far ahead (more than its
    /// holder's own term from now) that only a clock that was set back explains it.
    async fn acquire(&self, names: &[String], owner: &str, term: Duration) -> Result<Vec<Lease>>;

    /// Renews. Answers with those that are still this owner's under this token; the others are lost.
    async fn renew(&self, leases: &[Lease], owner: &str, term: Duration) -> Result<Vec<Lease>>;

    /// Gives leases back, so that another one may take them at once. Those that are no longer this owner's stay as
    /// they are.
    async fn release(&self, leases: &[Lease], owner: &str) -> Result<()>;

    /// Says that this member of the group lives, and answers how many members do, this one included. Members that have
    /// not said so for `term` are removed.
    async fn join(&self, group: &str, member: &str, term: Duration) -> Result<u32>;

    /// Leaves the group.
    async fn leave(&self, group: &str, member: &str) -> Result<()>;
}

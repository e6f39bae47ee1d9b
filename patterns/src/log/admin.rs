//! Subscriptions by hand: for a command line, a dashboard, and people at night.

use std::sync::Arc;

use polybus_core::{Error, ErrorKind, Result};

use crate::store::{
    LogFloor, LogTable, StoppedSubscription, StoreControl, StoredSubscription,
    calls::{in_time, rows_limit},
};

/// What can be done with subscriptions by hand. [`EventLog::admin`](super::EventLog::admin) makes it. Cheap to clone, and
/// without the store's type.
///
/// ```no_run
/// # async fn example(admin: polybus_patterns::log::LogAdmin) -> polybus_core::Result<()> {
/// for subscription in admin.subscriptions().await? {
///     if let Some(stopped) = &subscription.stopped {
///         println!("{} stands at {:?}: {}", subscription.name, stopped.at, stopped.why);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LogAdmin {
    table: Arc<dyn LogTable>,
    control: Arc<dyn StoreControl>,
}

impl LogAdmin {
    pub(super) fn new(table: Arc<dyn LogTable>, control: Arc<dyn StoreControl>) -> Self {
        Self { table, control }
    }

    /// All subscriptions, by name, also those that no running process has.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::log::LogAdmin) -> polybus_core::Result<()> {
    /// println!("{}", admin.subscriptions().await?.len());
    /// # Ok(()) }
    /// ```
    pub async fn subscriptions(&self) -> Result<Vec<StoredSubscription>> {
        in_time(rows_limit(&*self.control), self.table.subscriptions(None)).await
    }

    /// The transaction that keeps the most events from being read; `None` where none does.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::log::LogAdmin) -> polybus_core::Result<()> {
    /// if let Some(floor) = admin.floor().await? {
    ///     println!("{} holds {} positions back, for {:?}", floor.who, floor.behind, floor.age);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn floor(&self) -> Result<Option<LogFloor>> {
        in_time(rows_limit(&*self.control), self.table.floor()).await
    }

    /// Stops a subscription where it is, until it is [resumed](Self::resume). A handler that runs now is not committed
    /// any more.
    ///
    /// # Errors
    /// `NotFound`. `Conflict` where it moves on each time that it is asked to stop. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::log::LogAdmin) -> polybus_core::Result<()> {
    /// admin.stop("revenue", "the table is being rebuilt").await
    /// # }
    /// ```
    pub async fn stop(&self, name: &str, why: &str) -> Result<()> {
        for _ in 0..TRIES {
            let found = self.find(name).await?;
            if found.stopped.is_some() {
                return Ok(());
            }
            let why = StoppedSubscription { at: None, why: format!("stopped by hand: {why}"), since: 0 };
            let stop = self.table.stop_subscription(name, &found.checkpoint, &why);
            if in_time(rows_limit(&*self.control), stop).await? {
                return Ok(());
            }
        }
        Err(moves_on(name))
    }

    /// Lets a subscription go on that stands still, with the event at which it stopped.
    ///
    /// # Errors
    /// `NotFound`. `Conflict` where somebody else moves it meanwhile. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::log::LogAdmin) -> polybus_core::Result<()> {
    /// admin.resume("revenue").await
    /// # }
    /// ```
    pub async fn resume(&self, name: &str) -> Result<()> {
        let found = self.find(name).await?;
        match found.stopped {
            Some(_) => self.go_on(&found, found.checkpoint.position).await,
            None => Ok(()),
        }
    }

    /// Lets a subscription go on behind the event at which it stopped: that one has no effect. Name its position, so that
    /// it is surely the one that you have looked at.
    ///
    /// # Errors
    /// `NotFound`. `Conflict` where it does not stand at this event. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::log::LogAdmin) -> polybus_core::Result<()> {
    /// admin.skip("revenue", 4711).await
    /// # }
    /// ```
    pub async fn skip(&self, name: &str, position: i64) -> Result<()> {
        let found = self.find(name).await?;
        let stands_at = found.stopped.as_ref().and_then(|stopped| stopped.at);
        if stands_at != Some(position) {
            let text = match stands_at {
                Some(at) => format!("the subscription stands at {at}, not at {position}"),
                None => "the subscription does not stand at an event".to_owned(),
            };
            return Err(Error::new(ErrorKind::Conflict, text).with_context("subscription", name.escape_debug()));
        }
        tracing::warn!(target: "polybus", subscription = name, position, "an event is skipped by hand");
        self.go_on(&found, position).await
    }

    /// Removes a subscription that nobody runs any more. One that a process runs begins again at its beginning.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::log::LogAdmin) -> polybus_core::Result<()> {
    /// println!("it was there: {}", admin.remove("revenue").await?);
    /// # Ok(()) }
    /// ```
    pub async fn remove(&self, name: &str) -> Result<bool> {
        in_time(rows_limit(&*self.control), self.table.remove_subscription(name)).await
    }

    async fn find(&self, name: &str) -> Result<StoredSubscription> {
        let found = in_time(rows_limit(&*self.control), self.table.subscriptions(Some(name))).await?.pop();
        let missing = || Error::new(ErrorKind::NotFound, "no subscription of this name");
        found.ok_or_else(|| missing().with_context("subscription", name.escape_debug()))
    }

    async fn go_on(&self, found: &StoredSubscription, behind: i64) -> Result<()> {
        let resume = self.table.resume_subscription(&found.name, &found.checkpoint, behind);
        if !in_time(rows_limit(&*self.control), resume).await? {
            return Err(moves_on(&found.name));
        }
        self.control.changes().committed();
        Ok(())
    }
}

/// How often a subscription is asked to stop that moves on meanwhile.
const TRIES: usize = 20;

fn moves_on(name: &str) -> Error {
    Error::new(ErrorKind::Conflict, "the subscription was moved meanwhile: look at it again")
        .with_context("subscription", name.escape_debug())
}

//! Deletes payloads whose retention has ended.

use std::time::Duration;

use futures_util::{StreamExt, future};
use object_store::{ObjectMeta, ObjectStore, path::Path};
use polybus_core::{
    Error, Result,
    driver::kit::backoff::random_fraction,
    time::{self, Date},
};
use polybus_patterns::claim::ClaimPrefix;

use crate::{Claims, error, folder, telemetry};

/// What a sweep has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweepReport {
    /// How many payloads it deleted.
    pub deleted: u64,
    /// How many days it found whose retention has ended.
    pub days: u64,
}

impl Claims {
    /// Deletes the payloads whose retention has ended: those of each day, by the date in their names, once
    /// [`retention`](Self::retention) has passed since that day ended. In a folder, a file that was written later than
    /// that stays as well: its name is the word of a producer, whose clock may have been wrong.
    ///
    /// It deletes what has the name of a claim under the [prefix](Self::new), and nothing else. Several may run at
    /// once, in any number of processes. It holds no list of payloads in memory.
    ///
    /// # Errors
    /// - `Unsupported`: the store is no [local folder](Self::folder), and
    ///   [`sweep_by_listing`](Self::sweep_by_listing) was not called.
    /// - The first one of the store. What could be deleted is deleted all the same.
    ///
    /// # Cancel safety
    /// Dropping the future ends the sweep; the next one goes on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// let claims = polybus_claims::Claims::folder(folder.path(), "claims")?;
    /// assert_eq!(claims.sweep().await?.deleted, 0);
    /// # Ok(()) }
    /// ```
    pub async fn sweep(&self) -> Result<SweepReport> {
        self.may_sweep()?;
        let mut report = SweepReport::default();
        let mut failed = None;
        for day in self.old_days().await? {
            report.days += 1;
            self.sweep_day(day, &mut report, &mut failed).await;
        }
        telemetry::swept(report.deleted);
        if report.deleted > 0 {
            tracing::debug!(target: "polybus", prefix = %self.prefix, deleted = report.deleted, "old claims are gone");
        }
        failed.map_or(Ok(report), Err)
    }

    /// Sweeps again and again, as long as the future is polled: the first time within a tenth of the interval, so that
    /// processes that start together do not sweep together. What fails is logged, and done again.
    ///
    /// # Errors
    /// `Unsupported`, at once, where [`sweep`](Self::sweep) is. It ends with nothing else.
    ///
    /// # Cancel safety
    /// Dropping the future ends it.
    ///
    /// ```no_run
    /// # async fn example(claims: polybus_claims::Claims) {
    /// let sweeper = tokio::spawn(async move { claims.sweep_every(std::time::Duration::from_secs(3600)).await });
    /// # }
    /// ```
    pub async fn sweep_every(&self, interval: Duration) -> Result<()> {
        self.may_sweep()?;
        let mut wait = interval.mul_f64(0.1 * random_fraction());
        loop {
            tokio::time::sleep(wait).await;
            wait = interval.max(Duration::from_secs(1));
            if let Err(error) = self.sweep().await {
                let prefix = &self.prefix;
                tracing::warn!(target: "polybus", %prefix, %error, "old claims could not be swept, later again");
            }
        }
    }

    fn may_sweep(&self) -> Result<()> {
        if self.root.is_some() || self.may_list {
            return Ok(());
        }
        let text = "claims: a sweep lists the store, and clouds are paid for that: let the bucket delete by \
                    Claims::lifecycle_rule, or call sweep_by_listing";
        Err(Error::unsupported(text).with_operation("sweep"))
    }

    /// The days under the prefix whose retention has ended.
    async fn old_days(&self) -> Result<Vec<Date>> {
        let names = match &self.root {
            Some(root) => folder::names(root.join(self.prefix.as_str())).await?,
            None => {
                let prefix = Path::from(self.prefix.as_str());
                let listed = self.request("sweep", self.store.list_with_delimiter(Some(&prefix))).await?;
                let listed = listed.map_err(|e| error::map(&e, "sweep"))?;
                listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect()
            }
        };
        Ok(names.iter().filter_map(|name| ClaimPrefix::day(name)).filter(|day| self.has_ended(*day)).collect())
    }

    /// Whether the retention of all payloads of a day has ended.
    fn has_ended(&self, day: Date) -> bool {
        let ends = day.next_day().map(|next| next.midnight().assume_utc());
        let retention = time::Duration::try_from(self.retention).ok();
        let gone = ends.zip(retention).and_then(|(ends, retention)| ends.checked_add(retention));
        gone.is_some_and(|gone| gone <= self.clock.now())
    }

    /// What a folder's files must have been written before, in seconds since 1970, to be deleted. Clouds are listed at a
    /// price, by their names alone.
    fn written_before(&self) -> Option<i64> {
        self.root.as_ref()?;
        let retention = i64::try_from(self.retention.as_secs()).unwrap_or(i64::MAX);
        Some(self.clock.now().unix_timestamp().saturating_sub(retention))
    }

    async fn sweep_day(&self, day: Date, report: &mut SweepReport, failed: &mut Option<Error>) {
        let prefix = self.prefix.clone();
        let listed = self.store.list(Some(&Path::from(self.prefix.folder(day))));
        let written_before = self.written_before();
        let paths = listed.filter_map(move |found| {
            // The name is the producer's word, and its clock may have been years behind.
            let is_old = |meta: &ObjectMeta| written_before.is_none_or(|end| meta.last_modified.timestamp() <= end);
            let own = |meta: &ObjectMeta| prefix.day_of(meta.location.as_ref()).is_ok() && is_old(meta);
            let path = found.map(|meta| Some(meta).filter(own).map(|meta| meta.location));
            future::ready(path.transpose())
        });
        let mut deletions = self.store.delete_stream(paths.boxed());
        loop {
            let next = async { Ok(deletions.next().await) };
            match self.request("sweep", next).await {
                Ok(Ok(Some(Ok(_)))) => report.deleted += 1,
                // Another process was first.
                Ok(Ok(Some(Err(object_store::Error::NotFound { .. })))) => {}
                Ok(Ok(Some(Err(e))) | Err(e)) => {
                    failed.get_or_insert(error::map(&e, "sweep"));
                }
                Ok(Ok(None)) => break,
                Err(e) => {
                    failed.get_or_insert(e);
                    break;
                }
            }
        }
        if let Some(root) = &self.root {
            folder::tidy(root.join(self.prefix.folder(day))).await;
        }
    }
}

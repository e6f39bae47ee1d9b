//! Moving dead letters back to where they came from.

use std::{collections::HashSet, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{Bus, Delivery, Envelope, Error, Result, SettleError, Settlement, Source, Stats, Subscription};

/// Nothing more is expected once the dead letters have been silent this long.
const QUIET: Duration = Duration::from_secs(2);
/// The same, where as many as were counted have come.
const SHORT_QUIET: Duration = Duration::from_millis(500);
/// Moves under way at once.
const UNDER_WAY: usize = 64;
/// Dead letters held at once, at first.
const WINDOW: usize = 128;
/// Unmatched dead letters are held until the end, so this bounds how many can be looked at.
const MOST_UNMATCHED: usize = 10_000;

impl Bus {
    /// Moves dead letters of `source` back to it, and to it alone: same id and headers, counters and reasons stripped.
    /// Returns how many were moved.
    ///
    /// Ends at `limit`, at the number of dead letters there were at the start (where the broker's counts are exact), at the
    /// first one that was dead-lettered after the start, or when no more come. Those that `filter` refuses are held
    /// meanwhile and given back at the end; of more than 10,000 such, the rest is not looked at. Each message is copied,
    /// confirmed, then settled: after a crash one may be there twice, none is lost. Order is not kept. On an error, what was
    /// moved stays moved. Dropping the future gives back what was not moved.
    pub async fn redrive(
        &self,
        source: &Source,
        filter: impl FnMut(&Envelope) -> bool + Send,
        limit: usize,
    ) -> Result<u64> {
        let moved = self.redrive_from(source, filter, limit).await;
        moved.map_err(|e| self.inner.located(e, "redrive"))
    }

    async fn redrive_from(
        &self,
        source: &Source,
        mut filter: impl FnMut(&Envelope) -> bool + Send,
        limit: usize,
    ) -> Result<u64> {
        if source.is_dead_letters() {
            return Err(Error::invalid("redrive takes the live source, not its dead letters").with("source", source));
        }
        let can = self.capabilities();
        if !can.redrive {
            return Err(Error::unsupported("this broker's dead letters cannot be moved back").with("source", source));
        }
        if limit == 0 {
            return Ok(0);
        }
        let began = self.now();
        let stats = if can.stats { self.stats(source).await? } else { Stats::default() };
        let counted = stats.dead_lettered.unwrap_or(u64::MAX);
        // A count that lags may be of before others gave dead letters back: what comes is believed, not what is counted.
        let depth = if stats.approximate { u64::MAX } else { counted };
        let open = |window| self.subscribe(source.dead_letters()).prefetch(window).open();
        let mut window = limit.min(usize::try_from(depth).unwrap_or(usize::MAX)).clamp(1, WINDOW);
        let mut letters = open(window).await?;
        // Consumers whose window is full of what the filter refused; they hold it until the end.
        let mut full: Vec<Subscription> = Vec::new();
        let mut refused = 0;
        let mut moving: JoinSet<Result<(), SettleError>> = JoinSet::new();
        let mut unmatched: Vec<Delivery> = Vec::new();
        let mut ids: HashSet<Box<str>> = HashSet::new();
        let (mut seen, mut started, mut moved) = (0u64, 0usize, 0u64);
        let mut result = Ok(());
        while seen < depth && started < limit && result.is_ok() {
            if refused == window {
                window = (window * 2).min(MOST_UNMATCHED.saturating_sub(unmatched.len()));
                if window == 0 {
                    break;
                }
                let next = match letters.stop().await {
                    Ok(()) => open(window).await,
                    Err(e) => Err(e),
                };
                match next {
                    Ok(next) => full.push(std::mem::replace(&mut letters, next)),
                    Err(e) => {
                        result = Err(e);
                        break;
                    }
                }
                refused = 0;
            }
            let quiet = if seen < counted { QUIET } else { SHORT_QUIET };
            let letter = tokio::select! {
                biased;
                Some(done) = moving.join_next(), if moving.len() >= UNDER_WAY => {
                    result = count(done, &mut moved);
                    continue;
                }
                letter = timeout_at(Instant::now() + quiet, letters.next()) => letter,
            };
            let letter = match letter {
                Ok(Some(Ok(letter))) => letter,
                Ok(Some(Err(e))) => {
                    result = Err(e);
                    break;
                }
                Ok(None) | Err(_) => break,
            };
            let newer = letter.dead_letter_info().and_then(|d| d.time).is_some_and(|at| at > began);
            // Clocks may differ: one that was moved already has died again.
            let again = stats.approximate && ids.contains(&letter.envelope().id);
            if newer || again {
                unmatched.push(letter);
                break;
            }
            seen += 1;
            if filter(letter.envelope()) {
                started += 1;
                if stats.approximate {
                    ids.insert(letter.envelope().id.clone());
                }
                moving.spawn(letter.finish(Settlement::Redrive, None));
            } else {
                refused += 1;
                unmatched.push(letter);
            }
        }
        while let Some(done) = moving.join_next().await {
            result = result.and(count(done, &mut moved));
        }
        // Each one goes back to the head: the last first keeps their order.
        for letter in unmatched.into_iter().rev() {
            letter.finish(Settlement::GiveBack, None).await.map_err(Error::from)?;
        }
        full.push(letters);
        for mut letters in full {
            result = result.and(letters.close().await);
        }
        result.map(|()| moved)
    }
}

fn count(done: Result<Result<(), SettleError>, tokio::task::JoinError>, moved: &mut u64) -> Result<()> {
    match done {
        Ok(Ok(())) => {
            *moved += 1;
            Ok(())
        }
        Ok(Err(e)) => Err(e.into()),
        Err(e) => Err(Error::new(crate::Kind::Unexpected, format!("a redrive task ended: {e}"))),
    }
}

//! The loop of a subscription.

use std::{future::Future, pin::pin, time::Duration};

use polybus_core::{HandlerError, Result, driver::kit::backoff::Backoff, topology::TypeFilter};
use tokio::{sync::watch, time::Instant};

use super::{
    attempt::{Attempt, Batch, move_on},
    builder::{Subscription, SubscriptionReport},
    floor_watch::FloorWatch,
    holder::SubscriptionHolder,
};
use crate::{
    log::{EventPage, LoggedEvent},
    patience,
    reruns::Reruns,
    store::{
        ChangeListener, Checkpoint, LogStore, LookTimes, StoppedSubscription,
        calls::{MAX_DATABASE_BACKOFF, in_time, is_final, rows_limit, verify},
    },
    telemetry,
};

/// How many events are read at once.
const READ: u32 = 1_000;

/// How often a checkpoint is written that has passed events which are not wanted.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// How often a subscription that stands still, or that another process runs, is looked at.
const STANDING_LOOK: Duration = Duration::from_secs(1);

/// The longest reason that is kept, in bytes.
const MAX_WHY: usize = 2_000;

pub(super) async fn run<S: LogStore, A: Attempt<S>>(
    subscription: Subscription<S>,
    shutdown: impl Future<Output = ()>,
    how: A,
) -> Result<SubscriptionReport> {
    let control = subscription.log.store.control();
    let (stop, stopping) = watch::channel(false);
    let mut shutdown = pin!(shutdown);
    tokio::select! {
        verified = verify(&*control, &["lease", "log"]) => verified?,
        () = &mut shutdown => return Ok(SubscriptionReport::default()),
    }
    let holder = SubscriptionHolder::new(control.clone(), &subscription.name, subscription.settings.lease);
    let table = subscription.log.store.log();
    let mut engine = Engine {
        changes: control.changes().listen(),
        looks: LookTimes::new(subscription.settings.poll),
        floor: FloorWatch::new(table, control),
        subscription,
        holder,
        how,
        stopping,
        stored: None,
        seen: 0,
        saved_at: Instant::now(),
        said_stopped: false,
        report: SubscriptionReport::default(),
    };
    let ended = {
        let mut work = pin!(engine.work());
        tokio::select! {
            ended = &mut work => ended,
            () = shutdown => {
                // What is under way comes to its end.
                stop.send_replace(true);
                work.await
            }
        }
    };
    engine.holder.leave().await;
    ended.map(|()| engine.report)
}

struct Engine<S, A> {
    subscription: Subscription<S>,
    how: A,
    holder: SubscriptionHolder,
    floor: FloorWatch,
    stopping: watch::Receiver<bool>,
    changes: ChangeListener,
    looks: LookTimes,
    /// The checkpoint as it is stored; `None` where that is to be asked for.
    stored: Option<Checkpoint>,
    /// The last event that was looked at, which may not have been wanted.
    seen: i64,
    saved_at: Instant,
    said_stopped: bool,
    report: SubscriptionReport,
}

/// What became of a batch.
enum Handled {
    Done,
    /// The checkpoint is not where it was, or the subscription stands still.
    LookAgain,
    /// It failed, and is tried again one by one.
    OneByOne,
}

impl<S: LogStore, A: Attempt<S>> Engine<S, A> {
    async fn work(&mut self) -> Result<()> {
        let mut backoff = Backoff::up_to(MAX_DATABASE_BACKOFF);
        while !*self.stopping.borrow() {
            match self.look().await {
                Ok(wait) => {
                    backoff.reset();
                    self.idle(wait).await;
                }
                Err(e) if is_final(&e) => return Err(e),
                Err(e) => {
                    let name = &*self.subscription.name;
                    tracing::warn!(target: "polybus", subscription = name, error = %e, "the event log cannot be read; trying again");
                    self.stored = None;
                    self.wait(backoff.next_wait()).await;
                }
            }
        }
        // Where the database is away, the events are passed again at the next start.
        drop(tokio::time::timeout(self.subscription.settings.lease, self.save()).await);
        Ok(())
    }

    /// One look. Answers how long to wait for the next one: `None` until there may be events.
    async fn look(&mut self) -> Result<Option<Duration>> {
        self.looks.looking();
        if !self.holder.holds().await? {
            self.stored = None;
            return Ok(Some(STANDING_LOOK.min(self.subscription.settings.lease / 3)));
        }
        let Some(stored) = self.checkpoint().await? else { return Ok(Some(STANDING_LOOK)) };
        let log = &self.subscription.log;
        let page = log.read_all(self.seen.max(stored.position), READ).await?;
        self.floor.looked(page.held_back, self.seen.max(stored.position)).await;
        if page.events.is_empty() {
            if self.saved_at.elapsed() >= SAVE_INTERVAL {
                self.save().await;
            }
            return Ok(None);
        }
        let has_more = page.has_more;
        self.handle_page(page).await;
        Ok((has_more || self.stored.is_none()).then_some(Duration::ZERO))
    }

    /// The checkpoint; `None` where the subscription stands still.
    async fn checkpoint(&mut self) -> Result<Option<Checkpoint>> {
        if let Some(stored) = self.stored {
            return Ok(Some(stored));
        }
        let (log, name) = (&self.subscription.log, &*self.subscription.name);
        let table = log.store.log();
        let make = table.make_subscription(name, self.subscription.settings.begin_behind);
        let found = in_time(rows_limit(&*log.store.control()), make).await?;
        telemetry::log_stopped(name, found.stopped.is_some());
        if let Some(stopped) = found.stopped {
            if !std::mem::replace(&mut self.said_stopped, true) {
                let StoppedSubscription { at, why, .. } = stopped;
                tracing::error!(target: "polybus", subscription = name, ?at, why, "a subscription stands still: resume it, or skip the event");
            }
            return Ok(None);
        }
        self.said_stopped = false;
        self.seen = found.checkpoint.position;
        self.stored = Some(found.checkpoint);
        Ok(self.stored)
    }

    async fn handle_page(&mut self, page: EventPage) {
        let most = self.subscription.settings.batch;
        let mut rest = page.events.as_slice();
        let mut one_by_one = 0;
        while !rest.is_empty() && !*self.stopping.borrow() {
            let limit = if one_by_one > 0 { 1 } else { most };
            let (events, taken) = next_batch(rest, &self.subscription.types, limit);
            let Some(last) = rest.get(taken.wrapping_sub(1)) else { return };
            if events.is_empty() {
                self.seen = last.position;
                rest = &rest[taken..];
                continue;
            }
            let count = events.len();
            match self.handle(&events, last.position).await {
                Handled::Done => {
                    one_by_one = usize::saturating_sub(one_by_one, 1);
                    rest = &rest[taken..];
                }
                Handled::OneByOne => one_by_one = count,
                Handled::LookAgain => {
                    self.stored = None;
                    return;
                }
            }
        }
    }

    /// Handles a batch, as often as it takes.
    async fn handle(&mut self, events: &[LoggedEvent], to: i64) -> Handled {
        let control = self.subscription.log.store.control();
        let (mut reruns, mut attempt) = (Reruns::default(), 1);
        loop {
            let Some(from) = self.stored else { return Handled::LookAgain };
            // It has no limit but the shutdown: nobody else could handle it either.
            tokio::select! {
                _ = patience::wait_while_away(&control, None) => {}
                _ = self.stopping.wait_for(|stopping| *stopping) => {}
            }
            if *self.stopping.borrow() {
                return Handled::LookAgain;
            }
            let name = &*self.subscription.name;
            let batch = Batch { subscription: name, events, from, to };
            let error = match self.how.try_once(&self.subscription.log.store, &batch).await {
                Ok(true) => {
                    self.stored = Some(Checkpoint { position: to, token: from.token });
                    (self.seen, self.saved_at) = (to, Instant::now());
                    self.report.handled += events.len() as u64;
                    telemetry::log_handled(name, events.len() as u64);
                    return Handled::Done;
                }
                Ok(false) => return Handled::LookAgain,
                Err(error) => error,
            };
            self.report.failed += 1;
            let trouble = self.subscription.log.store.judge(error.error());
            if !error.is_permanent() {
                let again = tokio::select! {
                    again = reruns.again(trouble, error.error(), &control, None) => again,
                    _ = self.stopping.wait_for(|stopping| *stopping) => true,
                };
                if again {
                    continue;
                }
            }
            if events.len() > 1 {
                return Handled::OneByOne;
            }
            if error.is_permanent() || attempt >= self.subscription.settings.max_attempts {
                self.stop_at(&events[0], &error).await;
                return Handled::LookAgain;
            }
            let delay = self.subscription.settings.retry.delay(attempt);
            tracing::warn!(
                target: "polybus", subscription = name, position = events[0].position, attempt, error = %error.error(),
                "a subscription's handler failed; trying again"
            );
            self.wait(delay).await;
            if *self.stopping.borrow() {
                return Handled::LookAgain;
            }
            attempt += 1;
        }
    }

    /// Going on would leave out what later events rely on.
    async fn stop_at(&mut self, event: &LoggedEvent, error: &HandlerError) {
        let (store, name) = (&self.subscription.log.store, &*self.subscription.name);
        let Some(at) = self.stored else { return };
        let mut why = error.error().to_string();
        why.truncate(why.floor_char_boundary(MAX_WHY));
        let stopped = StoppedSubscription { at: Some(event.position), why, since: 0 };
        let table = store.log();
        let stop = table.stop_subscription(name, &at, &stopped);
        // Where it cannot be written, the next look tries the event again, and stops then.
        if let Err(e) = in_time(rows_limit(&*store.control()), stop).await {
            tracing::warn!(target: "polybus", subscription = name, error = %e, "a subscription cannot be stopped; trying again");
        }
    }

    /// Writes a checkpoint that has passed events which were not wanted.
    async fn save(&mut self) {
        let Some(from) = self.stored else { return };
        self.saved_at = Instant::now();
        if self.seen <= from.position {
            return;
        }
        let batch = Batch { subscription: &self.subscription.name, events: &[], from, to: self.seen };
        match move_on(&self.subscription.log.store, &batch).await {
            Ok(true) => self.stored = Some(Checkpoint { position: self.seen, token: from.token }),
            // They are passed again.
            Ok(false) | Err(_) => self.stored = None,
        }
    }

    async fn idle(&mut self, wait: Option<Duration>) {
        match wait {
            Some(wait) => self.wait(wait).await,
            None => {
                while !self.looks.is_due() && !*self.stopping.borrow() {
                    tokio::select! {
                        () = tokio::time::sleep_until(self.looks.next()) => {}
                        committed = self.changes.changed() => match committed {
                            true => return,
                            false => self.looks.written(),
                        },
                        _ = self.stopping.changed() => return,
                    }
                }
            }
        }
    }

    async fn wait(&mut self, wait: Duration) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = self.stopping.changed() => {}
        }
    }
}

/// The wanted events of the next batch, and how many events of the page it passes.
fn next_batch(page: &[LoggedEvent], types: &[TypeFilter], limit: usize) -> (Vec<LoggedEvent>, usize) {
    let is_wanted =
        |event: &LoggedEvent| types.is_empty() || types.iter().any(|wanted| wanted.matches(&event.message.event_type));
    let mut events = Vec::new();
    for (place, event) in page.iter().enumerate() {
        if is_wanted(event) {
            if events.len() == limit {
                return (events, place);
            }
            events.push(event.clone());
        }
    }
    (events, page.len())
}

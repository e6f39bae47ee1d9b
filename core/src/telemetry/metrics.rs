//! The metrics. Handles are resolved once, when a publisher or a consumer is opened.

use std::{sync::Arc, time::Duration};

#[cfg(feature = "metrics")]
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

#[cfg(not(feature = "metrics"))]
use super::no_metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use crate::{Address, Error, ErrorKind, Source, driver::Settlement};

const PUBLISHED: &str = "polybus_published_total";
const PUBLISH_DURATION: &str = "polybus_publish_duration_seconds";
const RECEIVED: &str = "polybus_received_total";
const RECEIVE_FAILED: &str = "polybus_receive_failed_total";
const REFUSED: &str = "polybus_consumers_refused";
const SETTLED: &str = "polybus_settled_total";
const RETRIED: &str = "polybus_retried_total";
const DEAD_LETTERED: &str = "polybus_dead_lettered_total";
const EXPIRED: &str = "polybus_expired_total";
const UNWANTED: &str = "polybus_unwanted_total";
const RENEWAL_FAILED: &str = "polybus_renewal_failed_total";
const BLOCKED_KEYS: &str = "polybus_blocked_keys";
const LOCK_LOST: &str = "polybus_lock_lost_total";
const HANDLED: &str = "polybus_handled_total";
const HANDLE_DURATION: &str = "polybus_handle_duration_seconds";
const HANDLERS_RUNNING: &str = "polybus_handlers_running";

fn describe() {
    describe_counter!(PUBLISHED, "Publishes by outcome");
    describe_histogram!(PUBLISH_DURATION, Unit::Seconds, "From the publish call to the broker's confirm");
    describe_counter!(RECEIVED, "Messages handed out");
    describe_counter!(RECEIVE_FAILED, "Receives that failed and are tried again");
    describe_gauge!(REFUSED, "Consumers that the broker refuses now");
    describe_counter!(SETTLED, "Settlements by kind and outcome");
    describe_counter!(RETRIED, "Messages that will come again after a delay");
    describe_counter!(DEAD_LETTERED, "Messages moved to the dead letters");
    describe_counter!(EXPIRED, "Messages past their expiry, not handed out");
    describe_counter!(UNWANTED, "Messages that match none of the subscription's types, by what is done with them");
    describe_counter!(RENEWAL_FAILED, "Renewals of locks that failed and are tried again");
    describe_gauge!(BLOCKED_KEYS, "Keys whose backlog holds back an ordered source's prefetch window");
    describe_counter!(LOCK_LOST, "Deliveries whose lock was lost before they were settled");
    describe_counter!(HANDLED, "Handler runs by outcome");
    describe_histogram!(HANDLE_DURATION, Unit::Seconds, "How long handlers ran");
    describe_gauge!(HANDLERS_RUNNING, "Handlers running now");
}

/// Counts the publishes to one address.
#[derive(Clone)]
pub(crate) struct PublishMetrics {
    backend: &'static str,
    address: Arc<str>,
    ok: Counter,
    duration: Histogram,
}

impl PublishMetrics {
    pub(crate) fn new(backend: &'static str, address: &Address) -> Self {
        describe();
        let address: Arc<str> = address.to_string().into();
        let ok = counter!(PUBLISHED, "backend" => backend, "address" => address.clone(), "outcome" => "ok");
        let duration = histogram!(PUBLISH_DURATION, "backend" => backend, "address" => address.clone());
        Self { backend, address, ok, duration }
    }

    /// One publish that the broker took.
    pub(crate) fn ok(&self, took: Duration) {
        self.ok.increment(1);
        self.duration.record(took);
    }

    /// One publish that failed.
    pub(crate) fn failed(&self, error: &Error) {
        let outcome = error.kind().as_str();
        counter!(PUBLISHED, "backend" => self.backend, "address" => self.address.clone(), "outcome" => outcome)
            .increment(1);
    }
}

/// Counts what happens to the deliveries of one source.
#[derive(Clone)]
pub(crate) struct ConsumeMetrics {
    backend: &'static str,
    source: Arc<str>,
    received: Counter,
    acked: Counter,
    retried: Counter,
    expired: Counter,
    lock_lost: Counter,
}

impl ConsumeMetrics {
    pub(crate) fn new(backend: &'static str, source: &Source) -> Self {
        describe();
        let source: Arc<str> = source.to_string().into();
        let plain = |name| counter!(name, "backend" => backend, "source" => source.clone());
        Self {
            backend,
            received: plain(RECEIVED),
            acked: settled(backend, &source, "ack", "ok"),
            retried: plain(RETRIED),
            expired: plain(EXPIRED),
            lock_lost: plain(LOCK_LOST),
            source,
        }
    }

    /// This many messages were handed out.
    pub(crate) fn received(&self, n: u64) {
        self.received.increment(n);
    }

    /// The broker begins (`yes`) or ends to refuse this consumer.
    pub(crate) fn refused(&self, yes: bool) {
        let refused = gauge!(REFUSED, "backend" => self.backend, "source" => self.source.clone());
        if yes { refused.increment(1.0) } else { refused.decrement(1.0) }
    }

    /// A receive failed and will be tried again after a pause.
    pub(crate) fn receive_failed(&self, error: &Error) {
        let reason = error.context("quota").map_or_else(|| error.kind().as_str().to_owned(), ToOwned::to_owned);
        counter!(RECEIVE_FAILED, "backend" => self.backend, "source" => self.source.clone(), "reason" => reason)
            .increment(1);
    }

    /// The driver answered Ok to this many acks. This is the fast path of [`Self::settled`].
    pub(crate) fn acked(&self, n: u64) {
        self.acked.increment(n);
    }

    /// A settlement and its answer. Counts retries, dead letters and lost locks too.
    pub(crate) fn settled(&self, how: &Settlement, result: Result<(), &Error>) {
        let name = match how {
            Settlement::Ack if result.is_ok() => return self.acked(1),
            Settlement::Ack => "ack",
            Settlement::Release => "release",
            Settlement::GiveBack => "give_back",
            Settlement::RetryAfter(_) => "retry",
            Settlement::DeadLetter { .. } => "dead_letter",
            Settlement::Redrive | Settlement::RedriveAs(_) => "redrive",
            Settlement::SetAside => "set_aside",
        };
        let outcome = result.map_or_else(|e| e.kind().as_str(), |()| "ok");
        settled(self.backend, &self.source, name, outcome).increment(1);
        match (how, result) {
            (Settlement::RetryAfter(_), Ok(())) => self.retried.increment(1),
            (Settlement::DeadLetter { reason, .. }, Ok(())) => {
                let (source, reason) = (self.source.clone(), reason.to_string());
                counter!(DEAD_LETTERED, "backend" => self.backend, "source" => source, "reason" => reason).increment(1);
            }
            (_, Err(e)) if e.kind() == ErrorKind::LockLost => self.lock_lost(),
            _ => {}
        }
    }

    /// A release or a retry waits in this process, ahead of its key: the broker was not asked.
    pub(crate) fn held_in_place(&self, delayed: bool) {
        settled(self.backend, &self.source, "held_in_place", "ok").increment(1);
        if delayed {
            self.retried.increment(1);
        }
    }

    /// A message past its expiry was not handed out.
    pub(crate) fn expired(&self) {
        self.expired.increment(1);
    }

    /// A message matches none of the types; `policy` is what will be done with it.
    pub(crate) fn unwanted(&self, policy: &'static str) {
        counter!(UNWANTED, "backend" => self.backend, "source" => self.source.clone(), "policy" => policy).increment(1);
    }

    /// The renewal of a lock failed and will be tried again.
    pub(crate) fn renewal_failed(&self, error: &Error) {
        let reason = error.kind().as_str();
        counter!(RENEWAL_FAILED, "backend" => self.backend, "source" => self.source.clone(), "reason" => reason)
            .increment(1);
    }

    /// The prefetch window is full, and this many keys hold messages back.
    pub(crate) fn blocked_keys(&self, keys: usize) {
        gauge!(BLOCKED_KEYS, "backend" => self.backend, "source" => self.source.clone()).set(keys as f64);
    }

    /// A lock was lost before the delivery was settled, for example while it waited in the buffer.
    pub(crate) fn lock_lost(&self) {
        self.lock_lost.increment(1);
    }
}

fn settled(backend: &'static str, source: &Arc<str>, settlement: &'static str, outcome: &'static str) -> Counter {
    counter!(SETTLED, "backend" => backend, "source" => source.clone(), "settlement" => settlement, "outcome" => outcome)
}

/// Counts the handler runs of one worker.
#[derive(Clone)]
pub(crate) struct HandleMetrics {
    backend: &'static str,
    source: Arc<str>,
    ok: Counter,
    duration: Histogram,
    running: Gauge,
}

impl HandleMetrics {
    pub(crate) fn new(backend: &'static str, source: &Source) -> Self {
        describe();
        let source: Arc<str> = source.to_string().into();
        Self {
            backend,
            ok: handled(backend, &source, "ok"),
            duration: histogram!(HANDLE_DURATION, "backend" => backend, "source" => source.clone()),
            running: gauge!(HANDLERS_RUNNING, "backend" => backend, "source" => source.clone()),
            source,
        }
    }

    /// A handler begins.
    pub(crate) fn started(&self) {
        self.running.increment(1.0);
    }

    /// A handler has ended, one way or another.
    pub(crate) fn ended(&self, outcome: &'static str, took: Duration) {
        self.running.decrement(1.0);
        self.duration.record(took);
        match outcome {
            "ok" => self.ok.increment(1),
            other => handled(self.backend, &self.source, other).increment(1),
        }
    }
}

fn handled(backend: &'static str, source: &Arc<str>, outcome: &'static str) -> Counter {
    counter!(HANDLED, "backend" => backend, "source" => source.clone(), "outcome" => outcome)
}

//! Whether a scenario concerns a target.

use std::time::Duration;

use polybus_core::driver::{Capabilities, KeyHolder};

use crate::{Raw, Restart, Target};

/// Whether a scenario runs on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// It runs.
    Run,
    /// It is listed as not supported, with the reason.
    NotSupported(String),
    /// It says nothing about this target (the negative twin of a capability that is there): not listed.
    NotConcerned,
}

/// Why a broker is not restarted. One that could be is not left out without a word.
fn no_restart(t: &Target) -> &'static str {
    match (&t.broker, t.restart) {
        (Some(_), Restart::None) => {
            "a broker that could be restarted, but target.restart is Restart::None: use Target::restarts"
        }
        _ => "no restart",
    }
}

impl Need {
    /// Runs if so, else not supported for this reason.
    pub fn when(yes: bool, reason: impl Into<String>) -> Self {
        if yes { Self::Run } else { Self::NotSupported(reason.into()) }
    }

    /// Runs if so, else is not listed: for negative scenarios, `Need::only_if(!c.topics)`.
    pub fn only_if(yes: bool) -> Self {
        if yes { Self::Run } else { Self::NotConcerned }
    }

    /// Both must run; the first that does not is the answer.
    pub fn and(self, other: Self) -> Self {
        if self == Self::Run { other } else { self }
    }

    /// Topics and subscriptions.
    pub fn topics(c: &Capabilities) -> Self {
        Self::when(c.topics, "no topics")
    }

    /// Ordering per key.
    pub fn ordered(c: &Capabilities) -> Self {
        Self::when(c.ordered.is_some(), "no ordering")
    }

    /// Ordering per key over topics.
    pub fn ordered_topics(c: &Capabilities) -> Self {
        Self::ordered(c).and(Self::topics(c))
    }

    /// A key held by the broker, not in the client.
    pub fn broker_hold(c: &Capabilities) -> Self {
        let holds = c.ordered.as_ref().is_some_and(|o| o.hold == KeyHolder::Broker);
        Self::ordered(c).and(Self::when(holds, "keys are held in the client"))
    }

    /// More than one active consumer of an ordered source.
    pub fn scale_out(c: &Capabilities) -> Self {
        let shares = c.ordered.as_ref().is_some_and(|o| o.scale_out);
        Self::ordered(c).and(Self::when(shares, "further consumers are standby"))
    }

    /// Locks that run out and can be renewed.
    pub fn locks(c: &Capabilities) -> Self {
        Self::when(c.locks, "no renewable locks")
    }

    /// Dead letters.
    pub fn dead_letters(c: &Capabilities) -> Self {
        Self::when(c.dead_letters, "no dead letters")
    }

    /// Redrive.
    pub fn redrive(c: &Capabilities) -> Self {
        Self::dead_letters(c).and(Self::when(c.redrive, "no redrive"))
    }

    /// `retry_after` of this much.
    pub fn retry(c: &Capabilities, by: Duration) -> Self {
        Self::delay(c.max_retry_delay, by, "retry_after")
    }

    /// A publish delay of this much on queues.
    pub fn queue_delay(c: &Capabilities, by: Duration) -> Self {
        Self::delay(c.max_queue_delay, by, "delay on queues")
    }

    /// A publish delay of this much on topics.
    pub fn topic_delay(c: &Capabilities, by: Duration) -> Self {
        Self::topics(c).and(Self::delay(c.max_topic_delay, by, "delay on topics"))
    }

    fn delay(most: Option<Duration>, by: Duration, what: &str) -> Self {
        match most {
            None => Self::NotSupported(format!("no {what}")),
            Some(most) => Self::when(most >= by, format!("{what} of at most {most:?}")),
        }
    }

    /// `declare`, `verify` and `delete`.
    pub fn declare(c: &Capabilities) -> Self {
        Self::when(c.declare, "no declare")
    }

    /// `stats`.
    pub fn stats(c: &Capabilities) -> Self {
        Self::when(c.stats, "no stats")
    }

    /// `purge`.
    pub fn purge(c: &Capabilities) -> Self {
        Self::when(c.purge, "no purge")
    }

    /// A known largest message on queues.
    pub fn queue_limit(c: &Capabilities) -> Self {
        Self::when(c.max_queue_payload.is_some(), "no known size limit")
    }

    /// Acks known to the broker.
    pub fn confirmed_settlement(c: &Capabilities) -> Self {
        Self::when(c.confirmed_settlement, "acks are not confirmed")
    }

    /// Attempts never too low after a crash.
    pub fn attempts_across_crash(c: &Capabilities) -> Self {
        Self::when(c.attempts_across_crash, "attempts are not counted across a crash")
    }

    /// Messages that polybus did not write can be put there.
    pub fn raw(t: &Target) -> Self {
        Self::when(t.raw.is_some(), "no way to publish foreign messages")
    }

    /// Such a message of others can be put there.
    pub fn carries(t: &Target, raw: &Raw) -> Self {
        let carries = t.raw.as_ref().is_some_and(|injector| injector.carries(raw));
        Self::raw(t).and(Self::when(carries, "its messages cannot carry that"))
    }

    /// A proxy can stand before the broker.
    pub fn proxy(t: &Target) -> Self {
        Self::when(
            t.upstream.is_some(),
            "no network connection to cut: a closure without upstream, or a URL without a port (Connector::default_port)",
        )
    }

    /// The broker can be killed and started, and keeps what it had.
    pub fn durable_restart(t: &Target) -> Self {
        let can = t.broker.is_some() && t.restart == Restart::Durable;
        Self::when(can, if t.restart == Restart::Volatile { "nothing survives a restart" } else { no_restart(t) })
    }

    /// The broker can be killed and started, and comes back empty.
    pub fn forgetful_restart(t: &Target) -> Self {
        let can = t.broker.is_some() && t.restart == Restart::Volatile;
        let reason = if t.restart == Restart::Durable { "what is there survives a restart" } else { no_restart(t) };
        Self::when(can, reason)
    }

    /// The broker can be made to hold publishers back.
    pub fn blocking(t: &Target) -> Self {
        Self::when(t.broker.as_ref().is_some_and(|b| b.can_block()), "no way to block publishers")
    }

    /// Another process sees the same entities.
    pub fn processes(t: &Target) -> Self {
        Self::when(t.processes, "lives in one process, or its URL names no port (Connector::default_port)")
    }
}

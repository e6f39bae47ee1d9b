//! On which targets a scenario runs, and why not on the others.

use std::time::Duration;

use polybus_core::driver::{Capabilities, KeyHolder};

use crate::{RawMessage, Restart, Target};

/// Whether a scenario runs on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// It runs.
    Run,
    /// It is listed as not supported, with the reason.
    NotSupported(String),
    /// It says nothing about this target, and is not listed: the negative twin of a capability that is there.
    NotConcerned,
}

impl Need {
    /// Runs if `yes`, else is listed as not supported for this reason.
    pub fn when(yes: bool, reason: impl Into<String>) -> Self {
        if yes { Self::Run } else { Self::NotSupported(reason.into()) }
    }

    /// Runs if `yes`, else is not listed. For negative scenarios: `Need::only_if(!c.topics)`.
    pub fn only_if(yes: bool) -> Self {
        if yes { Self::Run } else { Self::NotConcerned }
    }

    /// Runs if both do, else is the first that does not.
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

    /// The broker holds the keys of an ordered source, not the client.
    pub fn broker_hold(c: &Capabilities) -> Self {
        let holds = c.ordered.as_ref().is_some_and(|o| o.hold == KeyHolder::Broker);
        Self::ordered(c).and(Self::when(holds, "keys are held in the client"))
    }

    /// An ordered source can have more than one active consumer.
    pub fn scale_out(c: &Capabilities) -> Self {
        let shares = c.ordered.as_ref().is_some_and(|o| o.scale_out);
        Self::ordered(c).and(Self::when(shares, "further consumers are standby"))
    }

    /// Locks that run out and can be renewed.
    pub fn locks(c: &Capabilities) -> Self {
        Self::when(c.locks, "no renewable locks")
    }

    /// Sources have dead letters.
    pub fn dead_letters(c: &Capabilities) -> Self {
        Self::when(c.dead_letters, "no dead letters")
    }

    /// Dead letters can be redriven.
    pub fn redrive(c: &Capabilities) -> Self {
        Self::dead_letters(c).and(Self::when(c.redrive, "no redrive"))
    }

    /// `retry_after` can wait for this long.
    pub fn retry(c: &Capabilities, by: Duration) -> Self {
        Self::delay(c.max_retry_delay, by, "retry_after")
    }

    /// A publish to a queue can be delayed by this much.
    pub fn queue_delay(c: &Capabilities, by: Duration) -> Self {
        Self::delay(c.max_queue_delay, by, "delay on queues")
    }

    /// A publish to a topic can be delayed by this much.
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

    /// The largest message on queues is known.
    pub fn queue_limit(c: &Capabilities) -> Self {
        Self::when(c.max_queue_payload.is_some(), "no known size limit")
    }

    /// An ack that is Ok has reached the broker.
    pub fn confirmed_settlement(c: &Capabilities) -> Self {
        Self::when(c.confirmed_settlement, "acks are not confirmed")
    }

    /// Attempts are never too low after a crash.
    pub fn attempts_across_crash(c: &Capabilities) -> Self {
        Self::when(c.attempts_across_crash, "attempts are not counted across a crash")
    }

    /// Messages that polybus did not write can be published.
    pub fn raw(t: &Target) -> Self {
        Self::when(t.raw.is_some(), "no way to publish foreign messages")
    }

    /// This foreign message can be published.
    pub fn carries(t: &Target, raw: &RawMessage) -> Self {
        let carries = t.raw.as_ref().is_some_and(|injector| injector.carries(raw));
        Self::raw(t).and(Self::when(carries, "its messages cannot carry that"))
    }

    /// A proxy can stand before the broker.
    pub fn proxy(t: &Target) -> Self {
        Self::when(t.upstream.is_some(), no_upstream(t, "no network connection to cut"))
    }

    /// The broker can be killed and started, and keeps what it had.
    pub fn durable_restart(t: &Target) -> Self {
        let can = t.broker.is_some() && t.restart == Restart::Durable;
        Self::when(can, if t.restart == Restart::Volatile { "nothing survives a restart" } else { "no restart" })
    }

    /// The broker can be killed and started, and comes back empty.
    pub fn forgetful_restart(t: &Target) -> Self {
        let can = t.broker.is_some() && t.restart == Restart::Volatile;
        let reason = if t.restart == Restart::Durable { "what is there survives a restart" } else { "no restart" };
        Self::when(can, reason)
    }

    /// The broker can be made to hold publishers back.
    pub fn blocking(t: &Target) -> Self {
        Self::when(t.broker.as_ref().is_some_and(|b| b.can_block()), "no way to block publishers")
    }

    /// Another process can see the same entities.
    pub fn processes(t: &Target) -> Self {
        Self::when(t.processes, no_upstream(t, "lives in one process"))
    }
}

/// Why there is no address: the port is unknown, or `otherwise` where no URL names a host.
fn no_upstream(t: &Target, otherwise: &str) -> String {
    match &t.port_unknown {
        Some(scheme) => format!("no port is known: the URL names none, and {scheme}:// has no Connector::default_port"),
        None => otherwise.into(),
    }
}

#[cfg(test)]
mod tests {
    use polybus_core::Registry;

    use super::*;
    use crate::{ClockKind, CommandBroker};

    #[test]
    fn a_missing_port_is_the_reason_for_what_is_skipped() {
        let target = Target::url("x", Registry::new(), "portless://h");
        for need in [Need::proxy(&target), Need::processes(&target)] {
            assert!(matches!(&need, Need::NotSupported(why) if why.contains("no port is known")), "{need:?}");
        }
        let closure = Target::memory("x", ClockKind::Real);
        assert_eq!(Need::processes(&closure), Need::NotSupported("lives in one process".into()));
    }

    #[test]
    fn a_restart_runs_what_it_leaves() {
        let with = |left| Target::memory("x", ClockKind::Real).restarts(CommandBroker::new("true", "true"), left);
        for (target, durable, forgetful) in [
            (with(Restart::Durable), true, false),
            (with(Restart::Volatile), false, true),
            (with(Restart::None), false, false),
            (Target::memory("x", ClockKind::Real), false, false),
        ] {
            assert_eq!(Need::durable_restart(&target) == Need::Run, durable);
            assert_eq!(Need::forgetful_restart(&target) == Need::Run, forgetful);
        }
    }
}

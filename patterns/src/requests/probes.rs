//! Probes: messages that a process sends to its own reply queue, to learn whether it is alone there.
//!
//! Brokers do not tell who else consumes a queue. But consumers of one queue share its messages, so of eight probes, sent
//! one after the other, some go to the other one. All at once they could go to one consumer, which fetches many.

use std::time::Duration;

use parking_lot::Mutex;
use polybus_core::{Bus, Envelope, Error, Outgoing, Result, Source};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use super::request_id::InstanceId;

/// The event type of a probe.
pub(super) const PROBE_TYPE: &str = "polybus.reply.probe";
/// How many are sent in a round.
const PROBES: u64 = 8;
/// How long one may take. A broker that is slow is asked again in the next round.
const LIMIT: Duration = Duration::from_secs(5);
/// Time between two probes. Both consumers wait by then: one that still settles the probe before would fetch the next.
const APART: Duration = Duration::from_millis(10);
/// Time between two rounds.
const PAUSE: Duration = Duration::from_secs(1);
/// For how long after it looked a process takes what comes for an earlier one as left over.
const LEFT_OVER: Duration = Duration::from_secs(600);
/// Probes that nobody takes do not stay in the queue.
const LIFETIME: Duration = Duration::from_secs(120);

/// The probes of one instance.
pub(super) struct Probes {
    state: Mutex<ProbeState>,
    arrived: Notify,
}

struct ProbeState {
    /// The id of the probe that is out.
    awaited: Option<String>,
    /// Whether it came back.
    is_back: bool,
    alone: Alone,
}

/// Whether this process is the only one on its queue, as far as it knows.
#[derive(Clone, Copy)]
enum Alone {
    /// It does not know, or somebody else was seen.
    No,
    /// It was when it looked, at this time.
    Since(Instant),
    /// A lease says so.
    Always,
}

impl Probes {
    /// `is_alone`: a lease says so.
    pub(super) fn new(is_alone: bool) -> Self {
        let alone = if is_alone { Alone::Always } else { Alone::No };
        Self { state: Mutex::new(ProbeState { awaited: None, is_back: false, alone }), arrived: Notify::new() }
    }

    /// Whether what comes for an earlier process was left over by it: nobody else was here when this one looked, and
    /// not long ago, since that one's calls have ended by now. One that was cut off may be back later.
    pub(super) fn is_alone(&self) -> bool {
        match self.state.lock().alone {
            Alone::No => false,
            Alone::Since(looked) => looked.elapsed() < LEFT_OVER,
            Alone::Always => true,
        }
    }

    /// Somebody else uses the queue too.
    pub(super) fn not_alone(&self) {
        let mut state = self.state.lock();
        if let Alone::Since(_) = state.alone {
            state.alone = Alone::No;
        }
    }

    /// Takes note of a probe. Answers whether it is this instance's own.
    pub(super) fn take(&self, instance: &InstanceId, probe: &Envelope) -> bool {
        let mut state = self.state.lock();
        if state.awaited.as_deref() == Some(&probe.id) {
            state.is_back = true;
            self.arrived.notify_one();
        }
        instance.owns(&probe.id)
    }

    /// Sends probes until all of a round come back. It gives up at the first that does not, once `patience` has passed.
    pub(super) async fn run(
        &self,
        bus: &Bus,
        instance: &InstanceId,
        source: &Source,
        patience: Duration,
    ) -> Result<()> {
        let begun = Instant::now();
        let mut number = 0;
        loop {
            let mut back = 0;
            for _ in 0..PROBES {
                sleep(APART).await;
                let id = instance.probe(number);
                self.expect(id.clone());
                let probe = Envelope::new(PROBE_TYPE, "{}").id(id);
                bus.publish(source.address(), Outgoing::from(probe).expires_in(LIFETIME)).await?;
                if !self.comes_back().await {
                    break;
                }
                back += 1;
                number += 1;
            }
            if back == PROBES {
                self.is_alone_now();
                return Ok(());
            }
            number += 1;
            if begun.elapsed() >= patience {
                return Err(shared(source, back));
            }
            tracing::debug!(target: "polybus", %source, back, "somebody else consumes the reply queue: waiting for its end");
            sleep(PAUSE).await;
        }
    }

    fn expect(&self, id: String) {
        let mut state = self.state.lock();
        (state.awaited, state.is_back) = (Some(id), false);
    }

    fn is_alone_now(&self) {
        let mut state = self.state.lock();
        state.awaited = None;
        if let Alone::No = state.alone {
            state.alone = Alone::Since(Instant::now());
        }
    }

    async fn comes_back(&self) -> bool {
        let deadline = Instant::now() + LIMIT;
        while !self.state.lock().is_back {
            if timeout_at(deadline, self.arrived.notified()).await.is_err() {
                return self.state.lock().is_back;
            }
        }
        true
    }
}

fn shared(source: &Source, back: u64) -> Error {
    let text = match back {
        0 => format!(
            "a message that was sent to {source} does not come back within {LIMIT:?}: another consumer takes it, or the \
             broker is very slow. Give each process a reply queue of its own, by its ordinal or by Requests::slots"
        ),
        _ => format!(
            "another consumer takes messages of {source} (the first {back} of {PROBES} probes came back), so replies \
             would get lost: give each process a reply queue of its own, by its ordinal or by Requests::slots"
        ),
    };
    Error::config(text).with_operation("open")
}

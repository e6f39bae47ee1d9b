//! Probes: messages that a process sends to its own reply queue, to learn whether it is alone there.
//!
//! Brokers do not tell who else consumes a queue. But consumers of one queue share its messages, so of eight probes, sent
//! one after the other, some go to the other one. All at once they could go to one consumer, which fetches many.

use std::{collections::HashSet, time::Duration};

use parking_lot::Mutex;
use polybus_core::{Bus, Envelope, Error, Outgoing, Result, Source};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use super::request_id::{InstanceId, RequestId};

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
/// Probes that nobody takes do not stay in the queue.
const LIFETIME: Duration = Duration::from_secs(120);

/// The probes of one instance.
pub(super) struct Probes {
    state: Mutex<ProbeState>,
    arrived: Notify,
}

struct ProbeState {
    /// The numbers of those that came back.
    back: HashSet<u64>,
    /// Whether nobody else consumed the queue when it was looked at.
    is_alone: bool,
}

impl Probes {
    /// `is_alone`: a lease says so.
    pub(super) fn new(is_alone: bool) -> Self {
        Self { state: Mutex::new(ProbeState { back: HashSet::new(), is_alone }), arrived: Notify::new() }
    }

    /// Whether nobody else consumed the queue when it was looked at: what waits there then is left over from an earlier
    /// process.
    pub(super) fn is_alone(&self) -> bool {
        self.state.lock().is_alone
    }

    /// Takes note of a probe. Answers whether it is this instance's own.
    pub(super) fn take(&self, instance: &InstanceId, probe: &Envelope) -> bool {
        let Some(id) = RequestId::parse(&probe.id).filter(|id| id.instance == *instance) else { return false };
        self.state.lock().back.insert(id.number);
        self.arrived.notify_one();
        true
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
                let probe = Envelope::new(PROBE_TYPE, "{}").id(instance.request(number));
                bus.publish(source.address(), Outgoing::from(probe).expires_in(LIFETIME)).await?;
                if !self.comes_back(number).await {
                    break;
                }
                back += 1;
                number += 1;
            }
            if back == PROBES {
                self.state.lock().is_alone = true;
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

    async fn comes_back(&self, number: u64) -> bool {
        let deadline = Instant::now() + LIMIT;
        loop {
            if self.state.lock().back.remove(&number) {
                return true;
            }
            if timeout_at(deadline, self.arrived.notified()).await.is_err() {
                return self.state.lock().back.remove(&number);
            }
        }
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

//! What handles the messages of one subscription, and counts what becomes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use polybus::{Envelope, HandlerContext, HandlerError, Source};
use serde_json::Value;

use super::report::Counts;

/// One subscription's handler with its counts.
pub struct Desk {
    pub source: Source,
    /// How many of the published messages it wants.
    pub wanted: u64,
    work: fn(&Desk, &Envelope) -> Result<(), HandlerError>,
    fixed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counts: Counts,
    handled: BTreeSet<Box<str>>,
    /// The last sequence number handled, by repository.
    last: BTreeMap<Box<str>, u64>,
}

impl Desk {
    pub fn new(source: Source, wanted: u64, work: fn(&Desk, &Envelope) -> Result<(), HandlerError>) -> Arc<Self> {
        Arc::new(Self { source, wanted, work, fixed: AtomicBool::default(), state: Mutex::default() })
    }

    /// The handler.
    pub async fn handle(self: Arc<Self>, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
        let result = stumble(&msg, cx.attempt()).and_then(|()| (self.work)(&self, &msg));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(()) if state.handled.insert(msg.id.clone()) => state.counts.handled += 1,
            Ok(()) => state.counts.duplicates += 1,
            Err(e) if e.is_permanent() || cx.is_last_attempt() => state.counts.given_up += 1,
            Err(_) => state.counts.retried += 1,
        }
        result
    }

    pub fn counts(&self) -> Counts {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }

    /// Plays the part of a new release that can handle what the old one refused.
    pub fn deploy_fix(&self) {
        self.fixed.store(true, Ordering::Relaxed);
    }
}

/// Fails now and then: one message in eight at its first attempt, every third of these at the second as well. The id
/// alone decides which ones fail, so that every run has the same counts.
fn stumble(msg: &Envelope, attempt: u32) -> Result<(), HandlerError> {
    let hash = msg.id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let failures = u32::from(hash.is_multiple_of(8)) + u32::from(hash.is_multiple_of(24));
    if attempt <= failures {
        return Err("a service that this handler needs did not answer".into());
    }
    Ok(())
}

/// `issues`: reads the payload, which the poison message never lets it do.
pub fn issues(_: &Desk, msg: &Envelope) -> Result<(), HandlerError> {
    serde_json::from_slice::<Value>(&msg.data)?;
    Ok(())
}

/// `ci`: does not know jobs that wait, until the fix is out. No retry would mend that.
pub fn ci(desk: &Desk, msg: &Envelope) -> Result<(), HandlerError> {
    if &*msg.event_type == "github.workflow_job.waiting" && !desk.fixed.load(Ordering::Relaxed) {
        return Err(HandlerError::permanent("this release does not know jobs that wait"));
    }
    issues(desk, msg)
}

/// `audit`: each repository's events must come in the order they were published.
pub fn audit(desk: &Desk, msg: &Envelope) -> Result<(), HandlerError> {
    let (Some(key), Some(sequence)) = (&msg.key, msg.sequence) else {
        return Err(HandlerError::permanent("an event without a repository"));
    };
    let mut state = desk.state.lock().unwrap_or_else(PoisonError::into_inner);
    let last = state.last.entry(key.clone()).or_default();
    let expected = *last + 1;
    *last = sequence.max(*last);
    if sequence > expected {
        state.counts.out_of_order += 1;
    }
    Ok(())
}

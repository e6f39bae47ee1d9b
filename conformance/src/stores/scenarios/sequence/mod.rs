//! Sequence numbers: what the outbox draws, and what the guard finds.

mod flow;
mod found;
mod held;
mod numbers;
mod overlapping;
mod stopped;
mod swept;

use std::sync::Arc;

use parking_lot::Mutex;
use polybus_core::{Envelope, Handler, HandlerContext, HandlerError};
use polybus_patterns::{Inbox, SequenceGuard, sequence::SequenceFinding};

use super::inbox::{message, text};
use crate::{
    Outcome,
    stores::{
        cx::{StoreOf, TxOf},
        scenario::StoreScenario,
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    let mut all = numbers::all();
    all.extend(found::all());
    all.extend(held::all());
    all.extend(overlapping::all());
    all.extend(stopped::all());
    all.extend(swept::all());
    all.extend(flow::all());
    all
}

/// What a guard found: the key, and the finding.
#[derive(Clone, Default)]
struct Found(Arc<Mutex<Vec<(String, SequenceFinding)>>>);

impl Found {
    /// The guard, which tells its findings here.
    fn of(&self, guard: SequenceGuard) -> SequenceGuard {
        let found = self.clone();
        guard.on_finding(move |f| found.0.lock().push((f.key.to_owned(), f.finding)))
    }

    fn all(&self) -> Vec<(String, SequenceFinding)> {
        self.0.lock().clone()
    }

    /// The findings without their keys.
    fn findings(&self) -> Vec<SequenceFinding> {
        self.0.lock().iter().map(|(_, finding)| *finding).collect()
    }
}

/// The handled messages, in the order of their handlers.
#[derive(Clone, Default)]
struct Handled(Arc<Mutex<Vec<String>>>);

impl Handled {
    fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// A handler of the consumer `billing` that writes each payload as an effect. A payload that begins with `fails` fails.
fn guarded<T: StoreUnderTest>(store: &StoreOf<T>, guard: SequenceGuard, handled: &Handled) -> impl Handler + use<T> {
    guarded_inbox::<T>(&Inbox::new(store, "billing").sequence_guard(guard), handled)
}

fn guarded_inbox<T: StoreUnderTest>(inbox: &Inbox<StoreOf<T>>, handled: &Handled) -> impl Handler + use<T> {
    inbox.handler(handled.clone(), |handled: Handled, mut tx: TxOf<T>, _: HandlerContext, m: Envelope| async move {
        if text(&m).starts_with("fails") {
            return Err(HandlerError::new("it fails"));
        }
        T::add_effect(&mut tx, &text(&m)).await?;
        handled.0.lock().push(text(&m));
        Ok(tx)
    })
}

/// A message with this number of its key. The payload is the number.
fn numbered(key: &str, n: u64) -> Envelope {
    message(n.to_string()).key(key).sequence(n)
}

/// Handles a message in a task of its own, which a database's client needs to be dropped well.
async fn handle(handler: &Arc<impl Handler>, m: &Envelope) -> Outcome<Result<(), HandlerError>> {
    super::inbox::handle(handler, m).await
}

/// Handles them one after the other.
async fn handle_all(handler: &Arc<impl Handler>, key: &str, numbers: impl IntoIterator<Item = u64>) -> Outcome {
    for n in numbers {
        handle(handler, &numbered(key, n)).await??;
    }
    Ok(())
}

fn gap(first: u64, last: u64) -> SequenceFinding {
    SequenceFinding::Gap { first, last }
}

fn late(number: u64) -> SequenceFinding {
    SequenceFinding::Late { number }
}

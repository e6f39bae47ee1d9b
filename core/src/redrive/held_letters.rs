//! Letters that stay dead letters. A pass holds them until it ends, so that the broker does not hand them out again.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use super::RedriveLetter;
use crate::{SettleError, Subscription, driver::Settlement};

/// Why a letter is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldReason {
    /// The verdict was to keep it.
    Kept,
    /// It should have been moved, and a rule refuses it for this cause.
    Refused(&'static str),
    /// It should have been moved, and that failed.
    Failed,
    /// This pass has looked at it before.
    SeenBefore,
}

/// A letter that stays a dead letter. It is not settled before the pass ends.
struct HeldLetter {
    letter: RedriveLetter,
    reason: HoldReason,
}

/// All letters that a pass holds, oldest first.
#[derive(Default)]
pub(super) struct HeldLetters {
    entries: Vec<HeldLetter>,
    /// How many of them the current consumer received. They take up room in its prefetch window.
    of_current: usize,
}

impl HeldLetters {
    pub(super) fn hold(&mut self, letter: RedriveLetter, reason: HoldReason, current: &Subscription) {
        self.of_current += usize::from(letter.0.is_from(&current.consumer));
        self.entries.push(HeldLetter { letter, reason });
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn of_current(&self) -> usize {
        self.of_current
    }

    /// Another consumer receives from now on. Its window is empty, since it has received no letter yet.
    pub(super) fn consumer_changed(&mut self) {
        self.of_current = 0;
    }

    /// Drops the letters whose lock or connection was lost. The broker has these letters back.
    ///
    /// Returns why the dropped letters were held that have no broker id, and their message ids. Such a letter cannot be
    /// recognised when it comes again, so the pass subtracts it from its counts.
    pub(super) fn drop_lost(&mut self, current: &Subscription) -> Vec<(HoldReason, Box<str>)> {
        // A lost connection takes all letters of a consumer at once. Looking at the last one is enough, and cheap.
        if self.entries.last().is_none_or(|entry| entry.letter.0.is_held()) {
            return Vec::new();
        }
        let (held, lost): (Vec<HeldLetter>, Vec<HeldLetter>) =
            std::mem::take(&mut self.entries).into_iter().partition(|entry| entry.letter.0.is_held());
        self.entries = held;
        self.of_current = self.entries.iter().filter(|e| e.letter.0.is_from(&current.consumer)).count();
        let unknown = lost.into_iter().filter(|entry| entry.letter.known_by().is_none());
        unknown.map(|entry| (entry.reason, entry.letter.envelope().id.clone())).collect()
    }

    /// Gives all letters back, the oldest first: some brokers hand them out again in the order in which they came back.
    pub(super) async fn give_back(self) {
        type GivingBack = Pin<Box<dyn Future<Output = Result<(), SettleError>> + Send>>;
        let letters = self.entries.into_iter().map(|entry| entry.letter.0);
        let mut under_way: Vec<GivingBack> =
            letters.map(|letter| -> GivingBack { Box::pin(letter.settle(Settlement::GiveBack, None)) }).collect();
        poll_fn(|cx| {
            under_way.retain_mut(|one| match one.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(e)) => {
                    // The broker takes the letter back by itself once its lock has run out.
                    tracing::debug!(error = %e, "a letter was not given back");
                    false
                }
            });
            if under_way.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// The marks by which a pass knows the copies that it made: one for letters it moved, one for letters it set aside.
pub(super) struct PassMark {
    moved: Arc<str>,
    set_aside: Arc<str>,
}

impl PassMark {
    pub(super) fn new() -> Self {
        let id = uuid::Uuid::now_v7().simple();
        Self { moved: format!("{id}").into(), set_aside: format!("{id}.aside").into() }
    }

    /// The mark that a copy made by this settlement carries.
    pub(super) fn for_settlement(&self, how: &Settlement) -> Arc<str> {
        if *how == Settlement::SetAside { self.set_aside.clone() } else { self.moved.clone() }
    }

    /// Whether this pass has moved the letter, so that it has become a dead letter once more.
    pub(super) fn has_moved(&self, mark: Option<&str>) -> bool {
        mark == Some(&*self.moved)
    }

    /// Whether this pass has set the letter aside.
    pub(super) fn has_set_aside(&self, mark: Option<&str>) -> bool {
        mark == Some(&*self.set_aside)
    }
}

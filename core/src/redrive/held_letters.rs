//! Letters that stay: held until the end, so that they do not come again meanwhile.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use super::RedriveLetter;
use crate::{
    consume::{SettleError, Subscription},
    driver::Settlement,
};

/// Why a letter is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Kept,
    Refused(&'static str),
    Failed,
    /// It was looked at before.
    Again,
}

struct Entry {
    letter: RedriveLetter,
    why: Why,
}

#[derive(Default)]
pub(super) struct Kept {
    entries: Vec<Entry>,
    /// How many are of the consumer that receives now, whose window they fill.
    here: usize,
}

impl Kept {
    pub(super) fn hold(&mut self, letter: RedriveLetter, why: Why, current: &Subscription) {
        self.here += usize::from(letter.0.is_from(&current.consumer));
        self.entries.push(Entry { letter, why });
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn here(&self) -> usize {
        self.here
    }

    /// Another consumer receives from now on.
    pub(super) fn moved_on(&mut self) {
        self.here = 0;
    }

    /// Lets go of those that a lost connection or lock has given back. Tells why each was held that comes again without being known for
    /// one that was looked at.
    pub(super) fn sweep(&mut self, current: &Subscription) -> Vec<Why> {
        // A lost connection takes them all at once, so that one tells of the others.
        if self.entries.last().is_none_or(|entry| entry.letter.0.is_held()) {
            return Vec::new();
        }
        let (held, lost): (Vec<Entry>, Vec<Entry>) =
            std::mem::take(&mut self.entries).into_iter().partition(|entry| entry.letter.0.is_held());
        self.entries = held;
        self.here = self.entries.iter().filter(|e| e.letter.0.is_from(&current.consumer)).count();
        lost.into_iter().filter(|entry| entry.letter.known_by().is_none()).map(|entry| entry.why).collect()
    }

    /// Gives all back, in their order: where a broker hands out again what came back first, that is the order they come in.
    pub(super) async fn give_back(self) {
        type GivingBack = Pin<Box<dyn Future<Output = Result<(), SettleError>> + Send>>;
        let letters = self.entries.into_iter().map(|entry| entry.letter.0);
        let mut under_way: Vec<GivingBack> =
            letters.map(|letter| -> GivingBack { Box::pin(letter.finish(Settlement::GiveBack, None)) }).collect();
        poll_fn(|cx| {
            under_way.retain_mut(|one| match one.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(e)) => {
                    // What cannot be given back comes back by itself.
                    tracing::debug!(error = %e, "a letter was not given back");
                    false
                }
            });
            if under_way.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Which pass it was that moved or set aside a copy.
pub(super) struct Mark {
    moved: Arc<str>,
    aside: Arc<str>,
}

impl Mark {
    pub(super) fn new() -> Self {
        let id = uuid::Uuid::now_v7().simple();
        Self { moved: format!("{id}").into(), aside: format!("{id}.aside").into() }
    }

    pub(super) fn of(&self, how: &Settlement) -> Arc<str> {
        if *how == Settlement::SetAside { self.aside.clone() } else { self.moved.clone() }
    }

    /// Whether this pass has moved it, and it died once more.
    pub(super) fn has_moved(&self, mark: Option<&str>) -> bool {
        mark == Some(&*self.moved)
    }

    pub(super) fn has_set_aside(&self, mark: Option<&str>) -> bool {
        mark == Some(&*self.aside)
    }
}

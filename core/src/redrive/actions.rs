//! What a pass does with letters: the actions that are under way, and the rate at which they start.

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use tokio::{sync::oneshot, task::JoinSet, time::Instant};

use super::{RedriveLetter, held_letters::HoldReason};
use crate::{Error, ErrorKind, SettleError, driver::Settlement};

/// Most actions under way at once.
pub(super) const UNDER_WAY: usize = 64;

/// What is done with a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LetterAction {
    /// It goes back to its source, as it is or as another message.
    Move,
    /// It is deleted.
    Drop,
    /// It stays, at the end of the dead letters.
    SetAside(HoldReason),
}

impl LetterAction {
    /// Whether [`RedriveOptions::limit`](crate::redrive::RedriveOptions::limit) counts it.
    fn counts(self) -> bool {
        !matches!(self, Self::SetAside(_))
    }
}

/// An action that the broker has answered.
pub(super) struct FinishedAction {
    pub(super) action: LetterAction,
    pub(super) id: Box<str>,
    pub(super) known_by: Option<Box<str>>,
    pub(super) result: Result<(), SettleError>,
}

/// The actions that are under way, each in a task of its own. Dropping it aborts the tasks; a settlement that was
/// handed in already is finished all the same.
#[derive(Default)]
pub(super) struct RunningActions {
    under_way: JoinSet<FinishedAction>,
    acting: usize,
    /// By key: the end of the last action that set a letter aside. The next letter of the key waits for it, so that the
    /// order of the key stays.
    last_set_aside: HashMap<Option<Box<str>>, oneshot::Receiver<()>>,
}

impl RunningActions {
    pub(super) fn start(&mut self, letter: RedriveLetter, action: LetterAction, how: Settlement) {
        let envelope = letter.envelope();
        let (id, known_by) = (envelope.id.clone(), letter.known_by().map(Into::into));
        let order = matches!(action, LetterAction::SetAside(_)).then(|| {
            let (done, next) = oneshot::channel();
            (self.last_set_aside.insert(envelope.key.clone(), next), done)
        });
        self.acting += usize::from(action.counts());
        self.under_way.spawn(async move {
            let (before, done) = order.unzip();
            if let Some(before) = before.flatten() {
                // The sender is dropped when that action ends, so this returns whatever came of it.
                let _ = before.await;
            }
            let result = letter.0.settle(how, None).await;
            drop(done);
            FinishedAction { action, id, known_by, result }
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// How many of them move or drop a letter.
    pub(super) fn acting(&self) -> usize {
        self.acting
    }

    /// Waits for the next action that ends; `None` if none is under way. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Result<FinishedAction, Error>> {
        let next = self.under_way.join_next().await;
        self.finished(next)
    }

    /// An action that has ended already, if there is one.
    pub(super) fn try_next(&mut self) -> Option<Result<FinishedAction, Error>> {
        let next = self.under_way.try_join_next();
        self.finished(next)
    }

    fn finished(
        &mut self,
        next: Option<Result<FinishedAction, tokio::task::JoinError>>,
    ) -> Option<Result<FinishedAction, Error>> {
        Some(match next? {
            Ok(done) => {
                self.acting -= usize::from(done.action.counts());
                Ok(done)
            }
            Err(e) => Err(Error::new(ErrorKind::Unexpected, format!("a redrive task ended: {e}"))),
        })
    }
}

/// Spaces the starts of actions evenly, so that there are at most this many in a second.
pub(super) struct RateLimit {
    every: Option<Duration>,
    next: Instant,
}

impl RateLimit {
    pub(super) fn new(rate: Option<NonZeroU32>) -> Self {
        Self { every: rate.map(|rate| Duration::from_secs(1) / rate.get()), next: Instant::now() }
    }

    /// When the next action may start; `None` if it may start now.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.every.map(|_| self.next).filter(|at| *at > Instant::now())
    }

    /// Tells that an action starts now.
    pub(super) fn count_start(&mut self) {
        if let Some(every) = self.every {
            self.next = self.next.max(Instant::now()) + every;
        }
    }
}

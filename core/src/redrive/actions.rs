//! Moves under way, and their pace.

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use tokio::{sync::oneshot, task::JoinSet, time::Instant};

use super::{RedriveLetter, kept::Why};
use crate::{
    consume::SettleError,
    driver::Settlement,
    error::{Error, ErrorKind},
};

/// Moves under way at once.
pub(super) const UNDER_WAY: usize = 64;

/// What a settlement is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Move,
    Drop,
    /// It stays, and goes behind the others.
    Aside(Why),
}

impl Act {
    /// Whether it is one that [`RedriveOptions::most`](crate::redrive::RedriveOptions::most) and the rate count.
    fn counts(self) -> bool {
        !matches!(self, Self::Aside(_))
    }
}

/// What came of it.
pub(super) struct Done {
    pub(super) act: Act,
    pub(super) id: Box<str>,
    pub(super) known_by: Option<Box<str>>,
    pub(super) result: Result<(), SettleError>,
}

#[derive(Default)]
pub(super) struct Moves {
    under_way: JoinSet<Done>,
    acting: usize,
    /// By key: what was set aside last, so that the next goes behind it.
    aside: HashMap<Option<Box<str>>, oneshot::Receiver<()>>,
}

impl Moves {
    pub(super) fn start(&mut self, letter: RedriveLetter, act: Act, how: Settlement) {
        let envelope = letter.envelope();
        let (id, known_by) = (envelope.id.clone(), letter.known_by().map(Into::into));
        let order = matches!(act, Act::Aside(_)).then(|| {
            let (done, next) = oneshot::channel();
            (self.aside.insert(envelope.key.clone(), next), done)
        });
        self.acting += usize::from(act.counts());
        self.under_way.spawn(async move {
            let (before, done) = order.unzip();
            if let Some(before) = before.flatten() {
                // It ends one way or another.
                let _ = before.await;
            }
            let result = letter.0.finish(how, None).await;
            drop(done);
            Done { act, id, known_by, result }
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// How many of those under way act upon a letter.
    pub(super) fn acting(&self) -> usize {
        self.acting
    }

    /// The next that ends; `None` if none is under way. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Result<Done, Error>> {
        let next = self.under_way.join_next().await;
        self.ended(next)
    }

    /// The same, if one has ended already.
    pub(super) fn ready(&mut self) -> Option<Result<Done, Error>> {
        let next = self.under_way.try_join_next();
        self.ended(next)
    }

    fn ended(&mut self, next: Option<Result<Done, tokio::task::JoinError>>) -> Option<Result<Done, Error>> {
        Some(match next? {
            Ok(done) => {
                self.acting -= usize::from(done.act.counts());
                Ok(done)
            }
            Err(e) => Err(Error::new(ErrorKind::Unexpected, format!("a redrive task ended: {e}"))),
        })
    }
}

/// So many actions per second, evenly.
pub(super) struct Pace {
    every: Option<Duration>,
    next: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<NonZeroU32>) -> Self {
        Self { every: rate.map(|rate| Duration::from_secs(1) / rate.get()), next: Instant::now() }
    }

    /// When the next action may start; `None`: now.
    pub(super) fn wait(&self) -> Option<Instant> {
        self.every.map(|_| self.next).filter(|at| *at > Instant::now())
    }

    pub(super) fn started(&mut self) {
        if let Some(every) = self.every {
            self.next = self.next.max(Instant::now()) + every;
        }
    }
}

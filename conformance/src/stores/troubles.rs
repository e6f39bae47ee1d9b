//! A switch that makes the store under test fail as a database does, for a while.

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::StoreTrouble;

/// The context by which the switch knows its own errors.
const MADE: &str = "suite";

/// What is wrong with the database now. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct StoreTroubles(Arc<Switches>);

#[derive(Default)]
struct Switches {
    away: AtomicBool,
    refused: AtomicUsize,
    lost_commits: AtomicUsize,
}

impl StoreTroubles {
    /// While it is true, no transaction begins or commits, and `is_away` says so.
    pub(crate) fn set_away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
    }

    pub(crate) fn is_away(&self) -> bool {
        self.0.away.load(Ordering::SeqCst)
    }

    /// How many calls found the database away.
    pub(crate) fn refused(&self) -> usize {
        self.0.refused.load(Ordering::SeqCst)
    }

    /// The answers to so many commits are lost, after they were carried out.
    pub(crate) fn lose_commits(&self, n: usize) {
        self.0.lost_commits.store(n, Ordering::SeqCst);
    }

    pub(super) fn check(&self) -> Result<()> {
        if !self.is_away() {
            return Ok(());
        }
        self.0.refused.fetch_add(1, Ordering::SeqCst);
        Err(Error::new(ErrorKind::Unavailable, "the database is away").safe().with_context(MADE, "away"))
    }

    pub(super) fn after_commit(&self) -> Result<()> {
        let lose = |n: usize| n.checked_sub(1);
        match self.0.lost_commits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose) {
            Ok(_) => Err(Error::new(ErrorKind::Unavailable, "the answer to the COMMIT was lost").may_duplicate()),
            Err(_) => Ok(()),
        }
    }
}

/// An error as a transaction has that lost against another one.
pub(crate) fn contention() -> Error {
    Error::new(ErrorKind::Unavailable, "it lost against another transaction").safe().with_context(MADE, "contention")
}

/// What an error of the switch says; `None` if it is none of its own.
pub(super) fn judge(error: &(dyn StdError + 'static)) -> Option<StoreTrouble> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<Error>().and_then(|error| error.context(MADE)) {
            Some("away") => return Some(StoreTrouble::MaybeAway),
            Some(_) => return Some(StoreTrouble::Contention),
            None => cause = error.source(),
        }
    }
    None
}

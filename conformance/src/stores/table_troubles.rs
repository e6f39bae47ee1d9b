//! A switch that makes single calls of a relay to its tables fail, hang or panic.

use std::sync::Arc;

use parking_lot::Mutex;
use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::RowId;

/// A call of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableCall {
    Addresses,
    Read,
    Delete,
    Park,
    PromoteDue,
    /// Everything about leases.
    Leases,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallEnd {
    Refused,
    /// It never answers.
    Hangs,
    Panics,
}

/// Which calls are troubled: all of a kind, or those about an address or about rows.
#[derive(Clone, Debug)]
pub(crate) struct TableTrouble {
    pub(crate) call: TableCall,
    pub(crate) end: CallEnd,
    pub(crate) address: Option<String>,
    pub(crate) rows: Option<Vec<RowId>>,
    /// How many calls it still meets.
    pub(crate) left: usize,
}

impl TableTrouble {
    /// All calls of this kind.
    pub(crate) fn of(call: TableCall, end: CallEnd) -> Self {
        Self { call, end, address: None, rows: None, left: usize::MAX }
    }
}

/// What is wrong with the tables for the relays of one handle. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct TableTroubles(Arc<Mutex<Switches>>);

#[derive(Default)]
struct Switches {
    troubles: Vec<TableTrouble>,
    met: usize,
    about_leases: usize,
}

impl TableTroubles {
    /// Sets what is wrong, and counts anew what meets it.
    pub(crate) fn set(&self, troubles: impl IntoIterator<Item = TableTrouble>) {
        let mut switches = self.0.lock();
        switches.troubles = troubles.into_iter().collect();
        switches.met = 0;
    }

    /// How many calls met a trouble.
    pub(crate) fn met(&self) -> usize {
        self.0.lock().met
    }

    /// How many calls were about leases, whatever became of them.
    pub(crate) fn about_leases(&self) -> usize {
        self.0.lock().about_leases
    }

    pub(super) async fn check(&self, call: TableCall) -> Result<()> {
        self.0.lock().about_leases += usize::from(call == TableCall::Leases);
        self.meet(|trouble| trouble.call == call && trouble.address.is_none() && trouble.rows.is_none()).await
    }

    pub(super) async fn check_address(&self, call: TableCall, address: &str) -> Result<()> {
        let is_it = |of: &Option<String>| of.as_deref().is_none_or(|of| of == address);
        self.meet(|trouble| trouble.call == call && is_it(&trouble.address)).await
    }

    pub(super) async fn check_rows(&self, call: TableCall, rows: &[RowId]) -> Result<()> {
        let is_it = |of: &Option<Vec<RowId>>| of.as_ref().is_none_or(|of| of.iter().any(|row| rows.contains(row)));
        self.meet(|trouble| trouble.call == call && is_it(&trouble.rows)).await
    }

    async fn meet(&self, is_it: impl Fn(&TableTrouble) -> bool) -> Result<()> {
        let met = {
            let mut switches = self.0.lock();
            let met = switches.troubles.iter_mut().find(|trouble| trouble.left > 0 && is_it(trouble));
            let end = met.map(|trouble| {
                trouble.left -= 1;
                trouble.end
            });
            switches.met += usize::from(end.is_some());
            end
        };
        match met {
            None => Ok(()),
            Some(CallEnd::Refused) => Err(Error::new(ErrorKind::Unexpected, "the suite's trigger refuses this")),
            Some(CallEnd::Hangs) => std::future::pending().await,
            Some(CallEnd::Panics) => panic!("the suite's store panics"),
        }
    }
}

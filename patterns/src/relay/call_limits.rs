//! How long the database has for a call of the relay.

use std::time::Duration;

use super::RelayShared;
use crate::store::calls;

impl RelayShared {
    /// The limit of a call that reads or writes rows.
    pub(super) fn rows_limit(&self) -> Duration {
        calls::rows_limit(&*self.control)
    }

    /// The limit of a call to the leases. With one writer it waits for the one handler that has the turn.
    pub(super) fn lease_limit(&self) -> Duration {
        let term = self.options.lease;
        if self.control.single_writer() { term } else { term / 3 }
    }
}

//! Whether a handler runs again within one attempt, after trouble of the database.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use polybus_core::driver::kit::backoff::Backoff;
use tokio::time::Instant;

use crate::{
    patience,
    store::{StoreControl, StoreTrouble},
};

/// How often a handler is run again at once for one attempt, because its transaction lost against another one.
pub(crate) const MAX_CONTENTION: u32 = 5;

/// How often it is run again in any case for one attempt because its connection was lost, though the database is there:
/// after a failover that is over, or a restart of a pooler. The mark makes that safe.
const MAX_LOST: u32 = 5;

/// For how long it is run again in any case. Only a message that itself ends the connection, such as by a query that
/// brings the server down, loses it for longer.
const LOST_FOR: Duration = Duration::from_secs(120);

/// The longest wait between two tries to write where there was no room.
const MAX_WAIT_FOR_ROOM: Duration = Duration::from_secs(15);

/// How often the log says that there is no room.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What a handler failed with.
type Failure = dyn StdError + Send + Sync;

/// What one attempt has borne so far.
pub(crate) struct Reruns {
    contended: u32,
    lost: u32,
    lost_since: Option<Instant>,
    no_room_since: Option<Instant>,
    said_at: Option<Instant>,
    backoff: Backoff,
}

impl Default for Reruns {
    fn default() -> Self {
        let backoff = Backoff::up_to(MAX_WAIT_FOR_ROOM);
        Self { contended: 0, lost: 0, lost_since: None, no_room_since: None, said_at: None, backoff }
    }
}

impl Reruns {
    /// Waits as the trouble asks for, and answers whether the handler is to run again. Else the attempt has failed.
    pub(crate) async fn again(
        &mut self,
        trouble: StoreTrouble,
        error: &Failure,
        control: &Arc<dyn StoreControl>,
        patience: Option<Duration>,
    ) -> bool {
        if trouble == StoreTrouble::Contention && self.contended < MAX_CONTENTION {
            self.contended += 1;
            patience::pause(self.contended).await;
            return true;
        }
        // Whatever the handler says: where the database is away, that is why.
        if control.is_away().await {
            patience::begin(control);
            return true;
        }
        match trouble {
            StoreTrouble::MaybeAway => self.after_a_loss(patience).await,
            StoreTrouble::NoRoom => self.after_no_room(error, control.system(), patience).await,
            _ => false,
        }
    }

    async fn after_a_loss(&mut self, patience: Option<Duration>) -> bool {
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        let longest = LOST_FOR.min(patience.unwrap_or(LOST_FOR));
        if self.lost >= MAX_LOST && since.elapsed() >= longest {
            return false;
        }
        self.lost = self.lost.saturating_add(1);
        patience::pause_for_connections(self.lost).await;
        true
    }

    /// A full disk is nobody's fault, and a message cannot wait for a place in the dead letters until somebody makes
    /// room: the messages behind it would follow.
    async fn after_no_room(&mut self, error: &Failure, system: &'static str, patience: Option<Duration>) -> bool {
        let since = *self.no_room_since.get_or_insert_with(Instant::now);
        if patience.is_some_and(|patience| since.elapsed() >= patience) {
            return false;
        }
        if self.said_at.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            self.said_at = Some(Instant::now());
            tracing::error!(
                target: "polybus", system, %error, since = ?since.elapsed(),
                "the database has no room to write: make room on its disk, or raise its limit; messages wait for it"
            );
        }
        tokio::time::sleep(self.backoff.next_wait()).await;
        true
    }
}

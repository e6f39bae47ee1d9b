//! Connections that go from one handled message straight to the next.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use sqlx::{PgPool, Postgres as Client, pool::PoolConnection};
use tokio::{runtime::Handle, time::Instant};

/// For how long a connection waits for the next message before it goes back to its pool.
const WAIT: Duration = Duration::from_millis(5);

/// After so many messages a connection goes back to its pool in any case, which ends it when it is too old.
const MAX_MESSAGES: u32 = 100;

/// The connections that wait for a message. Clones share them.
#[derive(Clone, Default)]
pub(super) struct HandOver(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    connections: Vec<WaitingConnection>,
    /// A task looks whether they wait for too long.
    is_watched: bool,
}

struct WaitingConnection {
    conn: PoolConnection<Client>,
    since: Instant,
    messages: u32,
}

impl HandOver {
    /// A connection that waits, with the number of messages it was used for.
    pub(super) fn take(&self) -> Option<(PoolConnection<Client>, u32)> {
        // The one that came last, so that those that are too many grow old.
        self.0.lock().connections.pop().map(|waiting| (waiting.conn, waiting.messages))
    }

    /// Takes a connection, used for so many messages, of which the last transaction is over. It goes back to its pool
    /// instead if others may be waiting there.
    pub(super) fn give(&self, pool: &PgPool, conn: PoolConnection<Client>, messages: u32) {
        let others_wait = pool.num_idle() == 0 && pool.size() >= pool.options().get_max_connections();
        let Ok(runtime) = Handle::try_current() else { return };
        if others_wait || messages >= MAX_MESSAGES || pool.is_closed() {
            return;
        }
        let mut waiting = self.0.lock();
        waiting.connections.push(WaitingConnection { conn, since: Instant::now(), messages });
        if !std::mem::replace(&mut waiting.is_watched, true) {
            runtime.spawn(self.clone().watch());
        }
    }

    /// Gives back to the pool what waits for too long, until nothing waits.
    async fn watch(self) {
        loop {
            tokio::time::sleep(WAIT).await;
            let old: Vec<WaitingConnection> = {
                let mut waiting = self.0.lock();
                if waiting.connections.is_empty() {
                    waiting.is_watched = false;
                    return;
                }
                waiting.connections.extract_if(.., |waiting| waiting.since.elapsed() >= WAIT).collect()
            };
            drop(old);
        }
    }
}

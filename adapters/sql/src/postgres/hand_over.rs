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
        let watched = Watched(self);
        loop {
            tokio::time::sleep(WAIT).await;
            let old: Vec<WaitingConnection> = {
                let mut waiting = watched.0.0.lock();
                if waiting.connections.is_empty() {
                    break;
                }
                waiting.connections.extract_if(.., |waiting| waiting.since.elapsed() >= WAIT).collect()
            };
            drop(old);
        }
    }
}

/// Nobody watches any more when it is dropped, also where the task's runtime ends: then nothing is left to wait.
struct Watched(HandOver);

impl Drop for Watched {
    fn drop(&mut self) {
        let left = {
            let mut waiting = self.0.0.lock();
            waiting.is_watched = false;
            std::mem::take(&mut waiting.connections)
        };
        // Without a runtime sqlx cannot give a connection back.
        let Err(_) = Handle::try_current() else { return };
        left.into_iter().for_each(|waiting| drop(waiting.conn.detach()));
    }
}

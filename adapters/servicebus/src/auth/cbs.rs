//! Claims-based security: tokens put on a connection, and renewed before they run out.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use futures_util::future::join_all;
use polybus_core::{ErrorKind, Result, driver::kit::reconnect::SharedAttempt};
use time::OffsetDateTime;
use tokio::{sync::Notify, time::Instant};

use crate::{
    amqp::{
        connection::{self, Wire, uncut},
        rpc::Rpc,
    },
    auth::credential::Credential,
    config::Config,
    error,
};

/// A failed renewal is tried again after this long at most; the old token is good meanwhile.
const AGAIN: Duration = Duration::from_secs(30);
/// And after this long at least, as any renewal.
const SOON: Duration = Duration::from_secs(1);

/// What the namespace refuses may be good for one entity.
const HINT: &str = "; one of a single queue or topic needs a connection string with its EntityPath";

/// The tokens of one connection.
pub(crate) struct Tokens {
    config: Config,
    rpc: SharedAttempt<Rpc>,
    table: Mutex<Table>,
    /// The broker has taken the credential once, on this connection or an earlier one.
    let_in: Arc<AtomicBool>,
    /// Something is due sooner than it was, or nothing is any more.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Table {
    /// By path.
    put: HashMap<String, Put>,
    renewing: bool,
}

/// A token at the broker.
#[derive(Clone, Copy)]
struct Put {
    /// When it is to be renewed.
    due: Instant,
    until: Instant,
}

impl Tokens {
    pub(crate) fn new(config: &Config, let_in: Arc<AtomicBool>) -> Self {
        Self {
            config: config.clone(),
            rpc: SharedAttempt::default(),
            table: Mutex::default(),
            let_in,
            changed: Arc::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether tokens can be made anew.
    pub(crate) fn renewable(&self) -> bool {
        self.config.credential.renews()
    }

    /// Puts a token for `path` if there is none; true if one was put.
    pub(crate) async fn ensure(&self, wire: &Arc<Wire>, path: &str) -> Result<bool> {
        self.config.admits(path)?;
        let stands = |table: &Table| table.put.get(path).is_some_and(|put| put.until > Instant::now());
        if matches!(self.config.credential, Credential::None) || stands(&self.table()) {
            return Ok(false);
        }
        self.replace(wire, path).await.map(|()| true)
    }

    /// Puts a token for `path`.
    pub(crate) async fn replace(&self, wire: &Arc<Wire>, path: &str) -> Result<()> {
        let put = self.put(wire, path).await?;
        let start = {
            let mut table = self.table();
            table.put.insert(path.to_owned(), put);
            self.renewable() && !std::mem::replace(&mut table.renewing, true)
        };
        if start {
            tokio::spawn(renew(Arc::downgrade(wire), self.changed.clone()));
        } else {
            self.changed.notify_one();
        }
        Ok(())
    }

    async fn put(&self, wire: &Arc<Wire>, path: &str) -> Result<Put> {
        let put = self.put_once(wire, path).await;
        if put.is_ok() {
            self.let_in.store(true, Ordering::Release);
        }
        put.map_err(|e| connection::judged(e, &self.let_in, self.renewable()))
    }

    async fn put_once(&self, wire: &Arc<Wire>, path: &str) -> Result<Put> {
        let audience = format!("sb://{}/{path}", self.config.host);
        let Some(token) = self.config.credential.token(&audience).await? else {
            return Err(error::new(ErrorKind::Unauthenticated, "authorize", "there is no credential"));
        };
        let left = Duration::try_from(token.expires - OffsetDateTime::now_utc()).unwrap_or_default();
        if left.is_zero() {
            return Err(error::new(ErrorKind::Unauthenticated, "authorize", "the token has expired"));
        }
        // Not to be cut short: a connection takes one pair of links to it, and half of one would be in the way of the next.
        // https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide
        let opened = {
            let wire = wire.clone();
            async move { wire.tokens().rpc.get(Rpc::alive, async { Rpc::open(&wire, "$cbs").await.map(Arc::new) }).await }
        };
        let rpc = uncut(opened).await?;
        let string = |text: &str| SimpleValue::String(text.to_owned());
        let fields = vec![
            ("operation", string("put-token")),
            ("type", string(token.kind())),
            ("name", string(&audience)),
            ("expiration", SimpleValue::Timestamp(crate::message::envelope::timestamp(token.expires))),
        ];
        let reply = rpc.call("authorize", fields, Value::String(token.text.reveal().to_owned())).await?;
        match reply.check("authorize") {
            Ok(_) => {
                let now = Instant::now();
                Ok(Put { due: now + (left * 3 / 4).max(SOON), until: now + left })
            }
            Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::Unauthenticated) => {
                let hint = if path.is_empty() && !token.bearer { HINT } else { "" };
                let text = format!("the broker refuses the key or token{hint}");
                Err(error::new(ErrorKind::Unauthenticated, "authorize", text))
            }
            Err(e) => Err(e),
        }
    }

    /// Renews what is due, all at once: a credential that does not answer must not hold up one path after the other.
    async fn renew_due(&self, wire: &Arc<Wire>) {
        let now = Instant::now();
        let due: Vec<(String, Put)> =
            self.table().put.iter().filter(|(_, put)| put.due <= now).map(|(path, put)| (path.clone(), *put)).collect();
        let renewed = join_all(due.iter().map(|(path, _)| self.put(wire, path))).await;
        for ((path, old), renewed) in due.into_iter().zip(renewed) {
            let put = renewed.or_else(|e| {
                let now = Instant::now();
                let left = old.until.saturating_duration_since(now);
                tracing::warn!(error = %e, path, ?left, "a token was not renewed");
                // Whoever needs it after its end asks for a new one.
                if left.is_zero() { Err(()) } else { Ok(Put { due: now + (left / 4).clamp(SOON, AGAIN), ..old }) }
            });
            match put {
                Ok(put) => self.table().put.insert(path, put),
                Err(()) => self.table().put.remove(&path),
            };
        }
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Renews until the connection is gone.
async fn renew(wire: Weak<Wire>, changed: Arc<Notify>) {
    loop {
        let next = {
            let Some(wire) = wire.upgrade().filter(|wire| wire.alive()) else { return };
            wire.tokens().renew_due(&wire).await;
            wire.tokens().table().put.values().map(|put| put.due).min()
        };
        match next {
            Some(next) => tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = changed.notified() => {}
            },
            None => changed.notified().await,
        }
    }
}

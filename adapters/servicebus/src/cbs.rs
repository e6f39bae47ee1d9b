//! Claims-based security: tokens put on a connection, and renewed before they run out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use polybus_core::{Kind, Result, attempt::Shared};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::{
    connection::Wire,
    error,
    rpc::Rpc,
    sas::{Credential, Token},
};

/// A failed renewal is tried again after this long; the old token is good meanwhile.
const AGAIN: Duration = Duration::from_secs(30);

/// The tokens of one connection.
pub(crate) struct Tokens {
    credential: Credential,
    host: String,
    rpc: Shared<Rpc>,
    put: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// When each path's token is to be renewed.
    due: HashMap<String, Instant>,
    renewing: bool,
}

impl Tokens {
    pub(crate) fn new(credential: Credential, host: &str) -> Self {
        Self { credential, host: host.to_owned(), rpc: Shared::default(), put: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.put.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a token for `path` if there is none.
    pub(crate) async fn ensure(&self, wire: &Arc<Wire>, path: &str) -> Result<()> {
        if matches!(self.credential, Credential::None) || self.table().due.contains_key(path) {
            return Ok(());
        }
        let due = self.put(wire, path).await?;
        let start = {
            let mut table = self.table();
            table.due.insert(path.to_owned(), due);
            // A token made elsewhere cannot be made anew.
            matches!(self.credential, Credential::Key { .. }) && !std::mem::replace(&mut table.renewing, true)
        };
        if start {
            tokio::spawn(renew(Arc::downgrade(wire)));
        }
        Ok(())
    }

    /// Puts a token, and tells when the next one is due.
    async fn put(&self, wire: &Arc<Wire>, path: &str) -> Result<Instant> {
        let audience = format!("sb://{}/{path}", self.host);
        let now = OffsetDateTime::now_utc();
        let Some(Token { text, expires }) = self.credential.token(&audience, now) else {
            return Ok(Instant::now() + AGAIN);
        };
        let left = Duration::try_from(expires - now).unwrap_or_default();
        if left.is_zero() {
            return Err(error::new(Kind::Unauthenticated, "authorize", "the SAS token has expired"));
        }
        let rpc = self.rpc.get(Rpc::alive, async { Rpc::open(wire, "$cbs").await.map(Arc::new) }).await?;
        let string = |text: &str| SimpleValue::String(text.to_owned());
        let fields = vec![
            ("operation", string("put-token")),
            ("type", string("servicebus.windows.net:sastoken")),
            ("name", string(&audience)),
            ("expiration", SimpleValue::Timestamp(crate::envelope::timestamp(expires))),
        ];
        let reply = rpc.call("authorize", fields, Value::String(text.reveal().to_owned())).await?;
        match reply.check("authorize") {
            Ok(_) => Ok(Instant::now() + left * 3 / 4),
            Err(e) if matches!(e.kind(), Kind::PermissionDenied | Kind::Unauthenticated) => {
                Err(error::new(Kind::Unauthenticated, "authorize", "the broker refuses the key or token"))
            }
            Err(e) => Err(e),
        }
    }
}

/// Renews until the connection is gone.
async fn renew(wire: Weak<Wire>) {
    loop {
        let next = {
            let Some(wire) = wire.upgrade().filter(|wire| wire.alive()) else { return };
            let now = Instant::now();
            let due: Vec<String> =
                wire.tokens().table().due.iter().filter(|(_, at)| **at <= now).map(|(path, _)| path.clone()).collect();
            for path in due {
                let next = wire.tokens().put(&wire, &path).await.unwrap_or_else(|e| {
                    tracing::warn!(error = %e, path, "a token was not renewed; trying again");
                    Instant::now() + AGAIN
                });
                wire.tokens().table().due.insert(path, next);
            }
            wire.tokens().table().due.values().min().copied()
        };
        match next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => return,
        }
    }
}

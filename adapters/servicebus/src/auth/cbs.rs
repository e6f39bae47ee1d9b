//! Claims-based security: tokens that are sent over a connection, one for each path, and renewed before they expire.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use futures_util::future::join_all;
use polybus_core::{ErrorKind, Result, driver::kit::reconnect::SharedAttempt};
use time::OffsetDateTime;
use tokio::{sync::Notify, time::Instant};

use crate::{
    amqp::{
        connection::{AmqpConnection, in_task},
        rpc::RpcClient,
    },
    auth::credential::Credential,
    config::Config,
    error,
    transport::namespace,
};

/// The longest pause before a failed renewal is tried again; the old token is good meanwhile.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The shortest pause before any renewal.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// A key that the namespace refuses may be one of a single entity.
const ENTITY_PATH_HINT: &str = "; one of a single queue or topic needs a connection string with its EntityPath";

/// The tokens of one connection.
pub(crate) struct ConnectionTokens {
    config: Config,
    rpc: SharedAttempt<RpcClient>,
    table: Mutex<TokenTable>,
    /// Whether the broker has accepted the credential once, on this connection or an earlier one.
    login_accepted: Arc<AtomicBool>,
    /// A token is due sooner than all others, or the connection is gone.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct TokenTable {
    /// By path.
    by_path: HashMap<String, SentToken>,
    renewing: bool,
}

/// A token that the broker has.
#[derive(Clone, Copy)]
struct SentToken {
    renew_at: Instant,
    expires_at: Instant,
}

impl ConnectionTokens {
    pub(crate) fn new(config: &Config, login_accepted: Arc<AtomicBool>) -> Self {
        Self {
            config: config.clone(),
            rpc: SharedAttempt::default(),
            table: Mutex::default(),
            login_accepted,
            changed: Arc::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, TokenTable> {
        self.table.lock()
    }

    /// Whether tokens can be made anew.
    pub(crate) fn renewable(&self) -> bool {
        self.config.credential.is_renewable()
    }

    /// Sends a token for `path` unless the broker has one that is still good. True if one was sent.
    pub(crate) async fn ensure(&self, connection: &Arc<AmqpConnection>, path: &str) -> Result<bool> {
        self.config.admits(path)?;
        let stands = |table: &TokenTable| table.by_path.get(path).is_some_and(|sent| sent.expires_at > Instant::now());
        if matches!(self.config.credential, Credential::None) || stands(&self.table()) {
            return Ok(false);
        }
        self.replace(connection, path).await.map(|()| true)
    }

    /// Sends a new token for `path`.
    pub(crate) async fn replace(&self, connection: &Arc<AmqpConnection>, path: &str) -> Result<()> {
        let sent = self.send_token(connection, path).await?;
        let start = {
            let mut table = self.table();
            table.by_path.insert(path.to_owned(), sent);
            self.renewable() && !std::mem::replace(&mut table.renewing, true)
        };
        if start {
            tokio::spawn(renew(Arc::downgrade(connection), self.changed.clone()));
        } else {
            self.changed.notify_one();
        }
        Ok(())
    }

    async fn send_token(&self, connection: &Arc<AmqpConnection>, path: &str) -> Result<SentToken> {
        let sent = self.send_token_once(connection, path).await;
        if sent.is_ok() {
            self.login_accepted.store(true, Ordering::Release);
        }
        sent.map_err(|e| namespace::classify_refusal(e, &self.login_accepted, self.renewable()))
    }

    async fn send_token_once(&self, connection: &Arc<AmqpConnection>, path: &str) -> Result<SentToken> {
        let audience = format!("sb://{}/{path}", self.config.host);
        let Some(token) = self.config.credential.token(&audience).await? else {
            return Err(error::new(ErrorKind::Unauthenticated, "authorize", "there is no credential"));
        };
        let left = Duration::try_from(token.expires - OffsetDateTime::now_utc()).unwrap_or_default();
        if left.is_zero() {
            return Err(error::new(ErrorKind::Unauthenticated, "authorize", "the token has expired"));
        }
        // In a task, to its end: a connection takes one pair of links to `$cbs`, and half a pair would be in the way of
        // the next.
        // <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide>
        let opened = {
            let connection = connection.clone();
            async move {
                let open = async { RpcClient::open(&connection, "$cbs").await.map(Arc::new) };
                connection.tokens().rpc.get(RpcClient::is_alive, open).await
            }
        };
        let rpc = in_task(opened).await?;
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
                Ok(SentToken { renew_at: now + (left * 3 / 4).max(MIN_PAUSE), expires_at: now + left })
            }
            Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::Unauthenticated) => {
                let hint = if path.is_empty() && !token.bearer { ENTITY_PATH_HINT } else { "" };
                let text = format!("the broker refuses the key or token{hint}");
                Err(error::new(ErrorKind::Unauthenticated, "authorize", text))
            }
            Err(e) => Err(e),
        }
    }

    /// Renews all tokens that are due at once: a credential that does not answer must not delay one path after the
    /// other.
    async fn renew_due(&self, connection: &Arc<AmqpConnection>) {
        let now = Instant::now();
        let all: Vec<_> = self.table().by_path.iter().map(|(path, sent)| (path.clone(), *sent)).collect();
        let due: Vec<(String, SentToken)> = all.into_iter().filter(|(_, sent)| sent.renew_at <= now).collect();
        let renewed = join_all(due.iter().map(|(path, _)| self.send_token(connection, path))).await;
        for ((path, old), renewed) in due.into_iter().zip(renewed) {
            let sent = renewed.or_else(|e| {
                let now = Instant::now();
                let left = old.expires_at.saturating_duration_since(now);
                tracing::warn!(error = %e, path, ?left, "a token was not renewed");
                // Once it has expired, the next user of the path sends a new one.
                let renew_at = now + (left / 4).clamp(MIN_PAUSE, MAX_PAUSE);
                if left.is_zero() { Err(()) } else { Ok(SentToken { renew_at, ..old }) }
            });
            match sent {
                Ok(sent) => self.table().by_path.insert(path, sent),
                Err(()) => self.table().by_path.remove(&path),
            };
        }
    }
}

impl Drop for ConnectionTokens {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Renews tokens until the connection is gone.
async fn renew(connection: Weak<AmqpConnection>, changed: Arc<Notify>) {
    loop {
        let next = {
            let Some(connection) = connection.upgrade().filter(|connection| connection.is_alive()) else { return };
            connection.tokens().renew_due(&connection).await;
            connection.tokens().table().by_path.values().map(|sent| sent.renew_at).min()
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

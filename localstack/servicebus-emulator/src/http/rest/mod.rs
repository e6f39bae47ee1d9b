//! The REST data plane: sends, receives, settles and renews.
//!
//! `messages.rs` translates a message to and from headers and a body, and `broker_properties.rs` the JSON header among
//! them.
//!
//! A message that was locked for a client that left stays locked until its lock expires. Receive-and-delete removes the
//! message when the answer is formed. A client that leaves while it waits loses nothing; one that leaves while it is
//! answered loses the message, as on the service.

mod broker_properties;
pub(super) mod messages;

use broker_properties::http_date;
use messages::BROKER_PROPERTIES;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{HeaderMap, Method, Response, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::atom::NamespaceUrl;
use super::path::{MessagePath, parameter};
use super::response::{self, Answer};
use crate::auth::{AccessRight, Rights, claim_missing};
use crate::broker::{Broker, DeliveredMessage, Outcome, ReceiveMode, Source};
use crate::faults::{BusyOperation, Faults};
use crate::refusal::{Condition, Refusal};

const BATCH: &str = "application/vnd.microsoft.servicebus.json";
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// The longest wait, so that a proxy in between does not give up first.
const MAX_WAIT: Duration = Duration::from_secs(230);

/// One data-plane request.
pub(super) struct RestRequest<'a> {
    pub(super) broker: &'a Broker,
    pub(super) faults: &'a Faults,
    pub(super) base: &'a NamespaceUrl,
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// True when a request is for messages. The method decides, because an entity may have the name of a message path, but
/// has no POST.
pub(super) fn is_for(method: &Method, resource: &MessagePath) -> bool {
    match (method, resource) {
        (&Method::POST, _) | (&Method::DELETE, MessagePath::Head(_)) => true,
        (&Method::DELETE | &Method::PUT, MessagePath::Locked(_, token)) => Uuid::parse_str(token).is_ok(),
        _ => false,
    }
}

/// True when a request settles a message.
pub(super) fn settles(method: &Method, resource: &MessagePath) -> bool {
    matches!(resource, MessagePath::Locked(..)) && matches!(*method, Method::DELETE | Method::PUT)
}

/// The operation that a request counts as for the busy fault.
pub(super) fn operation(method: &Method, resource: &MessagePath) -> BusyOperation {
    match (method, resource) {
        (_, MessagePath::All(_)) => BusyOperation::Send,
        (_, MessagePath::Head(_)) => BusyOperation::Attach,
        (&Method::POST, MessagePath::Locked(..)) => BusyOperation::Request,
        (_, MessagePath::Locked(..)) => BusyOperation::Settle,
    }
}

/// Refuses a request for which the rights do not suffice.
pub(super) fn check_right(method: &Method, resource: &MessagePath, rights: Rights, path: &str) -> Result<(), Refusal> {
    let right = match (method, resource) {
        (&Method::POST, MessagePath::All(_)) => AccessRight::Send,
        _ => AccessRight::Listen,
    };
    if rights.allow(right) { Ok(()) } else { Err(claim_missing(right, path)) }
}

impl RestRequest<'_> {
    pub(super) async fn answer(&self, method: &Method, resource: &MessagePath) -> Answer {
        let answer = match (method, resource) {
            (&Method::POST, MessagePath::All(address)) => self.send(address),
            (&Method::POST, MessagePath::Head(address)) => self.receive(address, ReceiveMode::PeekLock).await,
            (&Method::DELETE, MessagePath::Head(address)) => self.receive(address, ReceiveMode::ReceiveAndDelete).await,
            (&Method::DELETE, MessagePath::Locked(address, token)) => self.settle(address, token, Outcome::Complete),
            (&Method::PUT, MessagePath::Locked(address, token)) => {
                self.settle(address, token, Outcome::Abandon(Vec::new()))
            }
            (&Method::POST, MessagePath::Locked(address, token)) => self.renew(address, token),
            _ => return response::failed(StatusCode::METHOD_NOT_ALLOWED, "This method is not known here."),
        };
        answer.unwrap_or_else(|refusal| response::refused(&refusal))
    }

    fn send(&self, address: &str) -> Result<Answer, Refusal> {
        let target = self.broker.target(address)?;
        let content_type = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let batch = media_type.eq_ignore_ascii_case(BATCH);
        let messages = if batch {
            messages::from_batch(self.body)?
        } else {
            vec![messages::from_request(self.headers, self.body)?]
        };
        let bytes: usize = messages.iter().map(|message| message.encoded_size).sum();
        let limit = target.max_batch_bytes();
        if batch && bytes as u64 > limit {
            return Err(Refusal::new(
                Condition::MessageSizeExceeded,
                format!("The batch has {bytes} bytes, which is above the limit of {limit}."),
            ));
        }
        target.send(messages)?;
        Ok(response::empty(StatusCode::CREATED))
    }

    async fn receive(&self, address: &str, mode: ReceiveMode) -> Result<Answer, Refusal> {
        let source = self.broker.source(address)?;
        let wait = self.wait()?;
        let wake = Arc::new(Notify::new());
        let mut receiver = source.receiver(mode, None, wake.clone())?;
        let deadline = Instant::now() + wait;
        loop {
            if let Some(delivered) = receiver.try_receive(1)?.pop() {
                return Ok(self.delivered(&source, mode, &delivered));
            }
            if timeout_at(deadline, wake.notified()).await.is_err() {
                return Ok(response::empty(StatusCode::NO_CONTENT));
            }
        }
    }

    fn wait(&self) -> Result<Duration, Refusal> {
        let Some(seconds) = parameter(self.query, "timeout") else { return Ok(DEFAULT_WAIT) };
        let seconds = seconds.parse::<u64>();
        let seconds = seconds.map_err(|_| Refusal::new(Condition::InvalidField, "timeout is no number of seconds."))?;
        Ok(Duration::from_secs(seconds).min(MAX_WAIT))
    }

    fn delivered(&self, source: &Source, mode: ReceiveMode, delivered: &DeliveredMessage) -> Answer {
        let mut answer = Response::new(Full::new(messages::body(&delivered.message)));
        messages::put_headers(delivered, answer.headers_mut());
        if mode == ReceiveMode::PeekLock {
            *answer.status_mut() = StatusCode::CREATED;
        }
        if let Some(token) = delivered.lock_token {
            let path = format!("{}/messages/{}/{token}", source.path(), delivered.sequence_number);
            if let Ok(location) = HeaderValue::try_from(self.base.url(&path)) {
                answer.headers_mut().insert(LOCATION, location);
            }
        }
        answer
    }

    fn settle(&self, address: &str, token: &str, outcome: Outcome) -> Result<Answer, Refusal> {
        self.broker.source(address)?.settle(lock_token(token)?, outcome)?;
        Ok(response::empty(StatusCode::OK))
    }

    fn renew(&self, address: &str, token: &str) -> Result<Answer, Refusal> {
        self.faults.check_renewal()?;
        let token = lock_token(token)?;
        let until = self.broker.source(address)?.renew_locks(&[token])?;
        let mut answer = response::empty(StatusCode::OK);
        if let Some(until) = until.first() {
            let properties = serde_json::json!({ "LockToken": token.to_string(), "LockedUntilUtc": http_date(*until) });
            if let Ok(properties) = HeaderValue::try_from(properties.to_string()) {
                answer.headers_mut().insert(BROKER_PROPERTIES, properties);
            }
        }
        Ok(answer)
    }
}

fn lock_token(token: &str) -> Result<Uuid, Refusal> {
    Uuid::parse_str(token).map_err(|_| Refusal::new(Condition::InvalidField, format!("'{token}' is no lock token.")))
}

/// The largest body of a request. A JSON batch takes more bytes than its messages.
pub(super) fn body_limit(broker: &Broker, resource: &MessagePath) -> usize {
    const OVERHEAD: u64 = 64 * 1024;
    let MessagePath::All(address) = resource else { return 1024 };
    let largest = broker.target(address).map_or(0, |target| target.max_message_bytes());
    usize::try_from(largest.saturating_mul(2).saturating_add(OVERHEAD)).unwrap_or(usize::MAX)
}

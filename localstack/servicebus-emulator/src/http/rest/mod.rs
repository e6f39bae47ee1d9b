//! The REST data plane: send, receive, settle.
//!
//! What was locked for a client that is gone stays locked until the lock ends. What is received destructively is taken when the
//! answer is formed: a client that leaves while it waits costs nothing, one that leaves while it is answered loses the message, as on
//! the service.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{HeaderMap, Method, Response, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::answer::{self, Answer};
use super::atom::Base;
use super::broker_properties::http_date;
use super::messages::{self, BROKER_PROPERTIES};
use super::path::{Messages, parameter};
use crate::access::{Right, Rights, claim_missing};
use crate::broker::{Broker, Delivered, Mode, Outcome, Source};
use crate::faults::{Faults, Operation};
use crate::refusal::{Condition, Refusal};

const BATCH: &str = "application/vnd.microsoft.servicebus.json";
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// Longer waits are cut, so that no proxy in between gives up first.
const MAX_WAIT: Duration = Duration::from_secs(230);

/// One request of the data plane.
pub(super) struct Request<'a> {
    pub(super) broker: &'a Broker,
    pub(super) faults: &'a Faults,
    pub(super) base: &'a Base,
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// Whether a request is for messages. Entities have no POST, and may otherwise be named like messages.
pub(super) fn is_for(method: &Method, resource: &Messages) -> bool {
    match (method, resource) {
        (&Method::POST, _) | (&Method::DELETE, Messages::Head(_)) => true,
        (&Method::DELETE | &Method::PUT, Messages::Locked(_, token)) => Uuid::parse_str(token).is_ok(),
        _ => false,
    }
}

/// Whether this settles a message.
pub(super) fn settles(method: &Method, resource: &Messages) -> bool {
    matches!(resource, Messages::Locked(..)) && matches!(*method, Method::DELETE | Method::PUT)
}

/// What a busy service takes a request for.
pub(super) fn operation(method: &Method, resource: &Messages) -> Operation {
    match (method, resource) {
        (_, Messages::All(_)) => Operation::Send,
        (_, Messages::Head(_)) => Operation::Attach,
        (&Method::POST, Messages::Locked(..)) => Operation::Request,
        (_, Messages::Locked(..)) => Operation::Settle,
    }
}

/// Whether these rights are enough.
pub(super) fn check_right(method: &Method, resource: &Messages, rights: Rights, path: &str) -> Result<(), Refusal> {
    let right = match (method, resource) {
        (&Method::POST, Messages::All(_)) => Right::Send,
        _ => Right::Listen,
    };
    if rights.allow(right) { Ok(()) } else { Err(claim_missing(right, path)) }
}

impl Request<'_> {
    pub(super) async fn answer(&self, method: &Method, resource: &Messages) -> Answer {
        let answer = match (method, resource) {
            (&Method::POST, Messages::All(address)) => self.send(address),
            (&Method::POST, Messages::Head(address)) => self.receive(address, Mode::PeekLock).await,
            (&Method::DELETE, Messages::Head(address)) => self.receive(address, Mode::ReceiveAndDelete).await,
            (&Method::DELETE, Messages::Locked(address, token)) => self.settle(address, token, Outcome::Complete),
            (&Method::PUT, Messages::Locked(address, token)) => {
                self.settle(address, token, Outcome::Abandon(Vec::new()))
            }
            (&Method::POST, Messages::Locked(address, token)) => self.renew(address, token),
            _ => return answer::failed(StatusCode::METHOD_NOT_ALLOWED, "This method is not known here."),
        };
        answer.unwrap_or_else(|refusal| answer::refused(&refusal))
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
        Ok(answer::empty(StatusCode::CREATED))
    }

    async fn receive(&self, address: &str, mode: Mode) -> Result<Answer, Refusal> {
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
                return Ok(answer::empty(StatusCode::NO_CONTENT));
            }
        }
    }

    fn wait(&self) -> Result<Duration, Refusal> {
        let Some(seconds) = parameter(self.query, "timeout") else { return Ok(DEFAULT_WAIT) };
        let seconds = seconds.parse::<u64>();
        let seconds = seconds.map_err(|_| Refusal::new(Condition::InvalidField, "timeout is no number of seconds."))?;
        Ok(Duration::from_secs(seconds).min(MAX_WAIT))
    }

    fn delivered(&self, source: &Source, mode: Mode, delivered: &Delivered) -> Answer {
        let mut answer = Response::new(Full::new(messages::body(&delivered.message)));
        messages::put_headers(delivered, answer.headers_mut());
        if mode == Mode::PeekLock {
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
        Ok(answer::empty(StatusCode::OK))
    }

    fn renew(&self, address: &str, token: &str) -> Result<Answer, Refusal> {
        self.faults.check_renewal()?;
        let token = lock_token(token)?;
        let until = self.broker.source(address)?.renew_locks(&[token])?;
        let mut answer = answer::empty(StatusCode::OK);
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

/// How much of a request's body is read: a JSON batch takes more than its messages do.
pub(super) fn body_limit(broker: &Broker, resource: &Messages) -> usize {
    const OVERHEAD: u64 = 64 * 1024;
    let Messages::All(address) = resource else { return 1024 };
    let largest = broker.target(address).map_or(0, |target| target.max_message_bytes());
    usize::try_from(largest.saturating_mul(2).saturating_add(OVERHEAD)).unwrap_or(usize::MAX)
}

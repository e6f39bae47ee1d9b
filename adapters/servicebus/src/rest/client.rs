//! Requests for messages by the crate azure_messaging_servicebus, over an HTTP client of polybus. Nothing else knows
//! that crate.
//!
//! The crate reads and writes bodies as text, parses broker properties more strictly than the service writes them, and
//! knows one host name only. So the [`HttpClient`] that it is given replaces what it sends and keeps what it gets: the
//! endpoint, the token, bodies of any bytes, headers, and the answers as they came.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use async_trait::async_trait;
use azure_core::{
    HttpClient, Request, Response, StatusCode, Url,
    error::ErrorKind as AzureErrorKind,
    headers::{self, Headers},
};
use azure_messaging_servicebus::service_bus::{PeekLockResponse, QueueClient, TopicClient};
use bytes::Bytes;
use hyper::{HeaderMap, Method, header::LOCATION};
use percent_encoding::utf8_percent_encode;
use polybus_core::{Error, ErrorKind, Result};

use crate::{
    config::CALL_TIMEOUT,
    error,
    topology::{atom, names::EntityPath},
    transport::http::{HttpPool, HttpRequest, HttpResponse},
};

/// Stands for the namespace in the URLs that the crate makes, of which only path and query are used. The crate never
/// gets a credential.
const PLACEHOLDER: &str = "namespace";

/// Sends and receives messages over HTTP.
#[derive(Clone)]
pub(crate) struct RestClient {
    http: Arc<HttpPool>,
}

/// A message that was received, and its lock.
pub(crate) struct LockedMessage {
    pub(crate) response: HttpResponse,
    pub(crate) lock: Arc<RestLock>,
    /// The path that it was received from.
    pub(crate) place: Arc<str>,
}

/// The lock of a message, by which it is settled and renewed.
pub(crate) struct RestLock(PeekLockResponse);

impl RestClient {
    pub(crate) fn new(http: Arc<HttpPool>) -> Self {
        Self { http }
    }

    fn call(&self, operation: &'static str, limit: Duration) -> SdkCall {
        let (http, used) = (self.http.clone(), AtomicBool::new(false));
        SdkCall { http, operation, limit, content: None, query: None, keep: false, used, answer: Mutex::default() }
    }

    /// Posts a message or a batch to a queue or topic.
    pub(crate) async fn send(&self, address: &str, headers: HeaderMap, body: Bytes) -> Result<()> {
        let call = SdkCall { content: Some((headers, body)), ..self.call("publish", CALL_TIMEOUT) };
        let queue = queue_client(Arc::new(call), address, "publish")?;
        queue.send_message("", None).await.map_err(|e| own_error(e, "publish"))
    }

    /// Locks the next message. The broker waits for one, at most `wait`, in whole seconds.
    pub(crate) async fn peek_lock(&self, place: &EntityPath, wait: Duration) -> Result<Option<LockedMessage>> {
        let call = Arc::new(SdkCall { keep: true, ..self.call("receive", wait + CALL_TIMEOUT) });
        let peeked = match place {
            EntityPath::Queue(name) => {
                queue_client(call.clone(), name, "receive")?.peek_lock_message2(Some(wait)).await
            }
            EntityPath::Subscription { topic, name } => {
                let topic = topic_client(call.clone(), topic, "receive")?;
                topic.subscription_receiver(&escaped(name)).peek_lock_message2(Some(wait)).await
            }
        };
        let peeked = peeked.map_err(|e| own_error(e, "receive"))?;
        Ok(match call.take_answer() {
            Some(answer) if answer.status != hyper::StatusCode::NO_CONTENT => {
                Some(LockedMessage { response: answer, lock: Arc::new(RestLock(peeked)), place: place.path().into() })
            }
            _ => None,
        })
    }

    /// Deletes the next message. False if there is none.
    pub(crate) async fn receive_and_delete(&self, place: &EntityPath) -> Result<bool> {
        let call = Arc::new(SdkCall { keep: true, query: Some("timeout=0"), ..self.call("purge", CALL_TIMEOUT) });
        let taken = match place {
            EntityPath::Queue(name) => queue_client(call.clone(), name, "purge")?.receive_and_delete_message().await,
            EntityPath::Subscription { topic, name } => {
                let topic = topic_client(call.clone(), topic, "purge")?;
                topic.subscription_receiver(&escaped(name)).receive_and_delete_message().await
            }
        };
        taken.map_err(|e| own_error(e, "purge"))?;
        Ok(call.take_answer().is_some_and(|answer| answer.status != hyper::StatusCode::NO_CONTENT))
    }
}

impl RestLock {
    pub(crate) async fn complete(&self) -> Result<()> {
        self.0.delete_message().await.map(|_| ()).map_err(|e| as_lock_lost(own_error(e, "settle"), "settle"))
    }

    pub(crate) async fn unlock(&self) -> Result<()> {
        self.0.unlock_message().await.map_err(|e| as_lock_lost(own_error(e, "settle"), "settle"))
    }

    pub(crate) async fn renew(&self) -> Result<()> {
        self.0.renew_message_lock().await.map_err(|e| as_lock_lost(own_error(e, "extend"), "extend"))
    }
}

/// The HTTP client of one call of the crate. A message that it locks is settled through the same client.
struct SdkCall {
    http: Arc<HttpPool>,
    operation: &'static str,
    limit: Duration,
    /// What is sent in place of the crate's headers and body.
    content: Option<(HeaderMap, Bytes)>,
    query: Option<&'static str>,
    /// Whether the first answer is kept. The crate then sees no more of it than the location of the message.
    keep: bool,
    /// Whether the first request was made, which locks a message. Those after it settle or renew.
    used: AtomicBool,
    answer: Mutex<Option<HttpResponse>>,
}

impl SdkCall {
    fn take_answer(&self) -> Option<HttpResponse> {
        self.answer.lock().take()
    }

    async fn run(&self, request: &Request) -> Result<Response> {
        let method = request.method().as_ref().parse::<Method>();
        let method =
            method.map_err(|e| error::new(ErrorKind::Unexpected, self.operation, format!("HTTP method: {e}")))?;
        let mut target = request.path_and_query();
        if let Some(query) = self.query {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(query);
        }
        let first = !self.used.swap(true, Ordering::AcqRel);
        if first {
            self.http.ensure_not_busy(self.operation)?;
        }
        let limit = if first { self.limit } else { CALL_TIMEOUT };
        let (headers, body) = self.content.clone().unwrap_or_default();
        // A settlement may be sent again: the second answer says that the lock is gone, and nothing else happens.
        let call = HttpRequest { method, target, headers, body, repeatable: !first, limit };
        let answer = self.http.send(&call, self.operation).await?;
        if !answer.status.is_success() {
            let text = String::from_utf8_lossy(&answer.body);
            let detail = atom::detail(&text).unwrap_or_else(|| format!("the broker answers {}", answer.status));
            return Err(self.http.classify_refusal(error::of_http(answer.status.as_u16(), &detail, self.operation)));
        }
        let mut shown = Headers::new();
        if let Some(location) = answer.headers.get(LOCATION).and_then(|at| at.to_str().ok()) {
            shown.insert(headers::LOCATION, redirected(location)?);
        }
        let status = StatusCode::try_from(answer.status.as_u16()).unwrap_or(StatusCode::Ok);
        if self.keep && first {
            *self.answer.lock() = Some(answer);
        }
        Ok(Response::new(status, shown, Box::pin(futures_util::stream::empty())))
    }
}

/// A location at the configured endpoint, whatever host name the service answers with.
fn redirected(location: &str) -> Result<String> {
    let base = Url::parse(&format!("https://{PLACEHOLDER}.servicebus.windows.net/"));
    let joined = base.and_then(|base| base.join(location));
    joined.map(Into::into).map_err(|e| error::new(ErrorKind::Unexpected, "receive", format!("Location: {e}")))
}

impl fmt::Debug for SdkCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SdkCall").field("operation", &self.operation).finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for SdkCall {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<Response> {
        self.run(request).await.map_err(|e| azure_core::Error::new(AzureErrorKind::Other, e))
    }
}

fn queue_client(client: Arc<dyn HttpClient>, name: &str, operation: &'static str) -> Result<QueueClient> {
    QueueClient::new(client, PLACEHOLDER, escaped(name), "", "").map_err(|e| own_error(e, operation))
}

fn topic_client(client: Arc<dyn HttpClient>, name: &str, operation: &'static str) -> Result<TopicClient> {
    TopicClient::new(client, PLACEHOLDER, escaped(name), "", "").map_err(|e| own_error(e, operation))
}

fn escaped(path: &str) -> String {
    utf8_percent_encode(path, atom::PATH_ESCAPES).to_string()
}

/// Unwraps the error of polybus that went through the crate, or wraps one that the crate has made.
fn own_error(e: azure_core::Error, operation: &'static str) -> Error {
    match e.into_downcast::<Error>() {
        Ok(own) => own,
        Err(other) => error::new(ErrorKind::Unexpected, operation, format!("azure_messaging_servicebus: {other}")),
    }
}

/// If the message is not found, or its entity, its lock is gone.
fn as_lock_lost(e: Error, operation: &'static str) -> Error {
    match e.kind() {
        ErrorKind::NotFound | ErrorKind::LockLost => {
            error::lock_lost("the broker knows no such lock").with_operation(operation)
        }
        _ => e.with_operation(operation),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_path_of_a_location_counts() {
        for location in ["http://10.0.0.1:5300/q/messages/1/a-b?x=1", "/q/messages/1/a-b?x=1"] {
            let url = Url::parse(&redirected(location).unwrap()).unwrap();
            assert_eq!((url.path(), url.query()), ("/q/messages/1/a-b", Some("x=1")), "{location}");
        }
    }

    #[test]
    fn errors_come_out_of_the_crate_as_they_went_in() {
        let e = azure_core::Error::new(AzureErrorKind::Other, error::of_http(503, "busy", "receive"));
        assert_eq!(own_error(e, "receive").kind(), ErrorKind::Throttled);
        let gone = error::of_http(410, "", "settle");
        assert_eq!(as_lock_lost(gone, "settle").kind(), ErrorKind::LockLost);
    }
}

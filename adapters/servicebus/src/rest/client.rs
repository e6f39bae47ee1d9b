//! The calls of azure_messaging_servicebus, through an HTTP client of ours. Nothing else here knows that crate.
//!
//! It reads and writes bodies as text, parses broker properties more strictly than the service writes them, and knows one host
//! name, so the [`HttpClient`] it is given is where polybus puts in what goes beside: the endpoint, the token, bodies of any
//! bytes, headers, and the answers as they came.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

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
    config::CALL,
    error,
    topology::{atom, names::Place},
    transport::http::{Ask, Http, Told},
};

/// Stands for the namespace in the crate's URLs, of which only path and query are used. Credentials never reach the crate.
const NOWHERE: &str = "namespace";

/// Messages over HTTP.
#[derive(Clone)]
pub(crate) struct Rest {
    http: Arc<Http>,
}

/// A message and the lock it is held by.
pub(crate) struct Locked {
    pub(crate) told: Told,
    pub(crate) lock: Arc<Lock>,
    /// Where it was received.
    pub(crate) place: Arc<str>,
}

/// What a message is settled by.
pub(crate) struct Lock(PeekLockResponse);

impl Rest {
    pub(crate) fn new(http: Arc<Http>) -> Self {
        Self { http }
    }

    fn call(&self, operation: &'static str, limit: Duration) -> Call {
        let (http, told) = (self.http.clone(), Mutex::default());
        Call { http, operation, limit, letter: None, query: None, keep: false, used: AtomicBool::new(false), told }
    }

    /// Posts to the messages of a queue or topic.
    pub(crate) async fn send(&self, address: &str, headers: HeaderMap, body: Bytes) -> Result<()> {
        let call = Call { letter: Some((headers, body)), ..self.call("publish", CALL) };
        let queue =
            QueueClient::new(Arc::new(call), NOWHERE, encoded(address), "", "").map_err(|e| ours(e, "publish"))?;
        queue.send_message("", None).await.map_err(|e| ours(e, "publish"))
    }

    /// Waits at the broker for a message, at most `wait`, in whole seconds.
    pub(crate) async fn peek_lock(&self, place: &Place, wait: Duration) -> Result<Option<Locked>> {
        let call = Arc::new(Call { keep: true, ..self.call("receive", wait + CALL) });
        let client: Arc<dyn HttpClient> = call.clone();
        let peeked = match place {
            Place::Queue(name) => match QueueClient::new(client, NOWHERE, encoded(name), "", "") {
                Ok(queue) => queue.peek_lock_message2(Some(wait)).await,
                Err(e) => Err(e),
            },
            Place::Subscription { topic, name } => match TopicClient::new(client, NOWHERE, encoded(topic), "", "") {
                Ok(topic) => topic.subscription_receiver(&encoded(name)).peek_lock_message2(Some(wait)).await,
                Err(e) => Err(e),
            },
        };
        let peeked = peeked.map_err(|e| ours(e, "receive"))?;
        Ok(match call.take() {
            Some(told) if told.status != hyper::StatusCode::NO_CONTENT => {
                Some(Locked { told, lock: Arc::new(Lock(peeked)), place: place.path().into() })
            }
            _ => None,
        })
    }

    /// Takes a message away if there is one.
    pub(crate) async fn take(&self, place: &Place) -> Result<bool> {
        let call = Arc::new(Call { keep: true, query: Some("timeout=0"), ..self.call("purge", CALL) });
        let client: Arc<dyn HttpClient> = call.clone();
        let taken = match place {
            Place::Queue(name) => match QueueClient::new(client, NOWHERE, encoded(name), "", "") {
                Ok(queue) => queue.receive_and_delete_message().await,
                Err(e) => Err(e),
            },
            Place::Subscription { topic, name } => match TopicClient::new(client, NOWHERE, encoded(topic), "", "") {
                Ok(topic) => topic.subscription_receiver(&encoded(name)).receive_and_delete_message().await,
                Err(e) => Err(e),
            },
        };
        taken.map_err(|e| ours(e, "purge"))?;
        Ok(call.take().is_some_and(|told| told.status != hyper::StatusCode::NO_CONTENT))
    }
}

impl Lock {
    pub(crate) async fn complete(&self) -> Result<()> {
        self.0.delete_message().await.map(|_| ()).map_err(|e| lost(ours(e, "settle"), "settle"))
    }

    pub(crate) async fn unlock(&self) -> Result<()> {
        self.0.unlock_message().await.map_err(|e| lost(ours(e, "settle"), "settle"))
    }

    pub(crate) async fn renew(&self) -> Result<()> {
        self.0.renew_message_lock().await.map_err(|e| lost(ours(e, "extend"), "extend"))
    }
}

/// One call of the crate, and for a locked message those that settle it.
struct Call {
    http: Arc<Http>,
    operation: &'static str,
    limit: Duration,
    /// In place of what the crate would send.
    letter: Option<(HeaderMap, Bytes)>,
    query: Option<&'static str>,
    /// The first answer is kept, and the crate sees no more of it than where the message is.
    keep: bool,
    /// The call that locks a message comes before those that settle it.
    used: AtomicBool,
    told: Mutex<Option<Told>>,
}

impl Call {
    fn take(&self) -> Option<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).take()
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
            self.http.ensure_calm(self.operation)?;
        }
        let limit = if first { self.limit } else { CALL };
        let (headers, body) = self.letter.clone().unwrap_or_default();
        // To settle twice is to be told the second time that the lock is gone; nothing else comes of it.
        let ask = Ask { method, target, headers, body, repeat: !first, limit };
        let told = self.http.ask(&ask, self.operation).await?;
        if !told.status.is_success() {
            let text = String::from_utf8_lossy(&told.body);
            let detail = atom::detail(&text).unwrap_or_else(|| format!("the broker answers {}", told.status));
            return Err(self.http.judged(error::of_http(told.status.as_u16(), &detail, self.operation)));
        }
        let mut shown = Headers::new();
        if let Some(location) = told.headers.get(LOCATION).and_then(|at| at.to_str().ok()) {
            shown.insert(headers::LOCATION, redirected(location)?);
        }
        let status = StatusCode::try_from(told.status.as_u16()).unwrap_or(StatusCode::Ok);
        if self.keep && first {
            *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        }
        Ok(Response::new(status, shown, Box::pin(futures_util::stream::empty())))
    }
}

/// A place at our endpoint, whatever host the service calls itself by.
fn redirected(location: &str) -> Result<String> {
    let base = Url::parse(&format!("https://{NOWHERE}.servicebus.windows.net/"));
    let joined = base.and_then(|base| base.join(location));
    joined.map(Into::into).map_err(|e| error::new(ErrorKind::Unexpected, "receive", format!("Location: {e}")))
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("operation", &self.operation).finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Call {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<Response> {
        self.run(request).await.map_err(|e| azure_core::Error::new(AzureErrorKind::Other, e))
    }
}

fn encoded(path: &str) -> String {
    utf8_percent_encode(path, atom::PATH).to_string()
}

/// Our own error back out of the crate's, or one of the crate's making.
fn ours(e: azure_core::Error, operation: &'static str) -> Error {
    match e.into_downcast::<Error>() {
        Ok(own) => own,
        Err(other) => error::new(ErrorKind::Unexpected, operation, format!("azure_messaging_servicebus: {other}")),
    }
}

/// Where there is no such message, entity included, the lock is gone with it.
fn lost(e: Error, operation: &'static str) -> Error {
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
        assert_eq!(ours(e, "receive").kind(), ErrorKind::Throttled);
        let gone = error::of_http(410, "", "settle");
        assert_eq!(lost(gone, "settle").kind(), ErrorKind::LockLost);
    }
}

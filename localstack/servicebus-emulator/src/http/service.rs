//! Handles one request: checks its token and rights, reads its body, and passes it on by its path.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, IF_MATCH};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, StatusCode};
use tokio::time::sleep;

use super::atom::{NamespaceUrl, management};
use super::path::{AtomPath, MessagePath, decoded, parameter};
use super::response::{self, Answer};
use super::rest::RestRequest;
use super::{body, control, rest, websocket_upgrade};
use crate::SharedState;
use crate::auth::{AccessRight, Rights};
use crate::faults::{BusyOperation, SettleLoss};
use crate::refusal::Refusal;

/// The largest body of a management request, far above any description.
const MAX_MANAGEMENT_BYTES: usize = 1024 * 1024;

pub(super) struct HttpService {
    pub(super) shared: SharedState,
    started_at: i64,
}

/// The state of a connection that its requests share.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) tls: bool,
    /// The current request is a control request, so faults that drop connections spare this one.
    pub(super) switching: AtomicBool,
    /// Set when the connection is to become a WebSocket.
    pub(super) upgrade: Mutex<Option<OnUpgrade>>,
}

/// The error of a fault that drops the connection without an answer.
#[derive(Debug)]
pub(super) struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dropped on request")
    }
}

impl std::error::Error for Dropped {}

impl HttpService {
    pub(super) fn new(shared: SharedState) -> Self {
        let started_at = shared.clock().now_ms();
        Self { shared, started_at }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, connection: &Connection) -> Result<Answer, Dropped> {
        let path = match decoded(request.uri().path()) {
            Ok(path) => path,
            Err(refusal) => return Ok(response::refused(&refusal)),
        };
        let is_management = parameter(request.uri().query(), "api-version").is_some();
        if path.eq_ignore_ascii_case("health") && request.method() == Method::GET && !is_management {
            return Ok(response::empty(StatusCode::OK));
        }
        if let Some(switch) = path.strip_prefix(control::PREFIX) {
            connection.switching.store(true, Ordering::Release);
            return Ok(self.switch(request, switch).await);
        }
        connection.switching.store(false, Ordering::Release);
        if self.shared.faults.refuses() {
            return Err(Dropped);
        }
        if path.eq_ignore_ascii_case(websocket_upgrade::PATH) {
            // No token is needed here, because AMQP clients put their claims over the connection.
            let answer = websocket_upgrade::answer(request.method(), request.headers());
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                *connection.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(hyper::upgrade::on(request));
            }
            return Ok(answer);
        }
        let messages = MessagePath::parse(&path).filter(|resource| rest::is_for(request.method(), resource));
        let rights = match self.authorize(&request, &path) {
            Ok(rights) => rights,
            Err(refusal) => return Ok(response::refused(&refusal)),
        };
        let allowed = match &messages {
            Some(resource) => rest::check_right(request.method(), resource, rights, &path),
            None => self.check_manages(request.method(), &path, rights),
        };
        if let Err(refusal) = allowed {
            return Ok(response::refused(&refusal));
        }
        let (head, incoming) = request.into_parts();
        match messages {
            Some(resource) => self.data(head, incoming, &resource, connection.tls).await,
            None => Ok(self.manage(head, incoming, &path, connection.tls).await),
        }
    }

    async fn switch(&self, request: Request<Incoming>, switch: &str) -> Answer {
        let (head, incoming) = request.into_parts();
        let body = match body::read(incoming, control::MAX_BYTES).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        match switch {
            "faults" => control::faults(&self.shared.faults, self.shared.clock().now_ms(), &head.method, &body),
            "clock" => control::clock(self.shared.clock(), &head.method, &body),
            "cloud" => control::cloud(&self.shared.cloud, &self.shared.faults, &head.method, &body),
            "keys" => control::keys(&self.shared.keys, &head.method, &body),
            _ => response::failed(StatusCode::NOT_FOUND, "There are /$emulator/faults, …/clock, …/cloud and …/keys."),
        }
    }

    async fn manage(&self, head: Parts, incoming: Incoming, path: &str, tls: bool) -> Answer {
        let body = match body::read(incoming, MAX_MANAGEMENT_BYTES).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        if let Err(refusal) = self.shared.check_busy(BusyOperation::Manage) {
            return response::refused(&refusal);
        }
        let request = management::AtomRequest {
            broker: &self.shared.broker,
            base: &base(&head, tls),
            started_at: self.started_at,
            query: head.uri.query(),
            changes: head.headers.contains_key(IF_MATCH),
            body: &body,
        };
        request.answer(&head.method, &AtomPath::parse(path))
    }

    /// Handles a data-plane request. It counts as one frame, and a settlement as one settlement, so that the same
    /// faults apply as over AMQP.
    async fn data(
        &self,
        head: Parts,
        incoming: Incoming,
        resource: &MessagePath,
        tls: bool,
    ) -> Result<Answer, Dropped> {
        let (broker, faults) = (&self.shared.broker, &self.shared.faults);
        let body = match body::read(incoming, rest::body_limit(broker, resource)).await {
            Ok(body) => body,
            Err(answer) => return Ok(answer),
        };
        // `sleep` would round even a zero delay up to a tick.
        if !faults.delay().is_zero() {
            sleep(faults.delay()).await;
        }
        if faults.drops_at_frame() {
            return Err(Dropped);
        }
        let loss = if rest::settles(&head.method, resource) { faults.next_loss() } else { SettleLoss::None };
        if loss == SettleLoss::Request {
            return Err(Dropped);
        }
        if let Err(refusal) = self.shared.check_busy(rest::operation(&head.method, resource)) {
            return Ok(response::refused(&refusal));
        }
        let base = base(&head, tls);
        let request =
            RestRequest { broker, faults, base: &base, query: head.uri.query(), headers: &head.headers, body: &body };
        let answer = request.answer(&head.method, resource).await;
        if loss == SettleLoss::Answer { Err(Dropped) } else { Ok(answer) }
    }

    /// Checks the request's token. Some clients sign the path as it is in the URL, others the decoded path.
    fn authorize(&self, request: &Request<Incoming>, path: &str) -> Result<Rights, Refusal> {
        let token = request.headers().get(AUTHORIZATION).and_then(|token| token.to_str().ok());
        let shared = &self.shared;
        let grant = shared.authorize(token, request.uri().path()).or_else(|_| shared.authorize(token, path))?;
        Ok(grant.rights)
    }

    /// Refuses management without the Manage right. Only that an entity does not exist is shown without it.
    fn check_manages(&self, method: &Method, path: &str, rights: Rights) -> Result<(), Refusal> {
        let resource = AtomPath::parse(path);
        let nothing = match &resource {
            AtomPath::Root => true,
            AtomPath::Entity(name) => *method == Method::GET && !self.shared.broker.exists(name),
            _ => false,
        };
        if rights.allow(AccessRight::Manage) || nothing { Ok(()) } else { Err(management::denied(method, &resource)) }
    }
}

fn base(head: &Parts, tls: bool) -> NamespaceUrl {
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    NamespaceUrl::new(tls, host, head.uri.query())
}

//! One request: who may, what it is about, who answers.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, IF_MATCH};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, StatusCode};
use tokio::time::sleep;

use super::answer::{self, Answer};
use super::atom::Base;
use super::path::{Messages, Resource, decoded, parameter};
use super::{body, data, management, switches, upgrade};
use crate::Shared;
use crate::access::{Right, Rights};
use crate::faults::{Loss, Operation};
use crate::refusal::Refusal;

/// No description comes near it.
const MAX_MANAGEMENT_BYTES: usize = 1024 * 1024;

pub(super) struct Service {
    pub(super) shared: Shared,
    started_at: i64,
}

/// One connection, as far as requests care.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) tls: bool,
    /// A switch is being thrown over it, so that faults for connections spare it.
    pub(super) switching: AtomicBool,
    /// It is to become a WebSocket.
    pub(super) upgrade: Mutex<Option<OnUpgrade>>,
}

/// A fault that was asked for: the connection ends without an answer.
#[derive(Debug)]
pub(super) struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dropped on request")
    }
}

impl std::error::Error for Dropped {}

impl Service {
    pub(super) fn new(shared: Shared) -> Self {
        let started_at = shared.clock().now_ms();
        Self { shared, started_at }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, connection: &Connection) -> Result<Answer, Dropped> {
        let path = match decoded(request.uri().path()) {
            Ok(path) => path,
            Err(refusal) => return Ok(answer::refused(&refusal)),
        };
        let is_management = parameter(request.uri().query(), "api-version").is_some();
        if path.eq_ignore_ascii_case("health") && request.method() == Method::GET && !is_management {
            return Ok(answer::empty(StatusCode::OK));
        }
        if let Some(switch) = path.strip_prefix(switches::PREFIX) {
            connection.switching.store(true, Ordering::Release);
            return Ok(self.switch(request, switch).await);
        }
        connection.switching.store(false, Ordering::Release);
        if self.shared.faults.refuses() {
            return Err(Dropped);
        }
        if path.eq_ignore_ascii_case(upgrade::PATH) {
            // Claims come over the connection itself.
            let answer = upgrade::answer(request.method(), request.headers());
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                *connection.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(hyper::upgrade::on(request));
            }
            return Ok(answer);
        }
        let messages = Messages::parse(&path).filter(|resource| data::is_for(request.method(), resource));
        let rights = match self.authorize(&request, &path) {
            Ok(rights) => rights,
            Err(refusal) => return Ok(answer::refused(&refusal)),
        };
        let allowed = match &messages {
            Some(resource) => data::check_right(request.method(), resource, rights, &path),
            None => self.check_manages(request.method(), &path, rights),
        };
        if let Err(refusal) = allowed {
            return Ok(answer::refused(&refusal));
        }
        let (head, incoming) = request.into_parts();
        match messages {
            Some(resource) => self.data(head, incoming, &resource, connection.tls).await,
            None => Ok(self.manage(head, incoming, &path, connection.tls).await),
        }
    }

    async fn switch(&self, request: Request<Incoming>, switch: &str) -> Answer {
        let (head, incoming) = request.into_parts();
        let body = match body::read(incoming, switches::MAX_BYTES).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        match switch {
            "faults" => switches::faults(&self.shared.faults, self.shared.clock().now_ms(), &head.method, &body),
            "clock" => switches::clock(self.shared.clock(), &head.method, &body),
            "cloud" => switches::cloud(&self.shared.cloud, &self.shared.faults, &head.method, &body),
            "keys" => switches::keys(&self.shared.keys, &head.method, &body),
            _ => answer::failed(StatusCode::NOT_FOUND, "There are /$emulator/faults, …/clock, …/cloud and …/keys."),
        }
    }

    async fn manage(&self, head: Parts, incoming: Incoming, path: &str, tls: bool) -> Answer {
        let body = match body::read(incoming, MAX_MANAGEMENT_BYTES).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        if let Err(refusal) = self.shared.check_busy(Operation::Manage) {
            return answer::refused(&refusal);
        }
        let request = management::Request {
            broker: &self.shared.broker,
            base: &base(&head, tls),
            started_at: self.started_at,
            query: head.uri.query(),
            changes: head.headers.contains_key(IF_MATCH),
            body: &body,
        };
        request.answer(&head.method, &Resource::parse(path))
    }

    /// A request counts as a frame, and a settlement as one, so that the faults are those of AMQP.
    async fn data(&self, head: Parts, incoming: Incoming, resource: &Messages, tls: bool) -> Result<Answer, Dropped> {
        let (broker, faults) = (&self.shared.broker, &self.shared.faults);
        let body = match body::read(incoming, data::body_limit(broker, resource)).await {
            Ok(body) => body,
            Err(answer) => return Ok(answer),
        };
        // Even no time at all is rounded up to a tick.
        if !faults.delay().is_zero() {
            sleep(faults.delay()).await;
        }
        if faults.drops_at_frame() {
            return Err(Dropped);
        }
        let loss = if data::settles(&head.method, resource) { faults.next_loss() } else { Loss::None };
        if loss == Loss::Request {
            return Err(Dropped);
        }
        if let Err(refusal) = self.shared.check_busy(data::operation(&head.method, resource)) {
            return Ok(answer::refused(&refusal));
        }
        let base = base(&head, tls);
        let request =
            data::Request { broker, faults, base: &base, query: head.uri.query(), headers: &head.headers, body: &body };
        let answer = request.answer(&head.method, resource).await;
        if loss == Loss::Answer { Err(Dropped) } else { Ok(answer) }
    }

    /// Some clients sign the path as it stands in the URL, others decoded.
    fn authorize(&self, request: &Request<Incoming>, path: &str) -> Result<Rights, Refusal> {
        let token = request.headers().get(AUTHORIZATION).and_then(|token| token.to_str().ok());
        let shared = &self.shared;
        let grant = shared.authorize(token, request.uri().path()).or_else(|_| shared.authorize(token, path))?;
        Ok(grant.rights)
    }

    /// Without Manage, all that can be learnt is that there is no such queue or topic.
    fn check_manages(&self, method: &Method, path: &str, rights: Rights) -> Result<(), Refusal> {
        let resource = Resource::parse(path);
        let nothing = match &resource {
            Resource::Root => true,
            Resource::Entity(name) => *method == Method::GET && !self.shared.broker.exists(name),
            _ => false,
        };
        if rights.allow(Right::Manage) || nothing { Ok(()) } else { Err(management::denied(method, &resource)) }
    }
}

fn base(head: &Parts, tls: bool) -> Base {
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    Base::new(tls, host, head.uri.query())
}

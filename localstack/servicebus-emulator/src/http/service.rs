//! One request: who may, what it is about, who answers.

use std::convert::Infallible;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, IF_MATCH};
use hyper::{Method, Request, StatusCode};

use super::answer::{self, Answer};
use super::atom::Base;
use super::path::{Resource, decoded, parameter};
use super::{body, management};
use crate::Shared;
use crate::refusal::Refusal;

/// No description comes near it.
const MAX_MANAGEMENT_BYTES: usize = 1024 * 1024;

pub(super) struct Service {
    shared: Shared,
    started_at: i64,
}

impl Service {
    pub(super) fn new(shared: Shared) -> Self {
        let started_at = shared.clock().now_ms();
        Self { shared, started_at }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, tls: bool) -> Result<Answer, Infallible> {
        let path = match decoded(request.uri().path()) {
            Ok(path) => path,
            Err(refusal) => return Ok(answer::refused(&refusal)),
        };
        let is_management = parameter(request.uri().query(), "api-version").is_some();
        if path.eq_ignore_ascii_case("health") && request.method() == Method::GET && !is_management {
            return Ok(answer::empty(StatusCode::OK));
        }
        if let Err(refusal) = self.authorize(&request, &path) {
            return Ok(answer::refused(&refusal));
        }
        Ok(self.manage(request, &path, tls).await)
    }

    async fn manage(&self, request: Request<Incoming>, path: &str, tls: bool) -> Answer {
        let (head, incoming) = request.into_parts();
        let body = match body::read(incoming, MAX_MANAGEMENT_BYTES).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let base = Base::new(tls, host, head.uri.query());
        let request = management::Request {
            broker: &self.shared.broker,
            base: &base,
            started_at: self.started_at,
            query: head.uri.query(),
            changes: head.headers.contains_key(IF_MATCH),
            body: &body,
        };
        request.answer(&head.method, &Resource::parse(path))
    }

    /// Some clients sign the path as it stands in the URL, others decoded.
    fn authorize(&self, request: &Request<Incoming>, path: &str) -> Result<(), Refusal> {
        let token = request.headers().get(AUTHORIZATION).and_then(|token| token.to_str().ok());
        let shared = &self.shared;
        shared.authorize(token, request.uri().path()).or_else(|_| shared.authorize(token, path))
    }
}

//! The `$management` node of an entity: renewals, peeking, scheduling, deferred messages, sessions, rules.

mod ids;
mod messages;
mod rules;

use ids::{array_of_longs, sequence_numbers};

use super::RequestAnswer;
use crate::amqp::engine::ConnectionEngine;
use crate::auth::AccessRight;
use crate::broker::{Outcome, ReceiveMode};
use crate::codec::Value;
use crate::faults::{BusyOperation, SettleLoss};
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

/// The status and body of an operation's answer, or its refusal.
pub(crate) type ManagementResult = Result<(i32, Vec<(&'static str, Value)>), Refusal>;

pub(crate) const OK: i32 = 200;
pub(crate) const NO_CONTENT: i32 = 204;
/// The most messages that one request may peek at.
const MAX_PEEK: usize = 250;

impl ConnectionEngine {
    /// Refuses the management of an entity that does not exist.
    pub(crate) fn check_exists(&self, address: &str) -> Result<(), Refusal> {
        let broker = &self.shared.broker;
        match broker.source(address) {
            // A topic exists but has no source, so its target proves that it exists.
            Err(refusal) if refusal.condition != Condition::NotFound => broker.target(address).map(drop),
            found => found.map(drop),
        }
    }

    pub(crate) fn management_request(&mut self, channel: u16, address: &str, request: &Message) {
        let operation = request.application_property("operation").and_then(Value::as_text).unwrap_or_default();
        let name = operation.strip_prefix("com.microsoft:").unwrap_or(operation).to_owned();
        let body = request.body_value().unwrap_or(Value::Null);
        if let Some(link) = request.application_property("associated-link-name").and_then(Value::as_text) {
            self.keep_alive(link);
        }
        let allowed = self.check_right(&name, address).and_then(|()| self.shared.check_busy(BusyOperation::Request));
        let done = match (allowed, name.as_str()) {
            (Err(refusal), _) => Err(refusal),
            (_, "update-disposition") => match self.update_disposition(address, &body) {
                Ok(true) => Ok((OK, Vec::new())),
                // A fault lost the request or its answer.
                Ok(false) => return,
                Err(refusal) => Err(refusal),
            },
            _ => self.operation(&name, address, request, &body),
        };
        let answer = match done {
            Ok((status, body)) => {
                let description = if status == NO_CONTENT { "No Content" } else { "OK" };
                let body = body.into_iter().map(|(key, value)| (Value::string(key), value)).collect();
                RequestAnswer { properties: status_of(status, description), body: Value::Map(body) }
            }
            Err(refusal) => {
                let mut properties = status_of(i32::from(refusal.condition.status()), &refusal.description);
                properties.push(("errorCondition", Value::symbol(refusal.condition.symbol())));
                RequestAnswer { properties, body: Value::Map(Vec::new()) }
            }
        };
        self.answer(channel, &management_of(address), request, answer);
    }

    /// The rights each operation takes: <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-sas>. That
    /// page wants Listen for scheduling, the SDKs do it with Send.
    fn check_right(&self, operation: &str, address: &str) -> Result<(), Refusal> {
        let address = &management_of(address);
        let listens = self.check_claim(address, Some(AccessRight::Listen));
        match operation {
            "schedule-message" | "cancel-scheduled-message" if listens.is_err() => {
                self.check_claim(address, Some(AccessRight::Send))
            }
            _ => listens,
        }
    }

    fn operation(&self, name: &str, address: &str, request: &Message, body: &Value) -> ManagementResult {
        let broker = &self.shared.broker;
        // The receiving link that the request belongs to. It decides whether the client still holds the session.
        let link = request.application_property("associated-link-name").and_then(Value::as_text);
        let session = || body.get("session-id").and_then(Value::as_text);
        let named_session = || session().ok_or_else(|| missing("session-id"));
        match name {
            "renew-lock" => {
                self.shared.faults.check_renewal()?;
                let until = broker.source(address)?.renew_locks(&lock_tokens(body)?)?;
                Ok((OK, vec![("expirations", Value::Array(until.into_iter().map(Value::Timestamp).collect()))]))
            }
            "peek-message" => {
                let from = body.get("from-sequence-number").and_then(Value::as_i64).unwrap_or(0);
                let count = body.get("message-count").and_then(Value::as_i64).unwrap_or(1);
                let count = usize::try_from(count).unwrap_or(0).min(MAX_PEEK);
                let found = broker.source(address)?.peek(from, count, session())?;
                let status = if found.is_empty() { NO_CONTENT } else { OK };
                Ok((status, vec![("messages", messages::peeked(&found))]))
            }
            "schedule-message" => {
                let numbers = broker.target(address)?.schedule(messages::to_schedule(body)?)?;
                Ok((OK, vec![("sequence-numbers", array_of_longs(numbers))]))
            }
            "cancel-scheduled-message" => {
                broker.target(address)?.cancel_scheduled(&sequence_numbers(body)?)?;
                Ok((OK, Vec::new()))
            }
            "receive-by-sequence-number" => {
                let settles = body.get("receiver-settle-mode").and_then(Value::as_u32) != Some(0);
                let mode = if settles { ReceiveMode::PeekLock } else { ReceiveMode::ReceiveAndDelete };
                let numbers = sequence_numbers(body)?;
                let found = broker.source(address)?.receive_deferred(&numbers, mode, session())?;
                let status = if found.is_empty() { NO_CONTENT } else { OK };
                Ok((status, vec![("messages", messages::received(&found))]))
            }
            "renew-session-lock" => {
                self.shared.faults.check_renewal()?;
                let until = broker.source(address)?.renew_session(named_session()?, link)?;
                Ok((OK, vec![("expiration", Value::Timestamp(until))]))
            }
            "get-session-state" => {
                let state = broker.source(address)?.session_state(named_session()?, link)?;
                Ok((OK, vec![("session-state", state.map_or(Value::Null, Value::Binary))]))
            }
            "set-session-state" => {
                let state = body.get("session-state").and_then(Value::as_bytes).cloned();
                broker.source(address)?.set_session_state(named_session()?, link, state)?;
                Ok((OK, Vec::new()))
            }
            "get-message-sessions" => messages::sessions(&broker.source(address)?, body),
            "batch-delete-messages" => {
                let count = body.get("message-count").and_then(Value::as_u32).unwrap_or(0);
                let before = body.get("enqueued-time-utc").and_then(Value::as_i64).unwrap_or(i64::MAX);
                let gone = broker.source(address)?.purge(usize::try_from(count).unwrap_or(0), before)?;
                let status = if gone == 0 { NO_CONTENT } else { OK };
                Ok((status, vec![("message-count", Value::Int(i32::try_from(gone).unwrap_or(i32::MAX)))]))
            }
            "add-rule" => rules::add(&broker.source(address)?, body),
            "remove-rule" => rules::remove(&broker.source(address)?, body),
            "enumerate-rules" => rules::list(&broker.source(address)?, body),
            _ => Err(Refusal::new(Condition::NotAllowed, format!("The operation '{name}' is not supported."))),
        }
    }

    /// Settles by lock tokens, all of them or none. Returns false when a fault loses the answer.
    fn update_disposition(&mut self, address: &str, body: &Value) -> Result<bool, Refusal> {
        let source = self.shared.broker.source(address)?;
        let outcome = outcome(body)?;
        let mut tokens = lock_tokens(body)?;
        let mut answers = true;
        tokens.retain(|_| {
            let loss = self.shared.faults.next_loss();
            answers &= loss == SettleLoss::None;
            loss != SettleLoss::Request
        });
        source.settle_all(&tokens, outcome)?;
        self.settled_elsewhere(&tokens);
        Ok(answers)
    }
}

/// The address of an entity's `$management` node. Some clients put a token for this address alone.
pub(crate) fn management_of(address: &str) -> String {
    format!("{address}/$management")
}

fn status_of(code: i32, description: &str) -> Vec<(&'static str, Value)> {
    vec![("statusCode", Value::Int(code)), ("statusDescription", Value::string(description))]
}

fn outcome(body: &Value) -> Result<Outcome, Refusal> {
    let text = |name: &str| body.get(name).and_then(Value::as_text).map(str::to_owned);
    let properties = body.get("properties-to-modify").and_then(Value::as_map).unwrap_or_default().to_vec();
    match text("disposition-status").as_deref() {
        Some("completed") => Ok(Outcome::Complete),
        Some("abandoned") => Ok(Outcome::Abandon(properties)),
        // The service spells it `defered`; the correct spelling is accepted too.
        Some("defered" | "deferred") => Ok(Outcome::Defer(properties)),
        Some("suspended") => Ok(Outcome::DeadLetter {
            reason: text("deadletter-reason"),
            description: text("deadletter-description"),
            properties,
        }),
        _ => Err(Refusal::new(Condition::InvalidField, "The disposition-status is not known.")),
    }
}

fn lock_tokens(body: &Value) -> Result<Vec<uuid::Uuid>, Refusal> {
    ids::uuids(body.get("lock-tokens").ok_or_else(|| missing("lock-tokens"))?)
}

pub(crate) fn missing(field: &str) -> Refusal {
    Refusal::new(Condition::InvalidField, format!("The field '{field}' is missing."))
}

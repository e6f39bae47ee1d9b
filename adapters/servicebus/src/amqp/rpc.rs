//! Requests and answers over a pair of links, as `$cbs` and `$management` take them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};

use fe2o3_amqp::{
    Receiver, Sender,
    link::CreditMode,
    types::{
        messaging::{AmqpValue, ApplicationProperties, Body, Message, MessageId, Outcome, Properties, Source, Target},
        primitives::{SimpleValue, Value},
    },
};
use polybus_core::{Error, ErrorKind, Result};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use crate::{
    amqp::{
        connection::{AmqpConnection, in_task},
        link::{self, AttachedLink, ReceiverLink},
    },
    config::CALL_TIMEOUT,
    error,
};

/// The application properties of a request.
pub(crate) type RpcFields = Vec<(&'static str, SimpleValue)>;

/// An answer.
#[derive(Debug)]
pub(crate) struct RpcReply {
    code: i32,
    description: String,
    condition: Option<String>,
    pub(crate) body: Value,
}

impl RpcReply {
    /// The error that the broker answers, if it does.
    pub(crate) fn check(self, operation: &'static str) -> Result<Self> {
        match (self.code, &self.condition) {
            (200..300, _) => Ok(self),
            (code, Some(condition)) if error::of_condition(condition) == ErrorKind::Unexpected => {
                Err(error::of_status(code, &self.description, operation).with_context("condition", condition))
            }
            (_, Some(condition)) => Err(error::of_parts(condition, Some(&self.description), operation)),
            (code, None) => Err(error::of_status(code, &self.description, operation)),
        }
    }
}

/// A pair of links to one node, shared by many callers. Answers find their request by a number.
pub(crate) struct RpcClient {
    sender: tokio::sync::Mutex<AttachedLink<Sender>>,
    reply_to: String,
    next: AtomicU64,
    state: Arc<RpcState>,
}

#[derive(Default)]
struct RpcState {
    pending: Mutex<HashMap<u64, oneshot::Sender<RpcReply>>>,
    ended: AtomicBool,
    callers_gone: Notify,
}

impl RpcState {
    fn pending(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<RpcReply>>> {
        self.pending.lock()
    }
}

/// The entry of a pending request. Dropping it removes the entry, also where the caller stops waiting.
struct PendingCall<'a>(&'a RpcState, u64);

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        self.0.pending().remove(&self.1);
    }
}

impl RpcClient {
    /// Attaches both links to `node`.
    pub(crate) async fn open(connection: &Arc<AmqpConnection>, node: &str) -> Result<Self> {
        let reply_to = format!("polybus-{}", uuid::Uuid::new_v4().simple());
        let answers = answers(connection, node, &reply_to).await?;
        let sender = match link::attach_sender(connection, node).await {
            Ok(sender) => sender,
            Err(e) => {
                link::close_receiver(answers).await;
                return Err(e);
            }
        };
        let state = Arc::new(RpcState::default());
        tokio::spawn(read_answers(answers, state.clone()));
        Ok(Self { sender: tokio::sync::Mutex::new(sender), reply_to, next: AtomicU64::new(1), state })
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.state.ended.load(Ordering::Acquire)
    }

    /// Sends a request and waits for its answer. The error is `MayDuplicate` where it is not known whether the request
    /// was carried out.
    pub(crate) async fn call(&self, operation: &'static str, fields: RpcFields, body: Value) -> Result<RpcReply> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut properties = Properties::new();
        properties.message_id = Some(MessageId::String(id.to_string()));
        properties.reply_to = Some(self.reply_to.clone());
        let mut application = ApplicationProperties::default();
        for (name, value) in fields {
            application.insert(name.into(), value);
        }
        let request = Message::builder().properties(properties).application_properties(application);
        let request = request.body(AmqpValue(body)).build();
        let (tell, answer) = oneshot::channel();
        self.state.pending().insert(id, tell);
        let _pending = PendingCall(&self.state, id);
        // After the entry was added: `read_answers` sets the flag and then clears the table, so either the flag is seen
        // here, or the entry is cleared there and the wait ends.
        if !self.is_alive() {
            return Err(error::lost(operation, "the link for requests has ended"));
        }
        match timeout(CALL_TIMEOUT, self.exchange(operation, request, answer)).await {
            Ok(done) => done,
            Err(_) => Err(error::timeout(operation, CALL_TIMEOUT).may_duplicate()),
        }
    }

    async fn exchange(
        &self,
        operation: &'static str,
        request: Message<AmqpValue<Value>>,
        mut answer: oneshot::Receiver<RpcReply>,
    ) -> Result<RpcReply> {
        let sent = self.sender.lock().await.link.send_batchable(request).await;
        let mut outcome = sent.map_err(|e| self.mark_ended(error::of_send(&e), operation))?;
        let lost = || error::lost(operation, "the link for requests has ended").may_duplicate();
        // Both the answer and the outcome of the transfer come, in any order. The broker may refuse the request as a
        // message, and then sends no answer.
        tokio::select! {
            biased;
            reply = &mut answer => return reply.map_err(|_| lost()),
            outcome = &mut outcome => match outcome {
                Ok(Outcome::Accepted(_)) => {}
                Ok(Outcome::Rejected(rejected)) => {
                    return Err(rejected.error.map_or_else(
                        || error::new(ErrorKind::Unexpected, operation, "the broker refused the request without a reason"),
                        |e| error::of_peer(&e, operation),
                    ));
                }
                Ok(_) => return Err(error::new(ErrorKind::Unavailable, operation, "the broker gave the request back")),
                Err(e) => return Err(self.mark_ended(error::of_send(&e).may_duplicate(), operation)),
            },
        }
        answer.await.map_err(|_| lost())
    }

    fn mark_ended(&self, e: Error, operation: &'static str) -> Error {
        self.state.ended.store(true, Ordering::Release);
        e.with_operation(operation)
    }
}

impl Drop for RpcClient {
    fn drop(&mut self) {
        self.state.callers_gone.notify_one();
    }
}

async fn answers(connection: &Arc<AmqpConnection>, node: &str, reply_to: &str) -> Result<ReceiverLink> {
    let (connection, node, reply_to) = (connection.clone(), node.to_owned(), reply_to.to_owned());
    in_task(async move {
        let mut session = connection.begin_session().await?;
        let attaching = Receiver::builder()
            .name(format!("{reply_to}-answers"))
            .source(Source::builder().address(node).build())
            .target(Target::builder().address(reply_to).build())
            .credit_mode(CreditMode::Auto(1_000))
            .auto_accept(true)
            .verify_incoming_source(false)
            .verify_incoming_target(false)
            .attach(&mut session);
        match timeout(CALL_TIMEOUT, attaching).await {
            Ok(Ok(link)) => Ok(AttachedLink::new(link, session)),
            Ok(Err(e)) => Err(error::of_receiver_attach(&e)),
            Err(_) => Err(error::timeout("attach", CALL_TIMEOUT)),
        }
    })
    .await
}

/// Hands answers to their callers, until the link ends or the client is dropped.
async fn read_answers(mut answers: ReceiverLink, state: Arc<RpcState>) {
    loop {
        let delivery = tokio::select! {
            delivery = answers.link.recv::<Body<Value>>() => delivery,
            () = state.callers_gone.notified() => break,
        };
        match delivery {
            Ok(delivery) => {
                let message = delivery.into_message();
                let id = message.properties.as_ref().and_then(|p| match &p.correlation_id {
                    Some(MessageId::String(id)) => id.parse().ok(),
                    Some(MessageId::Ulong(id)) => Some(*id),
                    _ => None,
                });
                if let Some(pending) = id.and_then(|id| state.pending().remove(&id)) {
                    let _ = pending.send(reply(message));
                }
            }
            Err(e) => {
                tracing::debug!(error = %e, "a link for answers has ended");
                break;
            }
        }
    }
    state.ended.store(true, Ordering::Release);
    state.pending().clear();
    link::close_receiver(answers).await;
}

fn reply(message: Message<Body<Value>>) -> RpcReply {
    let application = message.application_properties.unwrap_or_default();
    let find = |names: [&str; 2]| names.iter().find_map(|name| application.get(*name));
    let text = |value: Option<&SimpleValue>| match value {
        Some(SimpleValue::String(text)) => Some(text.clone()),
        Some(SimpleValue::Symbol(text)) => Some(text.as_str().to_owned()),
        _ => None,
    };
    let code = match find(["statusCode", "status-code"]) {
        Some(SimpleValue::Int(code)) => *code,
        Some(SimpleValue::Uint(code)) => i32::try_from(*code).unwrap_or(0),
        Some(SimpleValue::Long(code)) => i32::try_from(*code).unwrap_or(0),
        _ => 0,
    };
    RpcReply {
        code,
        description: text(find(["statusDescription", "status-description"])).unwrap_or_default(),
        condition: text(find(["errorCondition", "error-condition"])),
        body: match message.body {
            Body::Value(AmqpValue(value)) => value,
            _ => Value::Null,
        },
    }
}

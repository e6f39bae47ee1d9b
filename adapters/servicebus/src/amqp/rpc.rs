//! Requests and answers over a pair of links: `$cbs` and `$management`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

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
        connection::{Wire, uncut},
        link::{self, Attached},
    },
    config::CALL,
    error,
};

/// What a request says beside its body.
pub(crate) type Fields = Vec<(&'static str, SimpleValue)>;

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    code: i32,
    description: String,
    condition: Option<String>,
    pub(crate) body: Value,
}

impl Reply {
    /// The error it tells, if it does.
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

/// A pair of links. Shared by many callers.
pub(crate) struct Rpc {
    sender: tokio::sync::Mutex<Attached<Sender>>,
    reply_to: String,
    next: AtomicU64,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
    ended: AtomicBool,
    end: Notify,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Reply>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the place of a caller that has gone.
struct Place<'a>(&'a Shared, u64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

impl Rpc {
    /// Attaches both links to `node`.
    pub(crate) async fn open(wire: &Arc<Wire>, node: &str) -> Result<Self> {
        let reply_to = format!("polybus-{}", uuid::Uuid::new_v4().simple());
        let answers = answers(wire, node, &reply_to).await?;
        let sender = match link::sender(wire, node).await {
            Ok(sender) => sender,
            Err(e) => {
                link::close_receiver(answers).await;
                return Err(e);
            }
        };
        let shared = Arc::new(Shared::default());
        tokio::spawn(read(answers, shared.clone()));
        Ok(Self { sender: tokio::sync::Mutex::new(sender), reply_to, next: AtomicU64::new(1), shared })
    }

    pub(crate) fn alive(&self) -> bool {
        !self.shared.ended.load(Ordering::Acquire)
    }

    /// Asks and waits for the answer, limited in time. Where it is not known whether the request was carried out the error is
    /// `MayDuplicate`.
    pub(crate) async fn call(&self, operation: &'static str, fields: Fields, body: Value) -> Result<Reply> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut properties = Properties::new();
        properties.message_id = Some(MessageId::String(id.to_string()));
        properties.reply_to = Some(self.reply_to.clone());
        let mut application = ApplicationProperties::default();
        for (name, value) in fields {
            application.insert(name.into(), value);
        }
        let request = Message {
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: Some(properties),
            application_properties: Some(application),
            body: AmqpValue(body),
            footer: None,
        };
        let (tell, answer) = oneshot::channel();
        self.shared.waiting().insert(id, tell);
        let _place = Place(&self.shared, id);
        // After the entry: the end empties the table once, so either it finds this entry or the flag is seen here.
        if !self.alive() {
            return Err(error::lost(operation, "the link for requests has ended"));
        }
        match timeout(CALL, self.exchange(operation, request, answer)).await {
            Ok(done) => done,
            Err(_) => Err(error::timeout(operation, CALL).may_duplicate()),
        }
    }

    async fn exchange(
        &self,
        operation: &'static str,
        request: Message<AmqpValue<Value>>,
        mut answer: oneshot::Receiver<Reply>,
    ) -> Result<Reply> {
        let sent = self.sender.lock().await.link.send_batchable(request).await;
        let mut outcome = sent.map_err(|e| self.failed(error::of_send(&e), operation))?;
        let lost = || error::lost(operation, "the link for requests has ended").may_duplicate();
        // Both come; the broker may refuse the request as a message.
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
                Err(e) => return Err(self.failed(error::of_send(&e).may_duplicate(), operation)),
            },
        }
        answer.await.map_err(|_| lost())
    }

    fn failed(&self, e: Error, operation: &'static str) -> Error {
        self.shared.ended.store(true, Ordering::Release);
        e.with_operation(operation)
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.shared.end.notify_one();
    }
}

async fn answers(wire: &Arc<Wire>, node: &str, reply_to: &str) -> Result<Attached<Receiver>> {
    let (wire, node, reply_to) = (wire.clone(), node.to_owned(), reply_to.to_owned());
    uncut(async move {
        let mut session = wire.session().await?;
        let attaching = Receiver::builder()
            .name(format!("{reply_to}-answers"))
            .source(Source::builder().address(node).build())
            .target(Target::builder().address(reply_to).build())
            .credit_mode(CreditMode::Auto(1_000))
            .auto_accept(true)
            .verify_incoming_source(false)
            .verify_incoming_target(false)
            .attach(&mut session);
        match timeout(CALL, attaching).await {
            Ok(Ok(link)) => Ok(Attached::new(link, session)),
            Ok(Err(e)) => Err(error::of_receiver_attach(&e)),
            Err(_) => Err(error::timeout("attach", CALL)),
        }
    })
    .await
}

/// Hands out answers until the link or the last caller is gone.
async fn read(mut answers: Attached<Receiver>, shared: Arc<Shared>) {
    loop {
        let delivery = tokio::select! {
            delivery = answers.link.recv::<Body<Value>>() => delivery,
            () = shared.end.notified() => break,
        };
        match delivery {
            Ok(delivery) => {
                let message = delivery.into_message();
                let id = message.properties.as_ref().and_then(|p| match &p.correlation_id {
                    Some(MessageId::String(id)) => id.parse().ok(),
                    Some(MessageId::Ulong(id)) => Some(*id),
                    _ => None,
                });
                if let Some(waiting) = id.and_then(|id| shared.waiting().remove(&id)) {
                    let _ = waiting.send(reply(message));
                }
            }
            Err(e) => {
                tracing::debug!(error = %e, "a link for answers has ended");
                break;
            }
        }
    }
    shared.ended.store(true, Ordering::Release);
    shared.waiting().clear();
    link::close_receiver(answers).await;
}

fn reply(message: Message<Body<Value>>) -> Reply {
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
    Reply {
        code,
        description: text(find(["statusDescription", "status-description"])).unwrap_or_default(),
        condition: text(find(["errorCondition", "error-condition"])),
        body: match message.body {
            Body::Value(AmqpValue(value)) => value,
            _ => Value::Null,
        },
    }
}

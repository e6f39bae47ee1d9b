//! The twin's requests to the queue's `$management` node: the only way to complete that is answered.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use polybus_servicebus::fe2o3_amqp::{
    Receiver, Sender,
    link::{CreditMode, delivery::DeliveryInfo},
    session::SessionHandle,
    types::{
        messaging::{AmqpValue, ApplicationProperties, Body, Message, MessageId, Properties, Source, Target},
        primitives::{Array, OrderedMap, SimpleValue, Uuid, Value},
    },
};
use tokio::{sync::oneshot, task::JoinHandle};

const REPLY_TO: &str = "twin-answers";

type PendingRequests = Arc<Mutex<HashMap<u64, oneshot::Sender<i32>>>>;

/// A pair of links.
pub(crate) struct ManagementRequests {
    sender: tokio::sync::Mutex<(Sender, SessionHandle<()>)>,
    next: AtomicU64,
    waiting: PendingRequests,
    end: oneshot::Sender<()>,
    reader: JoinHandle<()>,
}

impl ManagementRequests {
    pub(crate) async fn open(mut asking: SessionHandle<()>, answers: SessionHandle<()>, node: &str) -> Arc<Self> {
        let mut answers = answers;
        let answers_link = Receiver::builder()
            .name(REPLY_TO)
            .source(Source::builder().address(node).build())
            .target(Target::builder().address(REPLY_TO).build())
            .credit_mode(CreditMode::Auto(1_000))
            .auto_accept(true)
            .attach(&mut answers)
            .await
            .unwrap();
        let sender = Sender::attach(&mut asking, "twin-requests", node).await.unwrap();
        let (waiting, (end, ended)) = (PendingRequests::default(), oneshot::channel());
        let reader = tokio::spawn(read(answers_link, answers, waiting.clone(), ended));
        let sender = tokio::sync::Mutex::new((sender, asking));
        Arc::new(Self { sender, next: AtomicU64::new(1), waiting, end, reader })
    }

    /// Completes deliveries; done when the broker says so.
    pub(crate) async fn complete(&self, deliveries: &[DeliveryInfo]) {
        let tokens = deliveries.iter().map(|info| {
            let tag: [u8; 16] = info.delivery_tag().as_ref().try_into().unwrap();
            Value::Uuid(Uuid::from(*uuid::Uuid::from_bytes_le(tag).as_bytes()))
        });
        let fields = [
            ("disposition-status", Value::String("completed".into())),
            ("lock-tokens", Value::Array(Array(tokens.collect()))),
        ];
        let body: OrderedMap<Value, Value> =
            fields.into_iter().map(|(name, value)| (Value::String(name.into()), value)).collect();
        let mut application = ApplicationProperties::default();
        application.insert("operation".into(), SimpleValue::String("com.microsoft:update-disposition".into()));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut properties = Properties::new();
        properties.message_id = Some(MessageId::Ulong(id));
        properties.reply_to = Some(REPLY_TO.to_owned());
        let request = Message::builder()
            .properties(properties)
            .application_properties(application)
            .body(AmqpValue(Value::Map(body)))
            .build();
        let (tell, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, tell);
        // The answer is enough: the outcome of the transfer is not waited for.
        let sent = self.sender.lock().await.0.send_batchable(request).await.unwrap();
        assert_eq!(answer.await.unwrap(), 200);
        drop(sent);
    }

    pub(crate) async fn close(self) {
        let (sender, mut session) = self.sender.into_inner();
        sender.close().await.unwrap();
        session.end().await.unwrap();
        drop(self.end);
        self.reader.await.unwrap();
    }
}

async fn read(
    mut link: Receiver,
    mut session: SessionHandle<()>,
    waiting: PendingRequests,
    mut ended: oneshot::Receiver<()>,
) {
    loop {
        let message = tokio::select! {
            delivery = link.recv::<Body<Value>>() => delivery.unwrap().into_message(),
            _ = &mut ended => break,
        };
        let Some(MessageId::Ulong(id)) = message.properties.and_then(|p| p.correlation_id) else { continue };
        let application = message.application_properties.unwrap_or_default();
        let Some(SimpleValue::Int(code)) = application.get("statusCode") else { continue };
        let tell = waiting.lock().unwrap().remove(&id).unwrap();
        let _ = tell.send(*code);
    }
    link.close().await.unwrap();
    session.end().await.unwrap();
}

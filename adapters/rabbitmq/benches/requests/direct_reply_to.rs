//! The side of lapin: RabbitMQ's direct reply-to, <https://www.rabbitmq.com/docs/direct-reply-to>. Requests are
//! persistent and confirmed, as those of polybus are; replies are neither, which is the point of direct reply-to.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::Caller;

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<u64>>>>;

pub(crate) struct LapinCaller {
    queue: String,
    channel: Channel,
    next: AtomicU64,
    waiting: Waiting,
    _connections: [Connection; 2],
}

fn number(body: &[u8]) -> u64 {
    serde_json::from_slice::<Value>(body).unwrap()["n"].as_u64().unwrap()
}

fn json_properties() -> BasicProperties {
    BasicProperties::default().with_content_type("application/json".into())
}

impl LapinCaller {
    pub(crate) async fn open(url: &str, queue: &str) -> Self {
        let plain = url.split('?').next().unwrap();
        let connect = || Connection::connect(plain, ConnectionProperties::default());
        let (caller, responder) = (connect().await.unwrap(), connect().await.unwrap());
        let queue = format!("{queue}-direct");
        let channel = caller.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
        Self::respond(&responder, &queue).await;

        let waiting = Waiting::default();
        let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut replies = channel
            .basic_consume("amq.rabbitmq.reply-to".into(), "".into(), no_ack, FieldTable::default())
            .await
            .unwrap();
        tokio::spawn({
            let waiting = waiting.clone();
            async move {
                while let Some(Ok(reply)) = replies.next().await {
                    let id = reply.properties.correlation_id().as_ref().unwrap().as_str().to_owned();
                    let call = waiting.lock().unwrap().remove(&id);
                    call.unwrap().send(number(&reply.data)).unwrap();
                }
            }
        });
        Self { queue, channel, next: AtomicU64::new(0), waiting, _connections: [caller, responder] }
    }

    async fn respond(connection: &Connection, queue: &str) {
        let channel = connection.create_channel().await.unwrap();
        channel.basic_qos(128, BasicQosOptions::default()).await.unwrap();
        let options = BasicConsumeOptions::default();
        let mut requests =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                let body = json!({ "n": number(&request.data) * 2 }).to_string();
                let reply_to = request.properties.reply_to().clone().unwrap();
                let correlation = request.properties.correlation_id().clone().unwrap();
                let properties = json_properties().with_correlation_id(correlation);
                let options = BasicPublishOptions::default();
                channel.basic_publish("".into(), reply_to, options, body.as_bytes(), properties).await.unwrap();
                channel.basic_ack(request.delivery_tag, BasicAckOptions::default()).await.unwrap();
            }
        });
    }

    pub(crate) async fn delete(&self) {
        self.channel.queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

impl Caller for LapinCaller {
    async fn call(&self, n: u64) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id.clone(), sender);
        let properties = json_properties()
            .with_delivery_mode(2)
            .with_correlation_id(id.into())
            .with_reply_to("amq.rabbitmq.reply-to".into());
        let (queue, body) = (self.queue.as_str().into(), json!({ "n": n }).to_string());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = self.channel.basic_publish("".into(), queue, options, body.as_bytes(), properties).await.unwrap();
        let (answer, confirmed) = tokio::join!(answer, confirm);
        assert!(confirmed.unwrap().is_ack());
        answer.unwrap()
    }
}

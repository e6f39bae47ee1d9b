//! The twins: what a careful programmer writes on fe2o3-amqp alone.

use std::{collections::VecDeque, sync::Arc};

use polybus_core::{Bus, Envelope, message::cloudevents};
use polybus_servicebus::{
    Native as Amqp,
    fe2o3_amqp::{
        Receiver, Sendable, Sender,
        link::{CreditMode, delivery::DeliveryInfo},
        session::SessionHandle,
        types::{
            definitions::ReceiverSettleMode,
            messaging::{
                ApplicationProperties, Batch, Body, Data, Header, Message, MessageId, Outcome, Properties,
                message::__private::Serializable,
            },
            primitives::{Binary, SimpleValue, Symbol, Value},
        },
    },
};
use tokio::task::JoinSet;

use crate::{
    BenchSetup, PAYLOAD, PREFETCH, PUBLISHERS, REQUESTS, TRANSFERS, compare::RoundTimes, portable,
    requests::ManagementRequests,
};

/// Several encoded messages in one, each in a data section.
const BATCH: u32 = 0x8001_3700;
/// As many accepted at a time, where nobody confirms it.
const ACCEPT_EVERY: usize = 100;

/// How a twin sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendStyle {
    /// A transfer each.
    Single,
    /// Many in a transfer.
    Batches,
    /// Many in a transfer, with the properties that polybus sends.
    Alike,
}

/// How a twin accepts over the link.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcceptStyle {
    /// A disposition each.
    Single,
    /// Many in a disposition.
    Batches,
}

/// On a connection of its own.
pub(crate) struct Native {
    bus: Bus,
    queue: String,
}

impl Native {
    pub(crate) async fn open(setup: &BenchSetup) -> Self {
        Self { bus: portable::bus(setup).await, queue: setup.queue.clone() }
    }

    /// By polybus' connection, so that any namespace and key will do.
    async fn session(&self) -> SessionHandle<()> {
        self.bus.native::<Amqp>().unwrap().session(&self.queue).await.unwrap()
    }

    /// Sends a round's messages, many on their way at once, each confirmed.
    pub(crate) async fn publish(&self, messages: usize, how: SendStyle) {
        let mut session = self.session().await;
        let mut sender = Sender::attach(&mut session, "twin", &*self.queue).await.unwrap();
        let (size, most) = if how == SendStyle::Single { (1, PUBLISHERS) } else { (PUBLISHERS / TRANSFERS, TRANSFERS) };
        let mut waiting = VecDeque::new();
        let mut left = messages;
        while left > 0 {
            let n = left.min(size);
            left -= n;
            let sent = match how {
                SendStyle::Single => sender.send_batchable(message()).await,
                SendStyle::Batches => sender.send_batchable(batch(n, || encode(&message()))).await,
                SendStyle::Alike => sender.send_batchable(batch(n, || encode(&alike()))).await,
            };
            waiting.push_back(sent.unwrap());
            if waiting.len() >= most {
                accepted(waiting.pop_front().unwrap().await.unwrap());
            }
        }
        for sent in waiting {
            accepted(sent.await.unwrap());
        }
        sender.close().await.unwrap();
        session.end().await.unwrap();
    }

    async fn receiver(&self, session: &mut SessionHandle<()>) -> Receiver {
        Receiver::builder()
            .name("twin")
            .source(&*self.queue)
            .receiver_settle_mode(ReceiverSettleMode::First)
            .credit_mode(CreditMode::Auto(PREFETCH as u32))
            .attach(session)
            .await
            .unwrap()
    }

    /// Receives a round's messages and completes them by requests, each for all that has come meanwhile, several under
    /// way. The clock stops when the broker has confirmed the last one.
    pub(crate) async fn complete(&self, messages: usize) -> RoundTimes {
        let mut session = self.session().await;
        let node = format!("{}/$management", self.queue);
        let requests = ManagementRequests::open(self.session().await, self.session().await, &node).await;
        let mut opened = None;
        let measured = RoundTimes::of(messages, async {
            let mut receiver = self.receiver(&mut session).await;
            let (mut came, mut confirmed) = (Vec::<DeliveryInfo>::new(), 0);
            let mut under_way = JoinSet::new();
            while confirmed < messages {
                tokio::select! {
                    delivery = receiver.recv::<Body<Value>>() => {
                        let (info, message) = delivery.unwrap().into_parts();
                        assert!(!matches!(message.body, Body::Empty));
                        came.push(info);
                    }
                    Some(done) = under_way.join_next() => {
                        let done: Vec<DeliveryInfo> = done.unwrap();
                        confirmed += done.len();
                        // The link forgets them, and grants new credit.
                        receiver.accept_all(done).await.unwrap();
                    }
                }
                if !came.is_empty() && under_way.len() < REQUESTS {
                    let (requests, batch) = (requests.clone(), std::mem::take(&mut came));
                    under_way.spawn(async move {
                        requests.complete(&batch).await;
                        batch
                    });
                }
            }
            opened = Some(receiver);
        });
        let measured = measured.await;
        opened.unwrap().close().await.unwrap();
        session.end().await.unwrap();
        Arc::into_inner(requests).unwrap().close().await;
        measured
    }

    /// Receives a round's messages and accepts them over the link, each for itself or many at a time. Nothing tells
    /// this side whether the broker still held their locks; the clock stops when the last dispositions are sent and the
    /// link is closed.
    pub(crate) async fn accept(&self, messages: usize, how: AcceptStyle) -> RoundTimes {
        let mut session = self.session().await;
        let measured = RoundTimes::of(messages, async {
            let mut receiver = self.receiver(&mut session).await;
            let mut came = Vec::<DeliveryInfo>::new();
            for _ in 0..messages {
                let delivery = receiver.recv::<Body<Value>>().await.unwrap();
                assert!(!matches!(delivery.body(), Body::Empty));
                if how == AcceptStyle::Single {
                    receiver.accept(&delivery).await.unwrap();
                    continue;
                }
                came.push(delivery.into_parts().0);
                if came.len() >= ACCEPT_EVERY {
                    receiver.accept_all(std::mem::take(&mut came)).await.unwrap();
                }
            }
            receiver.accept_all(came).await.unwrap();
            receiver.close().await.unwrap();
        });
        let measured = measured.await;
        session.end().await.unwrap();
        measured
    }
}

fn accepted(outcome: Outcome) {
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

fn message() -> Message<Data> {
    Message::builder()
        .header(Header { durable: true, ..Header::default() })
        .data(Binary::from(vec![b'x'; PAYLOAD]))
        .build()
}

/// With the properties of a CloudEvent.
fn alike() -> Message<Data> {
    let envelope = Envelope::new("bench.message", vec![b'x'; PAYLOAD]).source("/bench");
    let mut application = ApplicationProperties::default();
    cloudevents::encode_binary_for_http(&envelope, &Default::default(), &mut |name, value| {
        application.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
    });
    let mut properties = Properties::new();
    properties.message_id = Some(MessageId::String(envelope.id.to_string()));
    properties.subject = Some(envelope.event_type.to_string());
    properties.content_type = envelope.content_type.as_deref().map(Symbol::from);
    Message { properties: Some(properties), application_properties: Some(application), ..message() }
}

fn encode(message: &Message<Data>) -> Vec<u8> {
    serde_amqp::to_vec(&Serializable(message)).unwrap()
}

fn batch(n: usize, one: impl Fn() -> Vec<u8>) -> Sendable<Batch<Data>> {
    let sections: Vec<Data> = (0..n).map(|_| Data(Binary::from(one()))).collect();
    let empty = Message::builder().data_batch(Vec::<Vec<u8>>::new()).build();
    Sendable::builder().message(empty.map_body(|_| Batch::new(sections))).message_format(BATCH).settled(false).build()
}

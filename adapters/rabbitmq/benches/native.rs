//! The side of lapin: what a careful programmer writes on lapin alone.

use std::{collections::VecDeque, time::Instant};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};

use crate::{ACK_EVERY, PAYLOAD, PREFETCH, PUBLISHERS, Setup, rate};

pub(crate) struct LapinClient {
    setup: Setup,
    connection: Connection,
    admin: Channel,
}

impl LapinClient {
    pub(crate) async fn open(setup: &Setup) -> Self {
        let plain = setup.url.split('?').next().unwrap();
        let connection = Connection::connect(plain, ConnectionProperties::default()).await.unwrap();
        let admin = connection.create_channel().await.unwrap();
        Self { setup: setup.clone(), connection, admin }
    }

    /// Publishes a round's messages with pipelined confirms.
    pub(crate) async fn publish(&self) -> f64 {
        let channel = self.connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let payload = [b'x'; PAYLOAD];
        let mut waiting = VecDeque::new();
        let started = Instant::now();
        for _ in 0..self.setup.messages {
            let properties = BasicProperties::default().with_delivery_mode(2);
            let options = BasicPublishOptions::default();
            let queue = self.setup.queue.as_str().into();
            waiting.push_back(channel.basic_publish("".into(), queue, options, &payload, properties).await.unwrap());
            if waiting.len() >= PUBLISHERS {
                assert!(waiting.pop_front().unwrap().await.unwrap().is_ack());
            }
        }
        for confirm in waiting {
            assert!(confirm.await.unwrap().is_ack());
        }
        let rate = rate(self.setup.messages, started);
        channel.close(200, "".into()).await.unwrap();
        rate
    }

    /// Consumes the messages that are there and acknowledges each on its own.
    pub(crate) async fn consume_ack_each(&self) -> f64 {
        self.consume(1).await
    }

    /// Consumes the messages that are there and acknowledges with `multiple`.
    pub(crate) async fn consume_ack_multiple(&self) -> f64 {
        self.consume(ACK_EVERY).await
    }

    async fn consume(&self, every: usize) -> f64 {
        let channel = self.connection.create_channel().await.unwrap();
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
        let (queue, options) = (self.setup.queue.as_str().into(), BasicConsumeOptions::default());
        let started = Instant::now();
        let mut consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.unwrap();
        for i in 1..=self.setup.messages {
            let delivery = consumer.next().await.unwrap().unwrap();
            if i % every == 0 || i == self.setup.messages {
                let options = BasicAckOptions { multiple: every > 1 };
                channel.basic_ack(delivery.delivery_tag, options).await.unwrap();
            }
        }
        // A cancel is answered after the acks before it.
        channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await.unwrap();
        let rate = rate(self.setup.messages, started);
        channel.close(200, "".into()).await.unwrap();
        rate
    }

    /// Empties the queue, which polybus has declared.
    pub(crate) async fn purge(&self) {
        self.admin.queue_purge(self.setup.queue.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
    }

    pub(crate) async fn delete(&self) {
        let queue = self.setup.queue.as_str().into();
        let _ = self.admin.queue_delete(queue, QueueDeleteOptions::default()).await;
        let _ = self.connection.close(200, "".into()).await;
    }
}

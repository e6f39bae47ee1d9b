//! Publishing to a queue or topic.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use lapin::types::ShortString;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result,
    driver::{Batching, PreparedMessage, Sender},
    message::cloudevents::CopyState,
    topology::Entity,
};

use crate::{
    config::Config,
    error,
    message::envelope::{self, Head},
    publish::{
        confirm_channel::Parcel,
        confirmed_publisher::{Outlet, Rung},
    },
    topology::{
        channel_operations::short,
        delay_queues::{self, Rungs, Target},
        names,
    },
    transport::connection::Links,
};

/// Most messages in one batch.
const ENTRIES: usize = 1_000;
/// Most bytes in one batch.
const BYTES: usize = 8 << 20;

pub(crate) struct RabbitmqSender {
    links: Arc<Links>,
    outlet: Outlet,
    route: Route,
    ordered: bool,
    /// The delays the topology names.
    named: Vec<Duration>,
}

/// Where an address's messages go.
enum Route {
    /// A queue, by the default exchange.
    Queue(ShortString),
    /// An ordered queue: the headers exchange before its partitions.
    Slots(ShortString),
    /// A topic's exchange; the routing key is the event type.
    Topic(ShortString),
}

impl Route {
    fn target(&self) -> Target {
        match self {
            Self::Queue(name) => Target::Queue(name.to_string()),
            Self::Slots(name) => Target::Slots(name.to_string()),
            Self::Topic(name) => Target::Topic(name.to_string()),
        }
    }
}

/// What `prepare` has encoded.
struct Encoded {
    /// Taken by the first attempt; later ones encode again.
    head: Mutex<Option<Head>>,
    exchange: ShortString,
    routing_key: ShortString,
    mandatory: bool,
    slot: Option<u8>,
    rung: Option<Rung>,
}

impl RabbitmqSender {
    pub(crate) fn new(links: Arc<Links>, rungs: Arc<Rungs>, to: &Entity<Address>) -> Result<Self> {
        let ordered = to.settings.ordered;
        let (route, exchange) = if to.name.is_topic() {
            let exchange = names::exchange(to);
            (Route::Topic(short(&exchange)?), Some(exchange))
        } else if ordered {
            let exchange = names::base(to);
            (Route::Slots(short(&exchange)?), Some(exchange))
        } else {
            (Route::Queue(short(&names::base(to))?), None)
        };
        let outlet = Outlet::new(links.clone(), rungs, exchange, to.name.to_string());
        Ok(Self { links, outlet, route, ordered, named: to.settings.retry.clone() })
    }

    fn config(&self) -> &Config {
        &self.links.config
    }

    fn head(&self, message: &Outgoing, slot: Option<u8>) -> Result<Head> {
        let mut head = envelope::encode(&message.envelope, &CopyState::default(), &self.config().names)?;
        if let Some(slot) = slot {
            head.slot(slot);
        }
        Ok(head)
    }
}

#[async_trait]
impl Sender for RabbitmqSender {
    fn batching(&self) -> Batching {
        Batching::new(ENTRIES, BYTES, 4)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let envelope = &message.envelope;
        let slot = match (&envelope.key, self.ordered) {
            (Some(key), true) => Some(names::slot(key)),
            (None, true) => {
                return Err(Error::invalid("an ordered address needs a key").with_context("id", &envelope.id));
            }
            (_, false) => None,
        };
        let head = self.head(&message, slot)?;
        let size = head.check_sizes(envelope.data.len(), self.config().max_message_size, self.links.frame_max())?;
        let (exchange, routing_key, mandatory) = match &self.route {
            Route::Queue(queue) => (ShortString::default(), queue.clone(), true),
            Route::Slots(exchange) => (exchange.clone(), short(&envelope.event_type)?, true),
            Route::Topic(exchange) => (exchange.clone(), short(&envelope.event_type)?, false),
        };
        let mut encoded = Encoded { head: Mutex::new(Some(head)), exchange, routing_key, mandatory, slot, rung: None };
        if let Some(delay) = message.delay.filter(|d| !d.is_zero()) {
            if delay > delay_queues::MAX_DELAY {
                return Err(error::new(
                    ErrorKind::Unsupported,
                    "publish",
                    "RabbitMQ delays messages by 45 days at most",
                ));
            }
            let (target, delay) = (self.route.target(), delay_queues::pick(delay, &self.named));
            (encoded.exchange, encoded.routing_key) = Rungs::route(&target, delay, &encoded.routing_key)?;
            encoded.mandatory = true;
            encoded.rung = Some(Rung { target, delay });
        }
        Ok(PreparedMessage::new(message, size).native(encoded))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut encoded = Vec::with_capacity(batch.len());
        for prepared in batch {
            match prepared.native.as_ref().map(|n| n.get::<Encoded>()) {
                Some(Ok(found)) => encoded.push(found),
                _ => {
                    return error::new(ErrorKind::Unexpected, "publish", "a message of another sender")
                        .for_each_of(batch.len());
                }
            }
        }
        let rungs: Vec<Option<&Rung>> = encoded.iter().map(|e| e.rung.as_ref()).collect();
        let sent = self.outlet.publish(&rungs, |i| {
            let (message, encoded) = (&batch[i].message, encoded[i]);
            let head = encoded.head.lock().unwrap_or_else(PoisonError::into_inner).take();
            Ok(Parcel {
                exchange: encoded.exchange.clone(),
                routing_key: encoded.routing_key.clone(),
                mandatory: encoded.mandatory,
                head: head.map_or_else(|| self.head(message, encoded.slot), Ok)?,
                body: message.envelope.data.clone(),
            })
        });
        sent.await.into_iter().map(|r| r.map(|()| Receipt::default())).collect()
    }

    fn held_back(&self) -> Option<Error> {
        self.outlet.held_back()
    }

    async fn close(&self) -> Result<()> {
        self.outlet.close().await;
        Ok(())
    }
}

//! What a receiver and its settler over AMQP share: the deliveries that are not settled, their locks, and the
//! management node.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use parking_lot::Mutex;

use fe2o3_amqp::link::delivery::DeliveryInfo;
use polybus_core::{
    Source,
    driver::{DriverToken, ReceivedMessage, lock_margin},
    topology::Entity,
};
use tokio::time::Instant;

use crate::{
    amqp::{
        locks::MessageLock,
        management::ManagementNode,
        receive_task::{Disposition, IncomingMessage, ReceiveTask},
        sessions::MessageSession,
    },
    consume::{consumers::CountedConsumer, in_place_hold::batched::InPlaceHolds, unsettled::UnsettledDeliveries},
    message::{
        annotations::BrokerAnnotations,
        original::OriginalMessage,
        received::{MessageContent, ReadContext},
    },
    topology::lock_length::LockLength,
    transport::namespace::Namespace,
};

/// One consumer of a source over AMQP.
pub(crate) struct AmqpConsumer {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) source: Source,
    /// The source's address as text, such as `queue:orders`.
    pub(crate) address: Box<str>,
    /// The path at the broker that messages are received from.
    pub(crate) path: String,
    pub(crate) management: Arc<ManagementNode>,
    lock_length: LockLength,
    /// Whether the broker refuses requests that name several locks.
    pub(crate) one_lock_per_request: AtomicBool,
    pub(crate) holds: InPlaceHolds,
    pub(crate) prefetch: usize,
    /// Whether locks are renewed of messages that core has not received yet.
    pub(crate) renews: bool,
    pub(crate) closed: AtomicBool,
    /// The link of a receiver that was closed, which the settler still gives messages back over.
    kept_link: Mutex<Option<ReceiveTask>>,
    /// By lock token.
    pub(crate) unsettled: UnsettledDeliveries<uuid::Uuid, LinkDelivery>,
}

/// What settling a delivery on its link, or giving it back, takes.
#[derive(Clone)]
pub(crate) struct LinkDelivery {
    pub(crate) partition: u16,
    pub(crate) info: DeliveryInfo,
    pub(crate) session: Option<Arc<MessageSession>>,
}

/// What core's token of a delivery holds, for the settler.
pub(crate) struct AmqpDelivery {
    pub(crate) lock: MessageLock,
    /// The link that it came over; none for a message of a session.
    pub(crate) task: Option<ReceiveTask>,
    pub(crate) original: OriginalMessage,
    pub(crate) session: Option<Arc<MessageSession>>,
}

impl CountedConsumer for AmqpConsumer {
    type Source = str;

    fn source(&self) -> &str {
        &self.path
    }

    fn held(&self) -> u64 {
        self.unsettled.len() as u64
    }
}

impl AmqpConsumer {
    pub(crate) fn new(namespace: Arc<Namespace>, from: &Entity<Source>, path: String, lock_length: LockLength) -> Self {
        Self {
            management: Arc::new(ManagementNode::new(namespace.clone(), path.clone())),
            namespace,
            source: from.name.clone(),
            address: from.name.address().to_string().into(),
            path,
            lock_length,
            one_lock_per_request: AtomicBool::new(false),
            holds: InPlaceHolds::default(),
            prefetch: from.prefetch,
            renews: from.renew_locks,
            closed: AtomicBool::new(false),
            kept_link: Mutex::default(),
            unsettled: UnsettledDeliveries::default(),
        }
    }

    /// What reading a message needs to know of this consumer.
    pub(crate) fn read_context(&self) -> ReadContext<'_> {
        ReadContext { source: &self.source, address: &self.address, lock: self.lock_duration() }
    }

    /// How long the broker's locks are, as far as this side knows.
    pub(crate) fn lock_duration(&self) -> Duration {
        self.lock_length.get()
    }

    /// Learns how long locks are from a message whose lock was given just now. True if they are shorter than was known.
    pub(crate) fn learn_lock_length(&self, message: &BrokerAnnotations) -> bool {
        let shorter = self.lock_length.learn(message);
        if let Some(was) = shorter {
            tracing::warn!(source = %self.source, was = ?was, is = ?self.lock_duration(), "the broker's locks are shorter than was known");
        }
        shorter.is_some()
    }

    /// When a lock that began at `from` ends, less a margin.
    pub(crate) fn deadline(&self, from: Instant) -> Instant {
        let lock = self.lock_duration();
        from + lock - lock_margin(lock)
    }

    /// Whether a delivery is still to be settled by core, and its lock is not known to be lost.
    pub(crate) fn holds(&self, held: &AmqpDelivery) -> bool {
        self.unsettled.awaits_core(&held.lock.token) && held.session.as_ref().is_none_or(|session| session.is_alive())
    }

    /// Removes a delivery whose lock was lost, and tells its link or session, so that neither waits for it.
    pub(crate) fn forget(&self, held: &AmqpDelivery) {
        let Some(LinkDelivery { info, .. }) = self.unsettled.remove_lost(&held.lock.token) else { return };
        match (&held.session, &held.task) {
            (Some(session), _) => session.lost(info),
            // The broker's lock may last a moment longer, and this ends it. The attempt counts either way.
            (None, Some(task)) => drop(task.settle(vec![info], Disposition::Abandoned)),
            (None, None) => {}
        }
    }

    /// Keeps the link of a closed receiver open for the settler.
    pub(crate) fn keep_link(&self, task: ReceiveTask) {
        *self.kept_link.lock() = Some(task);
    }

    pub(crate) async fn close_kept_link(&self) {
        let kept = self.kept_link.lock().take();
        if let Some(task) = kept {
            task.close().await;
        }
    }

    /// What the link needs to settle a delivery that is not settled yet.
    pub(crate) fn delivery_info(&self, lock: &uuid::Uuid) -> Option<DeliveryInfo> {
        self.unsettled.get(lock).map(|delivery| delivery.info)
    }

    /// Removes deliveries that are settled or lost. Returns what their links need to settle them.
    pub(crate) fn remove_unsettled(&self, locks: impl IntoIterator<Item = uuid::Uuid>) -> Vec<DeliveryInfo> {
        self.unsettled.remove(locks).into_iter().map(|delivery| delivery.info).collect()
    }

    /// The message as core receives it, under a lock that began at `from`. From now on it is among the unsettled.
    pub(crate) fn to_received(
        &self,
        message: IncomingMessage,
        from: Instant,
        task: Option<&ReceiveTask>,
        session: Option<Arc<MessageSession>>,
    ) -> ReceivedMessage {
        let IncomingMessage { lock, info, content, .. } = message;
        let MessageContent { original, envelope, attempt, malformed, dead_letter } = content;
        let (native, mark) = (original.native.clone(), original.carried.mark.clone());
        let (partition, sequence) = (lock.partition, original.sequence);
        let held = AmqpDelivery { lock, task: task.cloned(), original, session: session.clone() };
        self.unsettled.insert(lock.token, LinkDelivery { partition, info, session }, from);
        let mut received = ReceivedMessage::new(DriverToken::new(held), envelope, attempt);
        received.locked_until = Some(self.deadline(from));
        received.malformed = malformed;
        received.dead_letter = dead_letter;
        received.native = native.map(DriverToken::new);
        // Only a redrive asks for these.
        if self.source.is_dead_letters() {
            received.known_by = (sequence != 0).then(|| sequence.to_string().into());
            received.mark = mark;
        }
        received
    }
}

//! The prefetch buffer: messages that polls have brought and that `receive` has not returned yet.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use polybus_core::{
    Result, Source,
    driver::{
        ReceivedMessage,
        kit::prefetched::{self, ReceiveBuffer},
        lock_margin,
    },
    topology::Entity,
};
use tokio::time::Instant;

use crate::{
    consume::consumer::{HeldMessage, QueueConsumer},
    error,
    message::limits::{ENTRIES, IN_FLIGHT},
};

/// Messages, each with the receipt handle that renews its visibility timeout.
pub(crate) type PrefetchBuffer = ReceiveBuffer<PrefetchedMessage, Arc<str>>;

/// A message that is registered as unsettled.
pub(crate) struct PrefetchedMessage {
    pub(crate) number: u64,
    pub(crate) received: ReceivedMessage,
}

/// An empty buffer.
pub(crate) fn buffer(from: &Entity<Source>) -> PrefetchBuffer {
    let lock = from.settings.lock;
    let buffer = ReceiveBuffer::new(lock, lock_margin(lock), from.renew_locks);
    // A FIFO queue hands out a group's first message again when its visibility timeout has ended, and after it those
    // that follow. So when a message is lost, what came after it of its group must not be handed out either: the buffer
    // is keyed by group and leaves these to SQS, which holds the group back until all of them are visible again.
    match from.settings.ordered && !from.name.is_dead_letters() {
        true => buffer.keyed(|message: &PrefetchedMessage| message.received.token.get::<HeldMessage>().ok()?.group()),
        false => buffer,
    }
}

/// Spawns the task that renews what is in the buffer, until it is empty.
pub(crate) fn spawn_renewal(consumer: &Arc<QueueConsumer>, lock: Duration) {
    let weak = Arc::downgrade(consumer);
    let renew = move |handles| renew(weak.clone(), handles, lock);
    tokio::spawn(prefetched::keep(Arc::downgrade(&consumer.prefetched), renew));
}

async fn renew(consumer: Weak<QueueConsumer>, handles: Vec<Arc<str>>, lock: Duration) -> Vec<Result<Instant>> {
    let Some(consumer) = consumer.upgrade() else {
        return error::lock_lost("the consumer is gone").for_each_of(handles.len());
    };
    let calls: Vec<_> = handles.chunks(ENTRIES).map(|chunk| renew_chunk(&consumer, chunk, lock)).collect();
    let renewed: Vec<_> = stream::iter(calls).buffered(IN_FLIGHT).collect().await;
    renewed.concat()
}

async fn renew_chunk(consumer: &QueueConsumer, handles: &[Arc<str>], lock: Duration) -> Vec<Result<Instant>> {
    // Read before the call: the timeout counts from when SQS gets it, which may be any moment after this one.
    let from = Instant::now();
    let items: Vec<_> = handles.iter().map(|handle| (handle.clone(), lock)).collect();
    let renewed = consumer.change_visibility(&items).await;
    renewed.into_iter().map(|result| result.map(|()| from)).collect()
}

//! What polls have brought and `receive` has not returned yet.

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
    consume::consumer::{Book, Held},
    error,
    message::limits::{ENTRIES, IN_FLIGHT},
};

/// Messages, each with the receipt that it is renewed by.
pub(crate) type Arrivals = ReceiveBuffer<Arrived, Arc<str>>;

/// A message that is registered as unsettled.
pub(crate) struct Arrived {
    pub(crate) number: u64,
    pub(crate) received: ReceivedMessage,
}

/// A FIFO queue hands out a group's first message again when it is lost, and those behind it after it. So what has come behind it
/// must not be handed out either: it is left to SQS, which keeps the group back until it has them all.
pub(crate) fn inbox(from: &Entity<Source>) -> Arrivals {
    let lock = from.settings.lock;
    let inbox = ReceiveBuffer::new(lock, lock_margin(lock), from.renew_locks);
    match from.settings.ordered && !from.name.is_dead_letters() {
        true => inbox.keyed(|arrived: &Arrived| arrived.received.token.get::<Held>().ok()?.group()),
        false => inbox,
    }
}

/// Renews what waits until nothing does.
pub(crate) fn keep(book: &Arc<Book>, lock: Duration) {
    let weak = Arc::downgrade(book);
    let renew = move |receipts| renew(weak.clone(), receipts, lock);
    tokio::spawn(prefetched::keep(Arc::downgrade(&book.arrivals), renew));
}

async fn renew(book: Weak<Book>, receipts: Vec<Arc<str>>, lock: Duration) -> Vec<Result<Instant>> {
    let Some(book) = book.upgrade() else {
        return error::lock_lost("the consumer is gone").for_each_of(receipts.len());
    };
    let calls: Vec<_> = receipts.chunks(ENTRIES).map(|some| renew_some(&book, some, lock)).collect();
    let renewed: Vec<_> = stream::iter(calls).buffered(IN_FLIGHT).collect().await;
    renewed.concat()
}

async fn renew_some(book: &Book, receipts: &[Arc<str>], lock: Duration) -> Vec<Result<Instant>> {
    let from = Instant::now();
    let items: Vec<_> = receipts.iter().map(|receipt| (receipt.clone(), lock)).collect();
    let renewed = book.change_visibility(&items).await;
    renewed.into_iter().map(|result| result.map(|()| from)).collect()
}

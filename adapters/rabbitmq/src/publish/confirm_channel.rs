//! One publishing channel: messages pipelined, confirms awaited together, returns given to the message they belong to.
//!
//! lapin hands a returned message to whichever confirm completes next. So one task per channel looks at all confirms: when a
//! batch is complete it also looks at every other confirm that has arrived, and when any carried a return, it holds all
//! results until nothing is outstanding. Then the number in each returned message tells whose it was.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use lapin::{Channel, PublisherConfirm, options::BasicPublishOptions, types::ShortString};
use tokio::sync::{Notify, oneshot};

use crate::{
    message::envelope::{self, Head},
    transport::connection::{Link, call},
};

/// Most messages that may await their confirms on one channel, whoever gave up on them.
const MOST: usize = 20_000;

/// A message and where it goes.
#[derive(Clone)]
pub(crate) struct Parcel {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    /// Comes back if no queue takes it.
    pub(crate) mandatory: bool,
    pub(crate) head: Head,
    pub(crate) body: Bytes,
}

/// What became of one message.
#[derive(Debug)]
pub(crate) enum Outcome {
    Stored,
    /// The broker refused to store it.
    Refused,
    /// No queue took it; what the broker says.
    Returned(String),
    /// The channel or connection went away before the confirm. Unwritten ones are surely not stored.
    Lost {
        written: bool,
        error: lapin::Error,
    },
}

type Publishing = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send>>;

enum Entry {
    Publishing(Publishing),
    Confirming(PublisherConfirm),
    Done(Outcome),
}

impl Entry {
    /// Whether it is done; notes a return that its confirm carried, which may be another message's.
    fn poll(&mut self, cx: &mut Context<'_>, returned: &mut HashMap<u64, String>) -> bool {
        loop {
            *self = match self {
                Self::Publishing(publishing) => match publishing.as_mut().poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(confirm)) => Self::Confirming(confirm),
                    Poll::Ready(Err(error)) => Self::Done(Outcome::Lost { written: false, error }),
                },
                Self::Confirming(confirm) => match Pin::new(confirm).poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Err(error)) => Self::Done(Outcome::Lost { written: true, error }),
                    Poll::Ready(Ok(confirmation)) => {
                        let stored = !confirmation.is_nack();
                        if let Some(message) = confirmation.take_message() {
                            let text = message.reply_text.as_str().to_owned();
                            // A message without a number is none of ours; noting it as 0 still holds the results.
                            returned.insert(envelope::seq(&message.delivery.properties).unwrap_or(0), text);
                        }
                        Self::Done(if stored { Outcome::Stored } else { Outcome::Refused })
                    }
                },
                Self::Done(_) => return true,
            }
        }
    }
}

struct Batch {
    entries: Vec<(u64, Entry)>,
    /// How many at the front are done.
    done: usize,
    /// All messages of the batch have been handed to the channel.
    sealed: bool,
    reply: Option<oneshot::Sender<Vec<Outcome>>>,
}

#[derive(Default)]
struct Window {
    next_seq: u64,
    next_batch: u64,
    batches: VecDeque<(u64, Batch)>,
    outstanding: usize,
    returned: HashMap<u64, String>,
    waker: Option<Waker>,
    closed: bool,
}

struct Shared {
    window: Mutex<Window>,
    /// A return came: results are held until the window has drained, and nothing new goes out.
    holding: AtomicBool,
    /// Drained, or retired.
    drained: Notify,
    /// How many messages are done with, as far as the watching task has looked.
    done: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct ConfirmChannel {
    channel: Channel,
    pub(crate) link: Arc<Link>,
    shared: Arc<Shared>,
    /// Somebody gave up on it: others shall open another.
    retired: AtomicBool,
}

/// A call of `send` under way. Dropped, its caller has given up.
struct Sending<'a> {
    on: &'a ConfirmChannel,
    /// How many messages were done when it began.
    done: u64,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let shared = &self.on.shared;
        // It holds results for a confirm that does not come, or none has come at all: the next may fare no better. A blocked
        // connection is silent on all its channels.
        let holding = shared.holding.load(Ordering::Acquire);
        let silent = shared.done.load(Ordering::Acquire) == self.done && !self.on.link.is_blocked();
        if holding || silent {
            self.on.retired.store(true, Ordering::Release);
            shared.drained.notify_waiters();
        }
    }
}

impl ConfirmChannel {
    pub(crate) fn new(channel: Channel, link: Arc<Link>) -> Self {
        let shared = Arc::new(Shared {
            window: Mutex::new(Window { next_seq: 1, ..Window::default() }),
            holding: AtomicBool::new(false),
            drained: Notify::new(),
            done: AtomicU64::new(0),
        });
        let watched = shared.clone();
        tokio::spawn(std::future::poll_fn(move |cx| watch(&watched, cx)));
        Self { channel, link, shared, retired: AtomicBool::new(false) }
    }

    pub(crate) fn alive(&self) -> bool {
        !self.retired.load(Ordering::Acquire) && self.channel.status().connected() && self.link.alive()
    }

    /// Dropping closes the channel too, but lapin takes a connection that ends before it gets to that for a broken one.
    pub(crate) async fn close(&self) {
        if self.alive() && !self.link.is_blocked() {
            let _ = call("close channel", self.channel.close(200, "OK".into())).await;
        }
    }

    /// Whether `n` more would be more than may wait for their confirms.
    pub(crate) fn full(&self, n: usize) -> bool {
        let outstanding = self.shared.lock().outstanding;
        outstanding > 0 && outstanding + n > MOST
    }

    /// Publishes all, in order, and waits for what becomes of them. Dropping it leaves the messages on their way.
    pub(crate) async fn send(&self, parcels: Vec<Parcel>) -> Vec<Outcome> {
        let sending = Sending { on: self, done: self.shared.done.load(Ordering::Acquire) };
        let outcomes = self.send_all(parcels).await;
        std::mem::forget(sending);
        outcomes
    }

    async fn send_all(&self, parcels: Vec<Parcel>) -> Vec<Outcome> {
        let lost = |written| {
            let error = lapin::Error::from(lapin::ErrorKind::InvalidChannel(self.channel.id()));
            std::iter::repeat_with(move || Outcome::Lost { written, error: error.clone() })
        };
        let count = parcels.len();
        loop {
            let drained = self.shared.drained.notified();
            if self.retired.load(Ordering::Acquire) {
                return lost(false).take(count).collect();
            }
            if !self.shared.holding.load(Ordering::Acquire) {
                break;
            }
            drained.await;
        }
        let (reply, result) = oneshot::channel();
        self.publish(parcels, reply);
        result.await.unwrap_or_else(|_| lost(true).take(count).collect())
    }

    /// lapin queues a message's frames when its future is first polled; the rest of that future only waits for the socket.
    fn publish(&self, parcels: Vec<Parcel>, reply: oneshot::Sender<Vec<Outcome>>) {
        let mut idle = Context::from_waker(Waker::noop());
        let id = {
            let mut window = self.shared.lock();
            let id = window.next_batch;
            window.next_batch += 1;
            let entries = Vec::with_capacity(parcels.len());
            window.batches.push_back((id, Batch { entries, done: 0, sealed: false, reply: Some(reply) }));
            id
        };
        for parcel in parcels {
            // Numbering and queueing are one step, or a confirm could arrive that the watching task cannot see.
            let mut window = self.shared.lock();
            let seq = window.next_seq;
            window.next_seq += 1;
            let mut publishing = self.publishing(parcel, seq);
            let entry = match publishing.as_mut().poll(&mut idle) {
                Poll::Pending => Entry::Publishing(publishing),
                Poll::Ready(Ok(confirm)) => Entry::Confirming(confirm),
                Poll::Ready(Err(error)) => Entry::Done(Outcome::Lost { written: false, error }),
            };
            window.outstanding += 1;
            if let Some((_, batch)) = window.batches.iter_mut().rev().find(|(b, _)| *b == id) {
                batch.entries.push((seq, entry));
            }
        }
        let mut window = self.shared.lock();
        if let Some((_, batch)) = window.batches.iter_mut().rev().find(|(b, _)| *b == id) {
            batch.sealed = true;
        }
        if let Some(waker) = window.waker.take() {
            waker.wake();
        }
    }

    fn publishing(&self, parcel: Parcel, seq: u64) -> Publishing {
        let channel = self.channel.clone();
        Box::pin(async move {
            let Parcel { exchange, routing_key, mandatory, mut head, body } = parcel;
            if mandatory {
                head.number(seq);
            }
            let options = BasicPublishOptions { mandatory, immediate: false };
            channel.basic_publish(exchange, routing_key, options, &body, head.finish()).await
        })
    }
}

impl Drop for ConfirmChannel {
    fn drop(&mut self) {
        let mut window = self.shared.lock();
        window.closed = true;
        if let Some(waker) = window.waker.take() {
            waker.wake();
        }
    }
}

/// Looks at all confirms that have arrived and answers the batches that are complete. Ends with its channel.
fn watch(shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
    let mut guard = shared.lock();
    let window = &mut *guard;
    let mut complete = false;
    for (_, batch) in &mut window.batches {
        while batch.done < batch.entries.len() && batch.entries[batch.done].1.poll(cx, &mut window.returned) {
            batch.done += 1;
            shared.done.fetch_add(1, Ordering::Release);
        }
        complete |= batch.sealed && batch.done == batch.entries.len();
    }
    if complete {
        // What else has arrived may carry the return of one that now looks stored.
        for (_, batch) in &mut window.batches {
            for (_, entry) in batch.entries.iter_mut().skip(batch.done) {
                entry.poll(cx, &mut window.returned);
            }
        }
        let drained = window.batches.iter().all(|(_, b)| b.sealed && b.done == b.entries.len());
        if !window.returned.is_empty() && !drained {
            shared.holding.store(true, Ordering::Release);
        } else {
            answer(window);
            if drained {
                shared.holding.store(false, Ordering::Release);
                shared.drained.notify_waiters();
            }
        }
    }
    if window.closed {
        return Poll::Ready(());
    }
    window.waker = Some(cx.waker().clone());
    Poll::Pending
}

fn answer(window: &mut Window) {
    let Window { batches, returned, outstanding, .. } = window;
    batches.retain_mut(|(_, batch)| {
        if !batch.sealed || batch.done < batch.entries.len() {
            return true;
        }
        *outstanding -= batch.entries.len();
        let outcomes = batch.entries.drain(..).map(|(seq, entry)| match entry {
            Entry::Done(Outcome::Stored) => match returned.remove(&seq) {
                Some(text) => Outcome::Returned(text),
                None => Outcome::Stored,
            },
            Entry::Done(outcome) => outcome,
            // Only entries that are done are counted as done.
            Entry::Publishing(_) | Entry::Confirming(_) => Outcome::Refused,
        });
        let outcomes: Vec<_> = outcomes.collect();
        if let Some(reply) = batch.reply.take() {
            // Whoever gave up waiting does not want to know.
            let _ = reply.send(outcomes);
        }
        false
    });
    if batches.is_empty() {
        returned.clear();
    }
}

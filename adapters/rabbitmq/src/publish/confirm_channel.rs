//! One publishing channel: messages are pipelined, their confirms are awaited together, and every returned message is
//! matched with the request that sent it.
//!
//! lapin attaches a returned message to whichever confirm completes next, which may be another message's. So one task
//! per channel, [`poll_confirms`], polls all confirms. When a batch is complete the task also polls every other
//! confirm that has arrived. When any of them carried a returned message, it holds all results until nothing is
//! outstanding. Then the sequence number in each returned message tells whose it was.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

use bytes::Bytes;
use lapin::{Channel, PublisherConfirm, options::BasicPublishOptions, types::ShortString};
use tokio::sync::{Notify, oneshot};

use crate::{
    message::envelope::{self, ContentHeader},
    transport::connection::{BrokerConnection, call},
};

/// The most messages that may await their confirms on one channel, those included whose callers have given up.
const MAX_OUTSTANDING: usize = 20_000;

/// One message to publish, and where it goes.
#[derive(Clone)]
pub(crate) struct PublishRequest {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    /// Whether the broker returns the message if no queue takes it.
    pub(crate) mandatory: bool,
    pub(crate) head: ContentHeader,
    pub(crate) body: Bytes,
}

/// The broker's answer to one message.
#[derive(Debug)]
pub(crate) enum PublishOutcome {
    Stored,
    /// The broker refused to store it (`basic.nack`).
    Refused,
    /// No queue took it. The text is the broker's.
    Returned(String),
    /// The channel or connection ended before the confirm.
    Lost {
        /// Whether the message may have reached the broker. If not, it is surely not stored.
        written: bool,
        error: lapin::Error,
    },
}

/// lapin's future of a message that is being written to the socket.
type PublishFuture = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send>>;

/// How far one message has come.
enum PublishState {
    Publishing(PublishFuture),
    Confirming(PublisherConfirm),
    Done(PublishOutcome),
}

impl PublishState {
    /// Whether the message is done. Notes in `returned` a message that its confirm carried, which may be another one.
    fn poll(&mut self, cx: &mut Context<'_>, returned: &mut HashMap<u64, String>) -> bool {
        loop {
            *self = match self {
                Self::Publishing(publishing) => match publishing.as_mut().poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(confirm)) => Self::Confirming(confirm),
                    Poll::Ready(Err(error)) => Self::Done(PublishOutcome::Lost { written: false, error }),
                },
                Self::Confirming(confirm) => match Pin::new(confirm).poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Err(error)) => Self::Done(PublishOutcome::Lost { written: true, error }),
                    Poll::Ready(Ok(confirmation)) => {
                        let stored = !confirmation.is_nack();
                        if let Some(message) = confirmation.take_message() {
                            let text = message.reply_text.as_str().to_owned();
                            // Every mandatory message has a number. One without is not from this channel, and is
                            // noted as 0: that matches no request, and still holds the results.
                            returned.insert(envelope::sequence_number(&message.delivery.properties).unwrap_or(0), text);
                        }
                        Self::Done(if stored { PublishOutcome::Stored } else { PublishOutcome::Refused })
                    }
                },
                Self::Done(_) => return true,
            }
        }
    }
}

/// The messages of one call to [`ConfirmChannel::send`].
struct PublishBatch {
    /// Sequence number and state of each message.
    entries: Vec<(u64, PublishState)>,
    /// How many messages at the front are done.
    done: usize,
    /// Whether all messages of the batch have been handed to the channel. Before that the batch cannot be complete.
    sealed: bool,
    /// Where the results go, once.
    reply: Option<oneshot::Sender<Vec<PublishOutcome>>>,
}

/// The messages that await their confirms.
#[derive(Default)]
struct ConfirmWindow {
    next_seq: u64,
    next_batch: u64,
    batches: VecDeque<(u64, PublishBatch)>,
    outstanding: usize,
    /// The broker's text on each returned message, by sequence number.
    returned: HashMap<u64, String>,
    /// Wakes the polling task.
    waker: Option<Waker>,
    /// The [`ConfirmChannel`] was dropped, so the polling task ends.
    closed: bool,
}

/// What a channel shares with the task that polls its confirms.
struct SharedWindow {
    window: Mutex<ConfirmWindow>,
    /// A message was returned: results are held until nothing is outstanding, and no new message goes out before.
    holding: AtomicBool,
    /// Notifies when nothing is outstanding any more, or the channel was retired.
    drained: Notify,
    /// How many messages the polling task has seen done, over the channel's life.
    done: AtomicU64,
}

/// A channel in confirm mode, and the task that polls its confirms. Many tasks share it.
pub(crate) struct ConfirmChannel {
    channel: Channel,
    pub(crate) connection: Arc<BrokerConnection>,
    shared: Arc<SharedWindow>,
    /// A caller gave up on the channel. Nothing more is sent on it, and the next publish opens another.
    retired: AtomicBool,
}

/// A call of [`ConfirmChannel::send`] under way. It is dropped only if its caller has given up.
struct SendGuard<'a> {
    channel: &'a ConfirmChannel,
    /// How many messages were done when the call began.
    done: u64,
}

impl Drop for SendGuard<'_> {
    fn drop(&mut self) {
        let shared = &self.channel.shared;
        // The channel is retired where it holds results for a confirm that does not come, or where no confirm came at
        // all during the call: the next call may fare no better. A blocked connection is silent on every channel, so
        // another channel would not help there.
        let holding = shared.holding.load(Ordering::Acquire);
        let silent = shared.done.load(Ordering::Acquire) == self.done && !self.channel.connection.is_blocked();
        if holding || silent {
            self.channel.retired.store(true, Ordering::Release);
            shared.drained.notify_waiters();
        }
    }
}

impl ConfirmChannel {
    pub(crate) fn new(channel: Channel, connection: Arc<BrokerConnection>) -> Self {
        let shared = Arc::new(SharedWindow {
            window: Mutex::new(ConfirmWindow { next_seq: 1, ..ConfirmWindow::default() }),
            holding: AtomicBool::new(false),
            drained: Notify::new(),
            done: AtomicU64::new(0),
        });
        let watched = shared.clone();
        tokio::spawn(std::future::poll_fn(move |cx| poll_confirms(&watched, cx)));
        Self { channel, connection, shared, retired: AtomicBool::new(false) }
    }

    pub(crate) fn alive(&self) -> bool {
        !self.retired.load(Ordering::Acquire) && self.channel.status().connected() && self.connection.alive()
    }

    /// Closes the channel and waits for the answer. Dropping closes it too, but without waiting, and lapin takes a
    /// connection that ends before that for a broken one.
    pub(crate) async fn close(&self) {
        if self.alive() && !self.connection.is_blocked() {
            let _ = call("close channel", self.channel.close(200, "OK".into())).await;
        }
    }

    /// Whether the channel has no room for `n` more messages. A channel without outstanding messages takes any number.
    pub(crate) fn is_full_with(&self, n: usize) -> bool {
        let outstanding = self.shared.window.lock().outstanding;
        outstanding > 0 && outstanding + n > MAX_OUTSTANDING
    }

    /// Publishes all messages in order and waits for their outcomes.
    ///
    /// # Cancel safety
    /// If the future is dropped, the messages stay on their way and may be stored.
    pub(crate) async fn send(&self, requests: Vec<PublishRequest>) -> Vec<PublishOutcome> {
        let sending = SendGuard { channel: self, done: self.shared.done.load(Ordering::Acquire) };
        let outcomes = self.send_all(requests).await;
        // The call was answered, so the guard must not run.
        std::mem::forget(sending);
        outcomes
    }

    async fn send_all(&self, requests: Vec<PublishRequest>) -> Vec<PublishOutcome> {
        let lost = |written| {
            let error = lapin::Error::from(lapin::ErrorKind::InvalidChannel(self.channel.id()));
            std::iter::repeat_with(move || PublishOutcome::Lost { written, error: error.clone() })
        };
        let count = requests.len();
        loop {
            // Created before the flags are read, so that a notification between reading and waiting is not missed.
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
        self.publish(requests, reply);
        result.await.unwrap_or_else(|_| lost(true).take(count).collect())
    }

    /// Hands all messages to lapin. lapin queues a message's frames when its future is polled for the first time, and
    /// the rest of that future only waits for the socket. So a message is in order once it was polled here.
    fn publish(&self, requests: Vec<PublishRequest>, reply: oneshot::Sender<Vec<PublishOutcome>>) {
        let mut idle = Context::from_waker(Waker::noop());
        let id = {
            let mut window = self.shared.window.lock();
            let id = window.next_batch;
            window.next_batch += 1;
            let entries = Vec::with_capacity(requests.len());
            window.batches.push_back((id, PublishBatch { entries, done: 0, sealed: false, reply: Some(reply) }));
            id
        };
        for request in requests {
            // The lock is held from the numbering until the entry is in the window. Otherwise a confirm could arrive of
            // which the polling task does not know yet.
            let mut window = self.shared.window.lock();
            let seq = window.next_seq;
            window.next_seq += 1;
            let mut publishing = self.publishing(request, seq);
            let entry = match publishing.as_mut().poll(&mut idle) {
                Poll::Pending => PublishState::Publishing(publishing),
                Poll::Ready(Ok(confirm)) => PublishState::Confirming(confirm),
                Poll::Ready(Err(error)) => PublishState::Done(PublishOutcome::Lost { written: false, error }),
            };
            window.outstanding += 1;
            if let Some((_, batch)) = window.batches.iter_mut().rev().find(|(b, _)| *b == id) {
                batch.entries.push((seq, entry));
            }
        }
        let mut window = self.shared.window.lock();
        if let Some((_, batch)) = window.batches.iter_mut().rev().find(|(b, _)| *b == id) {
            batch.sealed = true;
        }
        if let Some(waker) = window.waker.take() {
            waker.wake();
        }
    }

    /// The future that writes one message. Only a mandatory message is numbered, since only such a message is returned.
    fn publishing(&self, request: PublishRequest, seq: u64) -> PublishFuture {
        let channel = self.channel.clone();
        Box::pin(async move {
            let PublishRequest { exchange, routing_key, mandatory, mut head, body } = request;
            if mandatory {
                head.set_sequence_number(seq);
            }
            let options = BasicPublishOptions { mandatory, immediate: false };
            channel.basic_publish(exchange, routing_key, options, &body, head.into_properties()).await
        })
    }
}

impl Drop for ConfirmChannel {
    fn drop(&mut self) {
        let mut window = self.shared.window.lock();
        window.closed = true;
        if let Some(waker) = window.waker.take() {
            waker.wake();
        }
    }
}

/// Polls all confirms and answers the batches that are complete. The task ends with its channel.
fn poll_confirms(shared: &SharedWindow, cx: &mut Context<'_>) -> Poll<()> {
    let mut guard = shared.window.lock();
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
        // Before anything is answered: another confirm that has arrived may carry the return of a message that looks
        // stored now.
        for (_, batch) in &mut window.batches {
            for (_, entry) in batch.entries.iter_mut().skip(batch.done) {
                entry.poll(cx, &mut window.returned);
            }
        }
        let drained = window.batches.iter().all(|(_, b)| b.sealed && b.done == b.entries.len());
        if !window.returned.is_empty() && !drained {
            shared.holding.store(true, Ordering::Release);
        } else {
            answer_complete_batches(window);
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

/// Sends the results of every complete batch to its caller.
fn answer_complete_batches(window: &mut ConfirmWindow) {
    let ConfirmWindow { batches, returned, outstanding, .. } = window;
    batches.retain_mut(|(_, batch)| {
        if !batch.sealed || batch.done < batch.entries.len() {
            return true;
        }
        *outstanding -= batch.entries.len();
        let outcomes = batch.entries.drain(..).map(|(seq, entry)| match entry {
            PublishState::Done(PublishOutcome::Stored) => match returned.remove(&seq) {
                Some(text) => PublishOutcome::Returned(text),
                None => PublishOutcome::Stored,
            },
            PublishState::Done(outcome) => outcome,
            // This cannot be: only entries that are done are counted as done.
            PublishState::Publishing(_) | PublishState::Confirming(_) => PublishOutcome::Refused,
        });
        let outcomes: Vec<_> = outcomes.collect();
        if let Some(reply) = batch.reply.take() {
            // An error means that the caller has given up waiting.
            let _ = reply.send(outcomes);
        }
        false
    });
    if batches.is_empty() {
        // A return that matched no request belongs to no later one either.
        returned.clear();
    }
}

//! The task that reads one link into a buffer, gives it credit, and settles on it.
//!
//! It reads at once whatever comes, so that each message's lock is counted from its arrival, though the receiver may be
//! busy. The receiver and the settler talk to it through a [`ReceiveTask`].

use std::{sync::Arc, time::Duration};

use fe2o3_amqp::{
    Receiver,
    link::{RecvError, delivery::DeliveryInfo},
    types::{
        messaging::{Body, Modified},
        primitives::Value,
    },
};
use polybus_core::{
    Error,
    driver::{
        kit::prefetched::{self, ReceiveBuffer},
        lock_margin,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    amqp::{
        consumer::AmqpConsumer,
        link::{self, DeliveryResult, DrainLimit, ReceiverLink},
        locks::MessageLock,
    },
    error,
    message::received::{self, MessageContent},
};

/// When a consumer closes: how long the broker may take to send the messages that are on their way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A message as it came, before core receives it.
pub(crate) struct IncomingMessage {
    /// When it arrived, which is when its lock began.
    pub(crate) at: Instant,
    pub(crate) lock: MessageLock,
    pub(crate) info: DeliveryInfo,
    pub(crate) content: MessageContent,
}

/// The messages that a link has brought. Their locks are renewed while they wait.
pub(crate) type AmqpReceiveBuffer = ReceiveBuffer<IncomingMessage, MessageLock>;

/// How a delivery is settled on its link. The management node has usually settled the message before; then this does
/// nothing at the broker but close the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    Completed,
    /// Given back, and the hand-over does not count as an attempt.
    Released,
    /// Given back, and the attempt counts.
    Abandoned,
}

enum LinkCommand {
    Allow(u64),
    Settle(Vec<DeliveryInfo>, Disposition),
    WithdrawCredit(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// A handle of the task. The task ends and closes the link when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct ReceiveTask(mpsc::UnboundedSender<LinkCommand>);

impl ReceiveTask {
    /// Starts the task. No message comes before [`allow`](Self::allow).
    pub(crate) fn start(consumer: Arc<AmqpConsumer>, link: ReceiverLink) -> (Self, Arc<AmqpReceiveBuffer>) {
        let (command, commands) = mpsc::unbounded_channel();
        // The buffer has no limit of its own: the credit bounds it.
        let lock = consumer.lock_duration();
        let buffer = Arc::new(ReceiveBuffer::new(lock, lock_margin(lock), consumer.renews));
        tokio::spawn(run(link, commands, BufferWriter { consumer, buffer: buffer.clone() }));
        (Self(command), buffer)
    }

    /// Allows the broker to send so many messages in all, counted from when the link was attached.
    pub(crate) fn allow(&self, total: u64) {
        let _ = self.0.send(LinkCommand::Allow(total));
    }

    /// Settles deliveries on the link. False if the link is gone.
    pub(crate) fn settle(&self, deliveries: Vec<DeliveryInfo>, disposition: Disposition) -> bool {
        self.0.send(LinkCommand::Settle(deliveries, disposition)).is_ok()
    }

    /// Withdraws the credit. Returns once the messages that were on their way have come.
    pub(crate) async fn withdraw_credit(&self) {
        self.send_and_wait(LinkCommand::WithdrawCredit).await;
    }

    /// Closes the link.
    pub(crate) async fn close(&self) {
        self.send_and_wait(LinkCommand::Close).await;
    }

    async fn send_and_wait(&self, what: impl FnOnce(oneshot::Sender<()>) -> LinkCommand) {
        let (tell, done) = oneshot::channel();
        if self.0.send(what(tell)).is_ok() {
            // An error means that the task has ended, and the link with it.
            let _ = done.await;
        }
    }
}

async fn run(mut attached: ReceiverLink, mut commands: mpsc::UnboundedReceiver<LinkCommand>, writer: BufferWriter) {
    let mut done = None;
    let mut window = CreditWindow::new(writer.consumer.prefetch);
    loop {
        tokio::select! {
            delivery = attached.link.recv::<Body<Value>>() => {
                window.received += 1;
                match writer.write(delivery) {
                    WriteOutcome::Buffered if attached.link.credit() > 0 => {}
                    // The link has no credit left, so even a small grant is worth a frame.
                    WriteOutcome::Buffered => window.grant(&mut attached.link, 1).await,
                    WriteOutcome::Ended => break,
                    WriteOutcome::Unwanted(info) => {
                        let _ = attached.link.release(info).await;
                    }
                }
            }
            command = commands.recv() => match command {
                None => break,
                Some(LinkCommand::Close(closed)) => {
                    done = Some(closed);
                    break;
                }
                Some(LinkCommand::WithdrawCredit(stopped)) => {
                    window.stopped = true;
                    if attached.link.credit() > 0 {
                        let drained = link::drain(&mut attached, DrainLimit::Total(DRAIN_TIMEOUT), |delivery| matches!(writer.write(delivery), WriteOutcome::Buffered)).await;
                        tracing::trace!(?drained, "the credit was taken back");
                    }
                    let _ = stopped.send(());
                }
                Some(LinkCommand::Allow(total)) => {
                    window.allow(total);
                    window.grant(&mut attached.link, 1).await;
                }
                Some(LinkCommand::Settle(deliveries, disposition)) => {
                    window.settled += deliveries.len() as u64;
                    // A failure means that the link is gone, which the next `recv` reports.
                    let _ = match disposition {
                        Disposition::Completed => attached.link.accept_all(deliveries).await,
                        Disposition::Released => attached.link.release_all(deliveries).await,
                        Disposition::Abandoned => attached.link.modify_all(deliveries, failed()).await,
                    };
                    // Settled deliveries make room for new messages at once, though the receiver may be busy. A grant
                    // waits until it is worth a frame.
                    let worth = window.prefetch / 4;
                    window.grant(&mut attached.link, worth).await;
                }
            },
        }
    }
    drop(commands);
    link::close_receiver(attached).await;
    drop(done);
}

/// The link's credit, so that never more messages than the prefetch are unsettled. All counts begin when the link was
/// attached.
struct CreditWindow {
    prefetch: u32,
    received: u64,
    /// How many messages the receiver allows by now, and how many it allowed first. Deliveries of this link that are
    /// settled make room beyond the first allowance.
    allowed: u64,
    first_allowed: Option<u64>,
    settled: u64,
    stopped: bool,
}

impl CreditWindow {
    fn new(prefetch: usize) -> Self {
        let prefetch = u32::try_from(prefetch).unwrap_or(u32::MAX);
        Self { prefetch, received: 0, allowed: 0, first_allowed: None, settled: 0, stopped: false }
    }

    fn allow(&mut self, total: u64) {
        self.allowed = self.allowed.max(total);
        self.first_allowed.get_or_insert(total);
    }

    /// The credit that the link may have now.
    fn credit(&self) -> u32 {
        let settled = self.first_allowed.map_or(0, |first_allowed| first_allowed.saturating_add(self.settled));
        u32::try_from(self.allowed.max(settled).saturating_sub(self.received)).unwrap_or(u32::MAX)
    }

    /// Raises the link's credit, if the difference is worth a frame. It is never lowered: messages on their way would
    /// exceed it.
    async fn grant(&self, link: &mut Receiver, worth: u32) {
        let (now, credit) = (link.credit(), self.credit());
        if !self.stopped && credit > now && (now == 0 || credit - now >= worth) {
            let _ = link.set_credit(credit).await;
        }
    }
}

/// Writes into the buffer what the link brings, and ends the buffer when it is dropped.
struct BufferWriter {
    consumer: Arc<AmqpConsumer>,
    buffer: Arc<AmqpReceiveBuffer>,
}

enum WriteOutcome {
    Buffered,
    /// The link has ended.
    Ended,
    /// The buffer was closed before this message came.
    Unwanted(DeliveryInfo),
}

impl BufferWriter {
    fn write(&self, delivery: DeliveryResult) -> WriteOutcome {
        let message = match read(delivery, Instant::now(), &self.consumer) {
            Ok(message) => message,
            Err(e) => {
                self.buffer.end(e);
                return WriteOutcome::Ended;
            }
        };
        let (lock, at) = (message.lock, message.at);
        if self.consumer.learn_lock_length(&message.content.original.broker) {
            let lock = self.consumer.lock_duration();
            self.buffer.shorten(lock, lock_margin(lock));
        }
        match self.buffer.put(message, lock, at) {
            Ok(true) => {
                let consumer = self.consumer.clone();
                tokio::spawn(prefetched::keep(Arc::downgrade(&self.buffer), move |locks| {
                    let consumer = consumer.clone();
                    async move { consumer.renew_locks(&locks).await }
                }));
            }
            Ok(false) => {}
            Err(late) => return WriteOutcome::Unwanted(late.info),
        }
        WriteOutcome::Buffered
    }
}

impl Drop for BufferWriter {
    fn drop(&mut self) {
        self.buffer.end(error::lost("receive", "the link has ended"));
    }
}

fn failed() -> Modified {
    Modified { delivery_failed: Some(true), undeliverable_here: None, message_annotations: None }
}

/// Reads a delivery whose lock began at `at`. An error if the link has ended.
///
/// Messages are decoded in this task, where they were allocated: what is not kept goes back to the same allocator
/// arena.
pub(crate) fn read(delivery: DeliveryResult, at: Instant, consumer: &AmqpConsumer) -> Result<IncomingMessage, Error> {
    let (info, content) = match delivery {
        Ok(delivery) => {
            let (info, message) = delivery.into_parts();
            (info, received::read(message, consumer.read_context()))
        }
        Err(RecvError::MessageDecode(e)) => {
            (e.info, received::unreadable("no AMQP 1.0 message that can be read", consumer.read_context()))
        }
        Err(e) => return Err(error::of_recv(&e, "receive")),
    };
    let lock = MessageLock { token: lock_token(&info), partition: content.original.partition() };
    Ok(IncomingMessage { at, lock, info, content })
}

/// The delivery tag is the lock token: a GUID in its little-endian form.
fn lock_token(info: &DeliveryInfo) -> uuid::Uuid {
    let tag: Result<[u8; 16], _> = info.delivery_tag().as_ref().try_into();
    tag.map(uuid::Uuid::from_bytes_le).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_makes_room_and_what_is_unsettled_takes_it() {
        let mut window = CreditWindow::new(10);
        window.settled = 3;
        assert_eq!(window.credit(), 0, "nobody has asked yet");
        window.settled = 0;
        // Four messages of an earlier link are unsettled still.
        window.allow(6);
        window.received = 6;
        assert_eq!(window.credit(), 0);
        window.settled = 2;
        assert_eq!(window.credit(), 2);
        window.received = 8;
        // The receiver counts the messages of the earlier link as well.
        window.allow(12);
        assert_eq!(window.credit(), 4);
        window.allow(9);
        assert_eq!(window.credit(), 4, "what was granted is not taken back");
        window.settled = 8;
        assert_eq!(window.credit(), 6);
    }
}

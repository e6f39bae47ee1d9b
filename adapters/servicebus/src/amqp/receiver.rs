//! Receiving from a queue, a subscription or dead letters over one link, which is attached again when it is lost.

use std::sync::{Arc, atomic::Ordering};

use async_trait::async_trait;
use polybus_core::{
    ErrorKind, Result,
    driver::{ReceivedMessage, Receiver},
};
use tokio::task::JoinHandle;

use crate::{
    amqp::{
        consumer::AmqpConsumer,
        link::{self, ReceiveMode},
        receive_task::{AmqpReceiveBuffer, Disposition, ReceiveTask},
    },
    error,
};

pub(crate) struct ServicebusReceiver {
    consumer: Arc<AmqpConsumer>,
    state: LinkState,
}

enum LinkState {
    Attached(Attachment),
    /// Attaching runs in a task of its own: if `receive` is dropped meanwhile, the link is not lost halfway.
    Attaching(JoinHandle<Result<Attachment>>),
    Detached,
    Closed,
}

struct Attachment {
    task: ReceiveTask,
    buffer: Arc<AmqpReceiveBuffer>,
    /// How many messages the broker may send in all.
    allowed: u64,
}

async fn attach(consumer: Arc<AmqpConsumer>) -> Result<Attachment> {
    consumer.namespace.ensure_not_busy("receive")?;
    let connection = consumer.namespace.connection().await?;
    let attaching = || link::attach_receiver(&connection, &consumer.path, ReceiveMode::PeekLock);
    let attached = connection.attach(&consumer.path, attaching).await?;
    let (task, buffer) = ReceiveTask::start(consumer, attached);
    Ok(Attachment { task, buffer, allowed: 0 })
}

impl ServicebusReceiver {
    pub(crate) async fn open(consumer: Arc<AmqpConsumer>) -> Result<Self> {
        let attachment = attach(consumer.clone()).await.map_err(|e| e.with_context("source", &consumer.source))?;
        Ok(Self { consumer, state: LinkState::Attached(attachment) })
    }
}

impl Attachment {
    /// Lets the broker send so many messages that `max` can be received. Small raises wait until they are worth a
    /// frame.
    fn raise_allowance(&mut self, max: usize, prefetch: usize) {
        let gone = self.buffer.gone();
        let wanted = gone.saturating_add(max as u64);
        let missing = wanted.saturating_sub(self.allowed);
        // The task may have granted more by itself, for deliveries that are settled.
        let nothing_comes = self.allowed <= gone;
        if missing > 0 && (nothing_comes || missing >= prefetch as u64 / 4) {
            self.allowed = wanted;
            self.task.allow(wanted);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.buffer.close();
    }
}

#[async_trait]
impl Receiver for ServicebusReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        loop {
            match &mut self.state {
                LinkState::Closed => return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed")),
                LinkState::Detached => self.state = LinkState::Attaching(tokio::spawn(attach(self.consumer.clone()))),
                LinkState::Attaching(attaching) => {
                    let attached = attaching.await;
                    self.state = LinkState::Detached;
                    let lost = |e| error::new(ErrorKind::Unexpected, "receive", format!("attaching failed: {e}"));
                    let link = attached.map_err(lost)?.inspect_err(|e| self.consumer.namespace.note_busy(e));
                    self.state =
                        LinkState::Attached(link.map_err(|e| e.with_context("source", &self.consumer.source))?);
                }
                LinkState::Attached(attachment) => {
                    let buffer = attachment.buffer.clone();
                    let (changed, freed) = (buffer.changed(), self.consumer.holds.freed());
                    tokio::pin!(changed, freed);
                    changed.as_mut().enable();
                    freed.as_mut().enable();
                    // Messages that are held in place take places of the prefetch.
                    let max = max.saturating_sub(self.consumer.holds.len());
                    let taken = buffer.take(max);
                    if !taken.lost.is_empty() {
                        let lost = taken.lost.into_iter().map(|message| message.info).collect();
                        attachment.task.settle(lost, Disposition::Released);
                    }
                    // Before returning, so that the next messages come while these are handled.
                    attachment.raise_allowance(max - taken.messages.len(), self.consumer.prefetch);
                    let task = attachment.task.clone();
                    if let Some(e) = taken.end {
                        self.state = LinkState::Detached;
                        self.consumer.namespace.note_busy(&e);
                        if taken.messages.is_empty() && error::is_idle(&e) {
                            tracing::debug!(source = %self.consumer.source, "the broker ended a link that was idle; attaching again");
                            continue;
                        }
                        if taken.messages.is_empty() {
                            return Err(e.with_context("source", &self.consumer.source));
                        }
                    }
                    if !taken.messages.is_empty() {
                        let messages = taken.messages.into_iter();
                        return Ok(messages
                            .map(|(message, from)| self.consumer.to_received(message, from, Some(&task), None))
                            .collect());
                    }
                    tokio::select! {
                        () = changed => {}
                        () = freed => {}
                    }
                }
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.consumer.closed.store(true, Ordering::Release);
        let attachment = match std::mem::replace(&mut self.state, LinkState::Closed) {
            LinkState::Attached(attachment) => attachment,
            LinkState::Attaching(attaching) => match attaching.await {
                Ok(Ok(attachment)) => attachment,
                _ => return Ok(()),
            },
            LinkState::Detached | LinkState::Closed => return Ok(()),
        };
        attachment.task.withdraw_credit().await;
        let left = attachment.buffer.close();
        let left = left.messages.into_iter().map(|(message, _)| message).chain(left.lost);
        let left: Vec<_> = left.map(|message| message.info).collect();
        // If the link is gone, they come back when their locks end.
        attachment.task.settle(left, Disposition::Released);
        // The link stays open until the settler closes: messages that were handed out can be given back, uncounted,
        // over this link only.
        self.consumer.keep_link(attachment.task.clone());
        Ok(())
    }
}

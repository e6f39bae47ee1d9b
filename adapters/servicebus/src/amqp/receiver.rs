//! Taking messages from a queue, a subscription or dead letters, one link for all.

use std::sync::{Arc, atomic::Ordering};

use async_trait::async_trait;
use polybus_core::{
    ErrorKind, Result,
    driver::{ReceivedMessage, Receiver},
};
use tokio::task::JoinHandle;

use crate::{
    amqp::{
        consumer::Feed,
        link::{self, Take},
        receive_task::{Arrivals, Fate, Pump},
    },
    error,
};

pub(crate) struct ServicebusReceiver {
    feed: Arc<Feed>,
    state: State,
}

enum State {
    Attached(Attachment),
    /// In a task of its own: a link that was asked for must not be forgotten halfway.
    Attaching(JoinHandle<Result<Attachment>>),
    Detached,
    Closed,
}

struct Attachment {
    pump: Pump,
    arrivals: Arc<Arrivals>,
    /// Messages the broker may send in all.
    allowed: u64,
}

async fn attach(feed: Arc<Feed>) -> Result<Attachment> {
    feed.wires.ensure_calm("receive")?;
    let wire = feed.wires.get().await?;
    let attached = wire.attach(&feed.path, || link::receiver(&wire, &feed.path, Take::Peek)).await?;
    let (pump, arrivals) = Pump::start(feed, attached);
    Ok(Attachment { pump, arrivals, allowed: 0 })
}

impl ServicebusReceiver {
    pub(crate) async fn open(feed: Arc<Feed>) -> Result<Self> {
        let attachment = attach(feed.clone()).await.map_err(|e| e.with_context("source", &feed.source))?;
        Ok(Self { feed, state: State::Attached(attachment) })
    }
}

impl Attachment {
    /// Lets the broker send so much that `max` messages can be taken. Small top-ups wait until they are worth a frame.
    fn top_up(&mut self, max: usize, prefetch: usize) {
        let gone = self.arrivals.gone();
        let wanted = gone.saturating_add(max as u64);
        let missing = wanted.saturating_sub(self.allowed);
        // The link has granted more by itself, where what it brought is over.
        let nothing_comes = self.allowed <= gone;
        if missing > 0 && (nothing_comes || missing >= prefetch as u64 / 4) {
            self.allowed = wanted;
            self.pump.allow(wanted);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.arrivals.close();
    }
}

#[async_trait]
impl Receiver for ServicebusReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        loop {
            match &mut self.state {
                State::Closed => return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed")),
                State::Detached => self.state = State::Attaching(tokio::spawn(attach(self.feed.clone()))),
                State::Attaching(attaching) => {
                    let attached = attaching.await;
                    self.state = State::Detached;
                    let lost = |e| error::new(ErrorKind::Unexpected, "receive", format!("attaching failed: {e}"));
                    let attached = attached.map_err(lost)?;
                    let attached = attached.inspect_err(|e| self.feed.wires.note(e));
                    self.state = State::Attached(attached.map_err(|e| e.with_context("source", &self.feed.source))?);
                }
                State::Attached(attachment) => {
                    let arrivals = attachment.arrivals.clone();
                    let (changed, freed) = (arrivals.changed(), self.feed.holds.freed());
                    tokio::pin!(changed, freed);
                    changed.as_mut().enable();
                    freed.as_mut().enable();
                    // What is held in place keeps its place.
                    let max = max.saturating_sub(self.feed.holds.len());
                    let taken = arrivals.take(max);
                    if !taken.lost.is_empty() {
                        let lost = taken.lost.into_iter().map(|arrival| arrival.info).collect();
                        attachment.pump.forget(lost, Fate::Released);
                    }
                    // While these are handled the next ones come.
                    attachment.top_up(max - taken.messages.len(), self.feed.prefetch);
                    let pump = attachment.pump.clone();
                    if let Some(e) = taken.end {
                        self.state = State::Detached;
                        self.feed.wires.note(&e);
                        if taken.messages.is_empty() && error::is_idle(&e) {
                            tracing::debug!(source = %self.feed.source, "the broker ended a link that was idle; attaching again");
                            continue;
                        }
                        if taken.messages.is_empty() {
                            return Err(e.with_context("source", &self.feed.source));
                        }
                    }
                    if !taken.messages.is_empty() {
                        let messages = taken.messages.into_iter();
                        return Ok(messages
                            .map(|(arrival, from)| self.feed.read(arrival, from, Some(&pump), None))
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
        self.feed.closed.store(true, Ordering::Release);
        let attachment = match std::mem::replace(&mut self.state, State::Closed) {
            State::Attached(attachment) => attachment,
            State::Attaching(attaching) => match attaching.await {
                Ok(Ok(attachment)) => attachment,
                _ => return Ok(()),
            },
            State::Detached | State::Closed => return Ok(()),
        };
        attachment.pump.stop().await;
        let left = attachment.arrivals.close();
        let left = left.messages.into_iter().map(|(arrival, _)| arrival).chain(left.lost);
        let left: Vec<_> = left.map(|arrival| arrival.info).collect();
        // A link that is gone leaves them to their locks.
        attachment.pump.forget(left, Fate::Released);
        // It ends after the last delivery is settled: what was handed out may still be given back over it.
        self.feed.keep(attachment.pump.clone());
        Ok(())
    }
}

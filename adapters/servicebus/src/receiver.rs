//! Taking messages from a queue, a subscription or dead letters, one link for all.

use std::sync::{Arc, atomic::Ordering};

use async_trait::async_trait;
use polybus_core::{Kind, Received, Receiver, Result};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};

use crate::{
    error,
    feed::Feed,
    link::{self, Take},
    pump::{Event, Pump},
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
    events: mpsc::UnboundedReceiver<Event>,
    /// Messages taken from `events`, and messages the broker may send in all.
    taken: u64,
    allowed: u64,
}

async fn attach(feed: Arc<Feed>) -> Result<Attachment> {
    let wire = feed.wires.get().await?;
    let attached = wire.attach(&feed.path, || link::receiver(&wire, &feed.path, Take::Peek)).await?;
    let (pump, events) = Pump::start(wire, attached);
    Ok(Attachment { pump, events, taken: 0, allowed: 0 })
}

impl ServicebusReceiver {
    pub(crate) async fn open(feed: Arc<Feed>) -> Result<Self> {
        let attachment = attach(feed.clone()).await.map_err(|e| e.with("source", &feed.source))?;
        Ok(Self { feed, state: State::Attached(attachment) })
    }
}

impl Attachment {
    /// Lets the broker send so much that `max` messages can be taken. Small top-ups wait until they are worth a frame.
    fn top_up(&mut self, max: usize, prefetch: usize) {
        let wanted = self.taken + max as u64;
        let missing = wanted.saturating_sub(self.allowed);
        if missing > 0 && (self.allowed == self.taken || missing >= prefetch as u64 / 4) {
            self.allowed = wanted;
            self.pump.allow(wanted);
        }
    }
}

#[async_trait]
impl Receiver for ServicebusReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<Received>> {
        loop {
            match &mut self.state {
                State::Closed => return Err(error::new(Kind::Closed, "receive", "the receiver was closed")),
                State::Detached => self.state = State::Attaching(tokio::spawn(attach(self.feed.clone()))),
                State::Attaching(attaching) => {
                    let attached = attaching.await;
                    self.state = State::Detached;
                    let lost = |e| error::new(Kind::Unexpected, "receive", format!("attaching failed: {e}"));
                    let attached = attached.map_err(lost)?;
                    self.state = State::Attached(attached.map_err(|e| e.with("source", &self.feed.source))?);
                }
                State::Attached(attachment) => {
                    attachment.top_up(max, self.feed.prefetch);
                    let mut next = attachment.events.recv().await;
                    let mut messages = Vec::new();
                    loop {
                        match next {
                            Some(Event::Arrival(arrival)) => {
                                attachment.taken += 1;
                                // One whose lock ran out unread has gone back, and would be handled twice.
                                if self.feed.deadline(arrival.at) > Instant::now() {
                                    messages.push(self.feed.read(*arrival, Some(&attachment.pump), None));
                                }
                            }
                            Some(Event::End(e)) => {
                                self.state = State::Detached;
                                if messages.is_empty() {
                                    return Err(e.with("source", &self.feed.source));
                                }
                                return Ok(messages);
                            }
                            None => {
                                self.state = State::Detached;
                                break;
                            }
                        }
                        if messages.len() >= max {
                            break;
                        }
                        match attachment.events.try_recv() {
                            Ok(event) => next = Some(event),
                            Err(_) => break,
                        }
                    }
                    if !messages.is_empty() {
                        return Ok(messages);
                    }
                }
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.feed.closed.store(true, Ordering::Release);
        let mut attachment = match std::mem::replace(&mut self.state, State::Closed) {
            State::Attached(attachment) => attachment,
            State::Attaching(attaching) => match attaching.await {
                Ok(Ok(attachment)) => attachment,
                _ => return Ok(()),
            },
            State::Detached | State::Closed => return Ok(()),
        };
        attachment.pump.stop().await;
        let mut left = Vec::new();
        while let Ok(event) = attachment.events.try_recv() {
            if let Event::Arrival(arrival) = event {
                left.push(arrival.info);
            }
        }
        // A link that is gone leaves them to their locks.
        attachment.pump.forget(left, false);
        // It ends after the last delivery is settled: what was handed out may still be given back over it.
        self.feed.keep(attachment.pump);
        Ok(())
    }
}

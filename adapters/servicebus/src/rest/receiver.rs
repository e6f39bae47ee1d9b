//! Receiving over HTTP, where one request brings one message.
//!
//! While nothing comes, one request waits at the broker. When a message has come, rounds of requests ask for messages
//! that are there already, twice as many in each round, until one request brings nothing. `receive` returns after all
//! requests of a round are answered, so that no message is locked that nobody knows of.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Result,
    driver::{ReceivedMessage, Receiver},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    error,
    rest::{client::LockedMessage, consumer::RestConsumer},
};

/// The most requests in a round.
const MAX_CONCURRENT_REQUESTS: usize = 64;
/// `receive` returns once it has so many messages.
const MAX_PER_RECEIVE: usize = 128;
/// How long a request waits in one place while another place is to be asked too.
const ALTERNATING_WAIT: Duration = Duration::from_secs(1);
/// How much longer than `poll` closing waits for an answer.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// Whether a message has come.
type PeekResult = Result<bool>;

pub(crate) struct RestReceiver {
    consumer: Arc<RestConsumer>,
    /// Each request runs in a task of its own, so that dropping `receive` cuts none off.
    answers: mpsc::UnboundedReceiver<PeekResult>,
    sender: mpsc::UnboundedSender<PeekResult>,
    /// The requests of this round, and how many of them are not answered yet.
    asked: usize,
    unanswered: usize,
    /// The index of the place that is asked.
    place: usize,
    /// How many requests a round makes; 0 stands for one that waits at the broker.
    parallel: usize,
    /// How many messages this round has brought.
    received: usize,
    failed: Option<Error>,
}

impl RestReceiver {
    pub(crate) fn new(consumer: Arc<RestConsumer>) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        Self { consumer, answers, sender, asked: 0, unanswered: 0, place: 0, parallel: 0, received: 0, failed: None }
    }

    /// Starts a round of requests, for at most `room` messages.
    fn request(&mut self, room: usize) {
        let (requests, wait) = match self.parallel {
            0 if self.consumer.places.len() > 1 => (1, self.consumer.poll.min(ALTERNATING_WAIT)),
            0 => (1, self.consumer.poll),
            parallel => (parallel.min(room), Duration::ZERO),
        };
        (self.asked, self.unanswered, self.received) = (requests, requests, 0);
        for _ in 0..requests {
            let (consumer, sender, place) = (self.consumer.clone(), self.sender.clone(), self.place);
            tokio::spawn(async move {
                let answer = match consumer.client.peek_lock(&consumer.places[place], wait).await {
                    Ok(Some(locked)) => {
                        if let Err(late) = consumer.buffer_message(Box::new(locked)) {
                            give_back(&consumer, &late).await;
                        }
                        Ok(true)
                    }
                    Ok(None) => Ok(false),
                    Err(e) => Err(e),
                };
                let _ = sender.send(answer);
            });
        }
    }

    async fn wait_for_answers(&mut self) {
        while self.unanswered > 0 {
            match self.answers.recv().await {
                Some(answer) => self.note_answer(answer),
                None => break,
            }
        }
    }

    fn note_answer(&mut self, answer: PeekResult) {
        self.unanswered -= 1;
        match answer {
            Ok(came) => self.received += usize::from(came),
            Err(e) => self.failed = Some(e),
        }
    }

    /// Evaluates a round. True if another is worthwhile, false if it is time to return the messages.
    fn continues(&mut self) -> bool {
        let waited = self.parallel == 0;
        if self.received == self.asked && self.failed.is_none() {
            self.parallel = (self.parallel * 2).clamp(1, MAX_CONCURRENT_REQUESTS);
            return true;
        }
        self.parallel = 0;
        self.place = (self.place + 1) % self.consumer.places.len();
        !waited && self.consumer.buffer.is_empty() && self.failed.is_none()
    }
}

impl Drop for RestReceiver {
    fn drop(&mut self) {
        self.consumer.buffer.close();
    }
}

async fn give_back(consumer: &RestConsumer, locked: &LockedMessage) {
    if let Err(e) = locked.lock.unlock().await {
        tracing::debug!(source = %consumer.source, error = %e, "what was not received comes back when its lock ends");
    }
}

#[async_trait]
impl Receiver for RestReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        loop {
            if self.consumer.closed.load(Ordering::Acquire) {
                return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed"));
            }
            let consumer = self.consumer.clone();
            let freed = consumer.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            // Messages that are held in place take places of the prefetch.
            let max = max.saturating_sub(self.consumer.held_in_place.load(Ordering::Acquire));
            if max == 0 {
                freed.await;
                continue;
            }
            let enough = max.min(MAX_PER_RECEIVE);
            let room = enough.saturating_sub(self.consumer.buffer.len());
            let continues = if self.unanswered > 0 || room > 0 {
                if self.unanswered == 0 {
                    self.request(room);
                }
                self.wait_for_answers().await;
                self.continues()
            } else {
                false
            };
            if continues && self.consumer.buffer.len() < enough {
                continue;
            }
            let taken = self.consumer.buffer.take(max).messages.into_iter();
            let messages: Vec<_> = taken.map(|(locked, from)| self.consumer.to_received(*locked, from)).collect();
            match self.failed.take() {
                Some(e) if messages.is_empty() => return Err(e.with_context("source", &self.consumer.source)),
                _ => return Ok(messages),
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.consumer.closed.store(true, Ordering::Release);
        // A request that is cut off could leave a message locked that nobody knows of.
        let end = Instant::now() + self.consumer.poll + ANSWER_GRACE;
        let _ = timeout_at(end, self.wait_for_answers()).await;
        // A message that comes later is given back by the task of its request.
        for (locked, _) in self.consumer.buffer.close().messages {
            give_back(&self.consumer, &locked).await;
        }
        Ok(())
    }
}

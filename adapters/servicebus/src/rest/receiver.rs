//! Taking messages over HTTP, where one request brings one message.
//!
//! While nothing comes, one request waits at the broker. When a message has come, more requests ask for what is there already, twice as
//! many each time, until one of them comes back with nothing. All are answered before `receive` is, so that nothing is locked
//! while nobody looks.

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
    rest::{client::Locked, consumer::RestFeed},
};

/// Most requests at once.
const WIDEST: usize = 64;
/// As many messages are handed over before more are asked for.
const ENOUGH: usize = 128;
/// How long a request waits in one place while there is another one to look at.
const TURN: Duration = Duration::from_secs(1);
/// How much longer than its request asks for an answer may take until closing no longer waits for it.
const LATE: Duration = Duration::from_secs(2);

/// Whether a message has come.
type Answer = Result<bool>;

pub(crate) struct RestReceiver {
    feed: Arc<RestFeed>,
    /// Requests run in tasks, so that a dropped `receive` cuts none off.
    answers: mpsc::UnboundedReceiver<Answer>,
    ask: mpsc::UnboundedSender<Answer>,
    /// Requests of this round, and those of them that are not answered.
    asked: usize,
    under_way: usize,
    /// Which of the feed's places is asked.
    place: usize,
    /// How many requests ask at once; 0 means that one waits at the broker.
    width: usize,
    /// Messages of this round.
    round: usize,
    failed: Option<Error>,
}

impl RestReceiver {
    pub(crate) fn new(feed: Arc<RestFeed>) -> Self {
        let (ask, answers) = mpsc::unbounded_channel();
        Self { feed, answers, ask, asked: 0, under_way: 0, place: 0, width: 0, round: 0, failed: None }
    }

    /// One round of requests, for at most `room` messages.
    fn request(&mut self, room: usize) {
        let (requests, wait) = match self.width {
            0 if self.feed.places.len() > 1 => (1, self.feed.poll.min(TURN)),
            0 => (1, self.feed.poll),
            width => (width.min(room), Duration::ZERO),
        };
        (self.asked, self.under_way, self.round) = (requests, requests, 0);
        for _ in 0..requests {
            let (feed, ask, place) = (self.feed.clone(), self.ask.clone(), self.place);
            tokio::spawn(async move {
                let answer = match feed.rest.peek_lock(&feed.places[place], wait).await {
                    Ok(Some(locked)) => {
                        if let Err(late) = feed.put(Box::new(locked)) {
                            give_back(&feed, &late).await;
                        }
                        Ok(true)
                    }
                    Ok(None) => Ok(false),
                    Err(e) => Err(e),
                };
                let _ = ask.send(answer);
            });
        }
    }

    async fn answered(&mut self) {
        while self.under_way > 0 {
            match self.answers.recv().await {
                Some(answer) => self.take(answer),
                None => break,
            }
        }
    }

    fn take(&mut self, answer: Answer) {
        self.under_way -= 1;
        match answer {
            Ok(came) => self.round += usize::from(came),
            Err(e) => self.failed = Some(e),
        }
    }

    /// What the round tells: there is more, or a place is empty. False if it is time to hand over what there is.
    fn goes_on(&mut self) -> bool {
        let waited = self.width == 0;
        if self.round == self.asked && self.failed.is_none() {
            self.width = (self.width * 2).clamp(1, WIDEST);
            return true;
        }
        self.width = 0;
        self.place = (self.place + 1) % self.feed.places.len();
        !waited && self.feed.arrivals.is_empty() && self.failed.is_none()
    }
}

impl Drop for RestReceiver {
    fn drop(&mut self) {
        self.feed.arrivals.close();
    }
}

async fn give_back(feed: &RestFeed, locked: &Locked) {
    if let Err(e) = locked.lock.unlock().await {
        tracing::debug!(source = %feed.source, error = %e, "what was not received comes back when its lock ends");
    }
}

#[async_trait]
impl Receiver for RestReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        loop {
            if self.feed.closed.load(Ordering::Acquire) {
                return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed"));
            }
            let feed = self.feed.clone();
            let freed = feed.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            // What is held in place keeps its place.
            let max = max.saturating_sub(self.feed.kept.load(Ordering::Acquire));
            if max == 0 {
                freed.await;
                continue;
            }
            let enough = max.min(ENOUGH);
            let room = enough.saturating_sub(self.feed.arrivals.len());
            let goes_on = if self.under_way > 0 || room > 0 {
                if self.under_way == 0 {
                    self.request(room);
                }
                self.answered().await;
                self.goes_on()
            } else {
                false
            };
            if goes_on && self.feed.arrivals.len() < enough {
                continue;
            }
            let taken = self.feed.arrivals.take(max).messages.into_iter();
            let received: Vec<_> = taken.map(|(locked, from)| self.feed.read(*locked, from)).collect();
            match self.failed.take() {
                Some(e) if received.is_empty() => return Err(e.with_context("source", &self.feed.source)),
                _ => return Ok(received),
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.feed.closed.store(true, Ordering::Release);
        // A request that was cut off could leave a message locked that nobody knows of.
        let end = Instant::now() + self.feed.poll + LATE;
        let _ = timeout_at(end, self.answered()).await;
        // What comes later still is given back by the task that asked for it.
        for (locked, _) in self.feed.arrivals.close().messages {
            give_back(&self.feed, &locked).await;
        }
        Ok(())
    }
}

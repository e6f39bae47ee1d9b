//! Taking messages over HTTP, where one request brings one message.
//!
//! While nothing comes, one request waits at the broker. When a message has come, several ask at once for what is there already, twice
//! as many as brought something last time. All are answered before `receive` is, so that nothing is locked while nobody looks.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{Error, Kind, Received, Receiver, Result};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{error, rest_client::Locked, rest_feed::RestFeed};

/// Most requests at once.
const WIDEST: usize = 16;
/// How much longer than its request asks for an answer may take until closing no longer waits for it.
const LATE: Duration = Duration::from_secs(2);

type Answer = Result<Option<Locked>>;

pub(crate) struct RestReceiver {
    feed: Arc<RestFeed>,
    /// Requests run in tasks, so that a dropped `receive` cuts none off.
    answers: mpsc::UnboundedReceiver<Answer>,
    ask: mpsc::UnboundedSender<Answer>,
    under_way: usize,
    /// How many ask at once; 0 waits at the broker.
    width: usize,
    came: VecDeque<Locked>,
    failed: Option<Error>,
}

impl RestReceiver {
    pub(crate) fn new(feed: Arc<RestFeed>) -> Self {
        let (ask, answers) = mpsc::unbounded_channel();
        Self { feed, answers, ask, under_way: 0, width: 0, came: VecDeque::new(), failed: None }
    }

    fn request(&mut self, wait: Duration) {
        let (feed, ask) = (self.feed.clone(), self.ask.clone());
        self.under_way += 1;
        tokio::spawn(async move {
            let answer = feed.rest.peek_lock(&feed.place, wait).await;
            if let Err(mpsc::error::SendError(Ok(Some(late)))) = ask.send(answer) {
                give_back(&feed, &late).await;
            }
        });
    }

    fn take(&mut self, answer: Answer) {
        self.under_way -= 1;
        match answer {
            Ok(Some(locked)) => self.came.push_back(locked),
            Ok(None) => {}
            Err(e) => self.failed = Some(e),
        }
    }
}

async fn give_back(feed: &RestFeed, locked: &Locked) {
    if let Err(e) = locked.lock.unlock().await {
        tracing::debug!(source = %feed.source, error = %e, "what was not received comes back when its lock ends");
    }
}

#[async_trait]
impl Receiver for RestReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<Received>> {
        loop {
            if self.feed.closed.load(Ordering::Acquire) {
                return Err(error::new(Kind::Closed, "receive", "the receiver was closed"));
            }
            let waited = self.width == 0;
            if self.under_way == 0 && self.came.is_empty() {
                if waited {
                    self.request(self.feed.poll);
                } else {
                    (0..self.width.min(max)).for_each(|_| self.request(Duration::ZERO));
                }
            }
            let asked = self.under_way;
            while self.under_way > 0 {
                match self.answers.recv().await {
                    Some(answer) => self.take(answer),
                    None => break,
                }
            }
            if asked > 0 {
                let all = self.came.len() >= asked;
                self.width = if all { (self.came.len() * 2).min(WIDEST) } else { self.came.len() };
            }
            let failed = self.failed.take();
            // One whose lock ran out unread has gone back, and would be handled twice.
            let now = Instant::now();
            self.came.retain(|locked| self.feed.deadline(locked.told.at) > now);
            let some = self.came.len().min(max);
            if some > 0 {
                return Ok(self.came.drain(..some).map(|locked| self.feed.read(locked)).collect());
            }
            if let Some(e) = failed {
                return Err(e.with("source", &self.feed.source));
            }
            if waited {
                return Ok(Vec::new());
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.feed.closed.store(true, Ordering::Release);
        // A request that was cut off could leave a message locked that nobody knows of.
        let end = Instant::now() + self.feed.poll + LATE;
        while self.under_way > 0 {
            match timeout_at(end, self.answers.recv()).await {
                Ok(Some(answer)) => self.take(answer),
                _ => break,
            }
        }
        self.under_way = 0;
        self.answers.close();
        // What comes later still is given back by the task that asked for it.
        while let Ok(answer) = self.answers.try_recv() {
            self.came.extend(answer.ok().flatten());
        }
        for locked in std::mem::take(&mut self.came) {
            give_back(&self.feed, &locked).await;
        }
        Ok(())
    }
}

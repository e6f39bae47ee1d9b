//! Taking messages from a queue: long polls in tasks of their own, as many at once as demand and backlog call for.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use polybus_core::{
    ErrorKind, Result, RetrySafety, Source,
    driver::{DriverToken, ReceivedMessage, Receiver, lock_margin},
    topology::Entity,
};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

use crate::{
    consume::{
        consumer::{Book, Held, State},
        fifo_attempts::Attempt,
        in_flight_limit,
        prefetched::{self, Arrived},
    },
    error,
    message::{
        envelope,
        limits::{ENTRIES, seconds},
    },
    transport::clients::retryable,
};

/// Most polls of one consumer under way at once.
const WIDTH: usize = 16;
/// What an answer may be late by when a consumer closes.
const POLL_SLACK: Duration = Duration::from_secs(1);
/// How long a consumer that is busy waits for room for a full answer.
const LINGER: Duration = Duration::from_millis(5);

pub(crate) struct AwsReceiver {
    feed: Arc<Feed>,
}

/// What polls need.
struct Feed {
    book: Arc<Book>,
    source: Source,
    /// The `source` of messages that name none.
    address: String,
    lock: Duration,
    /// The longest that a poll waits.
    wait: Duration,
    /// Messages of one poll.
    entries: usize,
    ordered: bool,
    /// Dead letters of an ordered source stand in a FIFO queue too.
    fifo: bool,
}

impl AwsReceiver {
    pub(crate) fn new(book: Arc<Book>, from: &Entity<Source>) -> Self {
        let lock = from.settings.lock;
        let ordered = from.settings.ordered && !from.name.is_dead_letters();
        let longest = book.clients.config.poll;
        let feed = Feed {
            book,
            source: from.name.clone(),
            address: from.name.address().to_string(),
            lock,
            // The lock counts from the answer's arrival, so a poll must be short beside it.
            wait: (lock / 4).clamp(Duration::from_secs(1), longest),
            // SQS fills an answer with one group if it can: with a small window, one key alone would fill it and stop the others.
            entries: if ordered { (from.prefetch / 4).clamp(1, ENTRIES) } else { ENTRIES },
            ordered,
            fifo: from.settings.ordered,
        };
        Self { feed: Arc::new(feed) }
    }

    /// Starts as many polls as the demand leaves room for. One that asks for less than a full answer is worth its
    /// price only alone, and if there is not more room in a moment: then the answer says until when to wait.
    fn start_polls(&self, state: &mut State, demand: usize) -> Option<Instant> {
        let start = |state: &mut State, attempt: Attempt| {
            state.polls += 1;
            state.asked += attempt.entries;
            tokio::spawn(poll(self.feed.clone(), attempt));
        };
        let room = |state: &State| demand.saturating_sub(state.asked);
        while let Some(again) = state.lost.take(room(state), self.feed.lock) {
            start(state, again);
        }
        while state.polls < state.width.max(1) {
            let n = room(state).min(self.feed.entries);
            if n == 0 || (n < self.feed.entries && state.polls > 0) {
                return None;
            }
            if n < self.feed.entries && state.holds_any() {
                let until = *state.short_since.get_or_insert_with(Instant::now) + LINGER;
                if Instant::now() < until {
                    return Some(until);
                }
            }
            state.short_since = None;
            // Longer with every one that came back empty: who closes a busy consumer waits for a second, no more.
            let wait = Duration::from_secs(u64::from(state.idle) + 1).min(self.feed.wait);
            start(state, Attempt::new(n, wait, self.feed.fifo));
        }
        None
    }
}

#[async_trait]
impl Receiver for AwsReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        let book = &self.feed.book;
        loop {
            let changed = book.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let until = {
                let mut state = book.state();
                if state.closed {
                    return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed"));
                }
                let taken = book.arrivals.take(max);
                for lost in taken.lost {
                    state.settle(lost.number);
                }
                let taken: Vec<ReceivedMessage> =
                    taken.messages.into_iter().map(|(arrived, from)| self.feed.locked(arrived, from)).collect();
                if taken.is_empty()
                    && let Some(e) = state.failed.take()
                {
                    return Err(e);
                }
                // While these are handled the next ones are fetched.
                let until = self.start_polls(&mut state, max - taken.len());
                if !taken.is_empty() {
                    return Ok(taken);
                }
                until
            };
            match until {
                // Where settlements make room, core asks again with more; this call is dropped then.
                Some(until) => drop(tokio::time::timeout_at(until, changed).await),
                None => changed.await,
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        let arrived = self.feed.book.close();
        if !self.feed.ordered {
            self.feed.give_back(&arrived).await;
        }
        self.feed.polls_end().await;
        Ok(())
    }
}

impl Drop for AwsReceiver {
    fn drop(&mut self) {
        let arrived = self.feed.book.close();
        if !self.feed.ordered
            && !arrived.is_empty()
            && let Ok(runtime) = Handle::try_current()
        {
            let feed = self.feed.clone();
            runtime.spawn(async move { feed.give_back(&arrived).await });
        }
    }
}

impl Feed {
    /// Waits for the polls under way, and for what they bring to be given back: SQS is not known to notice that nobody waits for
    /// an answer any more, and would hide what it sends there until its lock ends. Not for ever: the answer may never come.
    async fn polls_end(&self) {
        let ended = async {
            loop {
                let changed = self.book.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.book.state().polls == 0 {
                    return;
                }
                changed.await;
            }
        };
        if timeout(self.wait + POLL_SLACK, ended).await.is_err() {
            tracing::debug!(source = %self.source, "a poll goes on after the close; what it brings is given back");
        }
    }

    /// What is handed to core, under a lock that counts from then.
    fn locked(&self, arrived: Arrived, from: Instant) -> ReceivedMessage {
        let mut received = arrived.received;
        received.locked_until = Some(from + self.lock - lock_margin(self.lock));
        received
    }

    async fn give_back(&self, numbers: &[u64]) {
        let handles: Vec<Arc<str>> = {
            let mut state = self.book.state();
            numbers.iter().filter_map(|number| state.settle(*number)).collect()
        };
        self.book.give_back(&handles).await;
    }

    /// An error says `MayDuplicate` if SQS may have sent messages that did not arrive.
    async fn ask(&self, attempt: &Attempt) -> Result<Vec<Message>> {
        let url = self.book.clients.url(&self.book.queue, "receive").await?;
        let call = self
            .book
            .clients
            .polling
            .receive_message()
            .queue_url(&*url)
            .max_number_of_messages(i32::try_from(attempt.entries).unwrap_or(1))
            .visibility_timeout(seconds(self.lock))
            .wait_time_seconds(seconds(attempt.wait))
            .set_receive_request_attempt_id(attempt.id.as_deref().map(Into::into))
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All");
        let clients = &self.book.clients;
        let failed =
            |e| clients.missing(&self.book.queue, clients.failed(e, "receive")).with_context("source", &self.source);
        // The client's own time-out is for the longest wait.
        let limit = attempt.wait + self.book.clients.config.timeout;
        match timeout(limit, Box::pin(call.send())).await {
            Ok(output) => Ok(output.map_err(failed)?.messages.unwrap_or_default()),
            Err(_) => {
                let e = error::new(ErrorKind::Timeout, "receive", "no answer in time").may_duplicate();
                Err(self.book.clients.located(e).with_context("source", &self.source))
            }
        }
    }

    /// A message as core knows it, and its receipt; registered as unsettled.
    fn read(&self, message: Message, since: Instant, state: &mut State) -> Option<(Arrived, Arc<str>)> {
        let receipt: Arc<str> = message.receipt_handle()?.into();
        let (native, told) = match envelope::take_apart(message) {
            Ok(read) => read,
            Err(e) => {
                tracing::warn!(source = %self.source, error = %e, "an answer of SQS that is no message");
                return None;
            }
        };
        let decoded = envelope::decode(&native, &told, &self.address);
        let dead = self.source.is_dead_letters();
        let mut carried = decoded.carried;
        carried.dead_letter = carried.dead_letter.filter(|_| dead);
        if dead && carried.dead_letter.is_none() {
            carried.dead_letter = envelope::death(&told, &self.source);
        }
        let mut letter = carried.dead_letter.clone();
        if let Some(letter) = letter.as_mut() {
            carried.tell_redriven(letter);
        }
        let attempts = if dead { 0 } else { carried.attempts };
        // SQS' own id is that of this copy, and stays the same however often the message is received.
        let known_by = native.id.clone();
        let group = native.group.clone().filter(|_| self.fifo);
        let shown = dead || envelope::is_of_others(&native, &decoded.envelope);
        let mark = carried.mark.clone();
        let number = state.register(receipt.clone());
        let native = DriverToken::new(native);
        let token = DriverToken::new(Held::new(number, receipt.clone(), native.clone(), carried, since));
        let mut received = ReceivedMessage::new(token, decoded.envelope, attempts.saturating_add(told.receives));
        received.malformed = decoded.malformed;
        received.dead_letter = letter;
        if dead {
            received.known_by = Some(known_by.into());
            received.mark = mark;
        }
        received.native = shown.then_some(native);
        // A FIFO queue orders by the group, whatever stands in the message.
        received.group = group.map(Into::into);
        Some((Arrived { number, received }, receipt))
    }

    /// Says so if polls bring nothing because too much is in flight.
    async fn look_why_empty(&self) {
        let due = {
            let state = self.book.state();
            !state.closed && in_flight_limit::is_due(state.idle, state.holds_any())
        };
        if due && let Some(e) = in_flight_limit::full(&self.book, &self.source).await {
            self.book.state().failed = Some(e);
        }
    }

    fn take_in(&self, messages: Vec<Message>, asked: usize) -> Vec<Arc<str>> {
        let since = Instant::now();
        let mut state = self.book.state();
        if state.closed {
            return messages.iter().filter_map(|m| m.receipt_handle().map(Into::into)).collect();
        }
        state.failed = None;
        state.idle = if messages.is_empty() { state.idle.saturating_add(1) } else { 0 };
        state.width = match messages.len() {
            0 => 1,
            n if n == asked => (state.width.max(1) * 2).min(WIDTH),
            _ => state.width.max(1),
        };
        for message in messages {
            // Closed only together with the book.
            if let Some((arrived, receipt)) = self.read(message, since, &mut state)
                && matches!(self.book.arrivals.put(arrived, receipt, since), Ok(true))
            {
                prefetched::keep(&self.book, self.lock);
            }
        }
        Vec::new()
    }
}

/// A poll's place among those under way; given back on drop, so that a panic stops nobody.
struct Place {
    feed: Arc<Feed>,
    asked: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.feed.book.state();
        state.polls -= 1;
        state.asked -= self.asked;
        drop(state);
        self.feed.book.changed.notify_waiters();
    }
}

/// One long poll. It outlives a call of `receive` that was dropped, and the receiver: what comes then goes back.
async fn poll(feed: Arc<Feed>, attempt: Attempt) {
    let place = Place { feed: feed.clone(), asked: attempt.entries };
    let counted = feed.book.clients.polling();
    let late = match feed.ask(&attempt).await {
        Ok(messages) => {
            let late = feed.take_in(messages, attempt.entries);
            feed.look_why_empty().await;
            late
        }
        Err(e) => {
            if e.kind() == ErrorKind::NotFound {
                // A queue of the same name would be another, and may have another URL.
                feed.book.take_unsettled();
                feed.book.clients.forget(&feed.book.queue);
            }
            let mut state = feed.book.state();
            state.lost.note(attempt, e.retry() == RetrySafety::MayDuplicate);
            // One is enough to find out whether it is over.
            state.width = 1;
            state.failed = Some(retryable(e));
            Vec::new()
        }
    };
    if !late.is_empty() {
        feed.book.give_back(&late).await;
    }
    drop(place);
    drop(counted);
}

//! Taking messages from a queue. Long polls run in tasks of their own, as many at once as core's demand and the queue's
//! backlog call for.

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
        consumer::{ConsumerState, HeldMessage, QueueConsumer},
        in_flight_limit,
        lost_receives::ReceiveAttempt,
        prefetched::{self, PrefetchedMessage},
    },
    error,
    message::{
        envelope,
        limits::{ENTRIES, seconds},
    },
    transport::clients::retryable,
};

/// Most polls of one consumer under way at once.
const MAX_POLLS: usize = 16;
/// How much longer than a poll's own wait a close waits for its answer.
const POLL_SLACK: Duration = Duration::from_secs(1);
/// How long a consumer with unsettled messages waits for room for a full answer before it asks for less.
const LINGER: Duration = Duration::from_millis(5);

pub(crate) struct AwsReceiver {
    poller: Arc<QueuePoller>,
}

/// Makes the long polls of one consumer. Shared by the receiver and the polls, which may outlive it.
struct QueuePoller {
    consumer: Arc<QueueConsumer>,
    source: Source,
    /// The CloudEvents `source` of messages that name none.
    address: String,
    lock: Duration,
    /// The longest that a poll waits.
    wait: Duration,
    /// Most messages of one poll.
    entries: usize,
    /// An ordered source, and not its dead letters. The settler's close gives back what it holds, all at once, so that
    /// each key keeps its order.
    ordered: bool,
    /// The queue is a FIFO queue, as the dead letters of an ordered source are too.
    fifo: bool,
}

impl AwsReceiver {
    pub(crate) fn new(consumer: Arc<QueueConsumer>, from: &Entity<Source>) -> Self {
        let lock = from.settings.lock;
        let ordered = from.settings.ordered && !from.name.is_dead_letters();
        let longest = consumer.clients.config.poll;
        let poller = QueuePoller {
            consumer,
            source: from.name.clone(),
            address: from.name.address().to_string(),
            lock,
            // The lock counts from the answer's arrival, though SQS hides a message when it hands it out. So a poll
            // must be short beside the lock.
            wait: (lock / 4).clamp(Duration::from_secs(1), longest),
            // SQS fills an answer with one group if it can. With a small prefetch, one key alone would fill it and stop
            // the others.
            entries: if ordered { (from.prefetch / 4).clamp(1, ENTRIES) } else { ENTRIES },
            ordered,
            fifo: from.settings.ordered,
        };
        Self { poller: Arc::new(poller) }
    }

    /// Starts as many polls as there is demand for.
    ///
    /// A poll for less than a full answer costs as much as a full one. So it starts only while no other is under way,
    /// and while the consumer has unsettled messages only once there has been no more room for `LINGER`. Until then the
    /// time at which to look again is returned.
    fn start_polls(&self, state: &mut ConsumerState, demand: usize) -> Option<Instant> {
        let start = |state: &mut ConsumerState, attempt: ReceiveAttempt| {
            state.polls += 1;
            state.requested += attempt.entries;
            tokio::spawn(poll(self.poller.clone(), attempt));
        };
        let room = |state: &ConsumerState| demand.saturating_sub(state.requested);
        while let Some(again) = state.lost_receives.take(room(state), self.poller.lock) {
            start(state, again);
        }
        while state.polls < state.max_polls.max(1) {
            let n = room(state).min(self.poller.entries);
            if n == 0 || (n < self.poller.entries && state.polls > 0) {
                return None;
            }
            if n < self.poller.entries && state.has_unsettled() {
                let until = *state.partial_room_since.get_or_insert_with(Instant::now) + LINGER;
                if Instant::now() < until {
                    return Some(until);
                }
            }
            state.partial_room_since = None;
            // The wait grows with each empty answer. A close waits for the polls under way, so closing a busy consumer
            // takes a second at most.
            let wait = Duration::from_secs(u64::from(state.empty_polls) + 1).min(self.poller.wait);
            start(state, ReceiveAttempt::new(n, wait, self.poller.fifo));
        }
        None
    }
}

#[async_trait]
impl Receiver for AwsReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        let consumer = &self.poller.consumer;
        loop {
            // Enabled before the state is read: a poll that ends in between notifies, and is not missed.
            let changed = consumer.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let until = {
                let mut state = consumer.state();
                if state.closed {
                    return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed"));
                }
                let taken = consumer.prefetched.take(max);
                for lost in taken.lost {
                    state.remove(lost.number);
                }
                let taken: Vec<ReceivedMessage> =
                    taken.messages.into_iter().map(|(message, from)| self.poller.locked(message, from)).collect();
                if taken.is_empty()
                    && let Some(e) = state.poll_error.take()
                {
                    return Err(e);
                }
                // The next ones are fetched while these are handled.
                let until = self.start_polls(&mut state, max - taken.len());
                if !taken.is_empty() {
                    return Ok(taken);
                }
                until
            };
            match until {
                // When settlements make more room, core drops this call and asks again with a larger `max`.
                Some(until) => drop(tokio::time::timeout_at(until, changed).await),
                None => changed.await,
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        let left = self.poller.consumer.close();
        if !self.poller.ordered {
            self.poller.give_back(&left).await;
        }
        self.poller.wait_for_polls().await;
        Ok(())
    }
}

impl Drop for AwsReceiver {
    fn drop(&mut self) {
        let left = self.poller.consumer.close();
        if !self.poller.ordered
            && !left.is_empty()
            && let Ok(runtime) = Handle::try_current()
        {
            let poller = self.poller.clone();
            runtime.spawn(async move { poller.give_back(&left).await });
        }
    }
}

impl QueuePoller {
    /// Waits until the polls under way have ended and what they brought is given back, for no longer than an answer may
    /// take. SQS is not known to notice that a client is gone: it would hide the messages of an answer that nobody
    /// reads until their visibility timeout ends.
    async fn wait_for_polls(&self) {
        let ended = async {
            loop {
                let changed = self.consumer.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.consumer.state().polls == 0 {
                    return;
                }
                changed.await;
            }
        };
        if timeout(self.wait + POLL_SLACK, ended).await.is_err() {
            tracing::debug!(source = %self.source, "a poll goes on after the close; what it brings is given back");
        }
    }

    /// The message for core, with the deadline of a lock that counts from `from`.
    fn locked(&self, message: PrefetchedMessage, from: Instant) -> ReceivedMessage {
        let mut received = message.received;
        received.locked_until = Some(from + self.lock - lock_margin(self.lock));
        received
    }

    async fn give_back(&self, numbers: &[u64]) {
        let handles: Vec<Arc<str>> = {
            let mut state = self.consumer.state();
            numbers.iter().filter_map(|number| state.remove(*number)).collect()
        };
        self.consumer.give_back(&handles).await;
    }

    /// Calls `ReceiveMessage` once. The error is `MayDuplicate` if SQS may have sent messages that did not arrive.
    async fn request(&self, attempt: &ReceiveAttempt) -> Result<Vec<Message>> {
        let clients = &self.consumer.clients;
        let url = clients.url(&self.consumer.queue, "receive").await?;
        let call = clients
            .polling
            .receive_message()
            .queue_url(&*url)
            .max_number_of_messages(i32::try_from(attempt.entries).unwrap_or(1))
            .visibility_timeout(seconds(self.lock))
            .wait_time_seconds(seconds(attempt.wait))
            .set_receive_request_attempt_id(attempt.id.as_deref().map(Into::into))
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All");
        let failed = |e| {
            clients.missing(&self.consumer.queue, clients.failed(e, "receive")).with_context("source", &self.source)
        };
        // The client's own time-out is meant for the longest wait; this one is for this call's.
        let limit = attempt.wait + clients.config.timeout;
        match timeout(limit, Box::pin(call.send())).await {
            Ok(output) => Ok(output.map_err(failed)?.messages.unwrap_or_default()),
            Err(_) => {
                let e = error::new(ErrorKind::Timeout, "receive", "no answer in time").may_duplicate();
                Err(clients.located(e).with_context("source", &self.source))
            }
        }
    }

    /// Decodes a message and registers it as unsettled. Returns it with its receipt handle.
    fn decode(
        &self,
        message: Message,
        since: Instant,
        state: &mut ConsumerState,
    ) -> Option<(PrefetchedMessage, Arc<str>)> {
        let handle: Arc<str> = message.receipt_handle()?.into();
        let (native, metadata) = match envelope::take_apart(message) {
            Ok(read) => read,
            Err(e) => {
                tracing::warn!(source = %self.source, error = %e, "an answer of SQS that is no message");
                return None;
            }
        };
        let decoded = envelope::decode(&native, &metadata, &self.address);
        let dead = self.source.is_dead_letters();
        let mut carried = decoded.carried;
        carried.dead_letter = carried.dead_letter.filter(|_| dead);
        if dead && carried.dead_letter.is_none() {
            carried.dead_letter = envelope::broker_dead_letter(&metadata, &self.source);
        }
        let mut letter = carried.dead_letter.clone();
        if let Some(letter) = letter.as_mut() {
            carried.tell_redriven(letter);
        }
        let attempts = if dead { 0 } else { carried.attempts };
        // SQS' own id belongs to this copy and stays the same however often it is received.
        let known_by = native.id.clone();
        let group = native.group.clone().filter(|_| self.fifo);
        let shown = dead || envelope::is_of_others(&native, &decoded.envelope);
        let mark = carried.mark.clone();
        let number = state.register(handle.clone());
        let native = DriverToken::new(native);
        let token = DriverToken::new(HeldMessage::new(number, handle.clone(), native.clone(), carried, since));
        let mut received = ReceivedMessage::new(token, decoded.envelope, attempts.saturating_add(metadata.receives));
        received.malformed = decoded.malformed;
        received.dead_letter = letter;
        if dead {
            received.known_by = Some(known_by.into());
            received.mark = mark;
        }
        received.native = shown.then_some(native);
        // A FIFO queue orders by the group, whatever key the message names.
        received.group = group.map(Into::into);
        Some((PrefetchedMessage { number, received }, handle))
    }

    /// If polls bring nothing because too much is in flight, the next `receive` fails with that.
    async fn check_in_flight_limit(&self) {
        let due = {
            let state = self.consumer.state();
            !state.closed && in_flight_limit::is_due(state.empty_polls, state.has_unsettled())
        };
        if due && let Some(e) = in_flight_limit::check(&self.consumer, &self.source).await {
            self.consumer.state().poll_error = Some(e);
        }
    }

    /// Puts the messages of an answer into the prefetch buffer. On a closed consumer it returns their receipt handles
    /// instead, to be given back.
    fn accept(&self, messages: Vec<Message>, requested: usize) -> Vec<Arc<str>> {
        let since = Instant::now();
        let mut state = self.consumer.state();
        if state.closed {
            return messages.iter().filter_map(|m| m.receipt_handle().map(Into::into)).collect();
        }
        state.poll_error = None;
        state.empty_polls = if messages.is_empty() { state.empty_polls.saturating_add(1) } else { 0 };
        // A full answer shows a backlog: twice as many polls next time. An empty one shows there is none.
        state.max_polls = match messages.len() {
            0 => 1,
            n if n == requested => (state.max_polls.max(1) * 2).min(MAX_POLLS),
            _ => state.max_polls.max(1),
        };
        for message in messages {
            // `put` fails only on a closed buffer. `close` closes it under the lock of this state, and sets `closed`.
            if let Some((message, handle)) = self.decode(message, since, &mut state)
                && matches!(self.consumer.prefetched.put(message, handle, since), Ok(true))
            {
                prefetched::spawn_renewal(&self.consumer, self.lock);
            }
        }
        Vec::new()
    }
}

/// Counts a poll under way until it is dropped, so that a panic in a poll stops no other.
struct PollSlot {
    poller: Arc<QueuePoller>,
    requested: usize,
}

impl Drop for PollSlot {
    fn drop(&mut self) {
        let mut state = self.poller.consumer.state();
        state.polls -= 1;
        state.requested -= self.requested;
        drop(state);
        self.poller.consumer.changed.notify_waiters();
    }
}

/// One long poll. It outlives the call of `receive` that started it, and the receiver: messages that come after a close
/// are given back.
async fn poll(poller: Arc<QueuePoller>, attempt: ReceiveAttempt) {
    let slot = PollSlot { poller: poller.clone(), requested: attempt.entries };
    let guard = poller.consumer.clients.polling();
    let late = match poller.request(&attempt).await {
        Ok(messages) => {
            let late = poller.accept(messages, attempt.entries);
            poller.check_in_flight_limit().await;
            late
        }
        Err(e) => {
            if e.kind() == ErrorKind::NotFound {
                // A queue of the same name would be another queue, and may have another URL.
                poller.consumer.take_unsettled();
                poller.consumer.clients.forget(&poller.consumer.queue);
            }
            let mut state = poller.consumer.state();
            state.lost_receives.add(attempt, e.retry() == RetrySafety::MayDuplicate);
            // One poll is enough to find out whether the failure is over.
            state.max_polls = 1;
            state.poll_error = Some(retryable(e));
            Vec::new()
        }
    };
    if !late.is_empty() {
        poller.consumer.give_back(&late).await;
    }
    // Dropped last: a close that waits for these two counts must find the messages given back.
    drop(slot);
    drop(guard);
}

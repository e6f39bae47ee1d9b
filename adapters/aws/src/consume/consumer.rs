//! What one consumer holds: messages that have arrived and wait to be taken, and receipts that are not settled yet.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry};
use polybus_core::{
    Error, ErrorKind, Result, Source, driver::DriverToken, message::cloudevents::CopyState, topology::Entity,
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    consume::{
        crowding::Crowd,
        fifo_attempts::Lost,
        prefetched::{self, Arrivals},
        timed_visibility::Ends,
    },
    error,
    message::{
        limits::{ENTRIES, seconds},
        native_message::NativeMessage,
    },
    publish::batch_send::Results,
    transport::clients::{Clients, retryable},
};

/// For so long a settlement believes that a host of AWS has not met a queue that was made just now. A second is what SQS asks of whoever uses a
/// new queue, and core asks for longer than this.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
const NOT_MET: Duration = Duration::from_secs(3);

/// One receive's hold on one message: what a token stands for.
pub(crate) struct Held {
    pub(crate) number: u64,
    pub(crate) handle: Arc<str>,
    /// A [`NativeMessage`], as it came.
    native: DriverToken,
    /// What polybus had sent along, and of a dead letter what the broker tells.
    pub(crate) carried: CopyState,
    /// Visibility is limited from here on.
    pub(crate) since: Instant,
}

impl Held {
    pub(crate) fn new(number: u64, handle: Arc<str>, native: DriverToken, carried: CopyState, since: Instant) -> Self {
        Self { number, handle, native, carried, since }
    }

    pub(crate) fn native(&self) -> Result<&NativeMessage> {
        self.native.get()
    }

    /// Its message group, if it has one.
    pub(crate) fn group(&self) -> Option<&str> {
        self.native().ok()?.group.as_deref()
    }
}

/// Shared by the receiver, its polls and the settler of one consumer.
pub(crate) struct Book {
    pub(crate) clients: Arc<Clients>,
    /// By name.
    pub(crate) queue: String,
    state: Mutex<State>,
    /// Registered, and not taken by `receive` yet.
    pub(crate) arrivals: Arc<Arrivals>,
    /// Retries that are due between two of SQS' seconds.
    pub(crate) ends: Ends,
    /// How many messages of the queue are in flight, as far as this consumer has looked.
    pub(crate) crowd: Crowd,
    /// A poll has ended, or the book was closed.
    pub(crate) changed: Notify,
}

#[derive(Default)]
pub(crate) struct State {
    /// What a poll brings from now on goes back.
    pub(crate) closed: bool,
    pub(crate) failed: Option<Error>,
    pub(crate) polls: usize,
    /// Messages that the polls under way may bring.
    pub(crate) asked: usize,
    /// Polls that the backlog has called for.
    pub(crate) width: usize,
    /// Polls to be made again.
    pub(crate) lost: Lost,
    /// Since when there is room for less than a full answer.
    pub(crate) short_since: Option<Instant>,
    /// Answers without a message in a row.
    pub(crate) idle: u32,
    /// Since when settlements hear that there is no such queue, and nothing else.
    missing_since: Option<Instant>,
    /// Receipts in the order of their arrival.
    unsettled: BTreeMap<u64, Arc<str>>,
    last: u64,
}

impl State {
    /// A number for a receipt, which is unsettled from now on.
    pub(crate) fn register(&mut self, handle: Arc<str>) -> u64 {
        self.last += 1;
        self.unsettled.insert(self.last, handle);
        self.last
    }

    /// The receipt, which is settled from now on; `None` if it was before.
    pub(crate) fn settle(&mut self, number: u64) -> Option<Arc<str>> {
        self.unsettled.remove(&number)
    }

    pub(crate) fn holds_any(&self) -> bool {
        !self.unsettled.is_empty()
    }
}

impl Book {
    pub(crate) fn new(clients: Arc<Clients>, queue: String, from: &Entity<Source>) -> Self {
        let arrivals = Arc::new(prefetched::inbox(from));
        Self {
            clients,
            queue,
            state: Mutex::default(),
            arrivals,
            ends: Ends::default(),
            crowd: Crowd::default(),
            changed: Notify::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn holds(&self, number: u64) -> bool {
        self.state().unsettled.contains_key(&number)
    }

    pub(crate) fn settled(&self, number: u64) {
        self.state().settle(number);
    }

    /// Takes no more. Returns what had arrived and was not taken: unsettled still.
    pub(crate) fn close(&self) -> Vec<u64> {
        let mut state = self.state();
        state.closed = true;
        let left = self.arrivals.close();
        // Others may have these: their old receipts must not be used.
        for lost in left.lost {
            state.settle(lost.number);
        }
        drop(state);
        self.changed.notify_waiters();
        left.messages.into_iter().map(|(arrived, _)| arrived.number).collect()
    }

    /// All receipts that are unsettled, the oldest first. They are settled from now on.
    pub(crate) fn take_unsettled(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.state().unsettled).into_values().collect()
    }

    /// Makes messages available again, in this order; what cannot be told to SQS comes back when its visibility ends.
    pub(crate) async fn give_back(&self, handles: &[Arc<str>]) {
        for some in handles.chunks(ENTRIES) {
            let some: Vec<(Arc<str>, Duration)> = some.iter().map(|h| (h.clone(), Duration::ZERO)).collect();
            for result in self.change_visibility(&some).await {
                let Err(e) = result else { continue };
                tracing::debug!(queue = %self.queue, error = %e, "not given back; it comes back when its visibility ends");
                if e.kind() != ErrorKind::LockLost {
                    return;
                }
            }
        }
    }

    /// Sets the visibility of up to ten messages from now on.
    pub(crate) async fn change_visibility(&self, items: &[(Arc<str>, Duration)]) -> Vec<Result<()>> {
        let url = match self.clients.url(&self.queue, "settle").await {
            Ok(url) => url,
            Err(e) => return e.for_each_of(items.len()),
        };
        let entries = items.iter().enumerate().map(|(i, (handle, by))| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(i.to_string())
                .receipt_handle(&**handle)
                .visibility_timeout(seconds(*by))
                .build()
        });
        let entries: Vec<_> = match entries.collect::<Result<_, _>>() {
            Ok(entries) => entries,
            Err(e) => return error::new(ErrorKind::Unexpected, "settle", e.to_string()).for_each_of(items.len()),
        };
        let call = self.clients.sqs.change_message_visibility_batch().queue_url(&*url).set_entries(Some(entries));
        let output = match Box::pin(call.send()).await {
            Ok(output) => output,
            Err(e) => return self.failed(self.clients.failed(e, "settle")).for_each_of(items.len()),
        };
        self.state().missing_since = None;
        let mut results = Results::new(items.len(), "settle");
        output.successful().iter().for_each(|done| results.set(done.id(), Ok(())));
        output.failed().iter().for_each(|e| results.set(e.id(), Err(self.failed(error::of_entry(e, "settle")))));
        results.finish()
    }

    /// Deletes up to ten messages.
    pub(crate) async fn delete(&self, handles: &[Arc<str>]) -> Vec<Result<()>> {
        let url = match self.clients.url(&self.queue, "settle").await {
            Ok(url) => url,
            Err(e) => return e.for_each_of(handles.len()),
        };
        let entries = handles.iter().enumerate().map(|(i, handle)| {
            DeleteMessageBatchRequestEntry::builder().id(i.to_string()).receipt_handle(&**handle).build()
        });
        let entries: Vec<_> = match entries.collect::<Result<_, _>>() {
            Ok(entries) => entries,
            Err(e) => return error::new(ErrorKind::Unexpected, "settle", e.to_string()).for_each_of(handles.len()),
        };
        let call = self.clients.sqs.delete_message_batch().queue_url(&*url).set_entries(Some(entries));
        let output = match Box::pin(call.send()).await {
            Ok(output) => output,
            Err(e) => return self.failed(self.clients.failed(e, "settle")).for_each_of(handles.len()),
        };
        self.state().missing_since = None;
        let mut results = Results::new(handles.len(), "settle");
        output.successful().iter().for_each(|done| results.set(done.id(), Ok(())));
        output.failed().iter().for_each(|e| results.set(e.id(), Err(self.failed(error::of_entry(e, "settle")))));
        results.finish()
    }

    /// Settling twice does no harm, so that core may try again. A message whose queue is gone is nobody's.
    fn failed(&self, e: Error) -> Error {
        let e = retryable(e).with_context("queue", &self.queue);
        if e.kind() != ErrorKind::NotFound {
            return e;
        }
        let since = *self.state().missing_since.get_or_insert_with(Instant::now);
        let passing = self.clients.missing(&self.queue, e.clone());
        if passing.kind() != ErrorKind::NotFound && since.elapsed() < NOT_MET {
            return passing;
        }
        // All of them: a queue of the same name would be another.
        self.take_unsettled();
        error::lock_lost("the queue is gone").with_source(e)
    }
}

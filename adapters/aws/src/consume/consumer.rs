//! The state of one consumer, which its receiver, its polls and its settler share: the receipt handles of what is not
//! settled yet, and the batch calls that settle them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
};
use polybus_core::{
    Error, ErrorKind, Result, Source, driver::DriverToken, message::cloudevents::CopyState, topology::Entity,
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    consume::{
        lost_receives::LostReceives,
        prefetched::{self, PrefetchBuffer},
        retry_placement::RetryPlacement,
        timed_visibility::TimedReleases,
    },
    error,
    message::{
        limits::{ENTRIES, seconds},
        native_message::NativeMessage,
    },
    publish::batch_send::BatchResults,
    transport::clients::{AwsClients, retryable},
};

/// How long "no such queue" for a settlement on a new queue counts as passing. Right after `CreateQueue` a host of AWS
/// may not know the queue yet; SQS asks for a second before the first use, and core retries for longer than this.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
const UNKNOWN_QUEUE_GRACE: Duration = Duration::from_secs(3);

/// A message that this consumer has received and not settled yet: what a delivery's token holds.
pub(crate) struct HeldMessage {
    pub(crate) number: u64,
    /// The receipt handle of this receive.
    pub(crate) handle: Arc<str>,
    /// A [`NativeMessage`], as it came.
    native: DriverToken,
    /// What polybus sent along with a copy; of a dead letter also what the broker tells.
    pub(crate) carried: CopyState,
    /// When it was received: SQS limits the visibility timeout from here on.
    pub(crate) since: Instant,
}

impl HeldMessage {
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

/// One consumer of one queue.
pub(crate) struct QueueConsumer {
    pub(crate) clients: Arc<AwsClients>,
    /// The queue's name at SQS.
    pub(crate) queue: String,
    state: Mutex<ConsumerState>,
    /// Messages that are registered and that `receive` has not taken yet.
    pub(crate) prefetched: Arc<PrefetchBuffer>,
    /// Retries that are due between two whole seconds, which are all that SQS counts.
    pub(crate) timed_releases: TimedReleases,
    /// Where longer retries wait.
    pub(crate) retry_placement: RetryPlacement,
    /// Notified when a poll has ended and when the consumer is closed.
    pub(crate) changed: Notify,
}

#[derive(Default)]
pub(crate) struct ConsumerState {
    /// From now on everything that a poll brings is given back.
    pub(crate) closed: bool,
    /// The error of the last poll, for the next `receive`.
    pub(crate) poll_error: Option<Error>,
    /// Polls under way.
    pub(crate) polls: usize,
    /// Messages that the polls under way may bring.
    pub(crate) requested: usize,
    /// Most polls at once, by the backlog that the last answers showed; 0 counts as 1.
    pub(crate) max_polls: usize,
    /// Receives whose answer was lost, to be made again.
    pub(crate) lost_receives: LostReceives,
    /// Since when there is room for less than a full answer.
    pub(crate) partial_room_since: Option<Instant>,
    /// How many answers in a row had no message.
    pub(crate) empty_polls: u32,
    /// When a settlement first heard that there is no such queue, if none has succeeded since.
    missing_since: Option<Instant>,
    /// Receipt handles by number, so in the order of their arrival.
    unsettled: BTreeMap<u64, Arc<str>>,
    last_number: u64,
}

impl ConsumerState {
    /// Registers a receipt handle as unsettled, and returns its number.
    pub(crate) fn register(&mut self, handle: Arc<str>) -> u64 {
        self.last_number += 1;
        self.unsettled.insert(self.last_number, handle);
        self.last_number
    }

    /// Removes a receipt handle, which counts as settled from now on. `None` if it was removed before.
    pub(crate) fn remove(&mut self, number: u64) -> Option<Arc<str>> {
        self.unsettled.remove(&number)
    }

    pub(crate) fn has_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }
}

/// What a batch call answered: the ids of the entries that were done, and the entries that failed.
type BatchAnswer = (Vec<String>, Vec<BatchResultErrorEntry>);

impl QueueConsumer {
    pub(crate) fn new(clients: Arc<AwsClients>, queue: String, from: &Entity<Source>) -> Self {
        Self {
            clients,
            queue,
            state: Mutex::default(),
            prefetched: Arc::new(prefetched::buffer(from)),
            timed_releases: TimedReleases::default(),
            retry_placement: RetryPlacement::default(),
            changed: Notify::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, ConsumerState> {
        self.state.lock()
    }

    pub(crate) fn holds(&self, number: u64) -> bool {
        self.state().unsettled.contains_key(&number)
    }

    pub(crate) fn remove(&self, number: u64) {
        self.state().remove(number);
    }

    /// Takes no more messages. Returns the numbers of those that had arrived and were not taken; they stay unsettled.
    pub(crate) fn close(&self) -> Vec<u64> {
        let mut state = self.state();
        state.closed = true;
        let left = self.prefetched.close();
        // Their visibility timeout has ended, so other consumers may have these: their old handles must not be used.
        for lost in left.lost {
            state.remove(lost.number);
        }
        drop(state);
        self.changed.notify_waiters();
        left.messages.into_iter().map(|(message, _)| message.number).collect()
    }

    /// Removes and returns all unsettled receipt handles, the oldest first. They count as settled from now on.
    pub(crate) fn take_unsettled(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.state().unsettled).into_values().collect()
    }

    /// Makes messages visible again, in this order. A message for which that fails becomes visible when its timeout
    /// ends.
    pub(crate) async fn give_back(&self, handles: &[Arc<str>]) {
        for chunk in handles.chunks(ENTRIES) {
            let chunk: Vec<(Arc<str>, Duration)> = chunk.iter().map(|h| (h.clone(), Duration::ZERO)).collect();
            for result in self.change_visibility(&chunk).await {
                let Err(e) = result else { continue };
                tracing::debug!(queue = %self.queue, error = %e, "not given back; it comes back when its visibility ends");
                if e.kind() != ErrorKind::LockLost {
                    return;
                }
            }
        }
    }

    /// Sets the visibility timeout of up to [`ENTRIES`] messages, counted from now, in one call.
    pub(crate) async fn change_visibility(&self, items: &[(Arc<str>, Duration)]) -> Vec<Result<()>> {
        let call = async {
            let url = self.clients.url(&self.queue, "settle").await?;
            let entries = items.iter().enumerate().map(|(i, (handle, by))| {
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(i.to_string())
                    .receipt_handle(&**handle)
                    .visibility_timeout(seconds(*by))
                    .build()
                    .map_err(|e| error::not_built(e, "settle"))
            });
            let entries = entries.collect::<Result<Vec<_>>>()?;
            let call = self.clients.sqs.change_message_visibility_batch().queue_url(&*url).set_entries(Some(entries));
            let output =
                Box::pin(call.send()).await.map_err(|e| self.settle_error(self.clients.failed(e, "settle")))?;
            Ok::<BatchAnswer, Error>((output.successful.into_iter().map(|done| done.id).collect(), output.failed))
        };
        self.settle_results(items.len(), call.await)
    }

    /// Deletes up to [`ENTRIES`] messages in one call.
    pub(crate) async fn delete(&self, handles: &[Arc<str>]) -> Vec<Result<()>> {
        let call = async {
            let url = self.clients.url(&self.queue, "settle").await?;
            let entries = handles.iter().enumerate().map(|(i, handle)| {
                let entry = DeleteMessageBatchRequestEntry::builder().id(i.to_string()).receipt_handle(&**handle);
                entry.build().map_err(|e| error::not_built(e, "settle"))
            });
            let entries = entries.collect::<Result<Vec<_>>>()?;
            let call = self.clients.sqs.delete_message_batch().queue_url(&*url).set_entries(Some(entries));
            let output =
                Box::pin(call.send()).await.map_err(|e| self.settle_error(self.clients.failed(e, "settle")))?;
            Ok::<BatchAnswer, Error>((output.successful.into_iter().map(|done| done.id).collect(), output.failed))
        };
        self.settle_results(handles.len(), call.await)
    }

    /// One result for each of `count` entries of a settling call, in order.
    fn settle_results(&self, count: usize, answer: Result<BatchAnswer>) -> Vec<Result<()>> {
        let (done, failed) = match answer {
            Ok(answer) => answer,
            Err(e) => return e.for_each_of(count),
        };
        self.state().missing_since = None;
        let mut results = BatchResults::new(count, "settle");
        done.iter().for_each(|id| results.set(id, Ok(())));
        failed.iter().for_each(|e| results.set(e.id(), Err(self.settle_error(error::of_entry(e, "settle")))));
        results.finish()
    }

    /// The error of a settlement. Settling twice does no harm, so a passing one is `Safe`. Messages of a queue that is
    /// gone are `LockLost`.
    fn settle_error(&self, e: Error) -> Error {
        let e = retryable(e).with_context("queue", &self.queue);
        if e.kind() != ErrorKind::NotFound {
            return e;
        }
        let since = *self.state().missing_since.get_or_insert_with(Instant::now);
        let passing = self.clients.missing(&self.queue, e.clone());
        if passing.kind() != ErrorKind::NotFound && since.elapsed() < UNKNOWN_QUEUE_GRACE {
            return passing;
        }
        // All of them are lost: a queue of the same name would be another queue.
        self.take_unsettled();
        error::lock_lost("the queue is gone").with_source(e)
    }
}

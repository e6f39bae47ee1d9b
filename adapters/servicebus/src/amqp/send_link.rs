//! Sending over one link, which is attached again when it is lost. A batch is one transfer, so that one outcome
//! confirms all of it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use fe2o3_amqp::{
    Sendable, Sender,
    link::SendError,
    types::{
        messaging::{Batch, Data, Message, Outcome, Properties, SerializableBody},
        primitives::Binary,
    },
};
use futures_util::future::join_all;
use polybus_core::{Error, ErrorKind, Result, RetrySafety, driver::kit::reconnect::SharedAttempt};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    amqp::{
        connection::AmqpConnection,
        link::{self, AttachedLink},
    },
    config::CALL_TIMEOUT,
    error,
    message::envelope,
    transport::namespace::Namespace,
};

/// The message format of a batch: each data section holds an encoded message.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide>
const BATCH_FORMAT: u32 = 0x8001_3700;

/// An encoded message.
#[derive(Clone)]
pub(crate) struct EncodedMessage {
    pub(crate) bytes: Bytes,
    pub(crate) session: Option<Arc<str>>,
}

/// Sends to one queue or topic.
pub(crate) struct SendLink {
    namespace: Arc<Namespace>,
    path: String,
    link: SharedAttempt<AttachedSender>,
    /// Whether the entity refuses batches of several sessions, since it has partitions.
    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-partitioning>
    one_session_per_transfer: AtomicBool,
    /// Whether it refuses any batch: a property of each message, such as a partition key, chooses its partition.
    one_message_per_transfer: AtomicBool,
}

struct AttachedSender {
    connection: Arc<AmqpConnection>,
    sender: Mutex<Option<AttachedLink<Sender>>>,
    used: AtomicBool,
    broken: AtomicBool,
}

impl AttachedSender {
    fn is_alive(&self) -> bool {
        !self.broken.load(Ordering::Acquire) && self.connection.is_alive()
    }
}

/// Why a transfer failed.
struct SendFailure {
    error: Error,
    /// One message of the batch may be the cause, so the others are worth a transfer of their own.
    divisible: bool,
    /// Nothing was stored, and the link had worked before: it may belong to an entity or a connection that is long
    /// gone.
    stale: bool,
}

impl SendFailure {
    fn new(error: Error) -> Self {
        Self { error, divisible: false, stale: false }
    }
}

impl SendLink {
    pub(crate) fn new(namespace: Arc<Namespace>, path: impl Into<String>) -> Self {
        Self {
            namespace,
            path: path.into(),
            link: SharedAttempt::default(),
            one_session_per_transfer: AtomicBool::new(false),
            one_message_per_transfer: AtomicBool::new(false),
        }
    }

    /// Sends messages; one result each. A retryable error is `Safe` only if nothing was sent.
    pub(crate) async fn send(self: &Arc<Self>, messages: Vec<EncodedMessage>) -> Vec<Result<()>> {
        let (this, count) = (self.clone(), messages.len());
        // In a task of its own: a large message takes several frames, and dropping the future between them breaks the
        // link.
        let sending = tokio::spawn(async move { this.send_all(messages).await });
        sending.await.unwrap_or_else(|e| {
            let text = format!("sending failed: {e}");
            error::new(ErrorKind::Unexpected, "publish", text).may_duplicate().for_each_of(count)
        })
    }

    async fn send_all(&self, messages: Vec<EncodedMessage>) -> Vec<Result<()>> {
        let mut results = vec![Ok(()); messages.len()];
        let sent = join_all(self.groups(&messages).into_iter().map(|group| async {
            let sent = self.send_group(&messages, &group).await;
            (group, sent)
        }));
        for (i, sent) in sent.await.into_iter().flat_map(|(group, sent)| group.into_iter().zip(sent)) {
            results[i] = sent;
        }
        results
    }

    /// The indices of the messages that share a transfer, in their order.
    fn groups(&self, messages: &[EncodedMessage]) -> Vec<Vec<usize>> {
        if self.one_message_per_transfer.load(Ordering::Acquire) {
            return (0..messages.len()).map(|i| vec![i]).collect();
        }
        if !self.one_session_per_transfer.load(Ordering::Acquire) {
            return vec![(0..messages.len()).collect()];
        }
        let (mut groups, mut group_of_session) = (Vec::<Vec<usize>>::new(), HashMap::new());
        for (i, message) in messages.iter().enumerate() {
            let place = *group_of_session.entry(message.session.as_deref()).or_insert(groups.len());
            match groups.get_mut(place) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        groups
    }

    async fn send_group(&self, messages: &[EncodedMessage], group: &[usize]) -> Vec<Result<()>> {
        let these: Vec<&EncodedMessage> = group.iter().map(|i| &messages[*i]).collect();
        match self.transfer(&these).await {
            Ok(()) => these.iter().map(|_| Ok(())).collect(),
            Err(failure) if failure.divisible && these.len() > 1 => {
                let each = these.chunks(1).map(|one| async { self.transfer(one).await.map_err(|f| f.error) });
                let each = join_all(each).await;
                self.learn_from_refusal(&failure.error, &these, &each);
                each
            }
            Err(failure) => failure.error.for_each_of(these.len()),
        }
    }

    /// If a batch was refused and each of its messages was accepted alone, later batches are made smaller.
    fn learn_from_refusal(&self, e: &Error, batch: &[&EncodedMessage], each: &[Result<()>]) {
        if !each.iter().all(Result::is_ok) || e.kind() == ErrorKind::PayloadTooLarge {
            return;
        }
        let mixed = batch.iter().any(|message| message.session != batch[0].session);
        let learnt = if mixed { &self.one_session_per_transfer } else { &self.one_message_per_transfer };
        if !learnt.swap(true, Ordering::AcqRel) {
            let what = if mixed { "of several sessions" } else { "of several messages" };
            tracing::info!(path = self.path, error = %e, "the broker takes no batch {what} here, so none are made from now on");
        }
    }

    async fn transfer(&self, messages: &[&EncodedMessage]) -> Result<(), SendFailure> {
        self.namespace.ensure_not_busy("publish").map_err(SendFailure::new)?;
        let done = match messages {
            // A single message is sent as it is: it may be larger than a batch, and says itself which partition it
            // belongs to.
            [one] => {
                let message = envelope::decode(&one.bytes).map_err(SendFailure::new)?;
                self.transfer_with_retry(&Sendable::builder().message(message).settled(false).build()).await
            }
            several => {
                let sections = several.iter().map(|m| Data(Binary::from(m.bytes.to_vec()))).collect::<Vec<_>>();
                let mut builder = Message::builder().data_batch(Vec::<Vec<u8>>::new());
                let session = several.first().and_then(|first| first.session.as_deref());
                if let Some(session) = session.filter(|id| several.iter().all(|m| m.session.as_deref() == Some(id))) {
                    builder = builder.properties(Properties::builder().group_id(session.to_owned()).build());
                }
                let message = builder.build().map_body(|_| Batch::new(sections));
                let sendable = Sendable::builder().message(message).message_format(BATCH_FORMAT).settled(false).build();
                self.transfer_with_retry(&sendable).await
            }
        };
        done.inspect_err(|failure| self.namespace.note_busy(&failure.error))
            .map_err(|failure| SendFailure { error: pushed_back(failure.error), ..failure })
    }

    async fn transfer_with_retry<B: SerializableBody>(&self, sendable: &Sendable<B>) -> Result<(), SendFailure> {
        match self.transfer_once(sendable).await {
            Err(failure) if failure.stale => self.transfer_once(sendable).await,
            done => done,
        }
    }

    async fn transfer_once<B: SerializableBody>(&self, sendable: &Sendable<B>) -> Result<(), SendFailure> {
        let link = self.link().await.map_err(|e| SendFailure::new(e.with_operation("publish")))?;
        let mut sender = link.sender.lock().await;
        let Some(attached) = sender.as_mut().filter(|_| link.is_alive()) else {
            return Err(SendFailure { stale: true, ..SendFailure::new(error::lost("publish", "the link has ended")) });
        };
        let sent = timeout(CALL_TIMEOUT, attached.link.send_batchable_ref(sendable)).await;
        drop(sender);
        let used = link.used.swap(true, Ordering::AcqRel);
        let outcome = match sent {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => {
                let divisible = matches!(e, SendError::MessageSizeExceeded(_));
                link.broken.store(!divisible, Ordering::Release);
                return Err(SendFailure { error: error::of_send(&e), divisible, stale: used && !divisible });
            }
            Err(_) => {
                link.broken.store(true, Ordering::Release);
                let e = error::new(ErrorKind::Throttled, "publish", "the broker grants no credit to send");
                return Err(SendFailure::new(e));
            }
        };
        let outcome = async {
            tokio::select! {
                biased;
                outcome = outcome => Ok(outcome),
                () = link.connection.ended() => Err(error::lost("publish", "before the broker answered")),
            }
        };
        let outcome = match timeout(CALL_TIMEOUT, outcome).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(e)) => {
                link.broken.store(true, Ordering::Release);
                return Err(SendFailure::new(ambiguous(e)));
            }
            Err(elapsed) => Err(elapsed),
        };
        match outcome {
            Ok(Ok(Outcome::Accepted(_))) => Ok(()),
            Ok(Ok(Outcome::Rejected(rejected))) => {
                let e = rejected.error.map_or_else(
                    || error::new(ErrorKind::Unexpected, "publish", "the broker refused the message without a reason"),
                    |e| error::of_peer(&e, "publish"),
                );
                let common = match e.kind() {
                    _ if e.is_transient() => true,
                    // This link does not recover, even if the entity or the right to send comes back.
                    ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::Unauthenticated => {
                        link.broken.store(true, Ordering::Release);
                        true
                    }
                    _ => false,
                };
                let stale = used && e.kind() == ErrorKind::NotFound;
                Err(SendFailure { error: e, divisible: !common, stale })
            }
            Ok(Ok(_)) => {
                Err(SendFailure::new(error::new(ErrorKind::Unavailable, "publish", "the broker gave the message back")))
            }
            Ok(Err(e)) => {
                link.broken.store(true, Ordering::Release);
                let error = ambiguous(error::of_send(&e));
                // A message that was stored is gone with its entity. An entity that was made since does not have it, so
                // sending again makes no duplicate.
                let stale = used && error.kind() == ErrorKind::NotFound;
                Err(SendFailure { stale, ..SendFailure::new(error) })
            }
            Err(_) => {
                link.broken.store(true, Ordering::Release);
                Err(SendFailure::new(ambiguous(error::timeout("publish", CALL_TIMEOUT))))
            }
        }
    }

    async fn link(&self) -> Result<Arc<AttachedSender>> {
        let attached = async {
            let connection = self.namespace.connection().await?;
            let sender = connection.attach(&self.path, || link::attach_sender(&connection, &self.path)).await?;
            Ok(Arc::new(AttachedSender {
                connection,
                sender: Mutex::new(Some(sender)),
                used: AtomicBool::new(false),
                broken: AtomicBool::new(false),
            }))
        };
        self.link.get(AttachedSender::is_alive, attached).await
    }

    /// Closes the link. A second call does nothing.
    pub(crate) async fn close(&self) {
        if let Some(link) = self.link.take().await {
            link.broken.store(true, Ordering::Release);
            let sender = link.sender.lock().await.take();
            if let Some(sender) = sender {
                link::close_sender(sender).await;
            }
        }
    }
}

/// `Throttled` after a transfer was sent leaves open whether the message was stored. It becomes `Unavailable`, so that
/// the bus tries again as after any lost answer.
fn pushed_back(e: Error) -> Error {
    if e.kind() != ErrorKind::Throttled || e.retry() != RetrySafety::MayDuplicate {
        return e;
    }
    error::new(ErrorKind::Unavailable, "publish", "the broker pushed back before it answered")
        .may_duplicate()
        .with_source(e)
}

/// Marks the error of a transfer whose outcome is not known.
fn ambiguous(e: Error) -> Error {
    if e.is_transient() { e.may_duplicate() } else { e }
}

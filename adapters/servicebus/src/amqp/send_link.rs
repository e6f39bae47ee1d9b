//! A link that sends, made again when it is gone. Each batch is one transfer, so that one answer confirms it whole.

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
        connection::{Wire, Wires},
        link::{self, Attached},
    },
    config::CALL,
    error,
    message::envelope,
};

/// Several encoded messages in one, each in a data section.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide>
const BATCH: u32 = 0x8001_3700;

/// An encoded message.
#[derive(Clone)]
pub(crate) struct Parcel {
    pub(crate) bytes: Bytes,
    pub(crate) session: Option<Arc<str>>,
}

/// The way to one address.
pub(crate) struct Outlet {
    wires: Arc<Wires>,
    path: String,
    link: SharedAttempt<Linked>,
    /// The entity takes no batch of several sessions, so that it has partitions.
    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-partitioning>
    by_session: AtomicBool,
    /// Nor one without a session: something else in each message chooses its partition.
    one_by_one: AtomicBool,
}

struct Linked {
    wire: Arc<Wire>,
    sender: Mutex<Option<Attached<Sender>>>,
    used: AtomicBool,
    broken: AtomicBool,
}

impl Linked {
    fn alive(&self) -> bool {
        !self.broken.load(Ordering::Acquire) && self.wire.alive()
    }
}

/// Why a transfer failed.
struct Failure {
    error: Error,
    /// One message of the batch may be the cause: the others are worth a try of their own.
    divisible: bool,
    /// Nothing was stored, on a link that had worked before: it may belong to what is long since gone.
    stale: bool,
}

impl Failure {
    fn new(error: Error) -> Self {
        Self { error, divisible: false, stale: false }
    }
}

impl Outlet {
    pub(crate) fn new(wires: Arc<Wires>, path: impl Into<String>) -> Self {
        Self {
            wires,
            path: path.into(),
            link: SharedAttempt::default(),
            by_session: AtomicBool::new(false),
            one_by_one: AtomicBool::new(false),
        }
    }

    /// Sends encoded messages; one result each. Retryable errors are `Safe` only if nothing was sent.
    pub(crate) async fn send(self: &Arc<Self>, messages: Vec<Parcel>) -> Vec<Result<()>> {
        let (this, count) = (self.clone(), messages.len());
        // In a task of its own: a large message takes several frames, and one cut off in the middle breaks the link.
        let sending = tokio::spawn(async move { this.send_all(messages).await });
        sending.await.unwrap_or_else(|e| {
            let text = format!("sending failed: {e}");
            error::new(ErrorKind::Unexpected, "publish", text).may_duplicate().for_each_of(count)
        })
    }

    async fn send_all(&self, messages: Vec<Parcel>) -> Vec<Result<()>> {
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

    /// Indices of what goes in one transfer each, in order.
    fn groups(&self, messages: &[Parcel]) -> Vec<Vec<usize>> {
        if self.one_by_one.load(Ordering::Acquire) {
            return (0..messages.len()).map(|i| vec![i]).collect();
        }
        if !self.by_session.load(Ordering::Acquire) {
            return vec![(0..messages.len()).collect()];
        }
        let (mut groups, mut places) = (Vec::<Vec<usize>>::new(), HashMap::new());
        for (i, message) in messages.iter().enumerate() {
            let place = *places.entry(message.session.as_deref()).or_insert(groups.len());
            match groups.get_mut(place) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        groups
    }

    async fn send_group(&self, messages: &[Parcel], group: &[usize]) -> Vec<Result<()>> {
        let these: Vec<&Parcel> = group.iter().map(|i| &messages[*i]).collect();
        match self.transfer(&these).await {
            Ok(()) => these.iter().map(|_| Ok(())).collect(),
            Err(failure) if failure.divisible && these.len() > 1 => {
                let each = these.chunks(1).map(|one| async { self.transfer(one).await.map_err(|f| f.error) });
                let each = join_all(each).await;
                self.learn_from(&failure.error, &these, &each);
                each
            }
            Err(failure) => failure.error.for_each_of(these.len()),
        }
    }

    /// A batch was refused whose messages were all taken alone: then the next ones are made otherwise.
    fn learn_from(&self, e: &Error, batch: &[&Parcel], each: &[Result<()>]) {
        if !each.iter().all(Result::is_ok) || e.kind() == ErrorKind::PayloadTooLarge {
            return;
        }
        let mixed = batch.iter().any(|parcel| parcel.session != batch[0].session);
        let learnt = if mixed { &self.by_session } else { &self.one_by_one };
        if !learnt.swap(true, Ordering::AcqRel) {
            let what = if mixed { "of several sessions" } else { "of several messages" };
            tracing::info!(path = self.path, error = %e, "the broker takes no batch {what} here, so none are made from now on");
        }
    }

    async fn transfer(&self, messages: &[&Parcel]) -> Result<(), Failure> {
        self.wires.ensure_calm("publish").map_err(Failure::new)?;
        let done = match messages {
            // As it is: one may be larger than a batch, and says itself which partition it belongs to.
            [one] => {
                let message = envelope::decode(&one.bytes).map_err(Failure::new)?;
                self.transfer_twice(&Sendable::builder().message(message).settled(false).build()).await
            }
            several => {
                let sections = several.iter().map(|m| Data(Binary::from(m.bytes.to_vec()))).collect::<Vec<_>>();
                let mut builder = Message::builder().data_batch(Vec::<Vec<u8>>::new());
                let session = several.first().and_then(|first| first.session.as_deref());
                if let Some(session) = session.filter(|id| several.iter().all(|m| m.session.as_deref() == Some(id))) {
                    builder = builder.properties(Properties::builder().group_id(session.to_owned()).build());
                }
                let message = builder.build().map_body(|_| Batch::new(sections));
                self.transfer_twice(&Sendable::builder().message(message).message_format(BATCH).settled(false).build())
                    .await
            }
        };
        done.inspect_err(|failure| self.wires.note(&failure.error))
            .map_err(|failure| Failure { error: passing(failure.error), ..failure })
    }

    async fn transfer_twice<B: SerializableBody>(&self, sendable: &Sendable<B>) -> Result<(), Failure> {
        match self.transfer_once(sendable).await {
            Err(failure) if failure.stale => self.transfer_once(sendable).await,
            done => done,
        }
    }

    async fn transfer_once<B: SerializableBody>(&self, sendable: &Sendable<B>) -> Result<(), Failure> {
        let linked = self.linked().await.map_err(|e| Failure::new(e.with_operation("publish")))?;
        let mut sender = linked.sender.lock().await;
        let Some(attached) = sender.as_mut().filter(|_| linked.alive()) else {
            return Err(Failure { stale: true, ..Failure::new(error::lost("publish", "the link has ended")) });
        };
        let sent = timeout(CALL, attached.link.send_batchable_ref(sendable)).await;
        drop(sender);
        let used = linked.used.swap(true, Ordering::AcqRel);
        let outcome = match sent {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => {
                let divisible = matches!(e, SendError::MessageSizeExceeded(_));
                linked.broken.store(!divisible, Ordering::Release);
                return Err(Failure { error: error::of_send(&e), divisible, stale: used && !divisible });
            }
            Err(_) => {
                linked.broken.store(true, Ordering::Release);
                let e = error::new(ErrorKind::Throttled, "publish", "the broker grants no credit to send");
                return Err(Failure::new(e));
            }
        };
        let outcome = async {
            tokio::select! {
                biased;
                outcome = outcome => Ok(outcome),
                () = linked.wire.ended() => Err(error::lost("publish", "before the broker answered")),
            }
        };
        let outcome = match timeout(CALL, outcome).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(e)) => {
                linked.broken.store(true, Ordering::Release);
                return Err(Failure::new(ambiguous(e)));
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
                    ErrorKind::Throttled | ErrorKind::Unavailable | ErrorKind::Timeout => true,
                    // The entity is gone or closed to us: should it come back, this link does not.
                    ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::Unauthenticated => {
                        linked.broken.store(true, Ordering::Release);
                        true
                    }
                    _ => false,
                };
                let stale = used && e.kind() == ErrorKind::NotFound;
                Err(Failure { error: e, divisible: !common, stale })
            }
            Ok(Ok(_)) => {
                Err(Failure::new(error::new(ErrorKind::Unavailable, "publish", "the broker gave the message back")))
            }
            Ok(Err(e)) => {
                linked.broken.store(true, Ordering::Release);
                let error = ambiguous(error::of_send(&e));
                // What had been stored is gone with the entity; one that was made since has nothing of it.
                let stale = used && error.kind() == ErrorKind::NotFound;
                Err(Failure { stale, ..Failure::new(error) })
            }
            Err(_) => {
                linked.broken.store(true, Ordering::Release);
                Err(Failure::new(ambiguous(error::timeout("publish", CALL))))
            }
        }
    }

    async fn linked(&self) -> Result<Arc<Linked>> {
        let attached = async {
            let wire = self.wires.get().await?;
            let sender = wire.attach(&self.path, || link::sender(&wire, &self.path)).await?;
            Ok(Arc::new(Linked {
                wire,
                sender: Mutex::new(Some(sender)),
                used: AtomicBool::new(false),
                broken: AtomicBool::new(false),
            }))
        };
        self.link.get(Linked::alive, attached).await
    }

    /// Idempotent.
    pub(crate) async fn close(&self) {
        if let Some(linked) = self.link.take().await {
            linked.broken.store(true, Ordering::Release);
            let sender = linked.sender.lock().await.take();
            if let Some(sender) = sender {
                link::close_sender(sender).await;
            }
        }
    }
}

/// A broker that pushes back while a transfer is under way has taken it or not: the bus tries again, as after any lost answer.
fn passing(e: Error) -> Error {
    if e.kind() != ErrorKind::Throttled || e.retry() != RetrySafety::MayDuplicate {
        return e;
    }
    error::new(ErrorKind::Unavailable, "publish", "the broker pushed back before it answered")
        .may_duplicate()
        .with_source(e)
}

/// It was sent, and what became of it is not known.
fn ambiguous(e: Error) -> Error {
    if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled) {
        e.may_duplicate()
    } else {
        e
    }
}

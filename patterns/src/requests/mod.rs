//! Request and reply: a call to another service over a queue, and its answer.
//!
//! ```text
//! Requests::call ── request (replyto, expirytime) ──▶ queue:quotes ──▶ respond(…)
//!       ▲                                                               │
//!       └── reply_worker ◀── queue:shop-replies-0 ◀── reply (causationid) ──┘
//! ```
//!
//! The way of a call:
//!
//! 1. `call.rs` takes a place among the calls that wait (`waiting.rs`), stamps the request with its id, the reply queue
//!    and the deadline, and publishes it.
//! 2. `responder.rs` runs the handler (`handling.rs`), and publishes its answer, or the error, into the reply queue. It asks the clock
//!    before it begins and before it answers, so that nobody computes for a caller who has left.
//! 3. `reply_worker.rs` consumes the reply queue and gives each reply to the call that waits for it. `request_id.rs`
//!    tells its own from those of others.
//!
//! The reply queue is declared like any other queue, one for each process: `probes.rs` notices at the start that
//! somebody else consumes it, and `slot.rs` takes one of several by a lease. `reply.rs` makes replies, also for an
//! outbox. `error.rs` has what a call may end with.

mod call;
mod error;
mod handling;
mod open;
mod probes;
mod reply;
mod reply_worker;
mod request_id;
mod responder;
mod slot;
mod waiting;

use std::{fmt, sync::Arc, time::Duration};

use polybus_core::{Address, Bus, Envelope, Error, ErrorKind, Event, Result, Source};
use tokio::sync::{oneshot, watch};

pub use self::{
    call::Call,
    error::{Refusal, RequestError, Sent},
    open::RequestsBuilder,
    reply::Reply,
    responder::{Responder, respond},
};
use self::{probes::Probes, request_id::InstanceId, slot::HeldSlot, waiting::WaitingCalls};

/// Calls other services over queues, and gets their answers from a reply queue of its own. Cheap to clone.
///
/// # What it guarantees
/// - A call ends with its answer, with the error that the other side tells, or at its timeout; a timeout says whether
///   the request was sent.
/// - Memory is bounded: a call whose future is dropped leaves nothing behind, and more calls than
///   [`max_waiting`](RequestsBuilder::max_waiting) at once are refused.
/// - Replies that come too late, or to nobody, are acknowledged and counted. A message that is no reply goes to the dead
///   letters of the reply queue.
///
/// # What it does not
/// - Requests are at least once, as all messages are: a responder may see one twice. Its handler must bear that, or
///   stand behind an [`Inbox`](crate::Inbox).
/// - A call does not outlive its process. For work that must not be lost publish a command, and handle its result as an
///   event.
///
/// **Each process needs a reply queue of its own**, since consumers of one queue share its messages. The processes of
/// a Kubernetes StatefulSet have ordinals; those of a Deployment have none, so use [`Requests::slots`] there.
///
/// ```no_run
/// # use polybus_core::{Address, Bus, Event, Source};
/// # use std::time::Duration;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct GetQuote { sku: String }
/// # impl Event for GetQuote { const TYPE: &'static str = "quote.wanted"; const VERSION: u32 = 1; }
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Quote { cents: u64 }
/// # impl Event for Quote { const TYPE: &'static str = "quote.made"; const VERSION: u32 = 1; }
/// # async fn example(bus: Bus) -> Result<(), Box<dyn std::error::Error>> {
/// use polybus_patterns::Requests;
///
/// let requests = Requests::open(&bus, Source::queue("shop-replies-0")).await?;
/// let ask = GetQuote { sku: "A-7".into() };
/// let quote: Quote = requests.call(Address::queue("quotes"), &ask).timeout(Duration::from_secs(5)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Requests(Arc<OpenRequests>);

struct OpenRequests {
    shared: Arc<RequestsShared>,
    bus: Bus,
    /// The name of the reply queue at the broker.
    reply_queue: Box<str>,
    timeout: Duration,
    /// Ends the reply worker when it is dropped.
    _stop: oneshot::Sender<()>,
    /// Says that the reply worker has ended.
    ended: watch::Receiver<bool>,
    slot: Option<HeldSlot>,
}

/// What calls and the reply worker share.
struct RequestsShared {
    instance: InstanceId,
    waiting: WaitingCalls,
    probes: Probes,
    source: Source,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("replies", &format_args!("{}", self.0.shared.source)).finish_non_exhaustive()
    }
}

/// What became of calls and replies since [`Requests`] was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestStats {
    /// Calls that wait now.
    pub waiting: usize,
    /// Replies that a call got.
    pub answered: u64,
    /// Replies to calls of this process that had ended: by their timeout, or because the caller left.
    pub late: u64,
    /// Replies that an earlier process left in the queue.
    pub left_over: u64,
    /// Replies to calls of another process that lives. More than none says that two processes share the queue.
    pub stray: u64,
    /// Messages that are no replies. They are among the dead letters of the reply queue.
    pub not_replies: u64,
}

impl Requests {
    /// Opens with the defaults of [`Requests::builder`].
    ///
    /// # Errors
    /// Those of [`RequestsBuilder::open`].
    ///
    /// # Cancel safety
    /// Dropping the future opens nothing.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::Requests;
    /// # async fn example(bus: Bus) -> polybus_core::Result<()> {
    /// let requests = Requests::open(&bus, Source::queue("shop-replies-0")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn open(bus: &Bus, replies: impl Into<Source>) -> Result<Self> {
        Self::builder(bus, replies).open().await
    }

    /// Begins to describe requests with this reply queue. No I/O before [`open`](RequestsBuilder::open).
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::Requests;
    /// # use std::time::Duration;
    /// # async fn example(bus: Bus) -> polybus_core::Result<()> {
    /// let replies = Source::queue("shop-replies-0");
    /// let requests = Requests::builder(&bus, replies).timeout(Duration::from_secs(2)).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn builder(bus: &Bus, replies: impl Into<Source>) -> RequestsBuilder {
        RequestsBuilder::new(bus, vec![replies.into()], None)
    }

    /// Begins to describe requests with one of several reply queues: the first that no other process holds, by a lease
    /// in the application's database. For processes without ordinals.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::{Requests, store::Store};
    /// # async fn example<S: Store>(bus: Bus, db: S) -> polybus_core::Result<()> {
    /// let queues = (0..16).map(|n| Source::queue(format!("shop-replies-{n}")));
    /// let requests = Requests::slots(&bus, queues, &db).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn slots<S: crate::store::Store>(
        bus: &Bus,
        replies: impl IntoIterator<Item = Source>,
        store: &S,
    ) -> RequestsBuilder {
        RequestsBuilder::new(bus, replies.into_iter().collect(), Some(store.control()))
    }

    /// Calls: publishes `request`, and waits for the answer, an `R`. Nothing happens before the call is awaited.
    ///
    /// The responder may be of any kind: a program that knows no CloudEvents answers with its `reply_to` and
    /// `correlation_id`, and its body is read as JSON.
    ///
    /// ```no_run
    /// # use polybus_core::{Address, Event};
    /// # use polybus_patterns::requests::{RequestError, Requests};
    /// # use std::time::Duration;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct GetQuote { sku: String }
    /// # impl Event for GetQuote { const TYPE: &'static str = "quote.wanted"; const VERSION: u32 = 1; }
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Quote { cents: u64 }
    /// # impl Event for Quote { const TYPE: &'static str = "quote.made"; const VERSION: u32 = 1; }
    /// # async fn example(requests: Requests) -> Result<(), RequestError> {
    /// let ask = GetQuote { sku: "A-7".into() };
    /// match requests.call::<Quote>(Address::queue("quotes"), &ask).timeout(Duration::from_secs(5)).await {
    ///     Ok(quote) => println!("{} cents", quote.cents),
    ///     Err(RequestError::Remote { kind, message }) => println!("no quote: {kind}: {message}"),
    ///     Err(e) => return Err(e),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn call<R: Event>(&self, to: impl Into<Address>, request: &impl Event) -> Call<R> {
        Call::new(self.clone(), to.into(), Envelope::event(request), reply::decode::<R>)
    }

    /// Calls with any message, and answers with the whole reply. The message gets a fresh id, which the answer names.
    ///
    /// ```no_run
    /// # use polybus_core::{Address, Envelope};
    /// # use polybus_patterns::requests::{RequestError, Requests};
    /// # async fn example(requests: Requests) -> Result<(), RequestError> {
    /// let ask = Envelope::new("fibonacci", "30").content_type("text/plain");
    /// let answer = requests.call_with(Address::queue("rpc_queue"), ask).await?;
    /// println!("{} bytes", answer.data.len());
    /// # Ok(()) }
    /// ```
    pub fn call_with(&self, to: impl Into<Address>, request: Envelope) -> Call<Envelope> {
        Call::new(self.clone(), to.into(), Ok(request), Ok)
    }

    /// What became of calls and replies so far.
    ///
    /// ```no_run
    /// # fn example(requests: polybus_patterns::Requests) {
    /// println!("{} calls wait", requests.stats().waiting);
    /// # }
    /// ```
    pub fn stats(&self) -> RequestStats {
        self.0.shared.waiting.stats()
    }

    /// The source of the replies: the queue that was given, or the slot that was taken.
    ///
    /// ```no_run
    /// # fn example(requests: polybus_patterns::Requests) {
    /// println!("replies come to {}", requests.replies());
    /// # }
    /// ```
    pub fn replies(&self) -> &Source {
        &self.0.shared.source
    }

    /// Ends all calls that wait with [`RequestError::Closed`], refuses new ones, and waits until the reply queue is no
    /// longer consumed. A slot is given back. Dropping the last clone does the same without waiting.
    ///
    /// # Cancel safety
    /// If the future is dropped, the calls are ended all the same.
    ///
    /// ```no_run
    /// # async fn example(requests: polybus_patterns::Requests) {
    /// requests.close().await;
    /// # }
    /// ```
    pub async fn close(&self) {
        self.0.shared.waiting.close(Error::new(ErrorKind::Closed, "the requests were closed"));
        let mut ended = self.0.ended.clone();
        // It fails only if the reply worker's task is gone.
        let _ = ended.wait_for(|ended| *ended).await;
        if let Some(slot) = &self.0.slot {
            slot.give_back().await;
        }
    }
}

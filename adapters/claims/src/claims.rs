//! Where payloads are, and the limits.

use std::{collections::HashMap, fmt, path::Path, path::PathBuf, sync::Arc, time::Duration};

use object_store::{ObjectStore, local::LocalFileSystem};
use polybus_core::{
    Bus, Error, ErrorKind, Result,
    clock::{Clock, SystemClock},
};
use polybus_patterns::claim::ClaimPrefix;

use crate::error;

/// The largest payload by default: 256 MiB.
pub const DEFAULT_MAX_SIZE: u64 = 256 << 20;
/// For how long payloads are kept by default: 30 days.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// The largest payload that stays in its message by default: 128 KiB. As base64 and with its attributes it fits into the
/// 256 KiB of SNS.
pub const DEFAULT_THRESHOLD: usize = 128 << 10;

/// How long the store may take for one request by default. It is longer than all retries of object_store's clients.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(240);

/// What attributes and headers take of a message at most: polybus' limit, and the JSON around them.
const METADATA: usize = 33 << 10;

/// Checks payloads in and redeems them. Cheap to clone.
///
/// # What it guarantees
/// - A message that is published after [`check_in`](Self::check_in) refers to a payload that the store has confirmed.
/// - A handler gets the payload that was checked in, byte by byte, or none: size and SHA-256 are checked.
/// - A payload is there as long as its message may be tried, for the [`retention`](Self::retention) from when the
///   message is due, whatever becomes of the message. Nothing deletes it when the message is acknowledged.
/// - A message cannot make its consumer read anything but a claim: see [`ClaimPrefix`]. What
///   [`redeem_foreign`](Self::redeem_foreign) names may be read as well.
///
/// # What it does not
/// - It does not encrypt, and it does not say who wrote a payload: whoever may publish may refer to any claim here.
/// - A payload that was uploaded for a message which then was not published stays until its retention ends.
/// - A message that lives longer than the retention, as a dead letter for instance, loses its payload.
/// - A handler has the whole payload in memory, and so many at once as the worker's concurrency.
///
/// ```no_run
/// # async fn example(bus: polybus_core::Bus) -> polybus_core::Result<()> {
/// use polybus_claims::Claims;
/// use polybus_core::{Address, Envelope};
///
/// let claims = Claims::folder("/var/lib/shop", "claims")?.threshold_of(&bus);
/// let message = claims.check_in(Envelope::new("report.made", vec![0; 5_000_000])).await?;
/// bus.publish(Address::queue("reports"), message).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Claims {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: ClaimPrefix,
    /// The prefixes of other producers.
    pub(crate) also: Vec<ClaimPrefix>,
    /// The folder of a store that is one.
    pub(crate) root: Option<Arc<PathBuf>>,
    pub(crate) may_list: bool,
    pub(crate) threshold: usize,
    pub(crate) max_size: u64,
    pub(crate) retention: Duration,
    pub(crate) max_delay: Option<Duration>,
    pub(crate) timeout: Duration,
    pub(crate) clock: Arc<dyn Clock>,
    /// The buckets of foreign claims, by their names.
    pub(crate) foreign: HashMap<Box<str>, ForeignBucket>,
}

/// A bucket of foreign claims.
#[derive(Clone)]
pub(crate) struct ForeignBucket {
    /// What their keys begin with.
    pub(crate) keys: Box<str>,
    pub(crate) store: Arc<dyn ObjectStore>,
}

impl Claims {
    /// Claims in an object store, under a prefix. No I/O.
    ///
    /// The store may be any of [`object_store`](crate::object_store): S3, Azure Blob Storage and Google Cloud Storage
    /// with the features `aws`, `azure` and `gcp`. Give the prefix to claims alone: what is under it goes by age.
    ///
    /// # Errors
    /// `InvalidArgument`: the prefix is no [`ClaimPrefix`].
    ///
    /// ```
    /// use polybus_claims::{Claims, object_store::memory::InMemory};
    ///
    /// let claims = Claims::new(std::sync::Arc::new(InMemory::new()), "shop/claims")?;
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn new(store: Arc<dyn ObjectStore>, prefix: impl Into<Box<str>>) -> Result<Self> {
        Ok(Self {
            store,
            prefix: ClaimPrefix::new(prefix)?,
            also: Vec::new(),
            root: None,
            may_list: false,
            threshold: DEFAULT_THRESHOLD,
            max_size: DEFAULT_MAX_SIZE,
            retention: DEFAULT_RETENTION,
            max_delay: None,
            timeout: DEFAULT_TIMEOUT,
            clock: Arc::new(SystemClock),
            foreign: HashMap::new(),
        })
    }

    /// Claims in a local folder, which must be there. Files are synced to the disk before their messages are published.
    /// [`sweep`](Self::sweep) deletes what is too old.
    ///
    /// Producers and consumers on several machines need a folder that they share. Make one **inside** the share, and
    /// name that: the mount point itself is there also while nothing is mounted.
    ///
    /// # Errors
    /// - `InvalidArgument`: the prefix is no [`ClaimPrefix`].
    /// - `ConfigInvalid`: the folder is not there, or cannot be read.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// let claims = polybus_claims::Claims::folder(folder.path(), "claims")?;
    /// # Ok(()) }
    /// ```
    pub fn folder(root: impl AsRef<Path>, prefix: impl Into<Box<str>>) -> Result<Self> {
        let root = root.as_ref();
        let unreadable = |e: std::io::Error| {
            let text = format!("claims: the folder cannot be read ({e}): make it, mount it, or name another one");
            Error::config(text).with_context("folder", root.display())
        };
        let root = std::fs::canonicalize(root).map_err(unreadable)?;
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|e| error::map(&e, "open"))?.with_fsync(true);
        Ok(Self { root: Some(Arc::new(root)), ..Self::new(Arc::new(store), prefix)? })
    }

    /// Sets the largest payload that stays in its message, in bytes. Default 128 KiB.
    ///
    /// ```
    /// # use polybus_claims::{Claims, object_store::memory::InMemory};
    /// # fn example(claims: Claims) {
    /// let claims = claims.threshold(64 << 10);
    /// # }
    /// ```
    pub fn threshold(mut self, bytes: usize) -> Self {
        self.threshold = bytes;
        self
    }

    /// Sets the threshold to what fits into any message of this bus: three quarters of what its largest message leaves
    /// beside attributes and headers, so that the growth by base64 on SQS fits. Where the bus knows no limit, the
    /// threshold stays.
    ///
    /// Text that is no JSON grows by its escapes on SQS, at worst sixfold. Set [`threshold`](Self::threshold) lower
    /// where that is sent.
    ///
    /// ```
    /// # use polybus_claims::Claims;
    /// # fn example(claims: Claims, bus: polybus_core::Bus) {
    /// let claims = claims.threshold_of(&bus);
    /// # }
    /// ```
    pub fn threshold_of(mut self, bus: &Bus) -> Self {
        let can = bus.capabilities();
        if let Some(limit) = can.max_queue_payload.into_iter().chain(can.max_topic_payload).min() {
            // A quarter less, in this order, so that a limit of some GiB does not overflow.
            let room = limit.saturating_sub(METADATA).max(limit / 2);
            self.threshold = room - room / 4;
        }
        self
    }

    /// Sets the largest payload in bytes. Default 256 MiB.
    ///
    /// A larger one is not checked in. A consumer refuses a larger one before it downloads it.
    ///
    /// ```
    /// # use polybus_claims::Claims;
    /// # fn example(claims: Claims) {
    /// let claims = claims.max_size(1 << 30);
    /// # }
    /// ```
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = bytes;
        self
    }

    /// Sets for how long payloads are kept, from when their messages are due. Default 30 days.
    ///
    /// It must outlast the time in the source, all retries, and the time among the dead letters until a redrive. A
    /// worker refuses to start with one that is shorter than its retries and a day. Give producers, consumers and
    /// sweepers the same.
    ///
    /// ```
    /// # use polybus_claims::Claims;
    /// # fn example(claims: Claims) {
    /// let claims = claims.retention(std::time::Duration::from_secs(60 * 24 * 3600));
    /// # }
    /// ```
    pub fn retention(mut self, time: Duration) -> Self {
        self.retention = time;
        self
    }

    /// Sets the longest delay of a message that is checked in. Default: the [`retention`](Self::retention), and never
    /// more.
    ///
    /// Rules of clouds count from the upload and know nothing of delays, so [`lifecycle_rule`](Self::lifecycle_rule)
    /// keeps payloads that much longer. Who never delays messages sets it to zero.
    ///
    /// ```
    /// # use polybus_claims::Claims;
    /// # fn example(claims: Claims) {
    /// let claims = claims.max_delay(std::time::Duration::ZERO);
    /// # }
    /// ```
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = Some(delay);
        self
    }

    /// Sets how long the store may take for one request: to take a part of 8 MiB, to open an object, to send more of
    /// it. Default 4 minutes, since the clients of clouds retry for 3.
    ///
    /// ```
    /// # use polybus_claims::Claims;
    /// # fn example(claims: Claims) {
    /// let claims = claims.timeout(std::time::Duration::from_secs(30));
    /// # }
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Redeems claims of another prefix of the same store as well: those of another producer.
    ///
    /// # Errors
    /// `InvalidArgument`: the prefix is no [`ClaimPrefix`].
    ///
    /// ```
    /// # use polybus_claims::Claims;
    /// # fn example(claims: Claims) -> polybus_core::Result<()> {
    /// let claims = claims.redeem_also("billing/claims")?;
    /// # Ok(()) }
    /// ```
    pub fn redeem_also(mut self, prefix: impl Into<Box<str>>) -> Result<Self> {
        self.also.push(ClaimPrefix::new(prefix)?);
        Ok(self)
    }

    /// Redeems claims of the AWS extended client libraries for SQS and SNS, if they lie in this bucket and their keys
    /// begin with `keys`. Call it once for each bucket. Any other one is refused, and nothing is asked for it.
    ///
    /// **Whoever may send such a message makes the consumer read any object whose key begins so**: name the prefix that
    /// the producers use, or a bucket that has nothing else in it, with `""`. Their messages have no hash, so a payload
    /// that was altered is not noticed. Who made them deletes their payloads.
    ///
    /// ```
    /// # use polybus_claims::{Claims, object_store::ObjectStore};
    /// # fn example(claims: Claims, s3: std::sync::Arc<dyn ObjectStore>) {
    /// let claims = claims.redeem_foreign("legacy", "orders/", s3);
    /// # }
    /// ```
    pub fn redeem_foreign(
        mut self,
        bucket: impl Into<Box<str>>,
        keys: impl Into<Box<str>>,
        store: Arc<dyn ObjectStore>,
    ) -> Self {
        self.foreign.insert(bucket.into(), ForeignBucket { keys: keys.into(), store });
        self
    }

    /// Lets [`sweep`](Self::sweep) list and delete in a store that is no local folder. On clouds each page of a list
    /// costs money: let them delete by [`lifecycle_rule`](Self::lifecycle_rule) instead.
    ///
    /// ```
    /// # use polybus_claims::Claims;
    /// # fn example(claims: Claims) {
    /// let claims = claims.sweep_by_listing();
    /// # }
    /// ```
    pub fn sweep_by_listing(mut self) -> Self {
        self.may_list = true;
        self
    }

    /// Sets the clock that dates and ages are measured by. Default: the machine's.
    ///
    /// ```
    /// # use polybus_claims::Claims;
    /// # fn example(claims: Claims) {
    /// let claims = claims.clock(std::sync::Arc::new(polybus_core::clock::TokioClock::new()));
    /// # }
    /// ```
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The longest delay of a message that is checked in.
    pub(crate) fn longest_delay(&self) -> Duration {
        self.max_delay.unwrap_or(self.retention).min(self.retention)
    }

    /// One request to the store, within its time.
    pub(crate) async fn request<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<object_store::Result<T>> {
        tokio::time::timeout(self.timeout, request).await.map_err(|_| {
            let text = format!("the object store gave no answer within {:?}", self.timeout);
            Error::new(ErrorKind::Timeout, text).safe().with_operation(operation)
        })
    }
}

/// Shows neither the store, which may have credentials, nor the clock.
impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("prefix", &self.prefix.as_str())
            .field("threshold", &self.threshold)
            .field("max_size", &self.max_size)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}

//! A store that fails in chosen ways, and what all tests need.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart, memory::InMemory,
    path::Path,
};
use polybus_claims::{Claims, object_store};
use polybus_core::{Envelope, clock::Clock, driver::async_trait, time::OffsetDateTime};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Every request fails, with a secret in the text.
    Fail,
    /// No request is answered.
    Hang,
    /// So many reads do not find their object.
    MissingFor(usize),
    /// The object says that it is so large.
    SaysSize(u64),
    /// The stream sends more than the object has.
    Endless,
    /// The stream ends early.
    Short,
    /// From the middle on the stream yields nothing, again and again.
    Empties,
    /// The stream fails in the middle.
    Breaks,
    /// The stream stops in the middle.
    Stalls,
    /// The second part of an upload fails.
    PartFails,
    /// The second part of an upload hangs.
    PartHangs,
    /// Parts are taken, and then they cannot be put together.
    CompleteFails,
}

pub struct FaultyStore {
    pub inner: InMemory,
    fault: Mutex<Fault>,
    pub requests: AtomicUsize,
    /// Chunks of all streams that were asked for.
    pub chunks: Arc<AtomicUsize>,
    pub aborted: Arc<AtomicUsize>,
    pub parts: Arc<AtomicUsize>,
}

impl FaultyStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            fault: Mutex::new(Fault::None),
            requests: AtomicUsize::default(),
            chunks: Arc::default(),
            aborted: Arc::default(),
            parts: Arc::default(),
        })
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    pub fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    /// The names of everything in it.
    pub async fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.inner.list(None).map(|found| found.unwrap().location.to_string()).collect().await;
        names.sort();
        names
    }

    /// Changes an object behind its message's back.
    pub async fn write(&self, name: &str, data: impl Into<Bytes>) {
        self.inner.put(&Path::from(name), PutPayload::from_bytes(data.into())).await.unwrap();
    }

    pub async fn remove(&self, name: &str) {
        self.inner.delete(&Path::from(name)).await.unwrap();
    }

    async fn fault(&self) -> Result<Fault> {
        self.requests.fetch_add(1, SeqCst);
        let fault = *self.fault.lock().unwrap();
        match fault {
            Fault::Fail => Err(away()),
            Fault::Hang => std::future::pending().await,
            fault => Ok(fault),
        }
    }
}

fn away() -> Error {
    let source = "PUT https://account.example/x?sig=SECRET: 503 <Error>SECRET</Error>".into();
    Error::Generic { store: "faulty", source }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore(SECRET)")
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore(SECRET)")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.fault().await?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let fault = self.fault().await?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(FaultyUpload { inner, fault, aborted: self.aborted.clone(), parts: self.parts.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.fault().await?;
        if let Fault::MissingFor(reads) = fault
            && reads > 0
        {
            self.set(Fault::MissingFor(reads - 1));
            return Err(Error::NotFound { path: location.to_string(), source: "not yet".into() });
        }
        let mut found = self.inner.get_opts(location, options).await?;
        let meta = found.meta.clone();
        if let Fault::SaysSize(size) = fault {
            found.meta.size = size;
        }
        let data = found.bytes().await?;
        let mut found = self.inner.get(location).await?;
        found.meta = ObjectMeta { size: if let Fault::SaysSize(size) = fault { size } else { meta.size }, ..meta };
        found.payload = GetResultPayload::Stream(self.stream(data, fault));
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match *self.fault.lock().unwrap() {
            Fault::Fail => locations.map(|location| location.and_then(|_| Err(away()))).boxed(),
            _ => self.inner.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.requests.fetch_add(1, SeqCst);
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.requests.fetch_add(1, SeqCst);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// How large the chunks of a stream are.
pub const CHUNK: usize = 1000;

impl FaultyStore {
    fn stream(&self, data: Bytes, fault: Fault) -> BoxStream<'static, Result<Bytes>> {
        let chunks: Vec<Result<Bytes>> = data.chunks(CHUNK).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let half = chunks.len() / 2;
        let counted = self.chunks.clone();
        let whole = stream::iter(chunks);
        let faulty = match fault {
            Fault::Endless => whole.chain(stream::repeat_with(|| Ok(Bytes::from_static(&[0; CHUNK])))).boxed(),
            Fault::Short => whole.take(half).boxed(),
            Fault::Empties => whole.take(half).chain(stream::repeat_with(|| Ok(Bytes::new()))).boxed(),
            Fault::Breaks => whole.take(half).chain(stream::iter([Err(away())])).boxed(),
            Fault::Stalls => whole.take(half).chain(stream::pending()).boxed(),
            _ => whole.boxed(),
        };
        let count = move |_: &_| {
            counted.fetch_add(1, SeqCst);
        };
        faulty.inspect(count).boxed()
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    fault: Fault,
    aborted: Arc<AtomicUsize>,
    parts: Arc<AtomicUsize>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let number = self.parts.fetch_add(1, SeqCst);
        let part: BoxFuture<'static, Result<()>> = match self.fault {
            Fault::PartFails if number == 1 => async { Err(away()) }.boxed(),
            Fault::PartHangs if number == 1 => std::future::pending().boxed(),
            _ => self.inner.put_part(data),
        };
        part
    }

    async fn complete(&mut self) -> Result<PutResult> {
        match self.fault {
            Fault::CompleteFails => Err(away()),
            _ => self.inner.complete().await,
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.aborted.fetch_add(1, SeqCst);
        self.inner.abort().await
    }
}

/// A clock that a test moves.
#[derive(Clone)]
pub struct MovedClock(Arc<Mutex<OffsetDateTime>>);

impl MovedClock {
    /// It begins at a second of 2026, in UTC.
    pub fn at(text: &str) -> Self {
        Self(Arc::new(Mutex::new(moment(text))))
    }

    pub fn set(&self, text: &str) {
        *self.0.lock().unwrap() = moment(text);
    }

    pub fn advance(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Clock for MovedClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap()
    }
}

pub fn moment(text: &str) -> OffsetDateTime {
    OffsetDateTime::parse(text, &polybus_core::time::format_description::well_known::Rfc3339).unwrap()
}

/// Claims with a small threshold in a store that can be broken.
pub fn claims() -> (Claims, Arc<FaultyStore>) {
    let store = FaultyStore::new();
    (Claims::new(store.clone(), "claims").unwrap().threshold(100), store)
}

pub fn large() -> Envelope {
    Envelope::new("report.made", payload(10_000, 7)).content_type("application/pdf").header("tenant", "acme")
}

/// So many bytes, the same for each seed.
pub fn payload(size: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| next()).collect()
}

pub fn reference(message: &Envelope) -> String {
    message.extensions.get("claimref").unwrap().to_owned()
}

pub const DAY: Duration = Duration::from_secs(24 * 3600);

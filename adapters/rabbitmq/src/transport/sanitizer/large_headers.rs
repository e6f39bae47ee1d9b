//! Content headers that are larger than a frame may be. A publisher's may fill one, and the broker adds its counters to it and sends what
//! is above the limit all the same; messages of other protocols have no limit at all. lapin would end the connection, again at every
//! delivery. So such a frame is kept here, and lapin gets a small one in its place, which says where it is.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use lapin::BasicProperties;

use crate::transport::sanitizer::header_walk::Payload;

/// The header of the small one. Its value cannot be guessed, so nobody else's header is taken for one.
const LARGE: &str = "polybus-large";
/// Where the properties' flags begin in a content header: class, weight and body size come first.
const FLAGS: usize = 12;
/// More is no header.
pub(crate) const MOST: usize = 512 << 20;

/// The large headers of one connection whose messages nobody has read yet. They go with it.
pub(crate) struct Large {
    secret: u64,
    next: AtomicU64,
    kept: Mutex<HashMap<u64, Vec<u8>>>,
}

impl Default for Large {
    fn default() -> Self {
        Self { secret: RandomState::new().hash_one(0), next: AtomicU64::new(0), kept: Mutex::default() }
    }
}

impl Large {
    fn kept(&self) -> MutexGuard<'_, HashMap<u64, Vec<u8>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a header, and makes the frame that stands for it.
    fn keep(&self, channel: [u8; 2], payload: Vec<u8>) -> Vec<u8> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let value = format!("{:016x}.{number}", self.secret);
        let entry = [&[LARGE.len() as u8][..], LARGE.as_bytes(), b"S", &length(value.len()), value.as_bytes()].concat();
        let mut small = payload.get(..FLAGS).unwrap_or(&[0; FLAGS]).to_vec();
        small.extend((1_u16 << 13).to_be_bytes());
        small.extend(length(entry.len()));
        small.extend(entry);
        self.kept().insert(number, payload);
        [&[2][..], &channel, &length(small.len()), &small, &[0xce]].concat()
    }

    /// The properties for which these stand; themselves if for none.
    pub(crate) fn restore(&self, properties: BasicProperties) -> BasicProperties {
        let kept = properties.headers().as_ref().and_then(|table| {
            let lapin::types::AMQPValue::LongString(value) = table.inner().get(LARGE)? else { return None };
            let (secret, number) = std::str::from_utf8(value.as_bytes()).ok()?.split_once('.')?;
            let known = u64::from_str_radix(secret, 16).ok()? == self.secret;
            if known { self.kept().remove(&number.parse().ok()?) } else { None }
        });
        match kept.and_then(|payload| parse(payload.get(FLAGS..)?)) {
            Some((restored, _)) => restored,
            None => properties,
        }
    }
}

fn length(bytes: usize) -> [u8; 4] {
    (bytes as u32).to_be_bytes()
}

/// Properties as a content header has them, flags first, and how many bytes they take.
pub(crate) fn parse(bytes: &[u8]) -> Option<(BasicProperties, usize)> {
    let (rest, properties) = lapin::protocol::basic::parse_properties(bytes).ok()?;
    Some((properties, bytes.len() - rest.len()))
}

/// What [`parse`] reads.
pub(crate) fn generate(properties: &BasicProperties) -> Option<Vec<u8>> {
    let write = lapin::protocol::basic::gen_properties(properties);
    write(Vec::new().into()).ok().map(|done| done.into_inner().0)
}

/// A large frame that is coming.
pub(crate) struct Coming {
    channel: [u8; 2],
    /// Bytes of the frame's head that are yet to be passed over.
    head: usize,
    /// Bytes that are yet to come after it, the one that ends the frame included.
    left: usize,
    bytes: Vec<u8>,
    walk: Payload,
}

impl Coming {
    pub(crate) fn new(head: [u8; 7]) -> Self {
        let [_, high, low, size @ ..] = head;
        let mut walk = Payload::default();
        walk.begin_header();
        let left = (u32::from_be_bytes(size) as usize).saturating_add(1);
        Self { channel: [high, low], head: head.len(), left, bytes: Vec::new(), walk }
    }

    /// Takes what has come of it, mended, and tells how many bytes that was. The others are to be shown again with more.
    pub(crate) fn take(&mut self, bytes: &mut [u8]) -> usize {
        let head = self.head.min(bytes.len());
        self.head -= head;
        let bytes = &mut bytes[head..];
        let here = self.left.min(bytes.len());
        let ends = here == self.left;
        let payload = here - usize::from(ends && here > 0);
        let walked = self.walk.walk(&mut bytes[..payload]);
        let taken = if ends { payload } else { walked };
        self.bytes.extend_from_slice(&bytes[..taken]);
        let done = if ends { here } else { taken };
        self.left -= done;
        head + done
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.head == 0 && self.left == 0
    }

    pub(crate) fn keep(self, large: &Large) -> Vec<u8> {
        large.keep(self.channel, self.bytes)
    }
}

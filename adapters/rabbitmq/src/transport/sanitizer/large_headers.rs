//! Keeps content headers aside that are larger than a frame may be, and gives lapin small ones in their places.
//!
//! A publisher's headers may fill a frame. The broker adds its counters to them, and sends the frame though it is
//! above the limit then. Messages from other protocols have no limit at all. lapin would end the connection over such
//! a frame, again at every delivery. So the frame is stored here, and a small one takes its place that says where it
//! is. When the message is read, [`LargeHeaders::restore`] puts the properties back.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use lapin::BasicProperties;

use crate::transport::sanitizer::header_walk::PayloadWalk;

/// The only header of a small frame. Its value has a secret of the connection, so no publisher's header is taken for
/// one.
const LARGE: &str = "polybus-large";
/// Where the flags of the properties begin in a content header, in bytes: class, weight and body size come first.
const FLAGS: usize = 12;
/// The largest content header that is kept, in bytes. Anything larger is malformed.
pub(crate) const MAX_HEADER: usize = 512 << 20;

/// The large content headers of one connection whose messages have not been read yet. They are dropped with it.
pub(crate) struct LargeHeaders {
    secret: u64,
    next: AtomicU64,
    stored: Mutex<HashMap<u64, Vec<u8>>>,
}

impl Default for LargeHeaders {
    fn default() -> Self {
        Self { secret: RandomState::new().hash_one(0), next: AtomicU64::new(0), stored: Mutex::default() }
    }
}

impl LargeHeaders {
    /// Stores a content header, and answers the small frame that stands for it.
    fn store(&self, channel: [u8; 2], payload: Vec<u8>) -> Vec<u8> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let value = format!("{:016x}.{number}", self.secret);
        let entry = [&[LARGE.len() as u8][..], LARGE.as_bytes(), b"S", &length(value.len()), value.as_bytes()].concat();
        let mut small = payload.get(..FLAGS).unwrap_or(&[0; FLAGS]).to_vec();
        small.extend((1_u16 << 13).to_be_bytes());
        small.extend(length(entry.len()));
        small.extend(entry);
        self.stored.lock().insert(number, payload);
        [&[2][..], &channel, &length(small.len()), &small, &[0xce]].concat()
    }

    /// The properties for which these stand. Properties that stand for none stay as they are.
    pub(crate) fn restore(&self, properties: BasicProperties) -> BasicProperties {
        let stored = properties.headers().as_ref().and_then(|table| {
            let lapin::types::AMQPValue::LongString(value) = table.inner().get(LARGE)? else { return None };
            let (secret, number) = std::str::from_utf8(value.as_bytes()).ok()?.split_once('.')?;
            let known = u64::from_str_radix(secret, 16).ok()? == self.secret;
            if known { self.stored.lock().remove(&number.parse().ok()?) } else { None }
        });
        match stored.and_then(|payload| parse(payload.get(FLAGS..)?)) {
            Some((restored, _)) => restored,
            None => properties,
        }
    }
}

/// A length as AMQP writes it.
fn length(bytes: usize) -> [u8; 4] {
    (bytes as u32).to_be_bytes()
}

/// Reads properties as a content header has them, flags first, and answers how many bytes they take.
pub(crate) fn parse(bytes: &[u8]) -> Option<(BasicProperties, usize)> {
    let (rest, properties) = lapin::protocol::basic::parse_properties(bytes).ok()?;
    Some((properties, bytes.len() - rest.len()))
}

/// Writes properties as [`parse`] reads them.
pub(crate) fn generate(properties: &BasicProperties) -> Option<Vec<u8>> {
    let write = lapin::protocol::basic::gen_properties(properties);
    write(Vec::new().into()).ok().map(|done| done.into_inner().0)
}

/// A large content header of which some bytes are yet to come.
pub(crate) struct IncomingLargeHeader {
    channel: [u8; 2],
    /// How many bytes of the frame's head are yet to be passed over.
    head: usize,
    /// How many bytes after the head are yet to come, including the byte that ends the frame.
    left: usize,
    /// The sanitized payload so far.
    bytes: Vec<u8>,
    walk: PayloadWalk,
}

impl IncomingLargeHeader {
    pub(crate) fn new(head: [u8; 7]) -> Self {
        let [_, high, low, size @ ..] = head;
        let mut walk = PayloadWalk::default();
        walk.begin_header();
        let left = (u32::from_be_bytes(size) as usize).saturating_add(1);
        Self { channel: [high, low], head: head.len(), left, bytes: Vec::new(), walk }
    }

    /// Takes its next bytes, sanitizes them, and answers how many it took. The caller passes the others again with more
    /// behind them.
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

    /// Stores the complete header, and answers the small frame that stands for it.
    pub(crate) fn store_in(self, large: &LargeHeaders) -> Vec<u8> {
        large.store(self.channel, self.bytes)
    }
}

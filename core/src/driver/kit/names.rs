//! Names within a broker's limits, and the ids by which a broker deduplicates.

use sha2::{Digest, Sha256};

use crate::topology::names::hex;
pub use crate::topology::names::{MAX_EVENT_TYPE, MAX_KEY, MAX_NAME, check_event_type, check_key, check_name, fit};

/// The native id of a copy, where a broker may deduplicate by it: SHA-256 of the original's place and of the copy's
/// hop, in hex.
///
/// `from` is the physical name of the source that it was consumed from; it must differ from that of the source's dead
/// letters. `place` is what the broker knows the original by there
/// ([`ReceivedMessage::known_by`](crate::driver::ReceivedMessage::known_by)). So the same copy, made again after an
/// answer that was lost, has the same id and is stored once.
///
/// The message's own id would be wrong, and so would [`dedup_id`]: two messages may have one source and id, and the
/// copy of the second would be dropped while the broker answers Ok. Where the broker knows its messages by nothing,
/// each copy gets an id of its own, a UUID.
///
/// ```
/// use polybus_core::driver::kit::names::copy_id;
///
/// assert_eq!(copy_id("payments", "sequence-7", 1), copy_id("payments", "sequence-7", 1));
/// assert_ne!(copy_id("payments", "sequence-7", 1), copy_id("payments", "sequence-8", 1));
/// ```
pub fn copy_id(from: &str, place: &str, hop: u32) -> String {
    dedup_id(from, &format!("copy of {place}"), hop)
}

/// The native id of a message that is published, where a broker deduplicates by it: SHA-256 of source, id and hop, in
/// hex. Copies have [`copy_id`].
///
/// ```
/// use polybus_core::driver::kit::names::dedup_id;
///
/// assert_eq!(dedup_id("/shop", "order-7", 0).len(), 64);
/// assert_ne!(dedup_id("/shop", "order-7", 0), dedup_id("/shop", "order-8", 0));
/// ```
pub fn dedup_id(source: &str, id: &str, hop: u32) -> String {
    let mut hash = Sha256::new();
    for part in [source.as_bytes(), id.as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(hop.to_be_bytes());
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_two_messages_of_one_id_have_two_ids() {
        let ids = [copy_id("q", "1", 1), copy_id("q", "2", 1), copy_id("q_dlq", "1", 1), copy_id("q", "1", 2)];
        assert!(ids.iter().all(|a| ids.iter().filter(|b| *b == a).count() == 1));
        assert_eq!(copy_id("q", "1", 1), ids[0]);
    }

    #[test]
    fn dedup_id_depends_on_every_part() {
        let ids = [dedup_id("s", "i", 0), dedup_id("s", "i", 1), dedup_id("si", "", 0), dedup_id("", "si", 0)];
        assert!(ids.iter().all(|a| a.len() == 64 && ids.iter().filter(|b| *b == a).count() == 1));
    }
}

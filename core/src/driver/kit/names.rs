//! Names that a driver gives at the broker: physical names within its limits, and the ids that it deduplicates by.

use sha2::{Digest, Sha256};

use crate::topology::names::hex;
pub use crate::topology::names::{MAX_EVENT_TYPE, MAX_KEY, MAX_NAME, check_event_type, check_key, check_name, fit};

/// The native id of a copy (retry, dead letter, redrive) where a broker may deduplicate by it: SHA-256 of where the original lies and of the
/// copy's hop, in hex.
///
/// `from` is the physical name of what it was consumed from, told apart from its dead letters' or its live source's. `place` is what the broker
/// knows the original by there, however often it is handed out ([`ReceivedMessage::known_by`](crate::driver::ReceivedMessage::known_by)): the same copy made
/// again, after an answer that was lost, has the same id and is stored once. Never the message's own id, nor [`dedup_id`]: two messages of one source and id
/// are two, and the second's copy would be dropped while the broker answers Ok. A broker that knows its messages by nothing gives
/// each copy an id of its own (a UUID).
pub fn copy_id(from: &str, place: &str, hop: u32) -> String {
    dedup_id(from, &format!("copy of {place}"), hop)
}

/// The deduplication id of a message that is published, where a broker deduplicates: SHA-256 of source, id and hop, in hex. Copies have
/// [`copy_id`].
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

//! Short keys of long names.

use sha2::{Digest, Sha256};

/// The first 16 bytes of a SHA-256. Each part with its length in front, so that no two lists of parts are one text.
pub(crate) fn hash_of_parts(parts: &[&str]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut key = [0; 16];
    key.copy_from_slice(&hash.finalize()[..16]);
    key
}

//! Files with any bytes, the same for each seed.

use polybus::Envelope;
use sha2::{Digest, Sha256};

/// The header with the file's SHA-256, by which the consumer knows that it is the one that was sent.
pub const SHA256: &str = "file-sha256";

pub struct File {
    name: String,
    pub data: Vec<u8>,
}

impl File {
    /// The file of a number: of 1 KB to 5 MB, so that most are small and some are large.
    pub fn new(seed: u64, number: u32) -> Self {
        let mut state = seed ^ (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        // The first ones are the smallest and the largest, whatever the seed.
        let size = match number {
            0 => 1_000,
            1 => 5_000_000,
            _ => (1_000.0 * 5_000_f64.powf((next() >> 11) as f64 / (1_u64 << 53) as f64)) as usize,
        };
        let data = (0..size.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(size).collect();
        Self { name: format!("{number}.bin"), data }
    }

    pub fn message(&self) -> Envelope {
        Envelope::new("file.sent", self.data.clone())
            .content_type("application/octet-stream")
            .subject(self.name.clone())
            .header(SHA256, hash(&self.data))
    }
}

pub fn hash(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

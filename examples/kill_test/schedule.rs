//! When something is done to a process, and to which.

use std::hash::{BuildHasher, RandomState};

/// So many times, spread evenly over the rows.
///
/// It follows the rows and not the clock, so a slow machine kills in the same places as a fast one.
pub struct Schedule {
    pub dice: Dice,
    wanted: u32,
    done: u32,
    rows: f64,
    next: f64,
}

impl Schedule {
    pub fn new(wanted: u32, rows: i64, seed: u64) -> Self {
        let mut new = Self { dice: Dice(seed), wanted, done: 0, rows: rows as f64, next: 0.0 };
        new.draw();
        new
    }

    pub fn is_due(&self, rows: i64) -> bool {
        !self.is_over() && rows as f64 >= self.next
    }

    /// The row at which it is due next.
    pub fn place(&self) -> i64 {
        self.next as i64
    }

    /// Notes that it was done once more.
    pub fn done(&mut self) {
        self.done += 1;
        self.draw();
    }

    pub fn times(&self) -> u32 {
        self.done
    }

    pub fn is_over(&self) -> bool {
        self.done >= self.wanted
    }

    fn draw(&mut self) {
        let place = f64::from(self.done) + self.dice.fraction();
        // Not so late that the rows end before it.
        self.next = place / f64::from(self.wanted.max(1)) * self.rows * 0.95;
    }
}

pub fn random_seed() -> u64 {
    RandomState::new().hash_one("kill_test") >> 32
}

/// SplitMix64.
pub struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// From 0 to 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

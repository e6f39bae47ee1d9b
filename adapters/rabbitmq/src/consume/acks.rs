//! Tracks which deliveries of a channel are settled, and finds the fewest `basic.ack` frames for the next ones.

use std::collections::BTreeMap;

/// The settled delivery tags of one channel. The broker counts the tags of a channel from 1.
#[derive(Debug, Default)]
pub(crate) struct AckTracker {
    /// All tags up to and including this one are settled.
    base: u64,
    /// The settled tags above `base`, as the first and last tag of each run.
    runs: BTreeMap<u64, u64>,
    /// The highest tag delivered so far.
    delivered: u64,
    /// How many tags are settled.
    settled: u64,
}

/// One `basic.ack` frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AckFrame {
    pub(crate) tag: u64,
    /// Whether it acknowledges all unsettled deliveries up to the tag.
    pub(crate) multiple: bool,
}

impl AckTracker {
    /// Notes that a delivery has arrived.
    pub(crate) fn deliver(&mut self, tag: u64) {
        self.delivered = self.delivered.max(tag);
    }

    /// How many deliveries have arrived and are not settled.
    pub(crate) fn unsettled(&self) -> u64 {
        self.delivered.saturating_sub(self.settled)
    }

    pub(crate) fn is_settled(&self, tag: u64) -> bool {
        tag <= self.base || self.runs.range(..=tag).next_back().is_some_and(|(_, last)| *last >= tag)
    }

    /// Marks a tag as settled. Answers false if it was settled before.
    pub(crate) fn settle(&mut self, tag: u64) -> bool {
        if self.is_settled(tag) {
            return false;
        }
        self.settled += 1;
        if tag == self.base + 1 {
            self.base = tag;
        } else {
            let before =
                self.runs.range(..tag).next_back().filter(|(_, last)| **last + 1 == tag).map(|(first, _)| *first);
            let last = self.runs.remove(&(tag + 1)).unwrap_or(tag);
            self.runs.insert(before.unwrap_or(tag), last);
        }
        while let Some(last) = self.runs.remove(&(self.base + 1)) {
            self.base = last;
        }
        true
    }

    /// Marks unsettled tags as settled and answers the frames that acknowledge them. Tags with nothing unsettled below
    /// them share one frame. Every other tag has a frame of its own, since an acknowledgement is never held back.
    pub(crate) fn ack(&mut self, mut tags: Vec<u64>) -> Vec<AckFrame> {
        tags.sort_unstable();
        for tag in &tags {
            self.settle(*tag);
        }
        let below = tags.partition_point(|tag| *tag <= self.base);
        let merged = below.checked_sub(1).map(|last| AckFrame { tag: tags[last], multiple: below > 1 });
        merged.into_iter().chain(tags[below..].iter().map(|tag| AckFrame { tag: *tag, multiple: false })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(tag: u64) -> AckFrame {
        AckFrame { tag, multiple: false }
    }

    fn up_to(tag: u64) -> AckFrame {
        AckFrame { tag, multiple: true }
    }

    #[test]
    fn contiguous_ones_merge_and_the_others_go_alone() {
        let mut acks = AckTracker::default();
        (1..=10).for_each(|t| acks.deliver(t));
        assert_eq!(acks.ack(vec![3, 1, 2, 5, 7]), [up_to(3), one(5), one(7)]);
        assert_eq!(acks.ack(vec![6]), [one(6)]);
        // 4 closes the gap, but 5 to 7 were acknowledged before: no tag is acknowledged twice.
        assert_eq!(acks.ack(vec![4, 8]), [up_to(8)]);
        assert_eq!((acks.unsettled(), acks.is_settled(8), acks.is_settled(9)), (2, true, false));
        assert_eq!(acks.ack(vec![9]), [one(9)]);
    }

    #[test]
    fn a_rejected_one_below_does_not_block_merging() {
        let mut acks = AckTracker::default();
        (1..=4).for_each(|t| acks.deliver(t));
        assert!(acks.settle(1) && !acks.settle(1));
        assert_eq!(acks.ack(vec![2, 3]), [up_to(3)]);
    }

    #[test]
    fn state_stays_small_beside_one_slow_message() {
        let mut acks = AckTracker::default();
        for tag in 1..=100_000 {
            acks.deliver(tag);
            if tag > 1 {
                acks.ack(vec![tag]);
            }
        }
        assert_eq!((acks.runs.len(), acks.unsettled()), (1, 1));
        assert_eq!(acks.ack(vec![1]), [one(1)]);
        assert_eq!((acks.runs.len(), acks.base), (0, 100_000));
    }

    /// Random settlements are checked against a plain model: every tag is acknowledged exactly once, and no frame
    /// acknowledges an unsettled one.
    #[test]
    fn frames_say_what_was_settled_and_nothing_else() {
        let mut seed = 7_u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let mut acks = AckTracker::default();
        let mut open: Vec<u64> = (1..=2_000).inspect(|t| acks.deliver(*t)).collect();
        let mut at_broker: std::collections::BTreeSet<u64> = open.iter().copied().collect();
        while !open.is_empty() {
            let take = 1 + random(8) as usize;
            let batch: Vec<u64> = (0..take.min(open.len()))
                .map(|_| open.swap_remove(random((open.len() as u64).min(40)) as usize))
                .collect();
            for ack in acks.ack(batch) {
                assert!(at_broker.contains(&ack.tag), "unknown delivery tag {}", ack.tag);
                at_broker.retain(|t| if ack.multiple { *t > ack.tag } else { *t != ack.tag });
            }
            let left: std::collections::BTreeSet<u64> = open.iter().copied().collect();
            assert_eq!(at_broker, left);
        }
    }
}

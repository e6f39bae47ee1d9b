//! What SQS and SNS take. Enforced here, before any I/O: an emulator may take more, and the cloud must not be the first to say no.

use std::time::Duration;

/// Entries of a batch, and messages of one receive.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
pub(crate) const ENTRIES: usize = 10;
/// Calls of one consumer under way at once, of settlements, and of renewals before core does them.
pub(crate) const IN_FLIGHT: usize = 4;
/// Bytes of a message, its attributes included, and of a batch.
pub(crate) const QUEUE_BYTES: usize = 1 << 20;
/// The same in partitions of AWS where messages are no larger, and everywhere until 2025; `MaximumMessageSize` takes this much wherever it is.
pub(crate) const SMALL_QUEUE_BYTES: usize = 256 << 10;
/// The same through a topic. <https://docs.aws.amazon.com/sns/latest/api/API_Publish.html>
pub(crate) const TOPIC_BYTES: usize = 256 << 10;
/// Attributes of a message. SNS drops a message with more on raw delivery.
pub(crate) const ATTRIBUTES: usize = 10;
/// `DelaySeconds`.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(900);
/// Visibility, counted from the receive, renewals included.
pub(crate) const MAX_VISIBILITY: Duration = Duration::from_secs(12 * 3600);
/// A retry's delay: what is left of that after a while in a consumer's hands.
pub(crate) const MAX_RETRY: Duration = Duration::from_secs(11 * 3600);
/// One long poll.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(20);
/// `maxReceiveCount`.
pub(crate) const MAX_RECEIVES: u32 = 1000;
/// How far the broker's own limit stays above core's.
pub(crate) const BACKSTOP: u32 = 5;
/// Messages of a queue that are received and not settled. <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html>
pub(crate) const MAX_IN_FLIGHT: u64 = 120_000;
/// Types in a filter policy. <https://docs.aws.amazon.com/sns/latest/dg/subscription-filter-policy-constraints.html>
pub(crate) const MAX_TYPES: usize = 150;
/// A dead letter tells why: what a publish leaves free in a message, so that it can always become one.
pub(crate) const ROOM_FOR_REASON: usize = 1024;

/// Whole seconds, as SQS counts, never less than asked.
pub(crate) fn seconds(span: Duration) -> i32 {
    let whole = span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0));
    i32::try_from(whole).unwrap_or(i32::MAX)
}

/// Whether SQS takes the text: XML 1.0's characters, and not none at all.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>
pub(crate) fn is_legal(text: &str) -> bool {
    let legal =
        |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..);
    !text.is_empty() && text.chars().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_never_fewer_than_asked() {
        for (millis, wanted) in [(0, 0), (1, 1), (1000, 1), (1001, 2), (900_000, 900)] {
            assert_eq!(seconds(Duration::from_millis(millis)), wanted, "{millis} ms");
        }
        assert_eq!(seconds(Duration::MAX), i32::MAX);
    }

    #[test]
    fn legal_characters() {
        assert!(is_legal("a\t\n\r é\u{FFFD}😀\u{7f}"));
        for bad in ["", "a\0", "\u{b}", "\u{1f}", "\u{FFFE}", "\u{FFFF}"] {
            assert!(!is_legal(bad), "{bad:?}");
        }
    }
}

//! The limits of SQS and SNS. The adapter enforces them before any call: an emulator may allow more, and production
//! must not be the first to refuse.

use std::time::Duration;

/// Most entries of a batch, and most messages of one receive.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
pub(crate) const ENTRIES: usize = 10;
/// Most settling calls of one consumer under way at once. As many may renew what is in the prefetch buffer.
pub(crate) const IN_FLIGHT: usize = 4;
/// Most bytes of a message with its attributes, and of a batch.
pub(crate) const QUEUE_BYTES: usize = 1 << 20;
/// The same in partitions of AWS that have not raised it. `MaximumMessageSize` takes this much in all of them.
pub(crate) const SMALL_QUEUE_BYTES: usize = 256 << 10;
/// Most bytes of a message, and of a batch, through a topic.
/// <https://docs.aws.amazon.com/sns/latest/api/API_Publish.html>
pub(crate) const TOPIC_BYTES: usize = 256 << 10;
/// Most attributes of a message. With raw delivery SNS drops a message that has more.
pub(crate) const ATTRIBUTES: usize = 10;
/// The longest `DelaySeconds`.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(900);
/// The longest visibility timeout, counted from the receive, with all renewals.
pub(crate) const MAX_VISIBILITY: Duration = Duration::from_secs(12 * 3600);
/// The longest delay of a retry: an hour less, which a handler may have taken before.
pub(crate) const MAX_RETRY: Duration = Duration::from_secs(11 * 3600);
/// The longest wait of one long poll.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(20);
/// The largest `maxReceiveCount`.
pub(crate) const MAX_RECEIVES: u32 = 1000;
/// How far `maxReceiveCount` stays above core's limit of deliveries.
pub(crate) const BACKSTOP: u32 = 5;
/// Most messages of a queue that are received and not settled.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html>
pub(crate) const MAX_IN_FLIGHT: u64 = 120_000;
/// Most types in a filter policy.
/// <https://docs.aws.amazon.com/sns/latest/dg/subscription-filter-policy-constraints.html>
pub(crate) const MAX_TYPES: usize = 150;
/// Bytes that a publish leaves free in a message, so that it has room for the reason when it becomes a dead letter.
pub(crate) const ROOM_FOR_REASON: usize = 1024;

/// Rounds up to whole seconds, which are all that SQS counts.
pub(crate) fn seconds(span: Duration) -> i32 {
    let whole = span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0));
    i32::try_from(whole).unwrap_or(i32::MAX)
}

/// Whether SQS takes the text: it must have characters, and only those that XML 1.0 allows.
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

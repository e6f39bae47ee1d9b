//! The limit of messages in flight. A long poll beyond it comes back empty, without an error, so the consumer reads the
//! queue's counts after some empty polls.

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use polybus_core::{Error, ErrorKind, Source};

use crate::{consume::consumer::QueueConsumer, error, message::limits::MAX_IN_FLIGHT, topology::queues};

/// A consumer with unsettled messages checks after the third empty poll in a row and after every twelfth from there on,
/// which is once a minute at the default `poll`. A consumer without any checks once in 120: its queue is most likely
/// empty.
const FIRST: u32 = 3;
const INTERVAL: u32 = 12;
const INTERVAL_IF_IDLE: u32 = 120;

/// Whether to check after so many empty polls in a row.
pub(crate) fn is_due(empty_polls: u32, has_unsettled: bool) -> bool {
    let interval = if has_unsettled { INTERVAL } else { INTERVAL_IF_IDLE };
    empty_polls % interval == if has_unsettled { FIRST } else { INTERVAL }
}

/// Reads the counts: a `Throttled` error if messages wait and so many are in flight that SQS hands out none.
pub(crate) async fn check(consumer: &QueueConsumer, source: &Source) -> Option<Error> {
    let found = match queues::find(&consumer.clients, &consumer.queue, "receive").await {
        Ok(found) => found?,
        Err(e) => {
            // A consumer that may not read the counts works without them.
            tracing::debug!(%source, error = %e, "the number of messages in flight is not known");
            return None;
        }
    };
    let waiting = found.number(&Attribute::ApproximateNumberOfMessages)?;
    let in_flight = found.number(&Attribute::ApproximateNumberOfMessagesNotVisible)?;
    // Both counts are approximate, so 99 % of the limit counts as reached.
    if waiting == 0 || in_flight < MAX_IN_FLIGHT - MAX_IN_FLIGHT / 100 {
        return None;
    }
    let text = format!("{waiting} messages wait and {in_flight} are in flight: {}", error::IN_FLIGHT);
    let e = error::new(ErrorKind::Throttled, "receive", text).with_context("quota", error::QUOTA).safe();
    Some(consumer.clients.located(e).with_context("source", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checking_costs_little() {
        let checks = |held| (0..2400).filter(|n| is_due(*n, held)).collect::<Vec<_>>();
        assert_eq!((checks(true).len(), checks(true)[0]), (200, 3));
        assert_eq!((checks(false).len(), checks(false)[0]), (20, 12));
    }
}

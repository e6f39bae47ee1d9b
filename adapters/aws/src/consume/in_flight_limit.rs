//! The limit of messages in flight. A long poll beyond it comes back empty, without an error, so somebody has to look why.

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use polybus_core::{Error, ErrorKind, Source};

use crate::{consume::consumer::Book, error, message::limits::MAX_IN_FLIGHT, topology::queues};

/// Of the answers without a message in a row, those at which to look: of a consumer that holds something the third, and then every
/// twelfth, once a minute at the default `poll`. Who holds nothing rather finds an empty queue.
const FIRST: u32 = 3;
const EVERY: u32 = 12;
const EVERY_IF_IDLE: u32 = 120;

/// Whether it is time to look.
pub(crate) fn is_due(empty: u32, holds: bool) -> bool {
    let every = if holds { EVERY } else { EVERY_IF_IDLE };
    empty % every == if holds { FIRST } else { EVERY }
}

/// An error if messages wait and so many are in flight that SQS hands out none.
pub(crate) async fn full(book: &Book, source: &Source) -> Option<Error> {
    let found = match queues::find(&book.clients, &book.queue, "receive").await {
        Ok(found) => found?,
        Err(e) => {
            // A consumer without the right to look does without.
            tracing::debug!(%source, error = %e, "the number of messages in flight is not known");
            return None;
        }
    };
    let waiting = found.number(&Attribute::ApproximateNumberOfMessages)?;
    let flying = found.number(&Attribute::ApproximateNumberOfMessagesNotVisible)?;
    // Both counts are approximate.
    if waiting == 0 || flying < MAX_IN_FLIGHT - MAX_IN_FLIGHT / 100 {
        return None;
    }
    let text = format!("{waiting} messages wait and {flying} are in flight: {}", error::IN_FLIGHT);
    let e = error::new(ErrorKind::Throttled, "receive", text).with_context("quota", error::QUOTA).safe();
    Some(book.clients.located(e).with_context("source", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_costs_little() {
        let looks = |holds| (0..2400).filter(|n| is_due(*n, holds)).collect::<Vec<_>>();
        assert_eq!((looks(true).len(), looks(true)[0]), (200, 3));
        assert_eq!((looks(false).len(), looks(false)[0]), (20, 12));
    }
}

//! What the logs of all databases share.

use bytes::Bytes;
use polybus_core::{Error, ErrorKind};
use polybus_patterns::store::{
    AppendOutcome, Checkpoint, LogPage, StoppedSubscription, StoredEvent, StoredSnapshot, StoredSubscription,
    StreamAppend, StreamExpectation, StreamState,
};

pub(crate) const APPEND: &str = "log.append";

/// A row of an event: position, stream, version, head, payload, time.
pub(crate) type EventRow = (i64, String, i64, String, Vec<u8>, i64);

pub(crate) fn event(row: EventRow) -> StoredEvent {
    let (position, stream, version, head, data, at) = row;
    StoredEvent { position, stream, version, head, data: Bytes::from(data), at }
}

/// Schema, version, state.
pub(crate) type SnapshotRow = (i64, i64, Vec<u8>);

pub(crate) fn snapshot((schema, version, data): SnapshotRow) -> StoredSnapshot {
    StoredSnapshot { schema: u32::try_from(schema).unwrap_or_default(), version, data: Bytes::from(data) }
}

/// A page of rows, of which one more than the limit was asked for.
pub(crate) fn page(rows: Vec<EventRow>, limit: u32, held_back: i64) -> LogPage {
    let mut events: Vec<StoredEvent> = rows.into_iter().map(event).collect();
    let has_more = events.len() > limit as usize;
    events.truncate(limit as usize);
    LogPage { events, has_more, held_back }
}

/// Name, position, token, and since when it stands still, why, and at which event.
pub(crate) type SubscriptionRow = (String, i64, i64, Option<i64>, Option<String>, Option<i64>);

pub(crate) fn subscription(row: SubscriptionRow) -> StoredSubscription {
    let (name, position, token, since, why, at) = row;
    let stopped = since.map(|since| StoppedSubscription { at, why: why.unwrap_or_default(), since });
    StoredSubscription::new(name, Checkpoint { position, token }, stopped)
}

/// As a column holds it.
pub(crate) fn state_number(state: StreamState) -> i64 {
    match state {
        StreamState::Open => 0,
        StreamState::Archived => 1,
        StreamState::Deleted => 2,
    }
}

pub(crate) fn state(stored: i64) -> StreamState {
    match stored {
        0 => StreamState::Open,
        1 => StreamState::Archived,
        _ => StreamState::Deleted,
    }
}

/// Whether a stream is what was expected; `found` is its version, where it was ever appended to.
fn is_as_expected(found: Option<(i64, StreamState)>, expect: StreamExpectation) -> bool {
    match (found, expect) {
        (Some((_, StreamState::Archived | StreamState::Deleted)), _) => false,
        (_, StreamExpectation::Any) | (None, StreamExpectation::NoStream) => true,
        (Some((version, _)), StreamExpectation::Version(wanted)) => version == wanted,
        (found, StreamExpectation::Exists) => found.is_some(),
        (Some(_), StreamExpectation::NoStream) | (None, StreamExpectation::Version(_)) => false,
    }
}

/// The events that a stream has already, in the order of their versions, as an answer to those that were to be
/// appended: `None` if they are not the same ones at the place that was expected.
fn repeated(found: &[(String, i64, i64)], ids: &[&str], expect: StreamExpectation) -> Option<AppendOutcome> {
    let first_version = found.first()?.1;
    let same = found.len() == ids.len()
        && found.iter().zip(ids).all(|((found, ..), id)| found == id)
        && found.iter().zip(first_version..).all(|((_, version, _), wanted)| *version == wanted);
    let in_place = match expect {
        StreamExpectation::Any | StreamExpectation::Exists => true,
        StreamExpectation::NoStream => first_version == 1,
        StreamExpectation::Version(version) => first_version == version + 1,
    };
    (same && in_place)
        .then(|| AppendOutcome::Repeated { first_version, positions: found.iter().map(|event| event.2).collect() })
}

/// What becomes of an append where all who append wait for each other: `stream` is how it stands, `found` what it has of
/// these ids, and `head` the last position, which moves on.
pub(crate) fn outcome(
    append: &StreamAppend,
    ids: &[&str],
    stream: Option<(i64, StreamState)>,
    found: &[(String, i64, i64)],
    head: &mut i64,
) -> AppendOutcome {
    if let Some(repeated) = repeated(found, ids, append.expect) {
        return repeated;
    }
    let (version, state) = stream.unwrap_or_default();
    if !found.is_empty() || !is_as_expected(stream, append.expect) {
        return AppendOutcome::Conflict { version, state };
    }
    let positions: Vec<i64> = (*head + 1..).take(ids.len()).collect();
    *head += ids.len() as i64;
    AppendOutcome::Appended { first_version: version + 1, positions }
}

/// The error of a transaction that reads from a snapshot in which the stream looked otherwise.
pub(crate) fn changed_since(error: sqlx::Error, system: &'static str) -> Error {
    let text = "the stream was changed after the transaction's snapshot: read it again in a new transaction";
    Error::new(ErrorKind::Conflict, text).of_driver(system, APPEND).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_expected_may_be_appended_to() {
        use StreamExpectation::{Any, Exists, NoStream, Version};
        let (open, archived) = (Some((3, StreamState::Open)), Some((3, StreamState::Archived)));
        for (found, expect, wanted) in [
            (None, Any, true),
            (None, NoStream, true),
            (None, Exists, false),
            (None, Version(3), false),
            (open, Any, true),
            (open, NoStream, false),
            (open, Exists, true),
            (open, Version(3), true),
            (open, Version(2), false),
            (archived, Any, false),
            (archived, Version(3), false),
        ] {
            assert_eq!(is_as_expected(found, expect), wanted, "{found:?} {expect:?}");
        }
    }

    #[test]
    fn a_repeat_is_the_same_events_at_the_same_place() {
        let found: Vec<_> = [("a", 4, 10), ("b", 5, 12)].map(|(id, version, at)| (id.to_owned(), version, at)).into();
        let is = |ids: &[&str], expect| repeated(&found, ids, expect).is_some();
        assert!(is(&["a", "b"], StreamExpectation::Version(3)) && is(&["a", "b"], StreamExpectation::Any));
        assert!(!is(&["a", "b"], StreamExpectation::Version(4)) && !is(&["a", "b"], StreamExpectation::NoStream));
        assert!(!is(&["b", "a"], StreamExpectation::Any) && !is(&["a", "b", "c"], StreamExpectation::Any));
        let apart = [("a".to_owned(), 4, 10), ("b".to_owned(), 6, 12)];
        assert!(repeated(&apart, &["a", "b"], StreamExpectation::Any).is_none());
    }
}

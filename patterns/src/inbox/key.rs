//! What tells a message from others.

use polybus_core::Envelope;

use super::KeyFn;
use crate::{hash::hash_of_parts, store::MarkKey};

/// The mark of a message; `None` if nothing tells it from others.
pub(super) fn mark_key(consumer: i32, message: &Envelope, key_by: Option<&KeyFn>) -> Option<MarkKey> {
    match key_by {
        // Messages that share a natural key have times of their own, so the time must not be a part of the mark.
        Some(key_by) => Some(MarkKey { consumer, hour: 0, key: hash_of_parts(&["key", &key_by(message)?]) }),
        None if message.id_is_made_up() => None,
        None => {
            let hour = message.time.map_or(0, |time| time.unix_timestamp().div_euclid(3600));
            let hour = hour.clamp(0, i64::from(i32::MAX)) as i32;
            Some(MarkKey { consumer, hour, key: hash_of_parts(&["id", &message.source, &message.id]) })
        }
    }
}

#[cfg(test)]
mod tests {
    use polybus_core::{
        message::cloudevents::{WireMessage, decode},
        time::OffsetDateTime,
    };

    use super::*;

    #[test]
    fn copies_share_a_mark_and_others_do_not() {
        let order = Envelope::new("order.placed", "{}").id("7").source("/shop").time(OffsetDateTime::UNIX_EPOCH);
        let key = |message: &Envelope| mark_key(1, message, None).map(|mark| mark.key);
        assert_eq!(key(&order), key(&order.clone().header("retried", "yes")));
        for other in ["/sho", "/shop2", "/Shop", "/shop "] {
            assert_ne!(key(&order), key(&order.clone().source(other)), "{other}");
        }
        // The parts are told apart, not only their text.
        assert_ne!(key(&order.clone().source("ab").id("c")), key(&order.clone().source("a").id("bc")));
        let later = order.clone().time(OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_secs(7200));
        assert_eq!(mark_key(1, &later, None).map(|mark| mark.hour), Some(2));
        let before = order.time(OffsetDateTime::UNIX_EPOCH - std::time::Duration::from_secs(1));
        assert_eq!(mark_key(1, &before, None).map(|mark| mark.hour), Some(0));
    }

    #[test]
    fn a_made_up_id_marks_nothing_and_a_natural_key_does() {
        let tick = decode(WireMessage { body: "tick".into(), ..WireMessage::default() }).envelope;
        assert_eq!(mark_key(1, &tick, None), None);
        let by_body = |message: &Envelope| std::str::from_utf8(&message.data).ok().map(str::to_owned);
        let mark = mark_key(1, &tick, Some(&by_body));
        assert!(mark.is_some_and(|mark| mark.hour == 0));
        assert_eq!(mark_key(1, &tick, Some(&|_: &Envelope| None)), None);
    }
}

//! Copies as large as the broker takes them. Headers that do not fit into a frame travel inside the body. Where that is
//! not enough, a dead letter or a redriven message loses what polybus adds to it: the move counts for more than what it
//! tells.

use std::time::Duration;

use bytes::Bytes;
use lapin::types::FieldTable;
use polybus_core::{Result, message::cloudevents::CopyState};
use time::OffsetDateTime;

use crate::message::{
    envelope::{self, AmqpMessage, ContentHeader, MessageCopy},
    packed_copies,
};

/// What a copy is made for.
#[derive(Clone, Copy)]
pub(crate) struct CopyRequest<'a> {
    /// The login of the connection that publishes it.
    pub(crate) user: &'a str,
    /// The largest frame in bytes. A content header that is larger would close the connection, which all publishers
    /// share.
    pub(crate) frame_max: usize,
    /// On ordered sources: the slot of the key. Without it the broker finds no queue, so every copy has it.
    pub(crate) slot: Option<u8>,
    /// Whether it goes straight to its queue. Only then it has a native expiration. A delay queue or the dead letters
    /// would drop the copy when it ends. There core checks the end that the copy carries in a header.
    pub(crate) live: bool,
    /// Whether it moves the message for good, and so may lose what polybus adds.
    pub(crate) moves: bool,
}

impl CopyRequest<'_> {
    fn copy(&self, native: &AmqpMessage, carried: &CopyState) -> MessageCopy {
        let mut copy = envelope::copy_of(native, carried, self.user);
        if let Some(slot) = self.slot {
            envelope::put_slot(&mut copy.added, slot);
        }
        if let Some(ends) = copy.ends.filter(|_| self.live) {
            copy.head.set_expiration(Duration::try_from(ends - OffsetDateTime::now_utc()).unwrap_or_default());
        }
        copy
    }

    fn fits(&self, head: &ContentHeader, body: &Bytes) -> Result<()> {
        // Bodies have no limit here: the original's was taken by the broker.
        head.check_sizes(body.len(), usize::MAX, self.frame_max).map(|_| ())
    }

    /// All of a copy as headers, or packed where these do not fit.
    fn whole(&self, copy: MessageCopy, body: &Bytes) -> Result<(ContentHeader, Bytes)> {
        match self.plain(&copy, body) {
            Ok(plain) => Ok(plain),
            Err(e) => {
                let (head, body) = packed_copies::pack(copy.head, copy.added, body).ok_or(e)?;
                self.fits(&head, &body).map(|()| (head, body))
            }
        }
    }

    fn plain(&self, copy: &MessageCopy, body: &Bytes) -> Result<(ContentHeader, Bytes)> {
        let mut head = copy.head.clone();
        head.add_headers(&copy.added);
        self.fits(&head, body).map(|()| (head, body.clone()))
    }

    /// The properties, headers and body of a copy, with as much of `carried` as fits: everything, or everything but the
    /// detail, or nothing. Only a copy that moves its message may lose any of it.
    pub(crate) fn encode(&self, native: &AmqpMessage, carried: &CopyState) -> Result<(ContentHeader, Bytes)> {
        let refused = match self.whole(self.copy(native, carried), &native.body) {
            Err(e) if self.moves => e,
            done => return done,
        };
        if let Some(letter) = carried.dead_letter.clone() {
            let mut without = carried.clone();
            without.dead_letter = Some(letter).map(|mut letter| {
                letter.detail = None;
                letter
            });
            if let Ok(made) = self.whole(self.copy(native, &without), &native.body) {
                return Ok(made);
            }
        }
        let bare = self.whole(self.copy(native, &CopyState::default()), &native.body);
        bare.or_else(|_| self.encode_bare(native)).map_err(|_| refused)
    }

    /// A copy whose body is the original's, so that it is no larger than what the broker has. It carries nothing, and
    /// tells its routing key and its time to live only where there is room for both.
    pub(crate) fn encode_bare(&self, native: &AmqpMessage) -> Result<(ContentHeader, Bytes)> {
        let mut copy = self.copy(native, &CopyState::default());
        self.plain(&copy, &native.body).or_else(|_| {
            copy.added = FieldTable::default();
            if let Some(slot) = self.slot {
                envelope::put_slot(&mut copy.added, slot);
            }
            self.plain(&copy, &native.body)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use lapin::{BasicProperties, types::AMQPValue};
    use polybus_core::{ErrorKind, driver::DeadLetter};

    use super::*;
    use crate::message::envelope::{SLOT, header};

    /// A message whose headers take about so many bytes, and whose native properties are as long as they can be.
    fn foreign(headers: usize) -> AmqpMessage {
        let mut table = FieldTable::default();
        table.insert("filler".into(), AMQPValue::LongString("x".repeat(headers).into()));
        let long = || "y".repeat(255).into();
        let properties = BasicProperties::default()
            .with_content_type(long())
            .with_content_encoding(long())
            .with_correlation_id(long())
            .with_message_id(long())
            .with_app_id(long())
            .with_expiration("600000".into())
            .with_headers(table);
        AmqpMessage {
            properties,
            body: "body".into(),
            exchange: "theirs".into(),
            routing_key: "z".repeat(255).into(),
            arrived: OffsetDateTime::now_utc(),
        }
    }

    fn letter(reason: usize, detail: usize) -> CopyState {
        let mut letter = DeadLetter::default();
        letter.reason = Some("r".repeat(reason).into());
        letter.detail = Some("d".repeat(detail).into());
        let mut carried = CopyState::new(1, 0);
        carried.dead_letter = Some(Box::new(letter));
        carried
    }

    fn request() -> CopyRequest<'static> {
        // The least that AMQP allows.
        CopyRequest { user: "us", frame_max: 4096, slot: Some(7), live: false, moves: true }
    }

    fn told(head: ContentHeader) -> [bool; 4] {
        let properties = head.into_properties();
        ["polybus-dead-detail", "polybus-dead-reason", "polybus-expires", SLOT]
            .map(|name| header(&properties, name).is_some())
    }

    #[test]
    fn what_does_not_fit_costs_a_move_its_detail_and_then_its_reason() {
        for (case, headers, carried, kept, packed) in [
            ("fits", 100, letter(9, 100), [true, true, true, true], false),
            ("fits packed", 3900, letter(9, 100), [true, true, true, true], true),
            ("no detail", 3900, letter(9, 4000), [false, true, true, true], true),
            ("no reason", 3900, letter(4000, 9), [false, false, true, true], true),
            ("no reason, and no need to pack", 100, letter(4000, 9), [false, false, true, true], false),
        ] {
            let original = foreign(headers);
            let (head, body) = request().encode(&original, &carried).unwrap_or_else(|e| panic!("{case}: {e}"));
            request().fits(&head, &body).unwrap();
            assert_eq!((told(head), body.len() > original.body.len()), (kept, packed), "{case}");
        }
    }

    #[test]
    fn what_comes_again_loses_nothing() {
        let retry = CopyRequest { moves: false, ..request() };
        let e = retry.encode(&foreign(100), &letter(4000, 9)).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::PayloadTooLarge);
    }

    #[test]
    fn a_bare_copy_has_the_body_of_its_original() {
        for (headers, kept) in [(100, [false, false, true, true]), (2400, [false, false, false, true])] {
            let original = foreign(headers);
            let (head, body) = request().encode_bare(&original).unwrap();
            assert_eq!((told(head), body), (kept, original.body), "{headers} bytes of headers");
        }
    }
}

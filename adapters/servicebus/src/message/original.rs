//! What is kept of a received message while it is not settled, and the exact copies that are made of it.

use std::time::Duration;

use fe2o3_amqp::types::{
    messaging::{ApplicationProperties, Batch, Body, Data, Priority},
    primitives::{Binary, SimpleValue},
};
use polybus_core::{
    Envelope, ErrorKind, Result,
    message::cloudevents::{self, CopyState},
};
use tokio::time::Instant;

use crate::{
    error,
    message::{
        annotations::{self, BrokerAnnotations},
        envelope::{self, CopyFields, DETAIL, ORIGINAL_ID, ORIGINAL_TIME, OtherSections, REASON, SendOptions, TARGET},
        native_message::NativeMessage,
    },
};

/// What is kept of a message while it is not settled, beside its envelope.
pub(crate) struct OriginalMessage {
    /// How often the broker has handed it out before.
    pub(crate) delivery_count: u32,
    /// Its sequence number in the entity that it was received from; 0 if the broker does not tell.
    pub(crate) sequence: i64,
    /// What polybus sent along with it.
    pub(crate) carried: CopyState,
    /// What the broker's annotations tell: the end of the lock that it came under, and its age.
    pub(crate) broker: BrokerAnnotations,
    /// The sections as they came. `None` for a message exactly as polybus writes it, whose envelope says all of it.
    pub(crate) native: Option<NativeMessage>,
    /// Whether it is in the session of its key; told by `native` where there is one.
    pub(super) in_session: bool,
    pub(super) time_to_live: Option<TimeToLive>,
    /// Whether nothing of the message could be read, so that no copy of it can be made.
    pub(super) unreadable: bool,
}

/// How long the sender lets a message live.
#[derive(Clone, Copy)]
pub(super) struct TimeToLive {
    pub(super) until: Instant,
    /// All of it, from when the broker enqueued the message.
    pub(super) whole: time::Duration,
}

/// What one copy is made for.
#[derive(Clone, Copy)]
pub(crate) struct CopyRequest<'a> {
    /// The copy's message id.
    pub(crate) id: &'a str,
    /// Whether it is moved out of the dead letters.
    pub(crate) redrive: bool,
    /// Whether it goes without what polybus adds, for which there is no room.
    pub(crate) bare: bool,
    /// The envelope that replaces the message, of whose sections nothing is copied then.
    pub(crate) replacement: Option<&'a Envelope>,
}

impl OriginalMessage {
    /// Whether the time to live that its sender gave it ends within `delay`.
    pub(crate) fn expires_within(&self, delay: Duration) -> bool {
        self.time_to_live.is_some_and(|life| life.until.saturating_duration_since(Instant::now()) <= delay)
    }

    /// The encoded copy of a message: as it came, without what the broker or an earlier copy added, and with `carried`.
    /// `envelope` is the message's own, also where another replaces it.
    ///
    /// `Malformed` for one that could not be read: a copy would be an empty message in its place.
    pub(crate) fn copy(
        &self,
        envelope: &Envelope,
        carried: &CopyState,
        options: SendOptions<'_>,
        copy: CopyRequest<'_>,
    ) -> Result<Vec<u8>> {
        if self.unreadable && copy.replacement.is_none() {
            let text = "a message that cannot be read cannot be copied: move it with the broker's own tools, or acknowledge it";
            return Err(error::new(ErrorKind::Malformed, "settle", text));
        }
        let session = self.session_of_copy(envelope, copy, options.ordered);
        let session = session.as_deref();
        let nothing = CopyState::default();
        let carried = if copy.bare { &nothing } else { carried };
        let left = self.time_to_live.map(|life| match copy.redrive {
            // Among dead letters the broker does not count: the time to live begins anew.
            true => life.whole,
            // `envelope::lifetime` takes the delay off.
            false => {
                let left = life.until.saturating_duration_since(Instant::now());
                time::Duration::try_from(left).unwrap_or(time::Duration::MAX)
            }
        });
        let fields = CopyFields { id: copy.id, session, left, redrive: copy.redrive };
        let options = SendOptions { copy: Some(fields), ..options };
        let Some(native) = self.native.as_ref().filter(|_| copy.replacement.is_none()) else {
            return envelope::encode(copy.replacement.unwrap_or(envelope), carried, &options);
        };
        let native = &*native.0;
        let mut application = ApplicationProperties::default();
        for (name, value) in native.application.iter().filter(|(name, _)| is_copied(name)) {
            if !(copy.bare && matches!(name.as_str(), ORIGINAL_ID | ORIGINAL_TIME)) {
                application.insert(name.clone(), value.clone());
            }
        }
        cloudevents::encode_carried(carried, &mut |name, value| {
            application.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
        });
        let mut properties = native.properties.clone();
        properties.absolute_expiry_time = None;
        let others = OtherSections {
            priority: native.header.as_ref().map_or_else(Priority::default, |header| header.priority),
            annotations: annotations::without_broker_keys(native.annotations.as_ref()),
            body: match &native.body {
                Body::Empty => Body::Data(Batch::new(vec![Data(Binary::from(native.bytes.to_vec()))])),
                other => other.clone(),
            },
            footer: native.footer.clone(),
        };
        envelope::encode_sections(properties, application, others, envelope, carried, &options)
    }

    /// The session that a copy goes to.
    pub(crate) fn session_of_copy(&self, envelope: &Envelope, copy: CopyRequest<'_>, ordered: bool) -> Option<String> {
        let own = self.session(envelope);
        match copy.replacement {
            Some(other) => envelope::replacement_session(other, envelope, own.as_deref(), ordered),
            None => own,
        }
    }

    /// The session that it came in.
    pub(crate) fn session(&self, envelope: &Envelope) -> Option<String> {
        match &self.native {
            Some(native) => native.properties().group_id.clone(),
            None => envelope.key.as_deref().filter(|_| self.in_session).map(envelope::session),
        }
    }

    /// The partition that it is in, which the broker writes into the sequence number.
    /// <https://learn.microsoft.com/azure/service-bus-messaging/message-sequencing>
    pub(crate) fn partition(&self) -> u16 {
        u16::try_from((self.sequence >> 48) & 0xffff).unwrap_or_default()
    }
}

/// Whether a copy keeps this application property.
fn is_copied(name: &str) -> bool {
    !cloudevents::is_carried(name) && !matches!(name, TARGET | REASON | DETAIL)
}

//! One event type: its Rust type, its upcasters, and the reading of its messages.

use std::{any::TypeId, collections::BTreeMap, sync::Arc};

use polybus_core::{
    Envelope, Error, ErrorKind, Event,
    message::{Codec, JsonCodec},
};
use serde_json::Value;

use super::{
    failure::{DecodeFailure, UpcastError},
    registry::Registry,
};
use crate::{catch_panic::caught_call, telemetry};

/// The attribute that holds the version on the wire. One that is no number stays among the extensions.
const SCHEMA_VERSION: &str = "schemaversion";

/// The text of the panic may quote the payload.
const READING_PANICKED: &str = "the code that reads the payload panicked";

pub(super) type Upcaster = Arc<dyn Fn(Value, &Envelope) -> Result<Value, UpcastError> + Send + Sync>;

/// Reads a message as the newest version, by JSON, and forgets it.
pub(super) type Trial = fn(&Registry, &Envelope) -> Result<(), DecodeFailure>;

/// The Rust type of an event type.
#[derive(Clone, Copy)]
pub(super) struct RustType {
    pub(super) id: TypeId,
    pub(super) name: &'static str,
    pub(super) version: u32,
    pub(super) trial: Trial,
}

impl RustType {
    pub(super) fn of<E: Event + 'static>() -> Self {
        let trial = |types: &Registry, message: &Envelope| types.decode::<E>(&JsonCodec, message).map(drop);
        Self { id: TypeId::of::<E>(), name: std::any::type_name::<E>(), version: E::VERSION, trial }
    }
}

/// What is known of one event type.
#[derive(Clone)]
pub(super) struct TypeEntry {
    pub(super) name: &'static str,
    /// `None` as long as only something about the type was said, such as an upcaster.
    pub(super) rust_type: Option<RustType>,
    /// The Rust type that something was said about.
    pub(super) meant: &'static str,
    pub(super) upcasters: BTreeMap<u32, Upcaster>,
    pub(super) oldest: u32,
}

impl TypeEntry {
    pub(super) fn new<E: Event>() -> Self {
        let meant = std::any::type_name::<E>();
        Self { name: E::TYPE, rust_type: None, meant, upcasters: BTreeMap::new(), oldest: 1 }
    }

    pub(super) fn is_of<E: 'static>(&self) -> bool {
        self.rust_type.is_some_and(|rust_type| rust_type.id == TypeId::of::<E>())
    }

    /// Reads a message of this type, of any version that is known.
    pub(super) fn decode<E: Event>(&self, codec: &impl Codec, message: &Envelope) -> Result<E, DecodeFailure> {
        let found = version(message)?;
        let event_type = || message.event_type.clone();
        if found > E::VERSION {
            return Err(DecodeFailure::UnknownVersion { event_type: event_type(), found, known: E::VERSION });
        }
        if found < self.oldest {
            return Err(DecodeFailure::RetiredVersion { event_type: event_type(), found, oldest: self.oldest });
        }
        if found == E::VERSION {
            return self.read(message, |message| message.decode_payload(codec));
        }
        let old = self.read(message, |message| message.decode_payload(codec))?;
        telemetry::types_upcast(self.name, found);
        let newest = self.upcast(old, found..E::VERSION, message)?;
        // It is the upcasters' work that does not fit, so the message may well be good.
        let event = caught_call(|| JsonCodec::decode_value(newest));
        let event = event.map(|event| event.map_err(|e| UpcastError::new(e.message())));
        event.unwrap_or_else(|_| Err(READING_PANICKED.into())).map_err(|error| DecodeFailure::UpcastFailed {
            event_type: event_type(),
            from: found,
            to: E::VERSION,
            error,
        })
    }

    /// Reads the payload. The code of the event or of the codec may panic at it, and would so at each attempt.
    fn read<T>(
        &self,
        message: &Envelope,
        decode: impl FnOnce(&Envelope) -> polybus_core::Result<T>,
    ) -> Result<T, DecodeFailure> {
        let read = caught_call(|| decode(message)).unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Malformed, READING_PANICKED).with_context("id", &message.id))
        });
        read.map_err(|e| DecodeFailure::Malformed(e.with_context("type", self.name)))
    }

    fn upcast(&self, mut json: Value, steps: std::ops::Range<u32>, message: &Envelope) -> Result<Value, DecodeFailure> {
        for from in steps {
            let upcast = self.upcasters.get(&from).ok_or_else(|| UpcastError::from("there is no upcaster"));
            json = upcast
                .and_then(|upcast| {
                    let run = caught_call(|| upcast(json, message));
                    // The text of the panic may quote the payload.
                    run.unwrap_or_else(|_| Err("the upcaster panicked".into()))
                })
                .map_err(|error| {
                    let event_type = message.event_type.clone();
                    DecodeFailure::UpcastFailed { event_type, from, to: from + 1, error }
                })?;
        }
        Ok(json)
    }
}

/// The schema version of a message. None is version 1, and so is 0: in other languages a number that was never set.
fn version(message: &Envelope) -> Result<u32, DecodeFailure> {
    match (message.schema_version, message.extensions.get(SCHEMA_VERSION)) {
        (Some(version), _) => Ok(version.max(1)),
        (None, None) => Ok(1),
        (None, Some(text)) => {
            Err(DecodeFailure::UnreadableVersion { event_type: message.event_type.clone(), found: text.into() })
        }
    }
}

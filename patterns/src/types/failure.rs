//! Why a message is no event that this program knows, and why an upcaster cannot make one newer.

use std::{borrow::Cow, fmt};

use polybus_core::{Error, HandlerError};

/// The reason of dead letters of a type that nothing here handles.
pub const UNKNOWN_TYPE_REASON: &str = "unknown-type";

/// The reason of dead letters of a schema version that is newer than this program.
pub const UNKNOWN_VERSION_REASON: &str = "unknown-version";

/// The reason of dead letters of a schema version that this program no longer reads.
pub const RETIRED_VERSION_REASON: &str = "retired-version";

/// The reason of dead letters whose payload is not what it should be.
pub const MALFORMED_REASON: &str = "malformed";

/// The reason of dead letters that an upcaster could not make newer.
pub const UPCAST_FAILED_REASON: &str = "upcast-failed";

/// The longest name of the wire that is shown, in bytes.
const MAX_SHOWN: usize = 128;

/// Why a message could not be read as an event. It quotes no payload.
///
/// ```
/// # use polybus_core::{Envelope, Event};
/// use polybus_patterns::types::{DecodeFailure, Types};
/// # #[derive(Debug, serde::Serialize, serde::Deserialize)]
/// # struct OrderPlaced { order: String }
/// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
///
/// let types = Types::new().event::<OrderPlaced>();
/// let newer = Envelope::new("order.placed", "{}").schema_version(2);
/// match types.decode::<OrderPlaced>(&newer) {
///     Err(DecodeFailure::UnknownVersion { found, known, .. }) => assert_eq!((found, known), (2, 1)),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DecodeFailure {
    /// The message's type is not registered.
    #[non_exhaustive]
    UnknownType {
        /// The type that the message is of.
        event_type: Box<str>,
    },
    /// The message's type is registered for another Rust type than the one that was asked for.
    #[non_exhaustive]
    OtherType {
        /// The type that the message is of.
        event_type: Box<str>,
        /// The type of the event that was asked for.
        expected: &'static str,
    },
    /// The message's schema version is newer than the code.
    #[non_exhaustive]
    UnknownVersion {
        /// The type that the message is of.
        event_type: Box<str>,
        /// The version that the message is of.
        found: u32,
        /// The newest version that the code knows.
        known: u32,
    },
    /// The message's schema version is no number, so it is none of ours.
    #[non_exhaustive]
    UnreadableVersion {
        /// The type that the message is of.
        event_type: Box<str>,
        /// What stands in the attribute `schemaversion`.
        found: Box<str>,
    },
    /// The message's schema version is older than the [oldest](super::Types::oldest) that the code still reads.
    #[non_exhaustive]
    RetiredVersion {
        /// The type that the message is of.
        event_type: Box<str>,
        /// The version that the message is of.
        found: u32,
        /// The oldest version that the code reads.
        oldest: u32,
    },
    /// The payload is not what it should be, or of a content type that the codec does not read.
    Malformed(Error),
    /// The message is of an older version, and could not be made newer.
    #[non_exhaustive]
    UpcastFailed {
        /// The type that the message is of.
        event_type: Box<str>,
        /// The version that the payload was at.
        from: u32,
        /// The version that it should have become.
        to: u32,
        /// What went wrong.
        error: UpcastError,
    },
}

impl DecodeFailure {
    /// The reason of the dead letter that it becomes, one word for machines, such as `unknown-version`.
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # use polybus_patterns::types::{Types, UNKNOWN_VERSION_REASON};
    /// # #[derive(Debug, serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # let types = Types::new().event::<OrderPlaced>();
    /// let newer = Envelope::new("order.placed", "{}").schema_version(2);
    /// let failure = types.decode::<OrderPlaced>(&newer).unwrap_err();
    /// assert_eq!(failure.reason(), UNKNOWN_VERSION_REASON);
    /// ```
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownType { .. } | Self::OtherType { .. } => UNKNOWN_TYPE_REASON,
            Self::UnknownVersion { .. } | Self::UnreadableVersion { .. } => UNKNOWN_VERSION_REASON,
            Self::RetiredVersion { .. } => RETIRED_VERSION_REASON,
            Self::Malformed(_) => MALFORMED_REASON,
            Self::UpcastFailed { .. } => UPCAST_FAILED_REASON,
        }
    }

    /// The failure of a handler whose message becomes a dead letter at once, with [`reason`](Self::reason). Use it in
    /// handlers that call [`Types::decode`](super::Types::decode) themselves: with `?` alone the message would be tried
    /// again.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// use polybus_core::{Handler, stateful};
    /// use polybus_patterns::types::{DecodeFailure, Types};
    /// # #[derive(Debug, serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # fn is_handler(_: impl Handler) {}
    ///
    /// let types = Types::new().event::<OrderPlaced>();
    /// let handler = stateful(types, async |types, _cx, msg| {
    ///     let placed: OrderPlaced = types.decode(&msg).map_err(DecodeFailure::dead_letter)?;
    ///     println!("{}", placed.order);
    ///     Ok(())
    /// });
    /// # is_handler(handler);
    /// ```
    pub fn dead_letter(self) -> HandlerError {
        HandlerError::dead_letter(self.reason(), self.to_string())
    }
}

/// A name as the wire has it, fit for a log: escaped, and not longer than a name should be.
pub(super) fn shown(name: &str) -> String {
    let cut = &name[..name.floor_char_boundary(MAX_SHOWN)];
    format!("\"{}{}\"", cut.escape_debug(), if cut.len() < name.len() { "…" } else { "" })
}

impl fmt::Display for DecodeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType { event_type } => {
                write!(f, "event type {} is not registered in this program", shown(event_type))
            }
            Self::OtherType { event_type, expected } => {
                write!(f, "event type {}: {expected:?} was asked for", shown(event_type))
            }
            Self::UnknownVersion { event_type, found, known } => write!(
                f,
                "schema version {found} of {}: this program knows up to {known}; upgrade it, then redrive",
                shown(event_type)
            ),
            Self::UnreadableVersion { event_type, found } => write!(
                f,
                "schema version {} of {}: it is no number of 32 bits, so this program knows no such version",
                shown(found),
                shown(event_type)
            ),
            Self::RetiredVersion { event_type, found, oldest } => write!(
                f,
                "schema version {found} of {}: this program reads {oldest} and newer; handle it with an older program",
                shown(event_type)
            ),
            Self::Malformed(error) => error.fmt(f),
            Self::UpcastFailed { event_type, from, to, error } => {
                write!(f, "{} could not be made version {to} from version {from}: {error}", shown(event_type))
            }
        }
    }
}

impl std::error::Error for DecodeFailure {}

/// Why an upcaster cannot make a payload newer.
///
/// Its text reaches logs and dead letters, and payloads may be private. So a text that is part of the program
/// (`&'static str`) becomes one by `?`, and an error of serde_json does without the values that it quotes. Any other
/// text goes through [`UpcastError::new`].
///
/// ```
/// use polybus_core::Envelope;
/// use polybus_patterns::types::UpcastError;
/// use serde_json::Value;
///
/// fn cents(mut json: Value, _: &Envelope) -> Result<Value, UpcastError> {
///     let euros = json["euros"].as_u64().ok_or("euros is no whole number")?;
///     json["cents"] = euros.checked_mul(100).ok_or("so many euros cannot be")?.into();
///     Ok(json)
/// }
/// assert_eq!(cents(serde_json::json!({"euros": 12}), &Envelope::new("order.placed", "")).unwrap()["cents"], 1200);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpcastError(Cow<'static, str>);

impl UpcastError {
    /// An error with this text, which must not quote the payload.
    ///
    /// ```
    /// use polybus_patterns::types::UpcastError;
    ///
    /// let error = UpcastError::new(format!("{} lines, and at most 7 are known", 9));
    /// assert_eq!(error.to_string(), "9 lines, and at most 7 are known");
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into().into())
    }
}

impl From<&'static str> for UpcastError {
    fn from(text: &'static str) -> Self {
        Self(text.into())
    }
}

/// Says of what kind the error is, and where: its text quotes values.
impl From<serde_json::Error> for UpcastError {
    fn from(error: serde_json::Error) -> Self {
        let what = match error.classify() {
            serde_json::error::Category::Data => "a part of the payload is not of the type that it should be",
            _ => "a part of the payload is no JSON",
        };
        what.into()
    }
}

impl fmt::Display for UpcastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UpcastError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_wire_are_escaped_and_cut() {
        assert_eq!(shown("order.placed"), "\"order.placed\"");
        assert_eq!(shown("a\nb\"c"), "\"a\\nb\\\"c\"");
        let long = shown(&"é".repeat(MAX_SHOWN));
        assert!(long.len() < MAX_SHOWN + 8 && long.ends_with("…\""), "{long}");
    }

    #[test]
    fn an_error_of_serde_json_loses_its_values() {
        for error in
            [serde_json::from_str::<u64>("\"hush\"").unwrap_err(), serde_json::from_str::<u64>("hush").unwrap_err()]
        {
            assert!(!UpcastError::from(error).to_string().contains("hush"));
        }
    }
}

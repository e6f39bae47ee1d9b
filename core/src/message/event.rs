//! Typed payloads: events as Rust types, and the codecs that write and read them.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::json_error::without_values;
use crate::{Envelope, Error, ErrorKind, Result, message::cloudevents::is_json};

/// A payload type with its event type and schema version.
///
/// ```
/// use polybus_core::Event;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced {
///     order: String,
///     /// Came later: messages of older producers do not have it.
///     #[serde(default)]
///     currency: String,
/// }
///
/// impl Event for OrderPlaced {
///     const TYPE: &'static str = "order.placed";
///     const VERSION: u32 = 1;
/// }
/// ```
pub trait Event: Serialize + DeserializeOwned {
    /// The event type it is published under, for example `order.placed`.
    const TYPE: &'static str;
    /// The version of its schema. Raise it only for a change that older readers would misread.
    const VERSION: u32;
}

/// Turns payloads into bytes and back, for the content types it knows.
///
/// [`JsonCodec`] is the default. A pair `(A, B)` of codecs is one as well: it writes with `A` and reads with whichever
/// knows the content type.
///
/// ```
/// use polybus_core::{Error, ErrorKind, Result, message::Codec};
/// use serde::{Serialize, de::DeserializeOwned};
///
/// /// Writes JSON with line breaks.
/// struct PrettyJson;
///
/// impl Codec for PrettyJson {
///     fn content_type(&self) -> &str {
///         "application/json"
///     }
///
///     fn reads(&self, content_type: Option<&str>) -> bool {
///         content_type == Some(self.content_type())
///     }
///
///     fn encode<T: Serialize>(&self, value: &T) -> Result<bytes::Bytes> {
///         let bytes = serde_json::to_vec_pretty(value);
///         bytes.map(Into::into).map_err(|e| Error::invalid("the payload cannot be written").with_source(e))
///     }
///
///     fn decode<T: DeserializeOwned>(&self, _content_type: Option<&str>, data: &[u8]) -> Result<T> {
///         serde_json::from_slice(data).map_err(|e| Error::new(ErrorKind::Malformed, "not JSON").with_source(e))
///     }
/// }
/// ```
pub trait Codec {
    /// The content type it writes.
    fn content_type(&self) -> &str;

    /// Whether it reads this content type. `None` stands for a message that names none.
    fn reads(&self, content_type: Option<&str>) -> bool;

    /// Writes a payload.
    ///
    /// # Errors
    /// `InvalidArgument` if the value cannot be written.
    fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes>;

    /// Reads a payload.
    ///
    /// # Errors
    /// `Malformed` if the bytes are no such payload. The error must not quote them, since payloads may be private.
    fn decode<T: DeserializeOwned>(&self, content_type: Option<&str>, data: &[u8]) -> Result<T>;
}

/// JSON. It writes `application/json`, and reads anything that ends in `/json` or `+json` and messages without a
/// content type.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonCodec;

impl JsonCodec {
    /// Reads a payload that is a JSON value already, for instance one that was made newer.
    ///
    /// # Errors
    /// `Malformed` if the value is no such payload. The error does not quote it.
    ///
    /// ```
    /// # use polybus_core::message::JsonCodec;
    /// let cents: u64 = JsonCodec::decode_value(1250.into())?;
    /// assert!(JsonCodec::decode_value::<u64>("secret".into()).is_err_and(|e| !format!("{e:?}").contains("secret")));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn decode_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T> {
        serde_json::from_value(value).map_err(|e| Error::new(ErrorKind::Malformed, without_values(&e)))
    }
}

impl Codec for JsonCodec {
    fn content_type(&self) -> &str {
        "application/json"
    }

    fn reads(&self, content_type: Option<&str>) -> bool {
        content_type.is_none_or(is_json)
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes> {
        let bytes = serde_json::to_vec(value);
        bytes.map(Bytes::from).map_err(|e| Error::invalid("the payload cannot be written as JSON").with_source(e))
    }

    fn decode<T: DeserializeOwned>(&self, _content_type: Option<&str>, data: &[u8]) -> Result<T> {
        serde_json::from_slice(data).map_err(|e| Error::new(ErrorKind::Malformed, without_values(&e)))
    }
}

/// Writes with the first codec, and reads with the first one that knows the content type. Nest pairs for more codecs.
impl<A: Codec, B: Codec> Codec for (A, B) {
    fn content_type(&self) -> &str {
        self.0.content_type()
    }

    fn reads(&self, content_type: Option<&str>) -> bool {
        self.0.reads(content_type) || self.1.reads(content_type)
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes> {
        self.0.encode(value)
    }

    fn decode<T: DeserializeOwned>(&self, content_type: Option<&str>, data: &[u8]) -> Result<T> {
        if self.0.reads(content_type) { self.0.decode(content_type, data) } else { self.1.decode(content_type, data) }
    }
}

impl Envelope {
    /// A new message with the event as JSON, its type and its schema version.
    ///
    /// # Errors
    /// `InvalidArgument` if the event cannot be written as JSON.
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { cents: u64 }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// let message = Envelope::event(&OrderPlaced { cents: 1250 })?;
    /// assert_eq!((&*message.event_type, message.schema_version), ("order.placed", Some(1)));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn event<E: Event>(event: &E) -> Result<Self> {
        Self::event_with(&JsonCodec, event)
    }

    /// A new message with the event as the codec writes it.
    ///
    /// # Errors
    /// Those of [`Codec::encode`].
    ///
    /// ```
    /// # use polybus_core::message::JsonCodec;
    /// # use polybus_core::{Envelope, Event};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { cents: u64 }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// let message = Envelope::event_with(&JsonCodec, &OrderPlaced { cents: 1250 })?;
    /// assert_eq!(message.content_type.as_deref(), Some("application/json"));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn event_with<E: Event>(codec: &impl Codec, event: &E) -> Result<Self> {
        let data = codec.encode(event).map_err(|e| e.with_context("type", E::TYPE))?;
        Ok(Self::new(E::TYPE, data).content_type(codec.content_type()).schema_version(E::VERSION))
    }

    /// The event, read as JSON: [`Envelope::decode_with`] a [`JsonCodec`].
    ///
    /// # Errors
    /// Those of [`Envelope::decode_with`].
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { cents: u64 }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// let message = Envelope::new("order.placed", r#"{"cents":1250}"#);
    /// assert_eq!(message.decode::<OrderPlaced>()?.cents, 1250);
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn decode<E: Event>(&self) -> Result<E> {
        self.decode_with(&JsonCodec)
    }

    /// The event, read by the codec.
    ///
    /// A message of an older schema version is read as it is, so give later fields a default. A message without a
    /// version is read too. A newer version is refused: versions are raised only where older readers would misread the
    /// payload, so upgrade consumers before producers.
    ///
    /// # Errors
    /// `Malformed` if the message is of another event type, of a newer schema version, of a content type that the codec
    /// does not read, or if the payload is not what it should be. The error quotes no payload.
    ///
    /// ```
    /// # use polybus_core::message::JsonCodec;
    /// # use polybus_core::{Envelope, Event};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { cents: u64 }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// let message = Envelope::new("order.placed", "{}").schema_version(2);
    /// assert!(message.decode_with::<OrderPlaced>(&JsonCodec).is_err(), "this program knows version 1");
    /// ```
    pub fn decode_with<E: Event>(&self, codec: &impl Codec) -> Result<E> {
        let refused = |text: String| Error::new(ErrorKind::Malformed, text).with_context("id", &self.id);
        if *self.event_type != *E::TYPE {
            return Err(refused(format!("event type {:?}: expected {:?}", self.event_type, E::TYPE)));
        }
        if let Some(version) = self.schema_version.filter(|v| *v > E::VERSION) {
            let (name, known) = (E::TYPE, E::VERSION);
            return Err(refused(format!(
                "schema version {version} of {name}: this program knows up to {known}; upgrade it before the producers"
            )));
        }
        self.decode_payload(codec).map_err(|e| e.with_context("type", E::TYPE))
    }

    /// The payload, read by the codec, whatever type and schema version the message is of. It is for code that has
    /// looked at them, such as a registry of types that knows older versions.
    ///
    /// # Errors
    /// `Malformed` if the message is of a content type that the codec does not read, or if the payload is not what it
    /// should be. The error quotes no payload.
    ///
    /// ```
    /// # use polybus_core::{Envelope, message::JsonCodec};
    /// let message = Envelope::new("order.placed", r#"{"cents":1250}"#).schema_version(7);
    /// let payload: std::collections::BTreeMap<String, u64> = message.decode_payload(&JsonCodec)?;
    /// assert_eq!(payload["cents"], 1250);
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn decode_payload<T: DeserializeOwned>(&self, codec: &impl Codec) -> Result<T> {
        let content_type = self.content_type.as_deref();
        if !codec.reads(content_type) {
            let name = content_type.map_or_else(|| "no content type".into(), |c| format!("content type {c:?}"));
            let text = format!("{name}: this codec reads {:?}", codec.content_type());
            return Err(Error::new(ErrorKind::Malformed, text).with_context("id", &self.id));
        }
        codec.decode(content_type, &self.data).map_err(|e| {
            let e = e.with_context("id", &self.id);
            // Another client may have compressed the payload, which the content type does not tell. Said only where
            // decoding fails, since some clients write `utf-8` there.
            match self.headers.get("native.content-encoding") {
                Some(encoding) => e.with_context("content-encoding", encoding.escape_debug()),
                None => e,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Placed {
        order: String,
        cents: u64,
        #[serde(default)]
        currency: String,
    }

    impl Event for Placed {
        const TYPE: &'static str = "order.placed";
        const VERSION: u32 = 2;
    }

    fn placed() -> Placed {
        Placed { order: "o-7".into(), cents: 1250, currency: "EUR".into() }
    }

    fn refusal(envelope: Envelope) -> String {
        let error = envelope.decode::<Placed>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
        error.to_string()
    }

    #[test]
    fn round_trip() {
        let envelope = Envelope::event(&placed()).unwrap();
        assert_eq!((&*envelope.event_type, envelope.schema_version), ("order.placed", Some(2)));
        assert_eq!(envelope.content_type.as_deref(), Some("application/json"));
        envelope.check().unwrap();
        assert_eq!(envelope.decode::<Placed>().unwrap(), placed());
    }

    #[test]
    fn json_by_any_name_and_older_or_no_version() {
        let old = Envelope::new("order.placed", r#"{"order":"o","cents":1}"#);
        for content_type in [None, Some("application/vnd.order+json"), Some("text/json; charset=utf-8")] {
            for version in [None, Some(0), Some(1), Some(2)] {
                let envelope = old.clone().edit(|e| {
                    e.content_type = content_type.map(Into::into);
                    e.schema_version = version;
                });
                assert_eq!(envelope.decode::<Placed>().unwrap().currency, "");
            }
        }
    }

    #[test]
    fn refusals_say_what_was_expected() {
        let good = Envelope::event(&placed()).unwrap();
        let text = refusal(good.clone().edit(|e| e.event_type = "order.paid".into()));
        assert!(text.contains("order.paid") && text.contains("order.placed"), "{text}");
        let text = refusal(good.clone().schema_version(3));
        assert!(text.contains("version 3") && text.contains("up to 2"), "{text}");
        let text = refusal(good.clone().content_type("application/cbor"));
        assert!(text.contains("application/cbor"), "{text}");
        let text = refusal(good.edit(|e| e.data = r#"{"order":"o"}"#.into()));
        assert!(text.contains("missing field `cents`"), "{text}");
    }

    #[test]
    fn a_payload_is_read_whatever_its_type_and_version() {
        let sent =
            Envelope::event(&placed()).unwrap().edit(|e| e.event_type = "order.changed".into()).schema_version(9);
        assert_eq!(sent.decode_payload::<Placed>(&JsonCodec).unwrap(), placed());
        let text = sent.content_type("application/cbor").decode_payload::<Placed>(&JsonCodec).unwrap_err().to_string();
        assert!(text.contains("application/cbor"), "{text}");
    }

    #[test]
    fn a_compressed_payload_is_told_as_one() {
        let sent = |data: &'static [u8]| Envelope::new("order.placed", data).header("native.content-encoding", "gzip");
        let error = sent(b"\x1f\x8b\x08\0").decode::<Placed>().unwrap_err();
        assert_eq!(error.context("content-encoding"), Some("gzip"));
        sent(br#"{"order":"o","cents":1}"#).decode::<Placed>().unwrap();
    }

    #[test]
    fn errors_quote_no_payload() {
        for data in [
            r#"{"order":"hush","cents":"hush"}"#,
            r#""hush""#,
            r#"{"order":"o","cents":1,"currency":{"hush":1}}"#,
            r#"{"order":"hush"#,
            "hush",
            "",
        ] {
            let error = Envelope::new("order.placed", data).decode::<Placed>().unwrap_err();
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
            let Ok(value) = serde_json::from_str::<serde_json::Value>(data) else { continue };
            let error = JsonCodec::decode_value::<Placed>(value).unwrap_err();
            assert!(error.kind() == ErrorKind::Malformed && !format!("{error:?}").contains("hush"), "{error:?}");
        }
    }

    /// JSON backwards: enough to be another format.
    struct Reversed;

    impl Codec for Reversed {
        fn content_type(&self) -> &str {
            "application/x-reversed"
        }

        fn reads(&self, content_type: Option<&str>) -> bool {
            content_type == Some(self.content_type())
        }

        fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes> {
            Ok(JsonCodec.encode(value)?.iter().rev().copied().collect())
        }

        fn decode<T: DeserializeOwned>(&self, _: Option<&str>, data: &[u8]) -> Result<T> {
            JsonCodec.decode(None, &data.iter().rev().copied().collect::<Vec<u8>>())
        }
    }

    #[test]
    fn the_content_type_chooses_the_codec() {
        let both = (JsonCodec, Reversed);
        let json = Envelope::event_with(&both, &placed()).unwrap();
        let reversed = Envelope::event_with(&Reversed, &placed()).unwrap();
        assert_eq!(json.content_type.as_deref(), Some("application/json"));
        assert_eq!(reversed.content_type.as_deref(), Some("application/x-reversed"));
        for envelope in [&json, &reversed] {
            assert_eq!(envelope.decode_with::<Placed>(&both).unwrap(), placed());
        }
        assert!(refusal(reversed).contains("application/x-reversed"));
    }
}

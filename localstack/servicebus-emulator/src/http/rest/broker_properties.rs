//! The header `BrokerProperties`: JSON with the properties that AMQP carries in sections of their own.

use serde_json::{Map, Value as Json, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use time::macros::format_description;

use crate::broker::{DeliveredMessage, MessageState};
use crate::codec::Value;
use crate::http::iso8601::{parse_duration, parse_time_span, parse_timestamp};
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

const SCHEDULED: &str = "x-opt-scheduled-enqueue-time";
const PARTITION: &str = "x-opt-partition-key";
const VIA_PARTITION: &str = "x-opt-via-partition-key";
/// `TimeSpan.MaxValue` in seconds: the time to live of what lives for ever.
const FOR_EVER_SECONDS: f64 = 922_337_203_685.477_5;

/// Applies the properties to a message. Properties that a sender cannot set are ignored.
pub(super) fn apply(properties: &Map<String, Json>, message: &mut Message) -> Result<(), Refusal> {
    let text = |name: &str| match properties.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        // Some clients write ids as numbers.
        Some(Json::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(invalid(name)),
    };
    let sections = &mut message.properties;
    sections.message_id = text("MessageId")?.map(Value::String);
    sections.correlation_id = text("CorrelationId")?.map(Value::String);
    sections.group_id = text("SessionId")?;
    sections.subject = text("Label")?;
    sections.reply_to = text("ReplyTo")?;
    sections.to = text("To")?;
    sections.reply_to_group_id = text("ReplyToSessionId")?;
    if let Some(content_type) = text("ContentType")? {
        sections.content_type = Some(content_type);
    }
    message.header.ttl_ms = time_to_live(properties)?;
    if let Some(at) = text("ScheduledEnqueueTimeUtc")? {
        let at = parse_time(&at).ok_or_else(|| invalid("ScheduledEnqueueTimeUtc"))?;
        message.set_annotation(SCHEDULED, Value::Timestamp(at));
    }
    for (name, annotation) in [("PartitionKey", PARTITION), ("ViaPartitionKey", VIA_PARTITION)] {
        if let Some(key) = text(name)? {
            message.set_annotation(annotation, Value::String(key));
        }
    }
    Ok(())
}

fn time_to_live(properties: &Map<String, Json>) -> Result<Option<u32>, Refusal> {
    let given = |name| properties.get(name).filter(|value| !value.is_null()).map(|value| (name, value));
    let Some((name, value)) = given("TimeToLive").or_else(|| given("TimeToLiveTimeSpan")) else { return Ok(None) };
    let millis = match value {
        #[allow(clippy::cast_possible_truncation, reason = "the cast saturates")]
        Json::Number(seconds) => seconds.as_f64().map(|seconds| Some((seconds * 1000.0).round() as i64)),
        Json::String(text) => parse_duration(text).or_else(|| parse_time_span(text)),
        _ => None,
    };
    match millis {
        // The AMQP header holds at most 49 days. A longer time to live is left to the entity's limit.
        Some(Some(millis)) if millis > 0 => Ok(u32::try_from(millis).ok()),
        Some(None) => Ok(None),
        _ => Err(invalid(name)),
    }
}

/// The properties of a delivered message.
pub(super) fn of(delivered: &DeliveredMessage) -> Map<String, Json> {
    let (message, mut all) = (&delivered.message, Map::new());
    let properties = &message.properties;
    let mut put = |name: &str, value: Option<Json>| {
        if let Some(value) = value {
            all.insert(name.to_owned(), value);
        }
    };
    let annotation = |name| message.annotation(name).and_then(Value::as_text).map(Json::from);
    put("ContentType", properties.content_type.clone().map(Json::from));
    put("CorrelationId", properties.correlation_id.as_ref().map(|id| Json::from(id_text(id))));
    put("DeadLetterSource", delivered.dead_letter_source.as_deref().map(Json::from));
    put("DeliveryCount", Some(json!(u64::from(delivered.delivery_count) + 1)));
    put("EnqueuedSequenceNumber", Some(json!(delivered.enqueued_sequence_number)));
    put("EnqueuedTimeUtc", Some(http_date(delivered.enqueued_at).into()));
    put("Label", properties.subject.clone().map(Json::from));
    put("LockToken", delivered.lock_token.map(|token| token.to_string().into()));
    put("LockedUntilUtc", delivered.locked_until.map(|until| http_date(until).into()));
    put("MessageId", properties.message_id.as_ref().map(|id| Json::from(id_text(id))));
    put("PartitionKey", annotation(PARTITION));
    put("ReplyTo", properties.reply_to.clone().map(Json::from));
    put("ReplyToSessionId", properties.reply_to_group_id.clone().map(Json::from));
    let scheduled = message.annotation(SCHEDULED).and_then(Value::as_i64);
    put("ScheduledEnqueueTimeUtc", scheduled.map(|at| http_date(at).into()));
    put("SequenceNumber", Some(json!(delivered.sequence_number)));
    put("SessionId", properties.group_id.clone().map(Json::from));
    put("State", Some(state(delivered.state).into()));
    put("TimeToLive", Some(message.header.ttl_ms.map_or(FOR_EVER_SECONDS, |ms| f64::from(ms) / 1000.0).into()));
    put("To", properties.to.clone().map(Json::from));
    all
}

fn state(state: MessageState) -> &'static str {
    match state {
        MessageState::Active => "Active",
        MessageState::Deferred => "Deferred",
        MessageState::Scheduled => "Scheduled",
    }
}

/// An id as text. AMQP knows four types of ids.
pub(super) fn id_text(id: &Value) -> String {
    match id {
        Value::String(text) | Value::Symbol(text) => text.clone(),
        Value::Uuid(bytes) => uuid::Uuid::from_bytes(*bytes).to_string(),
        Value::Ulong(number) => number.to_string(),
        Value::Binary(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        _ => String::new(),
    }
}

/// A time as HTTP writes it, to the second.
pub(super) fn http_date(ms: i64) -> String {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    let time = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).ok();
    time.and_then(|time| time.format(format).ok()).unwrap_or_default()
}

fn parse_time(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text.trim(), &Rfc2822).ok();
    time.map(|time| time.unix_timestamp() * 1000).or_else(|| parse_timestamp(text))
}

fn invalid(name: &str) -> Refusal {
    Refusal::new(Condition::InvalidField, format!("BrokerProperties has no value for '{name}' that can be read."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(json: Json) -> Result<Message, Refusal> {
        let mut message = Message::default();
        apply(json.as_object().unwrap(), &mut message).map(|()| message)
    }

    #[test]
    fn properties_become_sections() {
        let message = applied(json!({
            "MessageId": "m", "CorrelationId": 5, "SessionId": "s", "Label": "l", "ReplyTo": "r", "To": "t", "TimeToLive": 4.444,
            "ReplyToSessionId": "rs", "PartitionKey": "p", "ScheduledEnqueueTimeUtc": "Tue, 14 Nov 2023 22:13:20 GMT", "DeliveryCount": 9
        }))
        .unwrap();
        let properties = &message.properties;
        assert_eq!(properties.message_id, Some(Value::string("m")));
        assert_eq!(properties.correlation_id, Some(Value::string("5")));
        assert_eq!((properties.group_id.as_deref(), properties.subject.as_deref()), (Some("s"), Some("l")));
        assert_eq!((properties.reply_to.as_deref(), properties.to.as_deref()), (Some("r"), Some("t")));
        assert_eq!((message.header.ttl_ms, message.header.delivery_count), (Some(4444), 0));
        assert_eq!(message.annotation(PARTITION), Some(&Value::string("p")));
        assert_eq!(message.annotation(SCHEDULED), Some(&Value::Timestamp(1_700_000_000_000)));
    }

    #[test]
    fn a_long_time_to_live_is_for_ever() {
        assert_eq!(applied(json!({"TimeToLive": FOR_EVER_SECONDS})).unwrap().header.ttl_ms, None);
        assert_eq!(applied(json!({"TimeToLive": 1e300})).unwrap().header.ttl_ms, None);
        assert_eq!(applied(json!({"TimeToLive": "PT5S"})).unwrap().header.ttl_ms, Some(5000));
        let time_span = json!({"TimeToLive": null, "TimeToLiveTimeSpan": "1.00:00:05.5"});
        assert_eq!(applied(time_span).unwrap().header.ttl_ms, Some(86_405_500));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for json in [
            json!({"MessageId": {}}),
            json!({"TimeToLive": -1}),
            json!({"TimeToLive": 0}),
            json!({"TimeToLiveTimeSpan": "00:00"}),
            json!({"TimeToLive": "soon"}),
            json!({"TimeToLive": true}),
            json!({"ScheduledEnqueueTimeUtc": "soon"}),
        ] {
            let name = json.as_object().unwrap().keys().next().unwrap().clone();
            assert!(applied(json).expect_err(&name).description.contains(&name));
        }
    }

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(http_date(1_700_000_000_999), "Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(parse_time(&http_date(1_700_000_000_999)), Some(1_700_000_000_000));
    }
}

//! Evaluates expressions. As in SQL, null stands for unknown.

use std::cmp::Ordering;

use uuid::Uuid;

use super::{ActionStatement, Arithmetic, Comparison, Datum, PropertyRef, SqlExpression, SystemName};
use crate::broker::WITHOUT_ZONE;
use crate::codec::Value;
use crate::message::Message;

impl SqlExpression {
    /// True when the condition is true; false when it is false or unknown.
    pub(in super::super) fn is_true(&self, message: &Message) -> Result<bool, String> {
        Ok(self.truth(message)? == Some(true))
    }

    fn truth(&self, message: &Message) -> Result<Option<bool>, String> {
        match self.value(message)? {
            Datum::Bool(truth) => Ok(Some(truth)),
            Datum::Null => Ok(None),
            other => Err(format!("{} is no condition", other.kind())),
        }
    }

    fn value(&self, message: &Message) -> Result<Datum, String> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Property(property) => property.read(message),
            Self::NewId => Datum::Text(Uuid::new_v4().to_string()),
            Self::Negate(value) => match value.value(message)? {
                Datum::Integer(number) => Datum::Integer(number.checked_neg().ok_or("the number is out of range")?),
                Datum::Float(number) => Datum::Float(-number),
                Datum::Null => Datum::Null,
                other => return Err(format!("a sign cannot stand before {}", other.kind())),
            },
            Self::Arithmetic(operator, left, right) => {
                calculate(*operator, left.value(message)?, right.value(message)?)?
            }
            Self::Compare(comparison, left, right) => {
                truth_value(compare(*comparison, &left.value(message)?, &right.value(message)?))
            }
            Self::And(left, right) => match left.truth(message)? {
                Some(false) => Datum::Bool(false),
                left => match (left, right.truth(message)?) {
                    (_, Some(false)) => Datum::Bool(false),
                    (Some(true), Some(true)) => Datum::Bool(true),
                    _ => Datum::Null,
                },
            },
            Self::Or(left, right) => match left.truth(message)? {
                Some(true) => Datum::Bool(true),
                left => match (left, right.truth(message)?) {
                    (_, Some(true)) => Datum::Bool(true),
                    (Some(false), Some(false)) => Datum::Bool(false),
                    _ => Datum::Null,
                },
            },
            Self::Not(condition) => truth_value(condition.truth(message)?.map(|truth| !truth)),
            Self::IsNull(value) => Datum::Bool(value.value(message)? == Datum::Null),
            Self::In(value, items) => is_in(&value.value(message)?, items, message)?,
            Self::Like { value, pattern, escape } => {
                let escape = escape.as_ref().map(|escape| escape.value(message)).transpose()?;
                like(&value.value(message)?, &pattern.value(message)?, escape)?
            }
            Self::Exists(property) => Datum::Bool(property.read(message) != Datum::Null),
        })
    }
}

/// Applies an action to a message.
pub(in super::super) fn run(statements: &[ActionStatement], message: &mut Message) -> Result<(), String> {
    for statement in statements {
        match statement {
            ActionStatement::Set(property, value) => {
                let value = value.value(message)?;
                property.write(message, value)?;
            }
            ActionStatement::Remove(property) => property.write(message, Datum::Null)?,
        }
    }
    Ok(())
}

impl PropertyRef {
    fn read(&self, message: &Message) -> Datum {
        let properties = &message.properties;
        let text = |text: &Option<String>| text.clone().map_or(Datum::Null, Datum::Text);
        match self {
            Self::User(name) => {
                let found = message.application_property(name).or_else(|| {
                    let same = |(key, _): &&(String, Value)| key.eq_ignore_ascii_case(name);
                    message.application_properties.iter().find(same).map(|(_, value)| value)
                });
                found.map_or(Datum::Null, Datum::from)
            }
            Self::System(system) => match system {
                SystemName::ContentType => text(&properties.content_type),
                SystemName::Label => text(&properties.subject),
                SystemName::ReplyTo => text(&properties.reply_to),
                SystemName::ReplyToSessionId => text(&properties.reply_to_group_id),
                SystemName::SessionId => text(&properties.group_id),
                SystemName::To => text(&properties.to),
                SystemName::CorrelationId => id(&properties.correlation_id),
                SystemName::MessageId => id(&properties.message_id),
                SystemName::TimeToLive => message.header.ttl_ms.map_or(Datum::Null, |ms| Datum::Integer(i64::from(ms))),
                SystemName::PartitionKey => message.annotation("x-opt-partition-key").map_or(Datum::Null, Datum::from),
            },
        }
    }

    fn write(&self, message: &mut Message, value: Datum) -> Result<(), String> {
        let system = match self {
            Self::User(name) => {
                match value.into_value()? {
                    Some(value) => message.set_application_property(name, value),
                    None => message.application_properties.retain(|(key, _)| key != name),
                }
                return Ok(());
            }
            Self::System(system) => system,
        };
        let text = match value {
            Datum::Null => None,
            Datum::Text(text) => Some(text),
            other => return Err(format!("a system property cannot become {}", other.kind())),
        };
        let properties = &mut message.properties;
        match system {
            SystemName::ContentType => properties.content_type = text,
            SystemName::Label => properties.subject = text,
            SystemName::ReplyTo => properties.reply_to = text,
            SystemName::ReplyToSessionId => properties.reply_to_group_id = text,
            SystemName::SessionId => properties.group_id = text,
            SystemName::To => properties.to = text,
            SystemName::CorrelationId => properties.correlation_id = text.map(Value::String),
            SystemName::MessageId => properties.message_id = text.map(Value::String),
            SystemName::TimeToLive | SystemName::PartitionKey => {
                return Err("this system property cannot be changed".to_owned());
            }
        }
        Ok(())
    }
}

fn id(id: &Option<Value>) -> Datum {
    id.as_ref().map_or(Datum::Null, |id| Datum::Text(text_of_id(id)))
}

/// A message or correlation id as text, whatever its type.
pub(in super::super) fn text_of_id(id: &Value) -> String {
    match id {
        Value::String(text) | Value::Symbol(text) => text.clone(),
        Value::Ulong(number) => number.to_string(),
        Value::Uuid(bytes) => Uuid::from_bytes(*bytes).to_string(),
        Value::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}

/// Equality in correlation filters. Numbers are compared by value, whatever their width.
pub(in super::super) fn same_value(left: &Value, right: &Value) -> bool {
    left == right || compare(Comparison::Equal, &Datum::from(left), &Datum::from(right)) == Some(true)
}

impl From<&Value> for Datum {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Float(number) => Self::Float(f64::from(*number)),
            Value::Double(number) => Self::Float(*number),
            Value::String(text) | Value::Symbol(text) => Self::Text(text.clone()),
            Value::Char(c) => Self::Text(c.to_string()),
            Value::Uuid(bytes) => Self::Text(Uuid::from_bytes(*bytes).to_string()),
            Value::Described(described) if described.0.as_text() == Some(WITHOUT_ZONE) => Self::from(&described.1),
            other => other.as_i64().map_or(Self::Other, Self::Integer),
        }
    }
}

impl Datum {
    fn into_value(self) -> Result<Option<Value>, String> {
        Ok(match self {
            Self::Null => None,
            Self::Bool(truth) => Some(Value::Bool(truth)),
            Self::Integer(number) => Some(Value::Long(number)),
            Self::Float(number) => Some(Value::Double(number)),
            Self::Text(text) => Some(Value::String(text)),
            Self::Other => return Err("a value of this type cannot be copied".to_owned()),
        })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a truth value",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::Other => "a value of another type",
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }
}

fn truth_value(truth: Option<bool>) -> Datum {
    truth.map_or(Datum::Null, Datum::Bool)
}

/// Compares two values. The result is unknown when either is null or the two cannot be compared.
fn compare(comparison: Comparison, left: &Datum, right: &Datum) -> Option<bool> {
    let order = match (left, right) {
        (Datum::Integer(left), Datum::Integer(right)) => left.cmp(right),
        (Datum::Text(left), Datum::Text(right)) => left.cmp(right),
        (Datum::Bool(left), Datum::Bool(right)) => left.cmp(right),
        _ => left.float()?.partial_cmp(&right.float()?)?,
    };
    Some(match comparison {
        Comparison::Equal => order == Ordering::Equal,
        Comparison::NotEqual => order != Ordering::Equal,
        Comparison::Less => order == Ordering::Less,
        Comparison::LessOrEqual => order != Ordering::Greater,
        Comparison::Greater => order == Ordering::Greater,
        Comparison::GreaterOrEqual => order != Ordering::Less,
    })
}

fn calculate(operator: Arithmetic, left: Datum, right: Datum) -> Result<Datum, String> {
    match (&left, &right) {
        (Datum::Null, _) | (_, Datum::Null) => Ok(Datum::Null),
        (Datum::Text(left), Datum::Text(right)) if operator == Arithmetic::Add => {
            Ok(Datum::Text(format!("{left}{right}")))
        }
        (Datum::Integer(left), Datum::Integer(right)) => {
            let result = match operator {
                Arithmetic::Add => left.checked_add(*right),
                Arithmetic::Subtract => left.checked_sub(*right),
                Arithmetic::Multiply => left.checked_mul(*right),
                Arithmetic::Divide => left.checked_div(*right),
                Arithmetic::Remainder => left.checked_rem(*right),
            };
            result.map(Datum::Integer).ok_or_else(|| "a division by zero, or a result out of range".to_owned())
        }
        _ => match (left.float(), right.float()) {
            (Some(left), Some(right)) => Ok(Datum::Float(match operator {
                Arithmetic::Add => left + right,
                Arithmetic::Subtract => left - right,
                Arithmetic::Multiply => left * right,
                Arithmetic::Divide => left / right,
                Arithmetic::Remainder => left % right,
            })),
            _ => Err(format!("{} and {} cannot be calculated with", left.kind(), right.kind())),
        },
    }
}

fn is_in(value: &Datum, items: &[SqlExpression], message: &Message) -> Result<Datum, String> {
    let mut unknown = *value == Datum::Null;
    for item in items {
        match compare(Comparison::Equal, value, &item.value(message)?) {
            Some(true) => return Ok(Datum::Bool(true)),
            Some(false) => {}
            None => unknown = true,
        }
    }
    Ok(if unknown { Datum::Null } else { Datum::Bool(false) })
}

enum LikePart {
    Many,
    One,
    Char(char),
}

fn like(value: &Datum, pattern: &Datum, escape: Option<Datum>) -> Result<Datum, String> {
    let escape = match escape {
        None => None,
        Some(Datum::Text(text)) if text.chars().count() == 1 => text.chars().next(),
        Some(_) => return Err("what stands after ESCAPE must be one character".to_owned()),
    };
    match (value, pattern) {
        (Datum::Text(value), Datum::Text(pattern)) => Ok(Datum::Bool(fits(value, &pieces(pattern, escape)?))),
        (_, Datum::Text(_) | Datum::Null) => Ok(Datum::Null),
        (_, other) => Err(format!("{} is no pattern", other.kind())),
    }
}

fn pieces(pattern: &str, escape: Option<char>) -> Result<Vec<LikePart>, String> {
    let mut pieces = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            c if Some(c) == escape => LikePart::Char(chars.next().ok_or("the pattern ends in its escape character")?),
            '%' => LikePart::Many,
            '_' => LikePart::One,
            c => LikePart::Char(c),
        });
    }
    Ok(pieces)
}

/// Matches a LIKE pattern. After a mismatch it goes back to the last `%` only, because an earlier one cannot match
/// where a later one did not.
fn fits(value: &str, pieces: &[LikePart]) -> bool {
    let value: Vec<char> = value.chars().collect();
    let (mut at, mut piece, mut retry) = (0, 0, None);
    while at < value.len() {
        match pieces.get(piece) {
            Some(LikePart::Many) => {
                retry = Some((at, piece));
                piece += 1;
                continue;
            }
            Some(LikePart::One) => {}
            Some(LikePart::Char(c)) if *c == value[at] => {}
            _ => {
                let Some((from, many)) = retry else { return false };
                retry = Some((from + 1, many));
                (at, piece) = (from + 1, many + 1);
                continue;
            }
        }
        at += 1;
        piece += 1;
    }
    pieces[piece..].iter().all(|rest| matches!(rest, LikePart::Many))
}

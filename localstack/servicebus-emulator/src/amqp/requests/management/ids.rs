//! Sequence numbers and lock tokens in management requests.

use uuid::Uuid;

use super::missing;
use crate::codec::Value;
use crate::refusal::{Condition, Refusal};

/// Reads an array or list of lock tokens.
pub(crate) fn uuids(value: &Value) -> Result<Vec<Uuid>, Refusal> {
    each(value, |item| match item {
        Value::Uuid(bytes) => Some(Uuid::from_bytes(*bytes)),
        other => Uuid::parse_str(other.as_text()?).ok(),
    })
}

/// Reads the request's sequence numbers.
pub(crate) fn sequence_numbers(body: &Value) -> Result<Vec<i64>, Refusal> {
    each(body.get("sequence-numbers").ok_or_else(|| missing("sequence-numbers"))?, Value::as_i64)
}

pub(crate) fn array_of_longs(numbers: Vec<i64>) -> Value {
    Value::Array(numbers.into_iter().map(Value::Long).collect())
}

fn each<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>, Refusal> {
    let items = match value {
        Value::List(items) | Value::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let wrong = || Refusal::new(Condition::InvalidField, "An array has an element of a wrong type.");
    items.iter().map(|item| read(item).ok_or_else(wrong)).collect()
}

//! The SQL dialect of filters and actions: `lexer.rs` makes tokens, `parser.rs` an expression tree, `evaluate.rs` runs
//! it.

mod evaluate;
mod lexer;
mod parser;

#[cfg(test)]
mod tests;

pub(super) use evaluate::{run, same_value, text_of_id};
pub(super) use parser::{parse_action, parse_condition};

use crate::codec::Value;

/// An expression. A condition is an expression whose value is true, false or unknown (null).
#[derive(Clone, Debug, PartialEq)]
pub(super) enum SqlExpression {
    Literal(Datum),
    Property(PropertyRef),
    NewId,
    Negate(Box<SqlExpression>),
    Arithmetic(Arithmetic, Box<SqlExpression>, Box<SqlExpression>),
    Compare(Comparison, Box<SqlExpression>, Box<SqlExpression>),
    And(Box<SqlExpression>, Box<SqlExpression>),
    Or(Box<SqlExpression>, Box<SqlExpression>),
    Not(Box<SqlExpression>),
    IsNull(Box<SqlExpression>),
    In(Box<SqlExpression>, Vec<SqlExpression>),
    Like { value: Box<SqlExpression>, pattern: Box<SqlExpression>, escape: Option<Box<SqlExpression>> },
    Exists(PropertyRef),
}

/// A value while an expression is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Datum {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    /// A value of another type, which can only be tested for null.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A property of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PropertyRef {
    User(String),
    System(SystemName),
}

/// The system properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SystemName {
    ContentType,
    CorrelationId,
    Label,
    MessageId,
    ReplyTo,
    ReplyToSessionId,
    SessionId,
    To,
    TimeToLive,
    PartitionKey,
}

impl SystemName {
    fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "contenttype" => Self::ContentType,
            "correlationid" => Self::CorrelationId,
            "label" | "subject" => Self::Label,
            "messageid" => Self::MessageId,
            "replyto" => Self::ReplyTo,
            "replytosessionid" => Self::ReplyToSessionId,
            "sessionid" => Self::SessionId,
            "to" => Self::To,
            "timetolive" => Self::TimeToLive,
            "partitionkey" => Self::PartitionKey,
            _ => return None,
        })
    }
}

/// One step of an action.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ActionStatement {
    Set(PropertyRef, SqlExpression),
    Remove(PropertyRef),
}

/// The parameters an expression was given, by name without `@`.
pub(super) type SqlParameters = [(String, Value)];

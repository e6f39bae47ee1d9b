//! The SQL of filters and actions: the service's own small dialect.

mod evaluate;
mod lexer;
mod parser;

#[cfg(test)]
mod tests;

pub(super) use evaluate::{run, same_value, text_of_id};
pub(super) use parser::{parse_action, parse_condition};

use crate::value::Value;

/// An expression; a condition is one whose value is true, false or unknown (null).
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    Literal(Datum),
    Property(Property),
    NewId,
    Negate(Box<Expression>),
    Arithmetic(Arithmetic, Box<Expression>, Box<Expression>),
    Compare(Comparison, Box<Expression>, Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Not(Box<Expression>),
    IsNull(Box<Expression>),
    In(Box<Expression>, Vec<Expression>),
    Like { value: Box<Expression>, pattern: Box<Expression>, escape: Option<Box<Expression>> },
    Exists(Property),
}

/// A value while an expression is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Datum {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    /// Something that can only be tested for null.
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
pub(super) enum Property {
    User(String),
    System(System),
}

/// The system properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
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

impl System {
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
pub(super) enum Statement {
    Set(Property, Expression),
    Remove(Property),
}

/// The parameters an expression was given, by name without `@`.
pub(super) type Parameters = [(String, Value)];

//! The source filter with which a client asks for a message session, and the reply that names the session.

use crate::amqp::wire::Attach;
use crate::codec::Value;

const NAME: &str = "com.microsoft:session-filter";

/// The message session that the peer asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum RequestedSession {
    /// No session.
    None,
    /// The next session that is free.
    Next,
    Named(String),
}

pub(crate) fn wanted(attach: &Attach) -> RequestedSession {
    let Some((_, filter)) = attach.filters().iter().find(|(name, _)| name.as_text() == Some(NAME)) else {
        return RequestedSession::None;
    };
    // A filter should be a described value, but most clients send the value alone.
    let id = match filter {
        Value::Described(described) => &described.1,
        plain => plain,
    };
    id.as_text().map_or(RequestedSession::Next, |id| RequestedSession::Named(id.to_owned()))
}

/// The peer's source with the session's id in the filter, in the form that the peer used.
pub(crate) fn answered(source: &Value, id: &str) -> Value {
    let mut source = source.clone();
    if let Value::Described(described) = &mut source
        && let Value::List(fields) = &mut described.1
        && let Some(Value::Map(filters)) = fields.get_mut(7)
    {
        for (name, filter) in filters {
            if name.as_text() == Some(NAME) {
                match filter {
                    Value::Described(described) => described.1 = Value::string(id),
                    plain => *plain = Value::string(id),
                }
            }
        }
    }
    source
}

/// The attach properties with the end of the session's lock, in .NET's ticks.
pub(crate) fn locked_until(ms: i64) -> Value {
    const EPOCH_TICKS: i64 = 621_355_968_000_000_000;
    let ticks = ms.saturating_mul(10_000).saturating_add(EPOCH_TICKS);
    Value::Map(vec![(Value::symbol("com.microsoft:locked-until-utc"), Value::Long(ticks))])
}

//! The source filter with which a session is asked for, and the reply that tells which one it became.

use super::performative::Attach;
use crate::value::Value;

const NAME: &str = "com.microsoft:session-filter";

/// What the peer wants.
#[derive(Debug, PartialEq)]
pub(crate) enum Wanted {
    /// No session.
    None,
    /// Whichever is free next.
    Next,
    Named(String),
}

pub(crate) fn wanted(attach: &Attach) -> Wanted {
    let Some((_, filter)) = attach.filters().iter().find(|(name, _)| name.as_text() == Some(NAME)) else {
        return Wanted::None;
    };
    // Some clients describe it, as filters should be; most send the value alone.
    let id = match filter {
        Value::Described(described) => &described.1,
        plain => plain,
    };
    id.as_text().map_or(Wanted::Next, |id| Wanted::Named(id.to_owned()))
}

/// The source with the session's id in the filter, in the shape it was asked for.
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

/// The attach properties that tell until when a session is held, in .NET's ticks.
pub(crate) fn locked_until(ms: i64) -> Value {
    const EPOCH_TICKS: i64 = 621_355_968_000_000_000;
    let ticks = ms.saturating_mul(10_000).saturating_add(EPOCH_TICKS);
    Value::Map(vec![(Value::symbol("com.microsoft:locked-until-utc"), Value::Long(ticks))])
}

//! The body of a webhook.

use polybus_core::time::{OffsetDateTime, format_description::well_known::Rfc3339};
use serde_json::json;

use crate::monitor::Alert;

/// The alert as JSON.
pub(super) fn of(alert: &Alert) -> String {
    let Alert { name, kind, state, reminder, source, value, threshold, cause, since, at, backend, .. } = alert;
    // A time that RFC 3339 cannot write is of a clock that is off by millennia.
    let text = |time: &OffsetDateTime| time.format(&Rfc3339).ok();
    let data = json!({
        "alert": name,
        "rule": kind.as_str(),
        "source": source,
        "state": state.as_str(),
        "reminder": reminder,
        "value": value,
        "threshold": threshold,
        "cause": cause,
        "since": text(since),
        "backend": backend,
    });
    json!({ "type": format!("polybus.alert.{}", state.as_str()), "timestamp": text(at), "data": data }).to_string()
}

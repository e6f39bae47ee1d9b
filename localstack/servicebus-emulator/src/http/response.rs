//! Answers: with a body, without one, and refusals in the form that the SDKs read.

use bytes::Bytes;
use http_body_util::Full;
use hyper::ext::ReasonPhrase;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::xml::Xml;
use crate::refusal::{Condition, Refusal};

pub(super) type Answer = Response<Full<Bytes>>;

pub(super) const ENTRY: &str = "application/atom+xml;type=entry;charset=utf-8";
pub(super) const FEED: &str = "application/atom+xml;type=feed;charset=utf-8";
const XML: &str = "application/xml; charset=utf-8";
const JSON: &str = "application/json";

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// An answer with a body of this media type.
pub(super) fn with_body(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

pub(super) fn json(value: &serde_json::Value) -> Answer {
    with_body(StatusCode::OK, JSON, value.to_string())
}

/// A refusal as the service writes it.
pub(super) fn refused(refusal: &Refusal) -> Answer {
    let code = match refusal.condition {
        // `$management` answers 410. The REST documentation says 404, for no message with that lock token.
        Condition::MessageLockLost | Condition::SessionLockLost => 404,
        condition => condition.status(),
    };
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = failed(status, &format!("{}{}", sub_code(refusal.condition), refusal.description));
    // The service writes these texts into the status line, which SDKs show.
    if refusal.description.starts_with("SubCode=40100")
        && let Ok(reason) = ReasonPhrase::try_from(refusal.description.clone())
    {
        answer.extensions_mut().insert(reason);
    }
    answer
}

/// A failure of HTTP itself.
pub(super) fn failed(status: StatusCode, detail: &str) -> Answer {
    let mut xml = Xml::default();
    xml.element("Error", &[], |xml| {
        xml.value("Code", status.as_u16());
        xml.text("Detail", detail);
    });
    with_body(status, XML, xml.into_string())
}

/// The JavaScript SDK takes `SubCode=40901` for a conflict of two changes and `SubCode=40301` for an operation that is
/// not allowed, so these two must not be written for anything else.
fn sub_code(condition: Condition) -> &'static str {
    match condition {
        Condition::AlreadyExists => "SubCode=40900. Conflict. ",
        Condition::NotFound => "SubCode=40400. Not Found. ",
        Condition::InvalidField | Condition::NotAllowed => "SubCode=40000. Bad Request. ",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_has_a_status() {
        let refusal = Refusal::exists("q");
        assert_eq!(refused(&refusal).status(), StatusCode::CONFLICT);
        assert_eq!(refused(&Refusal::no_entity("q")).status(), StatusCode::NOT_FOUND);
        assert_eq!(refused(&Refusal::lock_lost()).status(), StatusCode::NOT_FOUND);
    }
}

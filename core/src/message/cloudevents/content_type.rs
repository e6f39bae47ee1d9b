//! Reads content types: whether a payload is JSON, and whether a body is an event in structured mode.

/// The media type without parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether the payload is JSON: `application/json`, any other `…/json`, any `…+json`.
pub(crate) fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type).as_bytes();
    let ends = |end: &str| {
        essence.len() > end.len() && essence[essence.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
    };
    ends("/json") || ends("+json")
}

/// Whether CloudEvents calls this content type structured mode or a batch, in any format.
pub(super) fn claims_structured(content_type: &str) -> bool {
    const START: &[u8] = b"application/cloudevents";
    let essence = essence(content_type).as_bytes();
    essence.len() >= START.len()
        && essence[..START.len()].eq_ignore_ascii_case(START)
        && matches!(essence.get(START.len()), None | Some(b'+' | b'-'))
}

/// Whether this content type is structured mode in JSON, the one format that polybus reads.
pub(super) fn is_structured_json(content_type: &str) -> bool {
    essence(content_type).eq_ignore_ascii_case(super::STRUCTURED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json() {
        for yes in ["application/json", "Application/JSON; charset=utf-8", "text/json", "application/vnd.a+json ;v=1"] {
            assert!(is_json(yes), "{yes}");
        }
        for no in ["", "json", "/json", "+json", "application/jsonl", "text/plain; a=/json", "application/json2"] {
            assert!(!is_json(no), "{no}");
        }
    }

    #[test]
    fn structured() {
        for yes in
            ["application/cloudevents", "APPLICATION/CloudEvents+avro", "application/cloudevents-batch+json; a=b"]
        {
            assert!(claims_structured(yes), "{yes}");
        }
        assert!(!claims_structured("application/cloudeventsx") && !claims_structured("application/json"));
        assert!(is_structured_json("application/CloudEvents+json; charset=UTF-8"));
        assert!(!is_structured_json("application/cloudevents-batch+json"));
    }
}

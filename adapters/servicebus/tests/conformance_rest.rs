//! The conformance suite over HTTP: against the emulator, or any namespace that `POLYBUS_SERVICEBUS_REST_URL` names.

mod by_hand;

use std::{fmt::Write, process::ExitCode, sync::Arc, time::Duration};

use by_hand::ByHand;
use polybus_conformance::{CountAccuracy, RawInject, RawMessage, RawValue, Target, main_for};
use polybus_core::{Address, Bus, Registry, Result, driver::async_trait};
use polybus_servicebus::ServicebusConnector;

const VARIABLE: &str = "POLYBUS_SERVICEBUS_REST_URL";

/// Posts as any HTTP client would, without TLS and without a token: for the emulator.
struct PlainHttp {
    endpoint: String,
}

#[async_trait]
impl RawInject for PlainHttp {
    /// The type is the label here, what routes is a property, and a header of HTTP is text.
    fn carries(&self, raw: &RawMessage) -> bool {
        let nowhere = raw.kind.is_some() || raw.app_id.is_some() || raw.routing_key.is_some();
        let bytes = raw.headers.iter().any(|(_, value)| matches!(value, RawValue::Binary(_)));
        // A name of HTTP takes no colon: <https://www.rfc-editor.org/rfc/rfc9110#name-field-names>
        let colon = raw.headers.iter().any(|(name, _)| name.contains(':'));
        !nowhere && !bytes && !colon && raw.content_encoding.is_none()
    }

    async fn inject(&self, bus: &Bus, to: &Address, raw: RawMessage) -> Result<()> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let path = bus.topology().address(to).physical.to_string();
        let mut head = format!("POST /{path}/messages HTTP/1.1\r\n");
        let mut put = |name: &str, value: &str| {
            let _ = write!(head, "{name}: {value}\r\n");
        };
        put("Content-Length", &raw.body.len().to_string());
        if let Some(content_type) = &raw.content_type {
            put("Content-Type", content_type);
        }
        let ordered = bus.topology().address(to).settings.ordered;
        let mut broker = serde_json::Map::new();
        for (name, value) in [
            ("MessageId", raw.message_id.map(Into::into)),
            ("CorrelationId", raw.correlation_id.map(Into::into)),
            ("ReplyTo", raw.reply_to.map(Into::into)),
            ("Label", raw.subject.map(Into::into)),
            ("SessionId", raw.group.or_else(|| ordered.then(|| "raw".to_owned())).map(Into::into)),
            ("TimeToLive", raw.ttl.map(|ttl| ttl.as_secs_f64().into())),
        ] {
            broker.extend(value.map(|value: serde_json::Value| (name.to_owned(), value)));
        }
        if !broker.is_empty() {
            put("BrokerProperties", &serde_json::Value::from(broker).to_string());
        }
        for (name, value) in &raw.attributes {
            put(&format!("cloudEvents_{name}"), &quoted(value));
        }
        for (name, value) in &raw.headers {
            match value {
                RawValue::Text(text) => put(name, &quoted(text)),
                RawValue::Int(n) => put(name, &n.to_string()),
                // Headers do not nest: something that is neither text nor number.
                _ => put(name, "{\"a\":[1]}"),
            }
        }
        by_hand::ask(&self.endpoint, head, &raw.body).await
    }
}

fn main() -> ExitCode {
    let registry = Registry::new().with(ServicebusConnector);
    let mut target = Target::env("servicebus-rest-emulator", "servicebus", registry, VARIABLE);
    target = target.parameter("transport", "rest").parameter("poll", "1s");
    target.counts = CountAccuracy::Eventual;
    target.lock_outlives = Some(Duration::from_secs(15));
    if let Some(endpoint) = target.upstream.clone() {
        target.entities = Some(Arc::new(ByHand { endpoint: endpoint.clone(), rest: true }));
        target.raw = Some(Arc::new(PlainHttp { endpoint }));
    }
    main_for([target])
}

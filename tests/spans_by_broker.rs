//! What spans say of each broker: OpenTelemetry's names for it, old and new, and the server. The names are those of
//! <https://opentelemetry.io/docs/specs/semconv/registry/attributes/messaging/>.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use polybus::{Address, BusOptions, Envelope, QueueSpec, TopicSpec, Topology};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// The fields of the spans named `publish`, in their order.
#[derive(Clone, Default)]
struct Publishes(Arc<Mutex<Vec<BTreeMap<&'static str, String>>>>);

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl<S: tracing::Subscriber> Layer<S> for Publishes {
    fn on_new_span(&self, span: &tracing::span::Attributes<'_>, _: &tracing::span::Id, _: Context<'_, S>) {
        if span.metadata().name() == "publish" {
            let mut fields = BTreeMap::new();
            span.record(&mut Fields(&mut fields));
            self.0.lock().unwrap().push(fields);
        }
    }
}

/// `None` with a visible line where the broker is not there, a failure if it is required.
fn url(service: &str, variable: &str) -> Option<url::Url> {
    let Some(url) = std::env::var(variable).ok().filter(|url| !url.is_empty()) else {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|s| s.trim() == service), "{variable} is required, but not set");
        eprintln!("SKIPPED: {variable} is not set");
        return None;
    };
    Some(url::Url::parse(&url).unwrap())
}

/// Publishes to a queue and to a topic; the four fields of each span.
async fn told(url: &url::Url) -> [[Option<String>; 4]; 2] {
    let spans = Publishes::default();
    let _installed = tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
    let prefix = format!("spans{}", std::process::id());
    let topology = Topology::new().prefix(prefix).queue("q", QueueSpec::new()).topic("t", TopicSpec::new());
    let bus = polybus::connect_with(url.as_str(), BusOptions::topology(topology)).await.unwrap();
    bus.declare().await.unwrap();
    bus.publish(Address::queue("q"), Envelope::new("a", "")).await.unwrap();
    bus.publish(Address::topic("t"), Envelope::new("a", "")).await.unwrap();
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
    let spans = spans.0.lock().unwrap();
    let names = ["messaging.system", "messaging.system.name", "server.address", "server.port"];
    [0, 1].map(|n| names.map(|name| spans[n].get(name).cloned()))
}

fn expected(systems: [&str; 2], host: &str, port: u16) -> [Option<String>; 4] {
    [Some(systems[0].into()), Some(systems[1].into()), Some(host.into()), Some(port.to_string())]
}

#[tokio::test]
async fn memory_has_no_server() {
    let wanted = [Some("memory".to_owned()), Some("memory".to_owned()), None, None];
    assert_eq!(told(&url::Url::parse("memory://").unwrap()).await, [wanted.clone(), wanted]);
}

#[cfg(feature = "rabbitmq")]
#[tokio::test]
async fn rabbitmq() {
    let Some(url) = url("rabbitmq", "POLYBUS_RABBITMQ_URL") else { return };
    let wanted = expected(["rabbitmq", "rabbitmq"], url.host_str().unwrap(), url.port().unwrap());
    assert_eq!(told(&url).await, [wanted.clone(), wanted]);
}

#[cfg(feature = "aws")]
#[tokio::test]
async fn sqs_and_sns() {
    let Some(url) = url("aws", "POLYBUS_AWS_URL") else { return };
    let endpoint = url.query_pairs().find(|(name, _)| name == "endpoint").unwrap().1.into_owned();
    let endpoint = url::Url::parse(&endpoint).unwrap();
    let (host, port) = (endpoint.host_str().unwrap(), endpoint.port().unwrap());
    let (sqs, sns) = (["aws_sqs", "aws.sqs"], ["aws.sns", "aws.sns"]);
    assert_eq!(told(&url).await, [expected(sqs, host, port), expected(sns, host, port)]);
}

#[cfg(feature = "servicebus")]
#[tokio::test]
async fn servicebus() {
    for variable in ["POLYBUS_SERVICEBUS_URL", "POLYBUS_SERVICEBUS_REST_URL"] {
        let Some(mut url) = url("servicebus", variable) else { continue };
        let (host, port) = (url.host_str().unwrap().to_owned(), url.port().unwrap());
        if variable.contains("REST") {
            if !cfg!(feature = "servicebus-rest") {
                continue;
            }
            url.query_pairs_mut().append_pair("transport", "rest");
        }
        let wanted = expected(["servicebus", "azure.servicebus"], &host, port);
        assert_eq!(told(&url).await, [wanted.clone(), wanted], "{variable}");
    }
}

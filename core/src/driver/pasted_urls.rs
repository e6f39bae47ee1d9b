//! Recognises what people paste where a bus URL belongs, from a vendor's console or another client's documentation, and
//! says what to write instead.
//!
//! No sentence here holds a part of what was pasted, since that may be a secret. This is the one place in core that
//! names adapters.

use url::Url;

const CONNECTION_STRING: &str = "this is a connection string of Azure Service Bus: write servicebus://?connection_string= before it, on one line and \
                                 without quotes";
const SERVICEBUS: &str = "this is Azure Service Bus: write servicebus://KEY-NAME:KEY@NAMESPACE.servicebus.windows.net, KEY with %2F for / and %2B for +, \
                          or servicebus://?connection_string= and the connection string behind it";
const AWS: &str = "this is the address of one queue or topic at AWS: write aws://?region=REGION as the bus URL, and the name under [queues.NAME] or \
                   [topics.NAME] as physical = \"…\"; credentials come from the usual chain (AWS_ACCESS_KEY_ID …)";
const RABBITMQ: &str =
    "this is RabbitMQ under another client's name: write amqp://USER:PASSWORD@HOST/VHOST, amqps:// with TLS";
const MANAGEMENT: &str = "this is RabbitMQ's management API: write amqp://USER:PASSWORD@HOST/VHOST, and the API as ?management=http://HOST:15672";
const ENDPOINT: &str =
    "a URL of HTTP is no broker's; an endpoint for SQS and SNS is aws://?region=REGION&endpoint=http://HOST:PORT";
const SERVER: &str = "a bus URL begins with the broker's own scheme, such as amqp:// for RabbitMQ or servicebus:// for Azure Service Bus";

/// A hint for text that is no URL, or that cannot be a bus URL whatever connectors there are.
pub(crate) fn hint(text: &str) -> Option<&'static str> {
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    if text.starts_with(['"', '\'', '`', '<']) || text.ends_with(['"', '\'', '`', '>']) {
        return Some("it stands in quotes or brackets of its own: leave them away");
    }
    if !lower.contains("connection_string=") && ["endpoint=", "sharedaccesskey"].iter().any(|s| lower.starts_with(s)) {
        return Some(CONNECTION_STRING);
    }
    if lower.starts_with("arn:aws") {
        return Some(AWS);
    }
    if lower.starts_with("bus.url") || lower.starts_with("url=") || lower.starts_with("polybus_url") {
        return Some("it begins with the name of the setting: leave all before the scheme away");
    }
    None
}

/// A hint for a URL whose scheme no connector serves.
pub(crate) fn scheme(url: &Url) -> Option<&'static str> {
    let host = url.host_str().unwrap_or("").to_ascii_lowercase();
    Some(match url.scheme() {
        _ if is_servicebus(&host) => SERVICEBUS,
        _ if is_aws(&host) => AWS,
        "sb" | "azuresb" | "azureservicebus" | "asb" | "azure-servicebus" => SERVICEBUS,
        "sqs" | "sns" | "awssqs" | "awssns" | "sqs+http" | "sqs+https" => AWS,
        "rabbit" | "rabbitmq" | "rabbitmqs" | "pyamqp" | "librabbitmq" | "amqp+ssl" | "amqp091" => RABBITMQ,
        "http" | "https" if matches!(url.port(), Some(15671 | 15672)) => MANAGEMENT,
        "http" | "https" => ENDPOINT,
        "tcp" | "ssl" | "tls" | "ws" | "wss" => SERVER,
        _ => return None,
    })
}

/// The scheme if it may be shown: the name of a known protocol. Any other word may be a part of a password.
pub(crate) fn protocol(scheme: &str) -> Option<&str> {
    const KNOWN: [&str; 35] = [
        "http",
        "https",
        "ws",
        "wss",
        "tcp",
        "ssl",
        "tls",
        "sb",
        "sqs",
        "sns",
        "awssqs",
        "awssns",
        "azuresb",
        "rabbit",
        "rabbitmq",
        "pyamqp",
        "amqp",
        "amqps",
        "aws",
        "servicebus",
        "memory",
        "kafka",
        "nats",
        "redis",
        "rediss",
        "mqtt",
        "mqtts",
        "pulsar",
        "stomp",
        "gcppubsub",
        "postgres",
        "mysql",
        "file",
        "jms",
        "gopher",
    ];
    KNOWN.contains(&scheme).then_some(scheme)
}

/// Whether the host is a namespace of Azure Service Bus, in one of Azure's four clouds.
pub(crate) fn is_servicebus(host: &str) -> bool {
    [
        ".servicebus.windows.net",
        ".servicebus.chinacloudapi.cn",
        ".servicebus.usgovcloudapi.net",
        ".servicebus.cloudapi.de",
    ]
    .iter()
    .any(|end| host.to_ascii_lowercase().ends_with(end))
}

fn is_aws(host: &str) -> bool {
    host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_consoles_and_other_clients_show() {
        for (text, word) in [
            (
                "Endpoint=sb://shop.servicebus.windows.net/;SharedAccessKeyName=r;SharedAccessKey=s3cret",
                "connection_string= before it",
            ),
            ("\"amqp://u:s3cret@h\"", "quotes"),
            ("arn:aws:sqs:eu-west-1:123456789012:orders", "aws://?region="),
            ("bus.url = amqp://u:s3cret@h", "before the scheme"),
        ] {
            assert!(hint(text).is_some_and(|said| said.contains(word)), "{text}");
        }
        for (text, word) in [
            ("https://sqs.eu-west-1.amazonaws.com/123456789012/orders", "aws://?region="),
            ("https://shop.servicebus.windows.net/orders", "servicebus://KEY-NAME"),
            ("sb://shop.servicebus.windows.net/", "servicebus://KEY-NAME"),
            ("amqps://r:s3cret@shop.servicebus.windows.net", "servicebus://KEY-NAME"),
            ("rabbitmq://u:s3cret@h/v", "amqp://USER"),
            ("http://u:s3cret@h:15672/", "management="),
            ("http://localhost:4566", "endpoint="),
            ("tcp://h:5672", "own scheme"),
        ] {
            assert!(hint(text).is_none());
            assert!(scheme(&Url::parse(text).unwrap()).is_some_and(|said| said.contains(word)), "{text}");
        }
        assert_eq!(scheme(&Url::parse("kafka://h").unwrap()), None);
    }
}

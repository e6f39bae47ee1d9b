//! Reads the bus URL and the `options.rabbitmq` tables of the topology.
//!
//! [`RabbitmqConnector`](crate::RabbitmqConnector) documents every parameter and option for users. An error names the
//! parameter and what would be right, and never shows a value: a URL that was split in the wrong place may have a
//! part of the password in any of them.

use std::{path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;
use polybus_core::{
    Error, Result,
    driver::{
        ConnectUrl,
        kit::{duration, url_parameters::UrlParameter},
    },
    message::cloudevents::WireNames,
    topology::Entity,
};
use serde::Deserialize;

use crate::{
    BACKEND,
    message::envelope::{AMQP_NAMES, CE_NAMES},
};

const KNOWN: &str = "queue_type, max_message_size, management, heartbeat, connect_timeout, connection_name, cloudevents, cacert, cert, key";

/// How long any answer of the broker may take: 15 s. Publisher confirms have a limit of their own.
pub(crate) const CALL: Duration = Duration::from_secs(15);
/// RabbitMQ's default of its `consumer_timeout`, 30 minutes:
/// <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The bus URL, with defaults filled in.
#[derive(Clone)]
pub(crate) struct RabbitmqConfig {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    /// The virtual host. Without a path in the URL it is `/`.
    pub(crate) vhost: String,
    /// The type of queues whose options name none. Quorum by default.
    pub(crate) queue_type: QueueType,
    /// The largest message that is published, in bytes of body, properties and headers together: 1 byte to 512 MiB,
    /// 16 MiB by default. The broker's own limit counts the body alone.
    pub(crate) max_message_size: usize,
    /// In seconds: 1 to 3,600, by default 20.
    pub(crate) heartbeat: u16,
    /// For TCP, TLS and login together: up to 5 minutes, by default 10 s.
    pub(crate) connect_timeout: Duration,
    /// Begins the name of each connection at the broker. The name goes on with the connection's purpose.
    pub(crate) connection_name: String,
    pub(crate) management: Option<ManagementApi>,
    /// The prefix under which attributes of CloudEvents are written. Every prefix is read.
    pub(crate) names: WireNames,
    /// A PEM file of the only authorities that are trusted. Without it the machine's are.
    pub(crate) cacert: Option<PathBuf>,
    /// PEM files of the client certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// The address of the management API, and the login there. Without one in its URL the login is the bus URL's.
#[derive(Clone)]
pub(crate) struct ManagementApi {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What stands before `/api`, without a slash at the end.
    pub(crate) path: String,
    pub(crate) user: String,
    pub(crate) password: String,
}

/// The type of a queue at the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QueueType {
    #[default]
    Quorum,
    Classic,
}

impl QueueType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

impl RabbitmqConfig {
    /// Reads the URL. What is wrong with it is `ConfigInvalid`.
    pub(crate) fn parse(url: &ConnectUrl) -> Result<Self> {
        let tls = url.scheme() == "amqps";
        if url.is_azure_servicebus() {
            let text =
                "bus URL: this is Azure Service Bus, which speaks AMQP 1.0: write servicebus://KEY-NAME:KEY@host";
            return Err(Error::config(text).with_backend(BACKEND));
        }
        if url.host().is_empty() {
            return Err(Error::config("bus URL: expected a host, such as amqp://user:password@localhost:5672/%2f"));
        }
        let mut config = Self {
            tls,
            host: url.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            user: non_empty(decode("user", url.username())?, "guest"),
            password: url.password().map_or_else(|| Ok("guest".into()), |p| decode("password", p))?,
            // No path, or an empty one, is the default virtual host: an empty name is nobody's intention.
            vhost: non_empty(decode("virtual host", url.path().strip_prefix('/').unwrap_or(""))?, "/"),
            queue_type: QueueType::Quorum,
            max_message_size: 16 << 20,
            heartbeat: 20,
            connect_timeout: Duration::from_secs(10),
            connection_name: "polybus".into(),
            management: None,
            names: AMQP_NAMES,
            cacert: None,
            identity: None,
        };
        let (mut cert, mut key) = (None, None);
        for p in UrlParameter::all(url, BACKEND)? {
            match p.name() {
                "queue_type" => {
                    config.queue_type = p.one_of([("quorum", QueueType::Quorum), ("classic", QueueType::Classic)])?;
                }
                "max_message_size" => {
                    config.max_message_size = p.size(1..=512 << 20, "1 to 512MiB, such as 64KiB or 16MiB")?;
                }
                "heartbeat" => {
                    config.heartbeat = span(p.value())
                        .filter(|d| d.subsec_millis() == 0 && (1..=3600).contains(&d.as_secs()))
                        .and_then(|d| u16::try_from(d.as_secs()).ok())
                        .ok_or_else(|| p.must_be("whole seconds from 1s to 1h"))?;
                }
                "connect_timeout" => {
                    config.connect_timeout = span(p.value())
                        .filter(|d| !d.is_zero() && *d <= Duration::from_secs(300))
                        .ok_or_else(|| p.must_be("a duration up to 5m"))?;
                }
                "connection_name" => p.value().clone_into(&mut config.connection_name),
                "management" => config.management = Some(management(&p, &config)?),
                "cloudevents" => config.names = p.one_of([("amqp", AMQP_NAMES), ("ce", CE_NAMES)])?,
                "cacert" => config.cacert = Some(p.value().into()),
                "cert" => cert = Some(p.value().into()),
                "key" => key = Some(p.value().into()),
                other => {
                    return Err(match instead(other) {
                        Some(text) => Error::config(format!("bus URL: {text}")),
                        None => url.unknown_parameter(other, KNOWN),
                    }
                    .with_backend(BACKEND));
                }
            }
        }
        config.identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(Error::config("bus URL: cert and key go together").with_backend(BACKEND)),
        };
        if !tls && (config.cacert.is_some() || config.identity.is_some()) {
            return Err(Error::config("bus URL: cacert, cert and key need amqps://").with_backend(BACKEND));
        }
        Ok(config)
    }

    /// Host and port, for errors.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What to write instead of a parameter that other clients have in their AMQP URLs: those of
/// <https://www.rabbitmq.com/docs/uri-query-parameters>, pika's and Spring's.
fn instead(name: &str) -> Option<&'static str> {
    Some(match name {
        "cacertfile" | "ca_certs" => "a CA certificate's file is written cacert=FILE",
        "certfile" => "a client certificate's file is written cert=FILE, its key's key=FILE",
        "keyfile" => "a client key's file is written key=FILE, its certificate's cert=FILE",
        "verify" | "fail_if_no_peer_cert" | "server_name_indication" | "ssl_options" | "depth" => {
            "with amqps:// the server's certificate is always checked, against cacert=FILE or the system's authorities"
        }
        "auth_mechanism" => "login is by user and password (PLAIN), with cert= and key= by certificate beside it",
        "connection_timeout" | "connectionTimeout" | "socket_timeout" | "stack_timeout" | "timeout" => {
            "how long connecting may take is written connect_timeout=10s"
        }
        "connection_attempts" | "retry_delay" => {
            "connecting is tried again without being told to: publish_timeout in [bus] limits it"
        }
        "blocked_connection_timeout" => "how long a publish may wait for a blocked broker is publish_timeout in [bus]",
        "channel_max" | "channelMax" | "frame_max" | "locale" | "tcp_options" => {
            "channels and frames are agreed with the broker: leave channel_max, frame_max, locale and tcp_options away"
        }
        "vhost" | "virtual_host" => {
            "the virtual host is the URL's path: amqp://user:password@host/VHOST, with %2f for /"
        }
        "name" | "client_properties" => "a connection's name is written connection_name=NAME",
        "prefetch" | "prefetch_count" => "prefetch is a subscription's or worker's: SubscriptionBuilder::prefetch",
        _ => return None,
    })
}

/// Reads the value of `management`.
fn management(parameter: &UrlParameter, config: &RabbitmqConfig) -> Result<ManagementApi> {
    let wrong = || parameter.must_be("http[s]://[user:password@]host[:port][/path]");
    let url = url::Url::parse(parameter.value()).map_err(|_| wrong())?;
    let tls = match url.scheme() {
        "http" => false,
        "https" => true,
        _ => return Err(wrong()),
    };
    let own = !url.username().is_empty();
    Ok(ManagementApi {
        tls,
        host: url.host_str().filter(|h| !h.is_empty()).ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned(),
        port: url.port_or_known_default().ok_or_else(wrong)?,
        path: url.path().trim_end_matches('/').to_owned(),
        user: if own { decode("management user", url.username())? } else { config.user.clone() },
        password: match url.password() {
            Some(password) => decode("management password", password)?,
            None if own => String::new(),
            None => config.password.clone(),
        },
    })
}

fn decode(what: &str, text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(Into::into)
        .map_err(|_| Error::config(format!("bus URL: the {what} is not UTF-8")).with_backend(BACKEND))
}

fn non_empty(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

/// A duration such as `10s`, or a plain number of seconds, as other AMQP clients write it.
fn span(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_secs).or_else(|| duration::parse(text).ok())
}

/// A table `[queues.x.options.rabbitmq]` as it is written, and the same of topics and subscriptions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OptionsTable {
    /// Overrides the URL's `queue_type`.
    queue_type: Option<QueueType>,
    /// How many queues share the keys of an ordered source: 1 to 64, by default 4. Fixed once they are created.
    partitions: Option<u16>,
    /// What the operator has set as the broker's `consumer_timeout`, by default 30 minutes.
    consumer_timeout: Option<String>,
}

/// The options of one entity, with defaults filled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntityOptions {
    pub(crate) queue_type: QueueType,
    pub(crate) partitions: u16,
    pub(crate) consumer_timeout: Duration,
}

impl RabbitmqConfig {
    /// The options of an entity. Wrong ones are `ConfigInvalid`, which names the entity.
    pub(crate) fn options<T: ToString>(&self, entity: &Entity<T>) -> Result<EntityOptions> {
        let options: OptionsTable = entity.options(BACKEND)?;
        let wrong = |what: &str| {
            Error::config(format!("{}: options.rabbitmq.{what}", entity.name.to_string())).with_backend(BACKEND)
        };
        let partitions = options.partitions.unwrap_or(4);
        if !(1..=64).contains(&partitions) {
            return Err(wrong("partitions must be 1 to 64"));
        }
        let consumer_timeout = match &options.consumer_timeout {
            Some(text) => duration::parse(text).map_err(|e| wrong(&format!("consumer_timeout: {e}")))?,
            None => CONSUMER_TIMEOUT,
        };
        Ok(EntityOptions { queue_type: options.queue_type.unwrap_or(self.queue_type), partitions, consumer_timeout })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use polybus_core::ErrorKind;

    use super::*;

    fn parse(url: &str) -> Result<RabbitmqConfig> {
        RabbitmqConfig::parse(&ConnectUrl::parse(url).unwrap())
    }

    #[test]
    fn every_part_is_read() {
        let c = parse("amqp://us%40er:p%2Fw@h:1/v%2Fh?queue_type=classic&max_message_size=64KiB&heartbeat=30&connect_timeout=2s&management=http://m:15672/x/").unwrap();
        assert_eq!((&*c.user, &*c.password, &*c.vhost), ("us@er", "p/w", "v/h"));
        assert_eq!((c.port, c.queue_type, c.max_message_size, c.heartbeat), (1, QueueType::Classic, 65536, 30));
        let m = c.management.unwrap();
        assert_eq!((&*m.host, m.port, &*m.path, &*m.user, &*m.password), ("m", 15672, "/x", "us@er", "p/w"));
        let c = parse("amqps://h").unwrap();
        assert_eq!((c.tls, c.port, &*c.vhost, &*c.user, c.max_message_size), (true, 5671, "/", "guest", 16 << 20));
        assert_eq!(parse("amqp://h/").unwrap().vhost, "/");
    }

    #[test]
    fn addresses_of_ipv6() {
        let c = parse("amqp://[::1]:5673/?management=http://[::1]:15672").unwrap();
        assert_eq!((&*c.host, c.port), ("::1", 5673));
        let m = c.management.unwrap();
        assert_eq!((&*m.host, m.port), ("::1", 15672));
        let e = parse("amqps://r:s3cret@shop.servicebus.windows.net").map(|_| ()).unwrap_err();
        assert!(e.to_string().contains("servicebus://KEY-NAME") && !e.to_string().contains("s3cret"), "{e}");
    }

    #[test]
    fn wrong_parameters_say_what_is_right_and_show_no_value() {
        for (query, word) in [
            ("prefetch=s3cret", "SubscriptionBuilder::prefetch"),
            ("s3cret=s3cret", "known are queue_type"),
            ("Tr0ub4dor=s3cret", "parameter 1 is unknown"),
            ("cacertfile=s3cret", "cacert=FILE"),
            ("heartbeat=0", "whole seconds from 1s"),
            ("queue_type=s3cret", "quorum or classic"),
            ("max_message_size=s3cret", "16MiB"),
            ("max_message_size=600MiB", "512MiB"),
            ("heartbeat=1500ms", "whole seconds"),
            ("management=s3cret", "http[s]://"),
            ("cert=a", "go together"),
            ("cacert=a", "amqps://"),
        ] {
            let e = parse(&format!("amqp://u:s3cret@h/?{query}")).map(|_| ()).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::ConfigInvalid);
            assert!(e.to_string().contains(word) && !format!("{e:?}").contains("s3cret"), "{query}: {e}");
        }
    }
}

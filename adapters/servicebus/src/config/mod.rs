//! The URL and the `[….options.servicebus]` tables.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;
use polybus_core::{
    Error, ErrorKind, Result,
    driver::MessagingSystem,
    driver::{
        ConnectUrl,
        kit::{duration, size},
    },
    topology::Entity,
};
use serde::Deserialize;

use crate::{
    BACKEND,
    auth::{
        connection_string::ConnectionString,
        credential::{Credential, Secret},
        sas,
    },
    error,
};

const KNOWN: &str = "connection_string, sas_token, emulator, tls, management, max_message_size, connect_timeout, cacert, connection_name, \
                     transport, poll";

/// How long any answer of the broker may take.
pub(crate) const CALL: Duration = Duration::from_secs(15);
/// Where the emulators serve the administration API, and ours WebSockets.
const EMULATOR_MANAGEMENT: u16 = 5300;

/// Everything the URL says.
#[derive(Clone)]
pub(crate) struct Config {
    #[cfg_attr(not(feature = "identity"), allow(dead_code))]
    pub(crate) emulator: bool,
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) credential: Credential,
    /// The one entity that the credential opens, if it is not the namespace's.
    pub(crate) entity: Option<String>,
    /// Where entities are made and counted.
    pub(crate) management: Management,
    /// In bytes of the encoded message: what the namespace's tier takes.
    pub(crate) max_message_size: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) connection_name: String,
    pub(crate) cacert: Option<PathBuf>,
    pub(crate) transport: Transport,
    /// Over HTTP: how long a request for a message waits at the broker.
    pub(crate) poll: Duration,
}

impl Config {
    /// What OpenTelemetry calls queues, subscriptions and topics here.
    pub(crate) fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        let system = MessagingSystem::new("servicebus", "azure.servicebus").server(self.host.as_str(), self.port);
        (system.clone(), system)
    }
}

/// What messages travel by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Amqp,
    /// AMQP inside of WebSockets.
    Websocket,
    Rest,
}

/// Where the administration API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Management {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Config {
    /// Reads the URL. `ConfigInvalid` names the parameter and what would be right, never a value that may be secret.
    pub(crate) fn parse(url: &ConnectUrl) -> Result<Self> {
        let mut parameters = url.parameters()?;
        let string = match parameters.remove("connection_string") {
            Some(_) => Some(ConnectionString::parse(&raw_parameter(url, "connection_string", &mut parameters)?)?),
            None => None,
        };
        let raw_token = match parameters.remove("sas_token") {
            Some(_) => Some(raw_parameter(url, "sas_token", &mut parameters)?),
            None => None,
        };
        let mut emulator = string.as_ref().is_some_and(|s| s.emulator);
        let (mut tls, mut management, token) = (None, None, raw_token);
        let websockets = string.as_ref().is_some_and(|s| s.websockets);
        let mut config = Self {
            emulator: false,
            tls: true,
            host: url.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: 0,
            credential: Credential::None,
            entity: None,
            management: Management { tls: true, host: String::new(), port: 443 },
            max_message_size: 256 << 10,
            connect_timeout: Duration::from_secs(10),
            connection_name: "polybus".into(),
            cacert: None,
            transport: if websockets { Transport::Websocket } else { Transport::Amqp },
            poll: Duration::from_secs(5),
        };
        for (name, value) in parameters {
            match name.as_str() {
                "emulator" => emulator = flag(&name, &value)?,
                "tls" => tls = Some(flag(&name, &value)?),
                "management" => management = Some(self::management(&value)?),
                "max_message_size" => {
                    let size = size::parse(&value).ok().filter(|s| (1024..=100 << 20).contains(s));
                    config.max_message_size =
                        size.ok_or_else(|| wrong(&name, "1KiB to 100MiB, such as 256KiB or 1MiB"))?;
                }
                "connect_timeout" => {
                    let limit = duration::parse(&value).ok();
                    let limit = limit.filter(|d| !d.is_zero() && *d <= Duration::from_secs(300));
                    config.connect_timeout = limit.ok_or_else(|| wrong(&name, "a duration up to 5m"))?;
                }
                "cacert" => config.cacert = Some(value.into()),
                "transport" => {
                    config.transport = match value.as_str() {
                        "amqp" => Transport::Amqp,
                        "websocket" => Transport::Websocket,
                        "rest" => Transport::Rest,
                        _ => return Err(wrong(&name, "amqp, websocket or rest")),
                    }
                }
                "poll" => {
                    let poll = duration::parse(&value).ok().filter(|d| (1..=60).contains(&d.as_secs()));
                    config.poll = poll.ok_or_else(|| wrong(&name, "1s to 60s"))?;
                }
                "connection_name" => config.connection_name = value,
                other => {
                    return Err(url.unknown_parameter(other, KNOWN).with_backend(BACKEND));
                }
            }
        }
        config.emulator = emulator;
        config.tls = tls.unwrap_or(!emulator);
        let mut port = url.port();
        if let Some(string) = &string {
            if config.host.is_empty() {
                config.host.clone_from(&string.host);
                // A port there is that of AMQP over TCP.
                port = string.port.filter(|_| config.transport == Transport::Amqp);
            }
            config.credential = string.credential.clone();
        }
        if config.host.is_empty() {
            let text = "expected a namespace, such as servicebus://KEY-NAME:KEY@shop.servicebus.windows.net, or \
                        connection_string=…";
            return Err(config_error(text));
        }
        config.port = port.unwrap_or(match (config.transport, config.tls) {
            (Transport::Websocket, true) => 443,
            (Transport::Websocket, false) if emulator => EMULATOR_MANAGEMENT,
            (Transport::Websocket, false) => 80,
            (_, true) => 5671,
            (_, false) => 5672,
        });
        if let Some(credential) = credential(url, token)? {
            config.credential = credential;
        }
        // A token says itself what it is for.
        config.entity = match &config.credential {
            Credential::Token(token) => sas::entity(token),
            _ => None,
        };
        if config.entity.is_none() {
            config.entity = string.and_then(|s| s.entity);
        }
        // Over HTTP all goes to one place, so that a port in the URL is that one's.
        let http = url.port().filter(|_| config.transport != Transport::Amqp);
        config.management = management.unwrap_or_else(|| Management {
            tls: config.tls,
            host: config.host.clone(),
            port: http.unwrap_or(if emulator { EMULATOR_MANAGEMENT } else { 443 }),
        });
        if emulator && tls.is_none() {
            config.management.tls &= config.management.port != EMULATOR_MANAGEMENT;
        }
        if !config.tls && !config.management.tls && config.cacert.is_some() {
            return Err(config_error("cacert needs TLS"));
        }
        Ok(config)
    }

    /// Whether the credential can open a path at all. Told here, since the broker says no more than that it knows no such key.
    pub(crate) fn admits(&self, path: &str) -> Result<()> {
        let Some(entity) = &self.entity else { return Ok(()) };
        let rest = path.to_lowercase();
        match rest.strip_prefix(&entity.to_lowercase()) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(()),
            _ => {
                let text =
                    format!("the key or token is for {entity:?} alone: by EntityPath, or by what the token says");
                Err(error::new(ErrorKind::PermissionDenied, "authorize", text).with_context("path", path))
            }
        }
    }

    /// Host and port, for errors.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Key name and key, or a ready token: from the URL itself.
fn credential(url: &ConnectUrl, token: Option<String>) -> Result<Option<Credential>> {
    let decode = |what: &str, text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded.map(String::from).map_err(|_| config_error(format!("the {what} is not UTF-8")))
    };
    match (url.username(), url.password(), token) {
        ("", None, None) => Ok(None),
        ("", None, Some(token)) => Ok(Some(Credential::Token(Secret::new(token)))),
        (_, Some(_), Some(_)) => Err(config_error("a key and a sas_token: one of them is enough")),
        (name, Some(key), None) if !name.is_empty() => {
            Ok(Some(Credential::Key { name: decode("key name", name)?, key: Secret::new(decode("key", key)?) }))
        }
        _ => Err(config_error("key name and key go together: servicebus://KEY-NAME:KEY@namespace")),
    }
}

/// The fields of a shared access signature, which stand apart by `&` as a URL's parameters do.
const SIGNATURE: [&str; 4] = ["sr", "sig", "se", "skn"];

/// One parameter with nothing but its percent-escapes decoded: in queries `+` means a space, but in keys it is a letter.
///
/// A signature that stands there as it is takes the fields behind it along, out of `others`; its own escapes are then a part of it.
fn raw_parameter(url: &ConnectUrl, name: &str, others: &mut BTreeMap<String, String>) -> Result<String> {
    let query = url.secret().split_once('?').map_or("", |(_, query)| query);
    let mut pieces = query.split('&').skip_while(|piece| piece.split_once('=').is_none_or(|(found, _)| found != name));
    let mut text = pieces.next().and_then(|piece| piece.split_once('=')).map_or("", |(_, value)| value).to_owned();
    let mut as_it_is = false;
    for piece in pieces {
        let field = piece.split('=').next().unwrap_or("");
        if !SIGNATURE.iter().any(|own| field.eq_ignore_ascii_case(own)) {
            break;
        }
        others.remove(field);
        text.push('&');
        text.push_str(piece);
        as_it_is = true;
    }
    if as_it_is {
        // The URL's parser has escaped the space before `sr=`.
        return Ok(text.replace("%20", " "));
    }
    let decoded = percent_decode_str(&text).decode_utf8();
    decoded.map(Into::into).map_err(|_| config_error(format!("{name} is not UTF-8")))
}

fn flag(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "on" => Ok(true),
        "false" | "off" => Ok(false),
        _ => Err(wrong(name, "true or false")),
    }
}

fn management(value: &str) -> Result<Management> {
    let wrong = || wrong("management", "http[s]://host[:port]");
    let url = url::Url::parse(value).map_err(|_| wrong())?;
    let tls = match url.scheme() {
        "http" => false,
        "https" => true,
        _ => return Err(wrong()),
    };
    if !url.username().is_empty() || !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(wrong());
    }
    Ok(Management {
        tls,
        host: url.host_str().filter(|h| !h.is_empty()).ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned(),
        port: url.port_or_known_default().ok_or_else(wrong)?,
    })
}

pub(crate) fn config_error(text: impl std::fmt::Display) -> Error {
    Error::config(format!("bus URL: {text}")).with_backend(BACKEND)
}

fn wrong(name: &str, expected: &str) -> Error {
    config_error(format!("{name} must be {expected}"))
}

/// `[queues.x.options.servicebus]`, and the same on topics and subscriptions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// The broker drops what has the message id of an earlier message of this window. Fixed once created.
    duplicate_detection: Option<String>,
    /// Of a subscription with `types`: structured events whose type stands in their body alone come too, whatever it is.
    structured_events: bool,
    /// Of an ordered source: how many sessions one consumer holds at most. Default: its prefetch.
    max_sessions: Option<usize>,
    /// Of an ordered source: how long a session without messages is kept. Default 5s.
    session_idle: Option<String>,
}

/// The options with defaults filled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resolved {
    pub(crate) duplicate_detection: Option<Duration>,
    pub(crate) structured_events: bool,
    pub(crate) max_sessions: Option<usize>,
    pub(crate) session_idle: Duration,
}

/// This entity's options; `ConfigInvalid` names the entity.
pub(crate) fn options<T: ToString>(entity: &Entity<T>) -> Result<Resolved> {
    let options: Options = entity.options(BACKEND)?;
    let wrong = |what: String| {
        Error::config(format!("{}: options.servicebus.{what}", entity.name.to_string())).with_backend(BACKEND)
    };
    let span = |name: &str, text: &Option<String>, least: Duration, most: Duration| match text {
        None => Ok(None),
        Some(text) => match duration::parse(text) {
            Ok(found) if (least..=most).contains(&found) => Ok(Some(found)),
            _ => {
                let [least, most] = [least, most].map(duration::format);
                Err(wrong(format!("{name} must be {least} to {most}")))
            }
        },
    };
    let day = Duration::from_secs(24 * 3600);
    let window = span("duplicate_detection", &options.duplicate_detection, Duration::from_secs(20), 7 * day)?;
    let idle = span("session_idle", &options.session_idle, Duration::from_millis(100), Duration::from_secs(60))?;
    if options.max_sessions.is_some_and(|n| n == 0) {
        return Err(wrong("max_sessions must be at least 1".into()));
    }
    Ok(Resolved {
        duplicate_detection: window,
        structured_events: options.structured_events,
        max_sessions: options.max_sessions,
        session_idle: idle.unwrap_or(Duration::from_secs(5)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(url: &str) -> Result<Config> {
        Config::parse(&ConnectUrl::parse(url).unwrap())
    }

    fn key(config: &Config) -> (&str, &str) {
        match &config.credential {
            Credential::Key { name, key } => (name, key.reveal()),
            _ => ("", ""),
        }
    }

    #[test]
    fn every_part_is_read() {
        let c =
            parse("servicebus://Root:a%2Bb%2F%3D@shop.servicebus.windows.net?max_message_size=1MiB&connect_timeout=2s")
                .unwrap();
        assert_eq!((c.tls, &*c.host, c.port, c.max_message_size), (true, "shop.servicebus.windows.net", 5671, 1 << 20));
        assert_eq!(key(&c), ("Root", "a+b/="));
        assert_eq!(c.management, Management { tls: true, host: c.host.clone(), port: 443 });
        let c = parse("servicebus://r:k@localhost:5673?emulator=true&management=http://other:1/").unwrap();
        assert_eq!((c.tls, c.port), (false, 5673));
        assert_eq!(c.management, Management { tls: false, host: "other".into(), port: 1 });
        let c = parse("servicebus://r:k@localhost?emulator=true").unwrap();
        assert_eq!(c.management, Management { tls: false, host: "localhost".into(), port: 5300 });
    }

    #[test]
    fn rest_goes_to_one_place() {
        let c = parse("servicebus://r:k@h?transport=rest&poll=20s").unwrap();
        assert_eq!((c.transport, c.poll, c.management.port), (Transport::Rest, Duration::from_secs(20), 443));
        let c = parse("servicebus://r:k@localhost:5301?emulator=true&transport=rest").unwrap();
        assert_eq!(c.management, Management { tls: false, host: "localhost".into(), port: 5301 });
        assert_eq!(parse("servicebus://h:5671").unwrap().management.port, 443);
    }

    #[test]
    fn websockets_go_to_the_port_of_https() {
        let c = parse("servicebus://r:k@h?transport=websocket").unwrap();
        assert_eq!((c.transport, c.tls, c.port, c.management.port), (Transport::Websocket, true, 443, 443));
        let c = parse("servicebus://r:k@localhost?emulator=true&transport=websocket").unwrap();
        assert_eq!((c.tls, c.port, c.management.port), (false, 5300, 5300));
        let c = parse("servicebus://r:k@h:8443?transport=websocket").unwrap();
        assert_eq!((c.tls, c.port, c.management.port), (true, 8443, 8443));
        assert_eq!(parse("servicebus://r:k@h?tls=false&transport=websocket").unwrap().port, 80);
        // As the SDKs for .NET have it.
        let text = "Endpoint=sb://h:5671;SharedAccessKeyName=r;SharedAccessKey=k;TransportType=AmqpWebSockets";
        let c = parse(&format!("servicebus://?connection_string={text}")).unwrap();
        assert_eq!((c.transport, c.port), (Transport::Websocket, 443));
        let c = parse(&format!("servicebus://?connection_string={text}&transport=amqp")).unwrap();
        assert_eq!((c.transport, c.port), (Transport::Amqp, 5671));
    }

    #[test]
    fn connection_strings_stand_in_the_url_as_they_are() {
        let text = "Endpoint=sb://shop.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=a+b/c=";
        let c = parse(&format!("servicebus://?connection_string={text}")).unwrap();
        assert_eq!((&*c.host, c.port, c.tls), ("shop.servicebus.windows.net", 5671, true));
        assert_eq!(key(&c), ("Root", "a+b/c="));
        let c = parse(&format!("servicebus://?connection_string={text};UseDevelopmentEmulator=true")).unwrap();
        assert_eq!((c.tls, c.port, c.management.port, c.management.tls), (false, 5672, 5300, false));
    }

    #[test]
    fn a_key_or_token_of_one_entity_opens_that_entity() {
        let text = "Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey=k;EntityPath=Orders";
        let c = parse(&format!("servicebus://?connection_string={text}")).unwrap();
        for path in ["orders", "orders/Subscriptions/a", "ORDERS/$DeadLetterQueue", "orders/$management"] {
            assert!(c.admits(path).is_ok(), "{path}");
        }
        for path in ["", "orders2", "order", "other/orders"] {
            let e = c.admits(path).unwrap_err();
            assert!(e.kind() == ErrorKind::PermissionDenied && e.to_string().contains("\"Orders\" alone"), "{e}");
        }
        let token =
            |sr: &str| format!("servicebus://h?sas_token=SharedAccessSignature%20sr={sr}%26sig=x%26se=1%26skn=r");
        assert_eq!(parse(&token("sb%253A%252F%252Fh%252Forders%252F")).unwrap().entity.as_deref(), Some("orders"));
        for namespace in ["sb%253A%252F%252Fh", "sb%253A%252F%252Fh%252F", "x"] {
            assert_eq!(parse(&token(namespace)).unwrap().entity, None, "{namespace}");
        }
        assert!(parse("servicebus://r:k@h").unwrap().admits("any").is_ok());
    }

    #[test]
    fn tokens() {
        let c = parse("servicebus://h?sas_token=SharedAccessSignature%20sr=x%26sig=a%252B%26se=1%26skn=r").unwrap();
        let Credential::Token(token) = c.credential else { panic!("no token") };
        assert_eq!(token.reveal(), "SharedAccessSignature sr=x&sig=a%2B&se=1&skn=r");
    }

    #[test]
    fn signatures_stand_in_the_url_as_they_are() {
        let signature =
            "SharedAccessSignature sr=sb%3A%2F%2Fshop.servicebus.windows.net%2Forders&sig=a%2Bb%3D&se=1&skn=r";
        let string = format!("Endpoint=sb://shop.servicebus.windows.net/;SharedAccessSignature={signature}");
        for url in [
            format!("servicebus://?connection_string={string}"),
            format!("servicebus://?connection_string={string}&transport=rest"),
            format!("servicebus://?transport=rest&connection_string={string};EntityPath=orders"),
            format!("servicebus://shop.servicebus.windows.net?sas_token={signature}&transport=rest"),
        ] {
            let c = parse(&url).unwrap();
            let Credential::Token(token) = &c.credential else { panic!("no token in {url}") };
            assert_eq!((token.reveal(), &*c.host), (signature, "shop.servicebus.windows.net"), "{url}");
            assert_eq!(c.transport == Transport::Rest, url.contains("rest"));
            assert_eq!(c.entity.as_deref(), Some("orders"));
        }
        // A field of a signature without one is a parameter like others.
        let e = parse("servicebus://r:k@h?transport=rest&sig=s3cret").map(|_| ()).unwrap_err();
        assert!(e.to_string().contains("parameter 2 is unknown") && !e.to_string().contains("s3cret"), "{e}");
    }

    #[test]
    fn addresses_of_ipv6() {
        let c = parse("servicebus://r:k@[::1]:5673?emulator=true&management=http://[::1]:5300").unwrap();
        assert_eq!((&*c.host, &*c.management.host, c.management.port), ("::1", "::1", 5300));
        for (endpoint, port) in [("sb://[::1]:5673", 5673), ("sb://[::1]/", 5672)] {
            let text =
                format!("Endpoint={endpoint};SharedAccessKeyName=r;SharedAccessKey=k;UseDevelopmentEmulator=true");
            let c = parse(&format!("servicebus://?connection_string={text}")).unwrap();
            assert_eq!((&*c.host, c.port), ("::1", port));
        }
    }

    #[test]
    fn wrong_parameters_say_what_is_right_and_show_no_value() {
        for (url, word) in [
            ("servicebus://u:s3cret@h?prefetch=s3cret", "known are connection_string"),
            ("servicebus://u:s3cret@h?max_message_size=s3cret", "256KiB"),
            ("servicebus://u:s3cret@h?tls=s3cret", "true or false"),
            ("servicebus://u:s3cret@h?management=s3cret", "http[s]://"),
            ("servicebus://u:s3cret@h?transport=s3cret", "amqp, websocket or rest"),
            ("servicebus://u:s3cret@h?poll=0s", "60s"),
            ("servicebus://u:s3cret@h?sas_token=s3cret", "one of them"),
            ("servicebus://s3cret@h", "go together"),
            ("servicebus://?tls=false", "a namespace"),
            ("servicebus://?connection_string=Endpoint=s3cret", "Endpoint=sb://"),
            ("servicebus://u:s3cret@h?tls=false&cacert=a", "needs TLS"),
        ] {
            let e = parse(url).map(|_| ()).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::ConfigInvalid);
            assert!(e.to_string().contains(word) && !format!("{e:?}").contains("s3cret"), "{url}: {e}");
        }
    }
}

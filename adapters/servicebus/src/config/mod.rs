//! Reading the bus URL and the `[….options.servicebus]` tables.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;
use polybus_core::{
    Error, ErrorKind, Result,
    driver::{
        ConnectUrl, MessagingSystem,
        kit::{duration, url_parameters::UrlParameter},
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

const KNOWN_PARAMETERS: &str = "connection_string, sas_token, emulator, tls, management, max_message_size, connect_timeout, cacert, connection_name, \
                     transport, poll";

/// How long any answer of the broker may take before the call fails.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// The port of the emulators' administration API, and of WebSockets on polybus' emulator.
const EMULATOR_HTTP_PORT: u16 = 5300;

/// What the bus URL says.
#[derive(Clone)]
pub(crate) struct Config {
    #[cfg_attr(not(feature = "identity"), allow(dead_code))]
    pub(crate) emulator: bool,
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) credential: Credential,
    /// The one entity that the credential is for; `None` for the whole namespace.
    pub(crate) entity: Option<String>,
    /// The administration API of the namespace.
    pub(crate) management: ManagementEndpoint,
    /// The largest message in bytes, encoded: what the namespace's tier takes.
    pub(crate) max_message_size: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) connection_name: String,
    pub(crate) cacert: Option<PathBuf>,
    pub(crate) transport: Transport,
    /// Over HTTP: how long a request for a message waits at the broker.
    pub(crate) poll: Duration,
}

impl Config {
    /// What OpenTelemetry calls queues and subscriptions, and topics, of this backend.
    pub(crate) fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        let system = MessagingSystem::new("servicebus", "azure.servicebus").server(self.host.as_str(), self.port);
        (system.clone(), system)
    }
}

/// How messages are sent and received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Amqp,
    /// AMQP over WebSockets.
    Websocket,
    Rest,
}

/// The endpoint of the administration API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManagementEndpoint {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Config {
    /// Reads the URL. `ConfigInvalid` names the parameter and what is expected, never a value that may be secret.
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
            management: ManagementEndpoint { tls: true, host: String::new(), port: 443 },
            max_message_size: 256 << 10,
            connect_timeout: Duration::from_secs(10),
            connection_name: "polybus".into(),
            cacert: None,
            transport: if websockets { Transport::Websocket } else { Transport::Amqp },
            poll: Duration::from_secs(5),
        };
        for (name, value) in parameters {
            let p = UrlParameter::new(BACKEND, name, value);
            match p.name() {
                "emulator" => emulator = p.flag()?,
                "tls" => tls = Some(p.flag()?),
                "management" => management = Some(self::management(&p)?),
                "max_message_size" => {
                    config.max_message_size = p.size(1024..=100 << 20, "1KiB to 100MiB, such as 256KiB or 1MiB")?;
                }
                "connect_timeout" => {
                    let range = Duration::from_millis(1)..=Duration::from_secs(300);
                    config.connect_timeout = p.duration(range, "a duration up to 5m")?;
                }
                "cacert" => config.cacert = Some(p.value().into()),
                "transport" => {
                    config.transport = p.one_of([
                        ("amqp", Transport::Amqp),
                        ("websocket", Transport::Websocket),
                        ("rest", Transport::Rest),
                    ])?;
                }
                "poll" => config.poll = p.duration(Duration::from_secs(1)..=Duration::from_secs(60), "1s to 60s")?,
                "connection_name" => p.value().clone_into(&mut config.connection_name),
                other => {
                    return Err(url.unknown_parameter(other, KNOWN_PARAMETERS).with_backend(BACKEND));
                }
            }
        }
        config.emulator = emulator;
        config.tls = tls.unwrap_or(!emulator);
        let mut port = url.port();
        if let Some(string) = &string {
            if config.host.is_empty() {
                config.host.clone_from(&string.host);
                // A port in a connection string is that of AMQP over TCP.
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
            (Transport::Websocket, false) if emulator => EMULATOR_HTTP_PORT,
            (Transport::Websocket, false) => 80,
            (_, true) => 5671,
            (_, false) => 5672,
        });
        if let Some(credential) = credential(url, token)? {
            config.credential = credential;
        }
        // A token itself tells what it is for.
        config.entity = match &config.credential {
            Credential::Token(token) => sas::entity(token),
            _ => None,
        };
        if config.entity.is_none() {
            config.entity = string.and_then(|s| s.entity);
        }
        // Over HTTP and WebSockets all goes to one port, which the URL may name.
        let http = url.port().filter(|_| config.transport != Transport::Amqp);
        config.management = management.unwrap_or_else(|| ManagementEndpoint {
            tls: config.tls,
            host: config.host.clone(),
            port: http.unwrap_or(if emulator { EMULATOR_HTTP_PORT } else { 443 }),
        });
        if emulator && tls.is_none() {
            config.management.tls &= config.management.port != EMULATOR_HTTP_PORT;
        }
        if !config.tls && !config.management.tls && config.cacert.is_some() {
            return Err(config_error("cacert needs TLS"));
        }
        Ok(config)
    }

    /// Refuses a path that the credential is not for. The broker would say no more than that it knows no such key.
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

/// The credential of the URL itself: key name and key, or a token.
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

/// The fields of a shared access signature, which are separated by `&` like the parameters of a URL.
const SIGNATURE_FIELDS: [&str; 4] = ["sr", "sig", "se", "skn"];

/// A parameter with only its percent-escapes decoded: in queries `+` means a space, but in keys it is a letter.
///
/// A signature may stand in the URL unescaped. Then the fields after it are taken out of `others`, and its own escapes
/// are a part of it.
fn raw_parameter(url: &ConnectUrl, name: &str, others: &mut BTreeMap<String, String>) -> Result<String> {
    let query = url.secret().split_once('?').map_or("", |(_, query)| query);
    let mut pieces = query.split('&').skip_while(|piece| piece.split_once('=').is_none_or(|(found, _)| found != name));
    let mut text = pieces.next().and_then(|piece| piece.split_once('=')).map_or("", |(_, value)| value).to_owned();
    let mut as_it_is = false;
    for piece in pieces {
        let field = piece.split('=').next().unwrap_or("");
        if !SIGNATURE_FIELDS.iter().any(|own| field.eq_ignore_ascii_case(own)) {
            break;
        }
        others.remove(field);
        text.push('&');
        text.push_str(piece);
        as_it_is = true;
    }
    if as_it_is {
        // The URL parser has escaped the space before `sr=`.
        return Ok(text.replace("%20", " "));
    }
    let decoded = percent_decode_str(&text).decode_utf8();
    decoded.map(Into::into).map_err(|_| config_error(format!("{name} is not UTF-8")))
}

fn management(parameter: &UrlParameter) -> Result<ManagementEndpoint> {
    let wrong = || parameter.must_be("http[s]://host[:port]");
    let url = url::Url::parse(parameter.value()).map_err(|_| wrong())?;
    let tls = match url.scheme() {
        "http" => false,
        "https" => true,
        _ => return Err(wrong()),
    };
    if !url.username().is_empty() || !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(wrong());
    }
    Ok(ManagementEndpoint {
        tls,
        host: url.host_str().filter(|h| !h.is_empty()).ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned(),
        port: url.port_or_known_default().ok_or_else(wrong)?,
    })
}

pub(crate) fn config_error(text: impl std::fmt::Display) -> Error {
    Error::config(format!("bus URL: {text}")).with_backend(BACKEND)
}

/// The table `[queues.x.options.servicebus]`, and the same on topics and subscriptions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EntityOptions {
    /// How long the broker remembers message ids, to drop duplicates. Fixed once the entity is created.
    duplicate_detection: Option<String>,
    /// On a subscription with `types`: whether structured events pass whose type is in their body alone, whatever it
    /// is.
    structured_events: bool,
    /// On an ordered source: how many sessions one consumer holds at most. Default: its prefetch.
    max_sessions: Option<usize>,
    /// On an ordered source: how long a session without messages is kept. Default: 5s.
    session_idle: Option<String>,
}

/// The options with defaults filled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResolvedOptions {
    pub(crate) duplicate_detection: Option<Duration>,
    pub(crate) structured_events: bool,
    pub(crate) max_sessions: Option<usize>,
    pub(crate) session_idle: Duration,
}

/// Reads the options of an entity. `ConfigInvalid` names the entity.
pub(crate) fn options<T: ToString>(entity: &Entity<T>) -> Result<ResolvedOptions> {
    let options: EntityOptions = entity.options(BACKEND)?;
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
    Ok(ResolvedOptions {
        duplicate_detection: window,
        structured_events: options.structured_events,
        max_sessions: options.max_sessions,
        session_idle: idle.unwrap_or(Duration::from_secs(5)),
    })
}

#[cfg(test)]
mod tests;

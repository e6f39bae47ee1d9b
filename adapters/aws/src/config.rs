//! What the bus URL and the `[….options.aws]` tables of a configuration say.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{
    Error, Result,
    driver::{
        ConnectUrl,
        kit::{duration, url_parameters::UrlParameter},
    },
    topology::Entity,
};
use serde::Deserialize;
use url::Url;

use crate::{
    BACKEND,
    message::limits::{MAX_WAIT, QUEUE_BYTES, ROOM_FOR_REASON, SMALL_QUEUE_BYTES},
};

const KNOWN: &str = "region, endpoint, account, profile, max_message_size, poll, timeout, connect_timeout";

const CREDENTIALS: &str = "bus URL: no credentials belong into aws://; they come from the usual chain (AWS_ACCESS_KEY_ID and \
                           AWS_SECRET_ACCESS_KEY, AWS_PROFILE, a container's or instance's role)";

/// How long a queue keeps messages unless an option says otherwise: the longest that SQS allows. The shortest is a
/// minute.
pub(crate) const RETENTION: Duration = Duration::from_secs(14 * 86_400);

/// The parameters of the URL. None is secret: credentials come from the usual chain alone.
#[derive(Clone, Debug)]
pub(crate) struct AwsConfig {
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) profile: Option<String>,
    /// In bytes of body and attributes.
    pub(crate) max_message_size: usize,
    /// How long any answer may take. Long polls have their wait on top.
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    /// The longest that one long poll waits. Closing a consumer waits for its polls.
    pub(crate) poll: Duration,
}

impl AwsConfig {
    /// Reads the URL. `ConfigInvalid` names the parameter and the form it must have. It never shows a value, which may
    /// be a secret.
    pub(crate) fn parse(url: &ConnectUrl) -> Result<Self> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::config(CREDENTIALS).with_backend(BACKEND));
        }
        if !url.host().is_empty() || !matches!(url.path(), "" | "/") {
            let text = "bus URL: expected aws://?region=eu-west-1; host and path mean nothing here (another endpoint is \
                        endpoint=https://…)";
            return Err(Error::config(text).with_backend(BACKEND));
        }
        let mut config = Self {
            region: None,
            endpoint: None,
            account: None,
            profile: None,
            max_message_size: QUEUE_BYTES - ROOM_FOR_REASON,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            poll: Duration::from_secs(5),
        };
        let timeouts = Duration::from_millis(1)..=Duration::from_secs(300);
        let timeout = |p: &UrlParameter| p.duration(timeouts.clone(), "a duration up to 5m, such as 10s");
        for p in UrlParameter::all(url, BACKEND)? {
            match p.name() {
                "region" => config.region = Some(region(&p)?),
                "endpoint" => config.endpoint = Some(endpoint(&p)?),
                "account" if p.value().len() == 12 && p.value().bytes().all(|b| b.is_ascii_digit()) => {
                    config.account = Some(p.value().to_owned());
                }
                "account" => return Err(p.must_be("an AWS account id of 12 digits")),
                "profile" if !p.value().is_empty() => config.profile = Some(p.value().to_owned()),
                "profile" => return Err(p.must_be("the name of a profile in ~/.aws/config")),
                "max_message_size" => {
                    let most = QUEUE_BYTES - ROOM_FOR_REASON;
                    let expected =
                        format!("1 to {most} bytes, such as 64KiB: 1 MiB less what a dead letter's reason takes");
                    config.max_message_size = p.size(1..=most, &expected)?;
                }
                "poll" => {
                    let expected = "whole seconds from 1s to 20s";
                    config.poll = p.duration(Duration::from_secs(1)..=MAX_WAIT, expected)?;
                    if config.poll.subsec_nanos() != 0 {
                        return Err(p.must_be(expected));
                    }
                }
                "timeout" => config.timeout = timeout(&p)?,
                "connect_timeout" => config.connect_timeout = timeout(&p)?,
                "access_key"
                | "access_key_id"
                | "aws_access_key_id"
                | "secret_key"
                | "secret_access_key"
                | "aws_secret_access_key"
                | "session_token"
                | "aws_session_token" => return Err(Error::config(CREDENTIALS).with_backend(BACKEND)),
                "aws_region" | "region_name" | "default_region" => {
                    return Err(Error::config("bus URL: the region is written region=eu-west-1").with_backend(BACKEND));
                }
                "endpoint_url" | "aws_endpoint" => {
                    let text = "bus URL: another endpoint is written endpoint=http://host:port";
                    return Err(Error::config(text).with_backend(BACKEND));
                }
                other => return Err(url.unknown_parameter(other, KNOWN).with_backend(BACKEND)),
            }
        }
        Ok(config)
    }

    /// Most bytes of a message, and of a batch, on a queue. It is what every partition of AWS takes where
    /// `max_message_size` stays below that, and 1 MiB else.
    pub(crate) fn queue_bytes(&self) -> usize {
        match self.max_message_size + ROOM_FOR_REASON <= SMALL_QUEUE_BYTES {
            true => SMALL_QUEUE_BYTES,
            false => QUEUE_BYTES,
        }
    }

    /// The options of an entity, checked. `ConfigInvalid` names the entity.
    pub(crate) fn options<T: ToString>(&self, entity: &Entity<T>) -> Result<EntityOptions> {
        let table: OptionsTable = entity.options(BACKEND)?;
        let retention = match &table.retention {
            None => None,
            Some(text) => {
                let wrong = |why: &str| {
                    let name = entity.name.to_string();
                    Error::config(format!("{name}: options.aws.retention {why}")).with_backend(BACKEND)
                };
                let span = duration::parse(text).map_err(|e| wrong(&format!(": {e}")))?;
                if !(Duration::from_secs(60)..=RETENTION).contains(&span) || span.subsec_nanos() != 0 {
                    return Err(wrong("must be whole seconds from 1m to 14d"));
                }
                Some(span)
            }
        };
        Ok(EntityOptions { kms_key: table.kms_key, tags: table.tags, retention })
    }
}

/// Checks the form of a region's name. Whether it exists shows at the connect, when its endpoint has no address.
fn region(parameter: &UrlParameter) -> Result<String> {
    let value = parameter.value();
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ends = value.bytes().next_back().is_some_and(|b| b.is_ascii_digit());
    if value.bytes().all(legal) && value.split('-').all(|part| !part.is_empty()) && value.contains('-') && ends {
        return Ok(value.to_owned());
    }
    Err(parameter.must_be("a region's name such as eu-west-1"))
}

fn endpoint(parameter: &UrlParameter) -> Result<String> {
    let wrong = || parameter.must_be("http[s]://host[:port], without user, path or query");
    let value = parameter.value();
    let url = Url::parse(value).map_err(|_| wrong())?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    let host = url.host_str().is_some_and(|h| !h.is_empty());
    if !matches!(url.scheme(), "http" | "https") || !plain || !host || url.path() != "/" {
        return Err(wrong());
    }
    Ok(value.trim_end_matches('/').to_owned())
}

/// The table `[queues.NAME.options.aws]`; topics and subscriptions have the same.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OptionsTable {
    /// Id, ARN or `alias/…` of a KMS key, which replaces SQS' own encryption.
    kms_key: Option<String>,
    /// Tags of the queues and topics that `declare` creates.
    tags: BTreeMap<String, String>,
    /// How long messages are kept, from 1 minute to 14 days. Default 14 days.
    retention: Option<String>,
}

/// The options of an entity, checked.
#[derive(Clone, Debug)]
pub(crate) struct EntityOptions {
    pub(crate) kms_key: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    /// Default [`RETENTION`].
    pub(crate) retention: Option<Duration>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use polybus_core::ErrorKind;

    use super::*;

    fn parse(url: &str) -> Result<AwsConfig> {
        AwsConfig::parse(&ConnectUrl::parse(url).unwrap())
    }

    #[test]
    fn every_parameter_is_read() {
        let url = "aws://?region=eu-west-1&endpoint=http://127.0.0.1:4566/&account=123456789012&profile=p\
                   &max_message_size=64KiB&timeout=2s&connect_timeout=1s&poll=20s";
        let c = parse(url).unwrap();
        assert_eq!((c.region.as_deref(), c.endpoint.as_deref()), (Some("eu-west-1"), Some("http://127.0.0.1:4566")));
        assert_eq!((c.account.as_deref(), c.profile.as_deref()), (Some("123456789012"), Some("p")));
        assert_eq!(
            (c.max_message_size, c.timeout, c.connect_timeout),
            (65536, Duration::from_secs(2), Duration::from_secs(1))
        );
        assert_eq!(c.poll, MAX_WAIT);
        let c = parse("aws://").unwrap();
        assert!(c.region.is_none() && c.endpoint.is_none() && c.max_message_size == QUEUE_BYTES - ROOM_FOR_REASON);
    }

    #[test]
    fn small_messages_ask_for_what_every_partition_takes() {
        for (size, bytes) in [("64KiB", 256 << 10), ("255KiB", 256 << 10), ("256KiB", 1 << 20), ("500KiB", 1 << 20)] {
            let config = parse(&format!("aws://?max_message_size={size}")).unwrap();
            assert_eq!(config.queue_bytes(), bytes, "{size}");
        }
    }

    #[test]
    fn wrong_parameters_say_what_is_right_and_show_no_value() {
        for (url, word) in [
            ("aws://u:s3cret@host/", "usual chain"),
            ("aws://AKIAs3cret@host/", "usual chain"),
            ("aws://s3cret/", "endpoint="),
            ("aws:///s3cret", "endpoint="),
            ("aws://?access_key=s3cret", "usual chain"),
            ("aws://?s3cret=s3cret", "known are region"),
            ("aws://?endpoint_url=s3cret", "endpoint=http://"),
            ("aws://?region=s3cret", "eu-west-1"),
            ("aws://?region=eu-west-", "eu-west-1"),
            ("aws://?endpoint=http://u:s3cret@h", "without user"),
            ("aws://?endpoint=http://h/s3cret", "without user"),
            ("aws://?endpoint=s3cret", "http[s]://"),
            ("aws://?account=s3cret", "12 digits"),
            ("aws://?max_message_size=1MiB", "1047552"),
            ("aws://?timeout=s3cret", "such as 10s"),
            ("aws://?poll=21s", "1s to 20s"),
            ("aws://?poll=500ms", "1s to 20s"),
            ("aws://?timeout=6m", "such as 10s"),
        ] {
            let e = parse(url).map(|_| ()).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::ConfigInvalid);
            assert!(e.to_string().contains(word) && !format!("{e:?}").contains("s3cret"), "{url}: {e}");
        }
    }
}

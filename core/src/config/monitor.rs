//! The table `[monitor]`: rules about sources, and where alerts go. `polybus-patterns` has the monitor that keeps them.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

use crate::{Error, Result, Source, runtime::duration};

/// The table `[monitor]`: what is watched, and who is told.
///
/// ```
/// let config: polybus_core::Config = r#"
///     [monitor]
///     every = "30s"
///
///     [[monitor.rules]]
///     source = "queue:payments"
///     kind = "depth"
///     above = 10000
///     clear_below = 5000
///     held_for = "1m"
/// "#
/// .parse()?;
/// assert_eq!(config.monitor.map(|monitor| monitor.rules.len()), Some(1));
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct MonitorConfig {
    /// The monitor's name, 1 to 63 of a-z, 0-9 and '-'. Monitors with one name and one database take turns, and
    /// one with a leader needs a name. Default `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How often each source is polled, such as `15s`: from `1s` to `1d`. Default 15 s.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub every: Option<Duration>,
    /// How often it is told that an alert still fires: a duration such as `1h`, or `never`. Default 1 h.
    #[serde(with = "duration::or_never", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub remind_every: Option<Duration>,
    /// After how many polls in a row without an answer that is an alert, at least 2. Default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_after: Option<u32>,
    /// What is watched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<MonitorRuleConfig>,
    /// Who is told, beside the log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<WebhookConfig>,
}

/// An entry of `[[monitor.rules]]`: a value that is watched, and its threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MonitorRuleConfig {
    /// The alert's name. Default: kind and source, such as `depth queue:payments`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The source that is watched, such as `queue:payments` or `subscription:order-events/billing`.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub source: Source,
    /// What of it is measured.
    pub kind: MonitorRuleKind,
    /// Above this an alert pends, and then fires: a number; for `age` a duration such as `5m`. Default 0 for dead
    /// letters; the other kinds need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<NumberOrDuration>,
    /// At this or below it is resolved. Default four fifths of `above`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear_below: Option<NumberOrDuration>,
    /// How long the value must stay above: a number of polls, or a duration such as `1m`. Default 3 polls; of
    /// `dead_letters_rising`, 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_for: Option<NumberOrDuration>,
    /// How long it must stay at `clear_below` or lower: a number of polls, or a duration. Default 1 poll.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_firing_for: Option<NumberOrDuration>,
    /// How far back `growth` and `dead_letters_rising` look, such as `5m`: at most `1d`. Default 5 min.
    #[serde(default, with = "duration::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub over: Option<Duration>,
}

/// What a rule measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MonitorRuleKind {
    /// How many messages wait.
    Depth,
    /// By how many messages a minute that grows.
    Growth,
    /// For how long the oldest message has waited. The application must give the monitor a gauge of the source.
    Age,
    /// How many dead letters there are.
    DeadLetters,
    /// How many dead letters came lately.
    DeadLettersRising,
}

/// An entry of `[[monitor.webhooks]]`: a URL that alerts are sent to, signed as Standard Webhooks says.
///
/// `Debug` hides URL and secrets. Serializing does not.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct WebhookConfig {
    /// The name in logs and metrics. Default `webhook`; no two may have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The URL, `https://` or `http://`.
    pub url: String,
    /// The secret that requests are signed with: 24 to 64 bytes in base64, with or without `whsec_` before it. Write it
    /// as a variable, such as `${ALERTS_SECRET}`.
    pub secret: String,
    /// Secrets that requests are signed with as well, while receivers change from one to the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub old_secrets: Vec<String>,
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A number such as `10000`, or a duration such as `"5m"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NumberOrDuration {
    /// A number.
    Number(f64),
    /// A duration.
    Duration(Duration),
}

impl Serialize for NumberOrDuration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            // So that 3 polls are written as 3 and not as 3.0.
            Self::Number(n) if n.fract() == 0.0 && n.abs() < 9e15 => s.serialize_i64(*n as i64),
            Self::Number(n) => s.serialize_f64(*n),
            Self::Duration(d) => s.serialize_str(&duration::format(*d)),
        }
    }
}

impl<'de> Deserialize<'de> for NumberOrDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = NumberOrDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a duration such as \"5m\"")
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Self::Value, E> {
                Ok(NumberOrDuration::Number(n as f64))
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Self::Value, E> {
                Ok(NumberOrDuration::Number(n as f64))
            }
            fn visit_f64<E: de::Error>(self, n: f64) -> Result<Self::Value, E> {
                Ok(NumberOrDuration::Number(n))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                duration::parse(text).map(NumberOrDuration::Duration).map_err(E::custom)
            }
        }

        d.deserialize_any(Visitor)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for NumberOrDuration {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NumberOrDuration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["number", "string"] })
    }
}

impl MonitorConfig {
    /// Checks what can be checked without a monitor. Thresholds against each other are the monitor's to check.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |key: String, text: &str| Err(Error::config(text).with_context("key", key));
        let legal = Duration::from_secs(1)..=Duration::from_secs(86_400);
        if self.every.is_some_and(|every| !legal.contains(&every)) {
            return wrong("monitor.every".into(), "every must be from 1s to 1d");
        }
        if self.remind_every == Some(Duration::ZERO) {
            return wrong("monitor.remind_every".into(), "remind_every must be longer than nothing, or never");
        }
        if self.unknown_after.is_some_and(|polls| polls < 2) {
            return wrong(
                "monitor.unknown_after".into(),
                "unknown_after must be at least 2: one failed poll is no alert",
            );
        }
        if self.rules.is_empty() {
            return wrong("monitor".into(), "the monitor has no rule: add a table [[monitor.rules]]");
        }
        for (i, rule) in self.rules.iter().enumerate() {
            rule.check().map_err(|(key, text)| {
                Error::config(format!("{key}: {text}")).with_context("key", format!("monitor.rules[{i}].{key}"))
            })?;
        }
        let name_of = |webhook: &WebhookConfig| webhook.name.clone().unwrap_or_else(|| "webhook".into());
        let mut names = std::collections::BTreeSet::new();
        for (i, webhook) in self.webhooks.iter().enumerate() {
            if !names.insert(name_of(webhook)) {
                let text = format!("two webhooks are named {:?}: give one another name", name_of(webhook));
                return wrong(format!("monitor.webhooks[{i}].name"), &text);
            }
            // The url crate's errors show nothing of the URL, and neither does this one.
            let is_http = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
            if !Url::parse(&webhook.url).is_ok_and(|url| is_http(&url)) {
                let key = format!("monitor.webhooks[{i}].url");
                return wrong(key, "url must be a URL with https:// or http:// and a host");
            }
        }
        Ok(())
    }
}

impl MonitorRuleConfig {
    /// The key that is wrong, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let is_age = self.kind == MonitorRuleKind::Age;
        for (key, threshold) in [("above", self.above), ("clear_below", self.clear_below)] {
            match threshold {
                Some(NumberOrDuration::Duration(_)) if !is_age => {
                    return Err((key, "write a number: a duration is for the kind age".into()));
                }
                Some(NumberOrDuration::Number(_)) if is_age => {
                    return Err((key, "write a duration, such as \"5m\"".into()));
                }
                _ => {}
            }
        }
        if let Some(NumberOrDuration::Number(above)) = self.above.filter(|above| is_negative(*above)) {
            return Err(("above", format!("write 0 or more: no value of this kind is {above} or lower")));
        }
        if self.kind != MonitorRuleKind::Growth && self.clear_below.is_some_and(is_negative) {
            return Err(("clear_below", "write 0 or more: no value of this kind is lower".into()));
        }
        if self.over.is_some_and(|over| over.is_zero() || over > Duration::from_secs(86_400)) {
            return Err(("over", "write more than nothing, and at most \"1d\"".into()));
        }
        for (key, hold) in [("held_for", self.held_for), ("keep_firing_for", self.keep_firing_for)] {
            match hold {
                Some(NumberOrDuration::Number(polls)) if !is_whole(polls) => {
                    return Err((
                        key,
                        "write a whole number of polls, at least 1, or a duration such as \"1m\"".into(),
                    ));
                }
                _ => {}
            }
        }
        if self.source.is_dead_letters() {
            let text = format!("dead letters are counted by the kind dead_letters of {}", self.source.live());
            return Err(("source", text));
        }
        Ok(())
    }
}

fn is_negative(threshold: NumberOrDuration) -> bool {
    matches!(threshold, NumberOrDuration::Number(n) if n < 0.0)
}

fn is_whole(polls: f64) -> bool {
    polls.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&polls)
}

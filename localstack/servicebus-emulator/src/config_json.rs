//! The official emulator's Config.json, read unchanged: comments, trailing commas, any case of the names.

use std::fmt;

use serde_json::{Map, Value as Json};

use crate::broker::{
    Broker, Correlation, Filter, QueueSettings, Rule, SqlAction, SqlFilter, Status, SubscriptionSettings, TopicSettings,
};
use crate::http::iso8601::parse_duration;
use crate::refusal::Refusal;
use crate::value::Value;

/// Entities to start with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    queues: Vec<(String, QueueSettings)>,
    topics: Vec<TopicConfig>,
}

#[derive(Clone, Debug, PartialEq)]
struct TopicConfig {
    name: String,
    settings: TopicSettings,
    subscriptions: Vec<SubscriptionConfig>,
}

#[derive(Clone, Debug, PartialEq)]
struct SubscriptionConfig {
    name: String,
    settings: SubscriptionSettings,
    rules: Vec<Rule>,
}

/// What is wrong with a Config.json, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads a Config.json. Several namespaces become one.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let json: Json = serde_json::from_str(&plain_json(text)).map_err(|error| ConfigError(error.to_string()))?;
        let user = Fields::new(&json, "the file")?.object("UserConfig")?;
        let user = user.ok_or_else(|| ConfigError("the file has no UserConfig".to_owned()))?;
        let mut config = Self::default();
        for namespace in user.objects("Namespaces")? {
            for queue in namespace.objects("Queues")? {
                config.queues.push((queue.name()?, queue_settings(&queue.properties()?)?));
            }
            for topic in namespace.objects("Topics")? {
                config.topics.push(read_topic(&topic)?);
            }
        }
        Ok(config)
    }

    /// Makes the entities. Forwarding comes last, since it may point to what stands further down.
    pub(crate) fn create(&self, broker: &Broker) -> Result<(), Refusal> {
        for (name, settings) in &self.queues {
            let alone = QueueSettings { forward_to: None, forward_dead_lettered_to: None, ..settings.clone() };
            broker.create_queue(name, alone)?;
        }
        for topic in &self.topics {
            broker.create_topic(&topic.name, topic.settings.clone())?;
            for subscription in &topic.subscriptions {
                subscription.create(&topic.name, broker)?;
            }
        }
        for (name, settings) in &self.queues {
            if settings.forward_to.is_some() || settings.forward_dead_lettered_to.is_some() {
                broker.update_queue(name, settings.clone())?;
            }
        }
        for topic in &self.topics {
            for SubscriptionConfig { name, settings, .. } in &topic.subscriptions {
                if settings.forward_to.is_some() || settings.forward_dead_lettered_to.is_some() {
                    broker.update_subscription(&topic.name, name, settings.clone())?;
                }
            }
        }
        Ok(())
    }
}

impl SubscriptionConfig {
    fn create(&self, topic: &str, broker: &Broker) -> Result<(), Refusal> {
        let alone = SubscriptionSettings { forward_to: None, forward_dead_lettered_to: None, ..self.settings.clone() };
        let mut rules = self.rules.iter().cloned();
        broker.create_subscription(topic, &self.name, alone, rules.next())?;
        rules.try_for_each(|rule| broker.add_rule(topic, &self.name, rule))
    }
}

fn queue_settings(read: &Fields<'_>) -> Result<QueueSettings, ConfigError> {
    let default = QueueSettings::default();
    Ok(QueueSettings {
        lock_duration_ms: read.limited("LockDuration")?.unwrap_or(default.lock_duration_ms),
        max_size_in_megabytes: read.number("MaxSizeInMegabytes")?.unwrap_or(default.max_size_in_megabytes),
        max_message_size_in_kilobytes: read.number("MaxMessageSizeInKilobytes")?,
        requires_duplicate_detection: read.truth("RequiresDuplicateDetection")?.unwrap_or(false),
        duplicate_detection_history_ms: read
            .limited("DuplicateDetectionHistoryTimeWindow")?
            .unwrap_or(default.duplicate_detection_history_ms),
        requires_session: read.truth("RequiresSession")?.unwrap_or(false),
        default_time_to_live_ms: read.duration("DefaultMessageTimeToLive")?,
        dead_lettering_on_expiration: read.truth("DeadLetteringOnMessageExpiration")?.unwrap_or(false),
        max_delivery_count: read.deliveries()?.unwrap_or(default.max_delivery_count),
        status: read.status()?,
        forward_to: read.text("ForwardTo")?,
        forward_dead_lettered_to: read.text("ForwardDeadLetteredMessagesTo")?,
        user_metadata: read.text("UserMetadata")?,
        ..default
    })
}

fn read_topic(topic: &Fields<'_>) -> Result<TopicConfig, ConfigError> {
    let read = topic.properties()?;
    let default = TopicSettings::default();
    let settings = TopicSettings {
        max_size_in_megabytes: read.number("MaxSizeInMegabytes")?.unwrap_or(default.max_size_in_megabytes),
        max_message_size_in_kilobytes: read.number("MaxMessageSizeInKilobytes")?,
        requires_duplicate_detection: read.truth("RequiresDuplicateDetection")?.unwrap_or(false),
        duplicate_detection_history_ms: read
            .limited("DuplicateDetectionHistoryTimeWindow")?
            .unwrap_or(default.duplicate_detection_history_ms),
        default_time_to_live_ms: read.duration("DefaultMessageTimeToLive")?,
        status: read.status()?,
        user_metadata: read.text("UserMetadata")?,
        ..default
    };
    let subscriptions =
        topic.objects("Subscriptions")?.iter().map(read_subscription).collect::<Result<_, ConfigError>>()?;
    Ok(TopicConfig { name: topic.name()?, settings, subscriptions })
}

fn read_subscription(subscription: &Fields<'_>) -> Result<SubscriptionConfig, ConfigError> {
    let read = subscription.properties()?;
    let default = SubscriptionSettings::default();
    let settings = SubscriptionSettings {
        lock_duration_ms: read.limited("LockDuration")?.unwrap_or(default.lock_duration_ms),
        requires_session: read.truth("RequiresSession")?.unwrap_or(false),
        default_time_to_live_ms: read.duration("DefaultMessageTimeToLive")?,
        dead_lettering_on_expiration: read.truth("DeadLetteringOnMessageExpiration")?.unwrap_or(false),
        dead_lettering_on_filter_evaluation_exceptions: read
            .truth("DeadLetteringOnFilterEvaluationExceptions")?
            .unwrap_or(default.dead_lettering_on_filter_evaluation_exceptions),
        max_delivery_count: read.deliveries()?.unwrap_or(default.max_delivery_count),
        status: read.status()?,
        forward_to: read.text("ForwardTo")?,
        forward_dead_lettered_to: read.text("ForwardDeadLetteredMessagesTo")?,
        user_metadata: read.text("UserMetadata")?,
        ..default
    };
    let rules = subscription.objects("Rules")?.iter().map(read_rule).collect::<Result<_, ConfigError>>()?;
    Ok(SubscriptionConfig { name: subscription.name()?, settings, rules })
}

fn read_rule(rule: &Fields<'_>) -> Result<Rule, ConfigError> {
    let read = rule.properties()?;
    let bad = |refusal: Refusal| ConfigError(format!("{}: {}", rule.path, refusal.description));
    let kind = read.text("FilterType")?.unwrap_or_default().to_lowercase();
    let filter = match (read.object("SqlFilter")?, read.object("CorrelationFilter")?) {
        (Some(sql), _) if kind != "correlation" => {
            Filter::Sql(SqlFilter::parse(&sql.needed("SqlExpression")?, Vec::new()).map_err(bad)?)
        }
        (_, Some(correlation)) if kind != "sql" => Filter::Correlation(read_correlation(&correlation)?),
        _ => match kind.trim_end_matches("filter") {
            "true" => Filter::True,
            "false" => Filter::False,
            _ => return Err(ConfigError(format!("{} has no filter of its FilterType '{kind}'", rule.path))),
        },
    };
    let action = match read.object("Action")?.map(|action| action.text("SqlExpression")).transpose()?.flatten() {
        Some(text) => Some(SqlAction::parse(&text, Vec::new()).map_err(bad)?),
        None => None,
    };
    Ok(Rule { action, ..Rule::new(rule.name()?, filter) })
}

fn read_correlation(read: &Fields<'_>) -> Result<Correlation, ConfigError> {
    let mut properties = Vec::new();
    if let Some(pairs) = read.object("Properties")? {
        for (name, value) in pairs.map {
            properties.push((name.clone(), pairs.value(name, value)?));
        }
    }
    Ok(Correlation {
        correlation_id: read.text("CorrelationId")?,
        message_id: read.text("MessageId")?,
        to: read.text("To")?,
        reply_to: read.text("ReplyTo")?,
        label: read.text("Label")?,
        session_id: read.text("SessionId")?,
        reply_to_session_id: read.text("ReplyToSessionId")?,
        content_type: read.text("ContentType")?,
        properties,
    })
}

/// An object and where it stands.
struct Fields<'a> {
    map: &'a Map<String, Json>,
    path: String,
}

impl<'a> Fields<'a> {
    fn new(json: &'a Json, path: &str) -> Result<Self, ConfigError> {
        let map = json.as_object().ok_or_else(|| ConfigError(format!("{path} is no object")))?;
        Ok(Self { map, path: path.to_owned() })
    }

    fn find(&self, name: &str) -> Option<&'a Json> {
        let found = self.map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        found.filter(|value| !value.is_null())
    }

    fn object(&self, name: &str) -> Result<Option<Self>, ConfigError> {
        self.find(name).map(|json| Self::new(json, &format!("{}: {name}", self.path))).transpose()
    }

    fn objects(&self, name: &str) -> Result<Vec<Self>, ConfigError> {
        let Some(json) = self.find(name) else { return Ok(Vec::new()) };
        let items = json.as_array().ok_or_else(|| ConfigError(format!("{}: {name} is no list", self.path)))?;
        let named = |(at, item)| {
            let mut fields = Self::new(item, &format!("{name}[{at}]"))?;
            if let Some(own) = fields.text("Name")? {
                fields.path = format!("{name}[{at}] '{own}'");
            }
            Ok(fields)
        };
        items.iter().enumerate().map(named).collect()
    }

    fn properties(&self) -> Result<Self, ConfigError> {
        match self.object("Properties")? {
            Some(properties) => Ok(Self { path: self.path.clone(), ..properties }),
            None => {
                static EMPTY: std::sync::LazyLock<Map<String, Json>> = std::sync::LazyLock::new(Map::new);
                Ok(Self { map: &EMPTY, path: self.path.clone() })
            }
        }
    }

    fn name(&self) -> Result<String, ConfigError> {
        self.needed("Name")
    }

    fn needed(&self, name: &str) -> Result<String, ConfigError> {
        self.text(name)?.ok_or_else(|| ConfigError(format!("{} has no {name}", self.path)))
    }

    /// An empty text is none, as in Microsoft's own file.
    fn text(&self, name: &str) -> Result<Option<String>, ConfigError> {
        match self.find(name) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(other) => Err(self.bad(name, other, "text")),
        }
    }

    fn truth(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        match self.find(name) {
            None => Ok(None),
            Some(Json::Bool(truth)) => Ok(Some(*truth)),
            Some(Json::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Json::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(self.bad(name, other, "true or false")),
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        let Some(json) = self.find(name) else { return Ok(None) };
        let number = json.as_u64().or_else(|| json.as_str()?.parse().ok());
        number.map(Some).ok_or_else(|| self.bad(name, json, "a whole number"))
    }

    fn deliveries(&self) -> Result<Option<u32>, ConfigError> {
        // What is above the largest number is above the limit too, and is refused as that.
        Ok(self.number("MaxDeliveryCount")?.map(|count| u32::try_from(count).unwrap_or(u32::MAX)))
    }

    fn duration(&self, name: &str) -> Result<Option<i64>, ConfigError> {
        let Some(json) = self.find(name).filter(|json| json.as_str() != Some("")) else { return Ok(None) };
        let duration = json.as_str().and_then(parse_duration);
        duration.ok_or_else(|| self.bad(name, json, "an ISO 8601 duration such as PT1M"))
    }

    fn limited(&self, name: &str) -> Result<Option<i64>, ConfigError> {
        match (self.find(name), self.duration(name)?) {
            (Some(json), None) if json.as_str() != Some("") => Err(self.bad(name, json, "a duration that ends")),
            (_, duration) => Ok(duration),
        }
    }

    fn status(&self) -> Result<Status, ConfigError> {
        let Some(text) = self.text("Status")? else { return Ok(Status::default()) };
        Status::parse(&text).ok_or_else(|| ConfigError(format!("{}: '{text}' is no Status", self.path)))
    }

    fn value(&self, name: &str, json: &Json) -> Result<Value, ConfigError> {
        Ok(match json {
            Json::String(text) => Value::string(text),
            Json::Bool(truth) => Value::Bool(*truth),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Value::Long(number),
                (None, Some(number)) => Value::Double(number),
                (None, None) => return Err(self.bad(name, json, "a number in range")),
            },
            _ => return Err(self.bad(name, json, "text, a number, true or false")),
        })
    }

    fn bad(&self, name: &str, found: &Json, wanted: &str) -> ConfigError {
        ConfigError(format!("{}: {name} is {found}, which is not {wanted}", self.path))
    }
}

/// Without comments and trailing commas, which .NET reads over. Lengths stay, so that an error's place is right.
fn plain_json(text: &str) -> String {
    let text = text.trim_start_matches('\u{feff}');
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    let mut comma: Option<usize> = None;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '"' => string_length(rest),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            _ => c.len_utf8(),
        };
        let (piece, left) = rest.split_at(length);
        rest = left;
        if c == '/' && length > 1 {
            plain.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            continue;
        }
        match c {
            ',' => comma = Some(plain.len()),
            '}' | ']' => {
                if let Some(at) = comma.take() {
                    plain.replace_range(at..=at, " ");
                }
            }
            c if c.is_whitespace() => {}
            _ => comma = None,
        }
        plain.push_str(piece);
    }
    plain
}

/// With its quotes.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
#[path = "config_json_tests.rs"]
mod tests;

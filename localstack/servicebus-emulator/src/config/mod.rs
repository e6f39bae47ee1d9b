//! Reads the official emulator's Config.json unchanged, with its comments, trailing commas and names in any case, and
//! creates its entities.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use crate::broker::{
    Broker, CorrelationFilter, EntityStatus, QueueSettings, Rule, RuleFilter, SqlAction, SqlFilter,
    SubscriptionSettings, TopicSettings, validate,
};
use crate::codec::Value;
use crate::http::iso8601::parse_duration;
use crate::refusal::Refusal;

/// The entities that an emulator starts with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmulatorConfig {
    /// The file that it was read from.
    file: Option<PathBuf>,
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

/// All faults of a Config.json with their places, not only the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: Option<String>,
    faults: Vec<String>,
}

impl ConfigError {
    fn new(fault: impl Into<String>) -> Self {
        Self { file: None, faults: vec![fault.into()] }
    }

    fn of_file(mut self, path: &Path) -> Self {
        self.file = Some(path.display().to_string());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        match self.faults.as_slice() {
            [fault] => f.write_str(fault),
            faults => {
                write!(f, "{} faults", faults.len())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// The faults found so far. Reading continues after each, so that all are reported at once.
#[derive(Default)]
struct ConfigFaults(RefCell<Vec<String>>);

impl ConfigFaults {
    /// The value that was read, or the default after a fault.
    fn take<T: Default>(&self, read: Result<T, ConfigError>) -> T {
        read.unwrap_or_else(|error| {
            self.0.borrow_mut().extend(error.faults);
            T::default()
        })
    }

    /// Notes what the broker would refuse of an entity.
    fn refused(&self, path: &str, refusals: impl IntoIterator<Item = Refusal>) {
        self.0.borrow_mut().extend(refusals.into_iter().map(|refusal| format!("{path}: {}", refusal.description)));
    }

    fn into_result(self) -> Result<(), ConfigError> {
        let faults = self.0.into_inner();
        if faults.is_empty() { Ok(()) } else { Err(ConfigError { file: None, faults }) }
    }
}

impl EmulatorConfig {
    /// Reads a file. Later faults name the file too.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::new(error.to_string()).of_file(path))?;
        let config = Self::parse(&text).map_err(|error| error.of_file(path))?;
        Ok(Self { file: Some(path.to_owned()), ..config })
    }

    /// Reads a Config.json. Several namespaces become one.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let json: Json =
            serde_json::from_str(&plain_json(text)).map_err(|error| ConfigError::new(error.to_string()))?;
        let user = JsonFields::new(&json, "the file")?.object("UserConfig")?;
        let user = user.ok_or_else(|| ConfigError::new("the file has no UserConfig"))?;
        let (mut config, notes) = (Self::default(), ConfigFaults::default());
        for namespace in notes.take(user.objects("Namespaces", &notes)) {
            for queue in notes.take(namespace.objects("Queues", &notes)) {
                let (name, settings) = (notes.take(queue.name()), queue_settings(&queue, &notes));
                notes.refused(&queue.path, named(&name, validate::name).chain(validate::queue_faults(&settings)));
                config.queues.push((name, settings));
            }
            for topic in notes.take(namespace.objects("Topics", &notes)) {
                config.topics.push(read_topic(&topic, &notes));
            }
        }
        notes.into_result().map(|()| config)
    }

    /// Creates the entities. Forwarding is set last, because its target may be further down in the file.
    pub(crate) fn create(&self, broker: &Broker) -> Result<(), ConfigError> {
        let notes = ConfigFaults::default();
        let note = |entity: String, done: Result<(), Refusal>| notes.refused(&entity, done.err());
        for (name, settings) in &self.queues {
            let alone = QueueSettings { forward_to: None, forward_dead_lettered_to: None, ..settings.clone() };
            note(format!("queue '{name}'"), broker.create_queue(name, alone).map(drop));
        }
        for topic in &self.topics {
            note(format!("topic '{}'", topic.name), broker.create_topic(&topic.name, topic.settings.clone()).map(drop));
            for subscription in &topic.subscriptions {
                let entity = format!("topic '{}', subscription '{}'", topic.name, subscription.name);
                note(entity, subscription.create(&topic.name, broker));
            }
        }
        for (name, settings) in &self.queues {
            if settings.forward_to.is_some() || settings.forward_dead_lettered_to.is_some() {
                note(format!("queue '{name}'"), broker.update_queue(name, settings.clone()).map(drop));
            }
        }
        for topic in &self.topics {
            for SubscriptionConfig { name, settings, .. } in &topic.subscriptions {
                if settings.forward_to.is_some() || settings.forward_dead_lettered_to.is_some() {
                    let entity = format!("topic '{}', subscription '{name}'", topic.name);
                    note(entity, broker.update_subscription(&topic.name, name, settings.clone()).map(drop));
                }
            }
        }
        notes.into_result().map_err(|error| match &self.file {
            Some(file) => error.of_file(file),
            None => error,
        })
    }
}

/// The fault of a name. A missing name was noted before.
fn named(name: &str, check: impl Fn(&str) -> Result<(), Refusal>) -> impl Iterator<Item = Refusal> {
    (!name.is_empty()).then(|| check(name).err()).flatten().into_iter()
}

impl SubscriptionConfig {
    fn create(&self, topic: &str, broker: &Broker) -> Result<(), Refusal> {
        let alone = SubscriptionSettings { forward_to: None, forward_dead_lettered_to: None, ..self.settings.clone() };
        let mut rules = self.rules.iter().cloned();
        broker.create_subscription(topic, &self.name, alone, rules.next())?;
        rules.try_for_each(|rule| broker.add_rule(topic, &self.name, rule))
    }
}

fn queue_settings(queue: &JsonFields<'_>, notes: &ConfigFaults) -> QueueSettings {
    let read = notes.take(queue.properties().map(Some)).unwrap_or_else(|| queue.empty());
    let default = QueueSettings::default();
    QueueSettings {
        lock_duration_ms: notes.take(read.limited("LockDuration")).unwrap_or(default.lock_duration_ms),
        max_size_in_megabytes: notes.take(read.number("MaxSizeInMegabytes")).unwrap_or(default.max_size_in_megabytes),
        max_message_size_in_kilobytes: notes.take(read.number("MaxMessageSizeInKilobytes")),
        requires_duplicate_detection: notes.take(read.truth("RequiresDuplicateDetection")).unwrap_or(false),
        duplicate_detection_history_ms: notes
            .take(read.limited("DuplicateDetectionHistoryTimeWindow"))
            .unwrap_or(default.duplicate_detection_history_ms),
        requires_session: notes.take(read.truth("RequiresSession")).unwrap_or(false),
        default_time_to_live_ms: notes.take(read.duration("DefaultMessageTimeToLive")),
        dead_lettering_on_expiration: notes.take(read.truth("DeadLetteringOnMessageExpiration")).unwrap_or(false),
        max_delivery_count: notes.take(read.deliveries()).unwrap_or(default.max_delivery_count),
        status: notes.take(read.status()),
        enable_partitioning: notes.take(read.truth("EnablePartitioning")).unwrap_or(false),
        forward_to: notes.take(read.text("ForwardTo")),
        forward_dead_lettered_to: notes.take(read.text("ForwardDeadLetteredMessagesTo")),
        user_metadata: notes.take(read.text("UserMetadata")),
        ..default
    }
}

fn read_topic(topic: &JsonFields<'_>, notes: &ConfigFaults) -> TopicConfig {
    let read = notes.take(topic.properties().map(Some)).unwrap_or_else(|| topic.empty());
    let default = TopicSettings::default();
    let settings = TopicSettings {
        max_size_in_megabytes: notes.take(read.number("MaxSizeInMegabytes")).unwrap_or(default.max_size_in_megabytes),
        max_message_size_in_kilobytes: notes.take(read.number("MaxMessageSizeInKilobytes")),
        requires_duplicate_detection: notes.take(read.truth("RequiresDuplicateDetection")).unwrap_or(false),
        duplicate_detection_history_ms: notes
            .take(read.limited("DuplicateDetectionHistoryTimeWindow"))
            .unwrap_or(default.duplicate_detection_history_ms),
        default_time_to_live_ms: notes.take(read.duration("DefaultMessageTimeToLive")),
        status: notes.take(read.status()),
        enable_partitioning: notes.take(read.truth("EnablePartitioning")).unwrap_or(false),
        user_metadata: notes.take(read.text("UserMetadata")),
        ..default
    };
    let name = notes.take(topic.name());
    notes.refused(&topic.path, named(&name, validate::name).chain(validate::topic_faults(&settings)));
    let subscriptions = notes.take(topic.objects("Subscriptions", notes));
    let subscriptions = subscriptions.iter().map(|subscription| read_subscription(subscription, notes)).collect();
    TopicConfig { name, settings, subscriptions }
}

fn read_subscription(subscription: &JsonFields<'_>, notes: &ConfigFaults) -> SubscriptionConfig {
    let read = notes.take(subscription.properties().map(Some)).unwrap_or_else(|| subscription.empty());
    let default = SubscriptionSettings::default();
    let settings = SubscriptionSettings {
        lock_duration_ms: notes.take(read.limited("LockDuration")).unwrap_or(default.lock_duration_ms),
        requires_session: notes.take(read.truth("RequiresSession")).unwrap_or(false),
        default_time_to_live_ms: notes.take(read.duration("DefaultMessageTimeToLive")),
        dead_lettering_on_expiration: notes.take(read.truth("DeadLetteringOnMessageExpiration")).unwrap_or(false),
        dead_lettering_on_filter_evaluation_exceptions: notes
            .take(read.truth("DeadLetteringOnFilterEvaluationExceptions"))
            .unwrap_or(default.dead_lettering_on_filter_evaluation_exceptions),
        max_delivery_count: notes.take(read.deliveries()).unwrap_or(default.max_delivery_count),
        status: notes.take(read.status()),
        forward_to: notes.take(read.text("ForwardTo")),
        forward_dead_lettered_to: notes.take(read.text("ForwardDeadLetteredMessagesTo")),
        user_metadata: notes.take(read.text("UserMetadata")),
        ..default
    };
    let name = notes.take(subscription.name());
    let names = named(&name, validate::subscription_name);
    notes.refused(&subscription.path, names.chain(validate::subscription_faults(&settings)));
    let rules = notes.take(subscription.objects("Rules", notes));
    let rules = rules.iter().filter_map(|rule| notes.take(read_rule(rule).map(Some))).collect();
    SubscriptionConfig { name, settings, rules }
}

fn read_rule(rule: &JsonFields<'_>) -> Result<Rule, ConfigError> {
    let read = rule.properties()?;
    let bad = |refusal: Refusal| ConfigError::new(format!("{}: {}", rule.path, refusal.description));
    let kind = read.text("FilterType")?.unwrap_or_default().to_lowercase();
    let filter = match (read.object("SqlFilter")?, read.object("CorrelationFilter")?) {
        (Some(sql), _) if kind != "correlation" => {
            RuleFilter::Sql(SqlFilter::parse(&sql.needed("SqlExpression")?, Vec::new()).map_err(bad)?)
        }
        (_, Some(correlation)) if kind != "sql" => RuleFilter::Correlation(read_correlation(&correlation)?),
        _ => match kind.trim_end_matches("filter") {
            "true" => RuleFilter::True,
            "false" => RuleFilter::False,
            _ => return Err(ConfigError::new(format!("{} has no filter of its FilterType '{kind}'", rule.path))),
        },
    };
    let action = match read.object("Action")?.map(|action| action.text("SqlExpression")).transpose()?.flatten() {
        Some(text) => Some(SqlAction::parse(&text, Vec::new()).map_err(bad)?),
        None => None,
    };
    Ok(Rule { action, ..Rule::new(rule.name()?, filter) })
}

fn read_correlation(read: &JsonFields<'_>) -> Result<CorrelationFilter, ConfigError> {
    let mut properties = Vec::new();
    if let Some(pairs) = read.object("Properties")? {
        for (name, value) in pairs.map {
            properties.push((name.clone(), pairs.value(name, value)?));
        }
    }
    Ok(CorrelationFilter {
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

/// A JSON object and its place in the file.
struct JsonFields<'a> {
    map: &'a Map<String, Json>,
    path: String,
}

impl<'a> JsonFields<'a> {
    fn new(json: &'a Json, path: &str) -> Result<Self, ConfigError> {
        let map = json.as_object().ok_or_else(|| ConfigError::new(format!("{path} is no object")))?;
        Ok(Self { map, path: path.to_owned() })
    }

    fn find(&self, name: &str) -> Option<&'a Json> {
        let found = self.map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        found.filter(|value| !value.is_null())
    }

    fn object(&self, name: &str) -> Result<Option<Self>, ConfigError> {
        self.find(name).map(|json| Self::new(json, &format!("{}: {name}", self.path))).transpose()
    }

    /// The objects of a list. Items that are no objects are noted as faults.
    fn objects(&self, name: &str, notes: &ConfigFaults) -> Result<Vec<Self>, ConfigError> {
        let Some(json) = self.find(name) else { return Ok(Vec::new()) };
        let items = json.as_array().ok_or_else(|| ConfigError::new(format!("{}: {name} is no list", self.path)))?;
        // The path of an item below a topic begins with the topic's.
        let place = if self.path.starts_with("Topics[") { format!("{}: ", self.path) } else { String::new() };
        let named = |(at, item)| {
            let mut fields = notes.take(Self::new(item, &format!("{place}{name}[{at}]")).map(Some))?;
            if let Some(own) = notes.take(fields.text("Name")) {
                fields.path = format!("{place}{name}[{at}] '{own}'");
            }
            Some(fields)
        };
        Ok(items.iter().enumerate().filter_map(named).collect())
    }

    fn properties(&self) -> Result<Self, ConfigError> {
        match self.object("Properties")? {
            Some(properties) => Ok(Self { path: self.path.clone(), ..properties }),
            None => Ok(self.empty()),
        }
    }

    /// An empty object at the same place.
    fn empty(&self) -> Self {
        static EMPTY: std::sync::LazyLock<Map<String, Json>> = std::sync::LazyLock::new(Map::new);
        Self { map: &EMPTY, path: self.path.clone() }
    }

    fn name(&self) -> Result<String, ConfigError> {
        self.needed("Name")
    }

    fn needed(&self, name: &str) -> Result<String, ConfigError> {
        self.text(name)?.ok_or_else(|| ConfigError::new(format!("{} has no {name}", self.path)))
    }

    /// A text. An empty one counts as absent, as in Microsoft's own file.
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
        // A number above `u32::MAX` is above the limit too, and is refused later with that error.
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

    fn status(&self) -> Result<EntityStatus, ConfigError> {
        let Some(text) = self.text("Status")? else { return Ok(EntityStatus::default()) };
        EntityStatus::parse(&text).ok_or_else(|| {
            ConfigError::new(format!(
                "{}: '{text}' is no Status; there are Active, Disabled, SendDisabled and ReceiveDisabled",
                self.path
            ))
        })
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
        ConfigError::new(format!("{}: {name} is {found}, which is not {wanted}", self.path))
    }
}

/// Blanks out comments and trailing commas, which .NET ignores. Lengths stay the same, so that the position in an error
/// is right.
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

/// The length of the string literal at the start, with its quotes.
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
mod tests;

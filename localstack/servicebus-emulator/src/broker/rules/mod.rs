//! The rules of subscriptions: each has a filter, and may have an action that changes the copies it lets through.
//!
//! A message of a topic is put to all rules of a subscription. The rules without an action make one copy together, each
//! matching rule with an action makes one more. SQL filters and actions are parsed by `sql/` when the rule is created.

mod sql;

use std::sync::{Arc, PoisonError};

use super::entities::{Subscription, TopicSettings, validate};
use crate::codec::Value;
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

/// The descriptor of a time in a rule that was given without a time zone. It is shown without one and compared as UTC.
pub(crate) const WITHOUT_ZONE: &str = "com.microsoft:datetime-without-zone";

/// A value of a rule as it goes over AMQP.
pub(crate) fn plain(value: &Value) -> Value {
    match value {
        Value::Described(described) if described.0.as_text() == Some(WITHOUT_ZONE) => described.1.clone(),
        other => other.clone(),
    }
}

/// A named filter with an optional action.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name, unique in the subscription ignoring case.
    pub name: String,
    /// What it lets through.
    pub filter: RuleFilter,
    /// What it does to the copy it lets through.
    pub action: Option<SqlAction>,
    /// When it was made, milliseconds since the epoch; set by the broker.
    pub created_at: i64,
}

/// The condition of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum RuleFilter {
    /// Everything.
    True,
    /// Nothing.
    False,
    /// Messages for which a SQL expression is true.
    Sql(SqlFilter),
    /// Messages with these properties.
    Correlation(CorrelationFilter),
}

/// A SQL condition, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct SqlFilter {
    text: String,
    parameters: Vec<(String, Value)>,
    parsed: Arc<sql::SqlExpression>,
}

/// A SQL action, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct SqlAction {
    text: String,
    parameters: Vec<(String, Value)>,
    parsed: Arc<Vec<sql::ActionStatement>>,
}

/// Properties that must be equal, case included. A `None` is not compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CorrelationFilter {
    /// The correlation id.
    pub correlation_id: Option<String>,
    /// The message id.
    pub message_id: Option<String>,
    /// Where it was meant to go.
    pub to: Option<String>,
    /// Where answers go.
    pub reply_to: Option<String>,
    /// The label or subject.
    pub label: Option<String>,
    /// The session.
    pub session_id: Option<String>,
    /// The session for answers.
    pub reply_to_session_id: Option<String>,
    /// The body's media type.
    pub content_type: Option<String>,
    /// Application properties.
    pub properties: Vec<(String, Value)>,
}

impl Rule {
    /// A rule without action.
    pub fn new(name: impl Into<String>, filter: RuleFilter) -> Self {
        Self { name: name.into(), filter, action: None, created_at: 0 }
    }

    /// The rule a subscription is created with.
    pub(super) fn default_rule() -> Self {
        Self::new("$Default", RuleFilter::True)
    }
}

impl SqlFilter {
    /// Parses a condition, whose `@name`s are these parameters.
    pub fn parse(text: &str, parameters: Vec<(String, Value)>) -> Result<Self, Refusal> {
        let parsed = sql::parse_condition(text, &parameters).map_err(|why| invalid(text, &why))?;
        Ok(Self { text: text.to_owned(), parameters, parsed: Arc::new(parsed) })
    }

    /// The condition as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its parameters.
    pub fn parameters(&self) -> &[(String, Value)] {
        &self.parameters
    }
}

impl SqlAction {
    /// Parses an action, whose `@name`s are these parameters.
    pub fn parse(text: &str, parameters: Vec<(String, Value)>) -> Result<Self, Refusal> {
        let parsed = sql::parse_action(text, &parameters).map_err(|why| invalid(text, &why))?;
        Ok(Self { text: text.to_owned(), parameters, parsed: Arc::new(parsed) })
    }

    /// The action as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its parameters.
    pub fn parameters(&self) -> &[(String, Value)] {
        &self.parameters
    }
}

fn invalid(text: &str, why: &str) -> Refusal {
    Refusal::new(Condition::InvalidField, format!("There was an error parsing the SQL expression '{text}': {why}"))
}

impl RuleFilter {
    fn lets_through(&self, message: &Message) -> Result<bool, String> {
        match self {
            Self::True => Ok(true),
            Self::False => Ok(false),
            Self::Sql(filter) => filter.parsed.is_true(message),
            Self::Correlation(correlation) => Ok(correlation.matches(message)),
        }
    }
}

impl CorrelationFilter {
    fn matches(&self, message: &Message) -> bool {
        let properties = &message.properties;
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let same_id = |wanted: &Option<String>, found: &Option<Value>| {
            wanted.as_deref().is_none_or(|wanted| found.as_ref().is_some_and(|id| sql::text_of_id(id) == wanted))
        };
        same_id(&self.correlation_id, &properties.correlation_id)
            && same_id(&self.message_id, &properties.message_id)
            && same(&self.to, &properties.to)
            && same(&self.reply_to, &properties.reply_to)
            && same(&self.label, &properties.subject)
            && same(&self.session_id, &properties.group_id)
            && same(&self.reply_to_session_id, &properties.reply_to_group_id)
            && same(&self.content_type, &properties.content_type)
            && self.properties.iter().all(|(name, wanted)| {
                message.application_property(name).is_some_and(|found| sql::same_value(wanted, found))
            })
    }
}

/// The result of a subscription's rules for one message.
pub(super) struct RuleMatches {
    plain: bool,
    changed: Vec<Arc<Message>>,
}

impl RuleMatches {
    pub(super) fn of(rules: &[Arc<Rule>], message: &Arc<Message>) -> Result<Self, String> {
        let mut verdict = Self { plain: false, changed: Vec::new() };
        for rule in rules {
            // One copy serves all rules without an action.
            if (rule.action.is_none() && verdict.plain) || !rule.filter.lets_through(message)? {
                continue;
            }
            match &rule.action {
                None => verdict.plain = true,
                Some(action) => {
                    let mut changed = (**message).clone();
                    sql::run(&action.parsed, &mut changed)?;
                    verdict.changed.push(Arc::new(changed));
                }
            }
        }
        Ok(verdict)
    }

    /// The copies the subscription gets: one for all rules without action, one for each rule with.
    pub(super) fn into_copies(mut self, message: &Arc<Message>) -> Vec<Arc<Message>> {
        if self.plain {
            self.changed.push(message.clone());
        }
        self.changed
    }
}

impl Subscription {
    pub(super) fn add_rule(&self, mut rule: Rule) -> Result<(), Refusal> {
        validate::subscription_name(&rule.name)?;
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let key = rule.name.to_lowercase();
        if rules.contains_key(&key) {
            return Err(Refusal::exists(&self.rule_path(&rule.name)));
        }
        rule.created_at = self.backing.main.clock.now_ms();
        rules.insert(key, Arc::new(rule));
        Ok(())
    }

    pub(super) fn replace_rule(&self, mut rule: Rule) -> Result<(), Refusal> {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let missing = || Refusal::no_entity(&self.rule_path(&rule.name));
        let old = rules.get_mut(&rule.name.to_lowercase()).ok_or_else(missing)?;
        rule.created_at = old.created_at;
        *old = Arc::new(rule);
        Ok(())
    }

    pub(super) fn remove_rule(&self, name: &str) -> Result<(), Refusal> {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        rules.remove(&name.to_lowercase()).map(drop).ok_or_else(|| Refusal::no_entity(&self.rule_path(name)))
    }

    fn rule_path(&self, name: &str) -> String {
        format!("{}/Rules/{name}", self.backing.path)
    }

    /// Applies changed settings of the topic.
    pub(super) fn apply(&self, topic: &TopicSettings) {
        let now = self.backing.main.clock.now_ms();
        self.update(self.settings(), topic, now);
    }
}

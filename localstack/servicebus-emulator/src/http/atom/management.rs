//! Handles the requests of the Atom management API: queues, topics, subscriptions and rules.

use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, StatusCode};

use super::{Entry, NamespaceUrl, description, rules, settings, version};
use crate::broker::{Broker, QueueInfo, Rule, SubscriptionInfo, TopicInfo};
use crate::http::path::{AtomPath, parameter};
use crate::http::response::{self, Answer, ENTRY, FEED};
use crate::http::xml::{Xml, XmlElement};
use crate::refusal::{Condition, Refusal, invalid};

const MAX_PAGE: usize = 100;
const DEFAULT_RULE: &str = "$Default";
/// The first API version, by its date, that reports the number of a topic's filters.
const COUNTS_FILTERS: &str = "2024-05";

/// One management request.
pub(crate) struct AtomRequest<'a> {
    pub(crate) broker: &'a Broker,
    pub(crate) base: &'a NamespaceUrl,
    /// When the emulator was started, which is shown as the namespace's creation time.
    pub(crate) started_at: i64,
    pub(crate) query: Option<&'a str>,
    /// `If-Match: *`: the entity is to be changed and must be there.
    pub(crate) changes: bool,
    pub(crate) body: &'a [u8],
}

impl AtomRequest<'_> {
    pub(crate) fn answer(&self, method: &Method, resource: &AtomPath) -> Answer {
        let answer = match *method {
            Method::GET => self.get(resource),
            Method::PUT => self.put(resource),
            Method::DELETE => self.delete(resource),
            _ => return not_allowed(),
        };
        answer.unwrap_or_else(|refusal| response::refused(&refusal))
    }

    fn get(&self, resource: &AtomPath) -> Result<Answer, Refusal> {
        Ok(match resource {
            AtomPath::Root => self.nothing(""),
            AtomPath::Namespace => self.entry(StatusCode::OK, self.namespace()),
            AtomPath::Queues => {
                self.page("$Resources/queues", "Queues", self.broker.queues(), |queue| self.queue(queue))
            }
            AtomPath::Topics => {
                self.page("$Resources/topics", "Topics", self.broker.topics(), |topic| self.topic(topic))
            }
            AtomPath::Entity(name) => match self.entity(name) {
                Some(entry) => self.entry(StatusCode::OK, entry),
                None => self.nothing(name),
            },
            AtomPath::Subscriptions(topic) => {
                let path = format!("{topic}/Subscriptions");
                self.page(&path, "Subscriptions", self.broker.subscriptions(topic)?, subscription_entry)
            }
            AtomPath::Subscription(topic, name) => {
                self.entry(StatusCode::OK, subscription_entry(&self.broker.subscription(topic, name)?))
            }
            AtomPath::Rules(topic, subscription) => {
                let info = self.broker.subscription(topic, subscription)?;
                let rules = self.broker.rules(topic, subscription)?;
                let path = format!("{}/Subscriptions/{}/Rules", info.topic, info.name);
                self.page(&path, "Rules", rules, |rule| rule_entry(&info, rule))
            }
            AtomPath::Rule(topic, subscription, name) => {
                self.entry(StatusCode::OK, self.rule(topic, subscription, name)?)
            }
        })
    }

    fn put(&self, resource: &AtomPath) -> Result<Answer, Refusal> {
        let (status, entry) = match resource {
            AtomPath::Entity(name) => self.put_entity(name)?,
            AtomPath::Subscription(topic, name) => self.put_subscription(topic, name)?,
            AtomPath::Rule(topic, subscription, name) => self.put_rule(topic, subscription, name)?,
            _ => return Ok(not_allowed()),
        };
        Ok(self.entry(status, entry))
    }

    fn delete(&self, resource: &AtomPath) -> Result<Answer, Refusal> {
        match resource {
            AtomPath::Entity(name) => self.broker.delete(name)?,
            AtomPath::Subscription(topic, name) => self.broker.delete_subscription(topic, name)?,
            AtomPath::Rule(topic, subscription, name) => self.broker.remove_rule(topic, subscription, name)?,
            _ => return Ok(not_allowed()),
        }
        Ok(response::empty(StatusCode::OK))
    }

    fn put_entity(&self, name: &str) -> Result<(StatusCode, Entry), Refusal> {
        let description = self.description(&["QueueDescription", "TopicDescription"])?;
        let queue = description.name == "QueueDescription";
        Ok(match (queue, self.changes) {
            (true, false) => {
                let info =
                    self.broker.create_queue(name, settings::queue(&description, None, self.broker.limits())?)?;
                (StatusCode::CREATED, self.queue(&info))
            }
            (true, true) => {
                let now = self.broker.queue(name)?.settings;
                let info =
                    self.broker.update_queue(name, settings::queue(&description, Some(&now), self.broker.limits())?)?;
                (StatusCode::OK, self.queue(&info))
            }
            (false, false) => {
                let info =
                    self.broker.create_topic(name, settings::topic(&description, None, self.broker.limits())?)?;
                (StatusCode::CREATED, self.topic(&info))
            }
            (false, true) => {
                let now = self.broker.topic(name)?.settings;
                let info =
                    self.broker.update_topic(name, settings::topic(&description, Some(&now), self.broker.limits())?)?;
                (StatusCode::OK, self.topic(&info))
            }
        })
    }

    fn put_subscription(&self, topic: &str, name: &str) -> Result<(StatusCode, Entry), Refusal> {
        let description = self.description(&["SubscriptionDescription"])?;
        if self.changes {
            let now = self.broker.subscription(topic, name)?.settings;
            let settings = settings::subscription(&description, Some(&now))?;
            let info = self.broker.update_subscription(topic, name, settings)?;
            return Ok((StatusCode::OK, subscription_entry(&info)));
        }
        let settings = settings::subscription(&description, None)?;
        let rule = description.child("DefaultRuleDescription");
        let rule = rule.map(|rule| rules::read(rule, rule.text_of("Name").unwrap_or(DEFAULT_RULE))).transpose()?;
        let info = self.broker.create_subscription(topic, name, settings, rule)?;
        Ok((StatusCode::CREATED, subscription_entry(&info)))
    }

    fn put_rule(&self, topic: &str, subscription: &str, name: &str) -> Result<(StatusCode, Entry), Refusal> {
        let rule = rules::read(&self.description(&["RuleDescription"])?, name)?;
        let status = if self.changes {
            self.broker.update_rule(topic, subscription, rule)?;
            StatusCode::OK
        } else {
            self.broker.add_rule(topic, subscription, rule)?;
            StatusCode::CREATED
        };
        Ok((status, self.rule(topic, subscription, name)?))
    }

    /// The description in the body, within an entry's content.
    fn description(&self, names: &[&str]) -> Result<XmlElement, Refusal> {
        let root = XmlElement::parse(self.body)?;
        let content = root.children.into_iter().find(|child| child.name == "content");
        let found =
            content.and_then(|content| content.children.into_iter().find(|child| names.contains(&child.name.as_str())));
        found.ok_or_else(|| invalid(format!("The request body holds no {}.", names.join(" and no "))))
    }

    fn entity(&self, name: &str) -> Option<Entry> {
        let queue = self.broker.queue(name).map(|queue| self.queue(&queue));
        queue.or_else(|_| self.broker.topic(name).map(|topic| self.topic(&topic))).ok()
    }

    fn queue(&self, info: &QueueInfo) -> Entry {
        let mut content = Xml::default();
        description::queue(&mut content, info, self.max_message_kilobytes(&info.name));
        entry(info.name.clone(), info.name.clone(), info.times.created, info.times.updated, content)
    }

    fn topic(&self, info: &TopicInfo) -> Entry {
        let mut content = Xml::default();
        let counts = parameter(self.query, "api-version").is_some_and(|version| *version >= *COUNTS_FILTERS);
        let filters = counts.then(|| self.broker.filters(&info.name).ok()).flatten();
        description::topic(&mut content, info, self.max_message_kilobytes(&info.name), filters);
        entry(info.name.clone(), info.name.clone(), info.times.created, info.times.updated, content)
    }

    /// The entity's limit. If it was deleted in between, the value does not matter.
    fn max_message_kilobytes(&self, name: &str) -> u64 {
        self.broker.target(name).map_or(0, |target| target.max_message_bytes() / 1024)
    }

    fn rule(&self, topic: &str, subscription: &str, name: &str) -> Result<Entry, Refusal> {
        let info = self.broker.subscription(topic, subscription)?;
        let rules = self.broker.rules(topic, subscription)?;
        let rule = rules.iter().find(|rule| rule.name.to_lowercase() == name.to_lowercase());
        let path = || format!("{}/Subscriptions/{}/Rules/{name}", info.topic, info.name);
        rule.map(|rule| rule_entry(&info, rule)).ok_or_else(|| Refusal::no_entity(&path()))
    }

    fn namespace(&self) -> Entry {
        let mut content = Xml::default();
        description::namespace(&mut content, &self.base.namespace, self.broker.limits().tier, self.started_at);
        let title = self.base.namespace.clone();
        entry("$namespaceinfo".to_owned(), title, self.started_at, self.started_at, content)
    }

    fn entry(&self, status: StatusCode, entry: Entry) -> Answer {
        response::with_body(status, ENTRY, self.base.entry(entry))
    }

    /// An empty feed, which is how the service answers that there is no such queue or topic.
    fn nothing(&self, path: &str) -> Answer {
        let feed = self.base.feed(path, "Publicly Listed Services", Vec::new(), None, self.broker.clock().now_ms());
        response::with_body(StatusCode::OK, FEED, feed)
    }

    /// The page of a list that `$skip` and `$top` select.
    fn page<T>(&self, path: &str, title: &str, all: Vec<T>, show: impl Fn(&T) -> Entry) -> Answer {
        let number = |name| parameter(self.query, name).map(|text| text.parse::<usize>());
        let (skip, top) = match (number("$skip").transpose(), number("$top").transpose()) {
            (Ok(skip), Ok(top)) => (skip.unwrap_or(0), top.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)),
            _ => return response::failed(StatusCode::BAD_REQUEST, "SubCode=40000. $skip and $top must be numbers."),
        };
        let entries: Vec<Entry> = all.iter().skip(skip).take(top).map(show).collect();
        let more = all.len().saturating_sub(skip) > entries.len();
        let version = version(self.query).map(|version| format!("&{version}"));
        let next = more.then(|| format!("$skip={}&$top={top}{}", skip + entries.len(), version.unwrap_or_default()));
        response::with_body(
            StatusCode::OK,
            FEED,
            self.base.feed(path, title, entries, next, self.broker.clock().now_ms()),
        )
    }
}

fn entry(path: String, title: String, created: i64, updated: i64, content: Xml) -> Entry {
    Entry { path, title, created, updated, content }
}

fn subscription_entry(info: &SubscriptionInfo) -> Entry {
    let mut content = Xml::default();
    description::subscription(&mut content, info);
    let path = format!("{}/Subscriptions/{}", info.topic, info.name);
    entry(path, info.name.clone(), info.times.created, info.times.updated, content)
}

fn rule_entry(subscription: &SubscriptionInfo, rule: &Rule) -> Entry {
    let mut content = Xml::default();
    rules::write(&mut content, rule);
    let path = format!("{}/Subscriptions/{}/Rules/{}", subscription.topic, subscription.name, rule.name);
    entry(path, rule.name.clone(), rule.created_at, rule.created_at, content)
}

fn not_allowed() -> Answer {
    let mut answer = response::failed(StatusCode::METHOD_NOT_ALLOWED, "This method is not known here.");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, PUT, DELETE"));
    answer
}

/// The service's refusal of a client without the Manage right.
pub(crate) fn denied(method: &Method, resource: &AtomPath) -> Refusal {
    let operation = |get, put, delete| match *method {
        Method::GET => get,
        Method::PUT => put,
        _ => delete,
    };
    let below = |name: &str| {
        format!(
            "SubCode=40100: Unauthorized : Unauthorized access for '{name}' operation. Manage claim(s) are required."
        )
    };
    let description = match resource {
        AtomPath::Subscriptions(_) => below("EnumerateSubscriptions"),
        AtomPath::Subscription(..) => {
            below(operation("GetSubscription", "CreateOrUpdateSubscription", "DeleteSubscription"))
        }
        AtomPath::Rules(..) => below("EnumerateRules"),
        AtomPath::Rule(..) => below(operation("GetRule", "CreateOrUpdateRule", "DeleteRule")),
        _ if *method == Method::GET => "Manage,EntityRead claims required for this operation.".to_owned(),
        _ => format!(
            "Authorization failed for specified action: Manage,{}.",
            if *method == Method::PUT { "EntityWrite" } else { "EntityDelete" }
        ),
    };
    Refusal::new(Condition::Unauthorized, description)
}

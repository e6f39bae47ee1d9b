//! Whether a copy on a topic reaches one subscription alone.

use std::{sync::Arc, time::Duration};

use polybus_core::Result;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    topology::{atom, names},
    transport::http::Http,
};

/// How long an answer is believed.
const FRESH: Duration = Duration::from_secs(60);

/// Looks at the rules of all subscriptions of a topic. Nothing can be sent to one subscription, only to its topic; polybus'
/// own rules let a copy through to the subscription it names alone, others' rules may not.
pub(crate) struct Targeting {
    http: Arc<Http>,
    topic: String,
    subscription: String,
    told: Mutex<Option<(Instant, bool)>>,
}

impl Targeting {
    pub(crate) fn new(http: Arc<Http>, topic: &str, subscription: &str) -> Self {
        let (topic, subscription) = (topic.to_owned(), subscription.to_owned());
        Self { http, topic, subscription, told: Mutex::default() }
    }

    /// Whether all rules are polybus' own, and one of the subscription's takes any copy: a topic accepts what no rule wants, and it
    /// is gone. Where they cannot be read, they are taken for others'.
    pub(crate) async fn is_exact(&self) -> bool {
        let mut told = self.told.lock().await;
        if let Some((_, exact)) = told.filter(|(at, _)| at.elapsed() < FRESH) {
            return exact;
        }
        let exact = self.look().await.unwrap_or_else(|e| {
            tracing::warn!(topic = self.topic, error = %e, "rules cannot be read: retries hold the message in place");
            false
        });
        *told = Some((Instant::now(), exact));
        exact
    }

    async fn look(&self) -> Result<bool> {
        let subscriptions = format!("{}/Subscriptions", self.topic);
        for subscription in atom::list(&self.http, &subscriptions).await?.unwrap_or_default() {
            let rules = format!("{subscriptions}/{}/Rules", subscription.name);
            let rules = atom::list(&self.http, &rules).await?.unwrap_or_default();
            let sure = |rule: &atom::Found| rule.name == names::COPIES || rule.name == names::rule(None);
            if subscription.name.eq_ignore_ascii_case(&self.subscription) && !rules.iter().any(sure) {
                tracing::warn!(
                    topic = self.topic,
                    subscription = subscription.name,
                    rule = names::COPIES,
                    "the subscription has no rule for copies, so retries hold the message in place: declare it once more"
                );
                return Ok(false);
            }
            if let Some(rule) = rules.iter().find(|rule| !names::is_ours(&rule.name)) {
                tracing::debug!(
                    topic = self.topic,
                    subscription = subscription.name,
                    rule = rule.name,
                    "not polybus' own"
                );
                return Ok(false);
            }
        }
        Ok(true)
    }
}

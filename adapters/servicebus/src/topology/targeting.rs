//! Whether a copy for one source reaches that source alone.

use std::{sync::Arc, time::Duration};

use polybus_core::{Error, Result};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    topology::{
        atom,
        names::{self, EntityPath},
    },
    transport::http::HttpPool,
};

/// How long an answer is used.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Tells whether copies reach one source alone. A message can be sent to a topic only, not to a subscription. The rules
/// that polybus makes let a copy through to the subscription that it names alone; rules of others may not.
pub(crate) struct CopyTargeting {
    http: Arc<HttpPool>,
    topic: String,
    /// `None` for a queue, where every copy reaches the queue alone.
    subscription: Option<String>,
    cached: Mutex<Option<(Instant, bool)>>,
}

impl CopyTargeting {
    pub(crate) fn new(http: Arc<HttpPool>, to: &EntityPath) -> Self {
        let (topic, subscription) = (to.address().to_owned(), to.target().map(str::to_owned));
        Self { http, topic, subscription, cached: Mutex::default() }
    }

    /// Whether all rules on the topic are polybus' own, and one of this subscription lets copies through: a copy that
    /// no rule lets through is gone, though the topic accepts it. False if the rules cannot be read.
    pub(crate) async fn reaches_only_target(&self) -> bool {
        let Some(own) = &self.subscription else { return true };
        let mut cached = self.cached.lock().await;
        if let Some((_, exact)) = cached.filter(|(at, _)| at.elapsed() < MAX_AGE) {
            return exact;
        }
        let exact = self.read_rules(own).await.unwrap_or_else(|e| {
            tracing::warn!(topic = self.topic, error = %e, "rules cannot be read: retries hold the message in place");
            false
        });
        *cached = Some((Instant::now(), exact));
        exact
    }

    async fn read_rules(&self, own: &str) -> Result<bool> {
        let subscriptions = format!("{}/Subscriptions", self.topic);
        for subscription in atom::list(&self.http, &subscriptions).await?.unwrap_or_default() {
            let rules = format!("{subscriptions}/{}/Rules", subscription.name);
            let rules = atom::list(&self.http, &rules).await?.unwrap_or_default();
            let sure = |rule: &atom::EntityInfo| rule.name == names::COPIES_RULE || rule.name == names::rule(None);
            if subscription.name.eq_ignore_ascii_case(own) && !rules.iter().any(sure) {
                tracing::warn!(
                    topic = self.topic,
                    subscription = subscription.name,
                    rule = names::COPIES_RULE,
                    "the subscription has no rule for copies, so retries hold the message in place: declare it once more"
                );
                return Ok(false);
            }
            if let Some(rule) = rules.iter().find(|rule| !names::is_ours(&rule.name)) {
                let (subscription, rule) = (&subscription.name, &rule.name);
                tracing::debug!(topic = self.topic, subscription, rule, "not polybus' own");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Where a copy for a retry could reach other subscriptions, and the delay is too long to hold the message in place.
pub(crate) fn hold_refused() -> Error {
    let text = "the topic has rules that polybus did not make, so a retry holds the message: longer than max_hold";
    Error::unsupported(text).with_operation("settle")
}

/// Where a copy for a redrive could reach other subscriptions.
pub(crate) fn redrive_refused() -> Error {
    let text = "the topic has rules that polybus did not make: what is moved back could reach other subscriptions";
    Error::unsupported(text).with_operation("settle")
}

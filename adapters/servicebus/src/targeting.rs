//! Whether a copy on a topic reaches one subscription alone.

use std::{sync::Arc, time::Duration};

use polybus_core::Result;
use tokio::{sync::Mutex, time::Instant};

use crate::{atom, http::Http, names};

/// How long an answer is believed.
const FRESH: Duration = Duration::from_secs(60);

/// Looks at the rules of all subscriptions of a topic. Nothing can be sent to one subscription, only to its topic; polybus'
/// own rules let a copy through to the subscription it names alone, others' rules may not.
pub(crate) struct Targeting {
    http: Arc<Http>,
    topic: String,
    told: Mutex<Option<(Instant, bool)>>,
}

impl Targeting {
    pub(crate) fn new(http: Arc<Http>, topic: &str) -> Self {
        Self { http, topic: topic.to_owned(), told: Mutex::default() }
    }

    /// Whether all rules are polybus' own. Where they cannot be read, they are taken for others'.
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

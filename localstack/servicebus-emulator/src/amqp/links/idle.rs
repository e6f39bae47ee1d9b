//! Links over which nothing is said: the service detaches them after ten minutes, and a session's lock goes with its
//! link.
//!
//! <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-troubleshoot#link-is-closed>. What is
//! asked of `$management` counts for the link that it names as `associated-link-name`, and for none otherwise:
//! <https://github.com/Azure/azure-service-bus-go/pull/225>.

use super::{IncomingLink, Link, LinkEnd, LinkFeed, LinkSlot, OutgoingLink, TargetNode};
use crate::amqp::engine::ConnectionEngine;
use crate::amqp::session::SessionSlot;
use crate::amqp::wire::AmqpError;
use crate::amqp::wire::error::DETACH_FORCED;

impl ConnectionEngine {
    /// Marks a link as used, because a request named it.
    pub(crate) fn keep_alive(&mut self, name: &str) {
        let now = self.shared.clock().now_ms();
        for slot in self.sessions.values_mut() {
            let SessionSlot::Begun(session) = slot else { continue };
            for slot in session.links.values_mut() {
                if let LinkSlot::Attached(link) = slot
                    && link.name == name
                {
                    link.used_at = now;
                }
            }
        }
    }

    /// When the next link has been idle for too long.
    pub(crate) fn next_idle_link(&self) -> Option<i64> {
        let after = self.shared.cloud.idle_link_ms()?;
        self.entity_links().map(|(_, _, link)| link.used_at.saturating_add(after)).min()
    }

    /// Detaches the links that have been idle for too long.
    pub(crate) fn expire_idle_links(&mut self) {
        let Some(after) = self.shared.cloud.idle_link_ms() else { return };
        let now = self.shared.clock().now_ms();
        let idle: Vec<(u16, u32, AmqpError)> = self
            .entity_links()
            .filter(|(_, _, link)| link.used_at.saturating_add(after) <= now)
            .map(|(channel, handle, link)| (channel, handle, link.idle_error(after)))
            .collect();
        for (channel, handle, error) in idle {
            self.detach(channel, handle, Some(&error));
        }
    }

    fn entity_links(&self) -> impl Iterator<Item = (u16, u32, &Link)> {
        let sessions = self.sessions.iter().filter_map(|(channel, slot)| match slot {
            SessionSlot::Begun(session) => Some((*channel, session)),
            SessionSlot::Leaving => None,
        });
        let links = sessions.flat_map(|(channel, session)| {
            session.links.iter().filter_map(move |(handle, slot)| match slot {
                LinkSlot::Attached(link) => Some((channel, *handle, link)),
                LinkSlot::Leaving => None,
            })
        });
        links.filter(|(_, _, link)| {
            matches!(
                &link.end,
                LinkEnd::In(IncomingLink { node: TargetNode::Entity(_), .. })
                    | LinkEnd::Out(OutgoingLink { feed: LinkFeed::Entity { .. }, .. })
            )
        })
    }
}

impl Link {
    fn idle_error(&self, after_ms: i64) -> AmqpError {
        let (role, class) = match &self.end {
            LinkEnd::In(_) => ("publisher", "AmqpMessagePublisher"),
            LinkEnd::Out(_) => ("consumer", "AmqpMessageConsumer"),
        };
        let (hours, minutes, seconds) = (after_ms / 3_600_000, after_ms / 60_000 % 60, after_ms / 1000 % 60);
        AmqpError::new(
            DETACH_FORCED,
            format!(
                "The link '{}' is force detached. Code: {role}(link{}). Details: {class}.IdleTimerExpired: Idle timeout: \
                 {hours:02}:{minutes:02}:{seconds:02}.",
                self.name, self.serial
            ),
        )
    }
}

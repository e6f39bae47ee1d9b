//! Requests to `$cbs` and `$management`, and the delivery of their answers over the client's receiving link.

pub(crate) mod cbs;
pub(crate) mod management;

use super::engine::ConnectionEngine;
use super::links::{Link, LinkEnd, LinkFeed, LinkKey, LinkSlot};
use super::session::{Session, SessionSlot};
use crate::codec::Value;
use crate::message::Message;

/// The most answers that may wait for credit on one link, and their bytes. Above it the oldest are dropped.
const MAX_WAITING: usize = 1000;
const MAX_WAITING_BYTES: usize = 16 * 1024 * 1024;

/// The answer to a request.
pub(crate) struct RequestAnswer {
    pub(crate) properties: Vec<(&'static str, Value)>,
    pub(crate) body: Value,
}

impl ConnectionEngine {
    /// Sends an answer to the link of the request's reply-to. `node` is the address that the request went to.
    pub(crate) fn answer(&mut self, channel: u16, node: &str, request: &Message, answer: RequestAnswer) {
        let mut reply = Message::default();
        // The correlation id keeps the type of the message id, because SDKs compare without converting.
        reply.properties.correlation_id =
            request.properties.message_id.clone().or_else(|| request.properties.correlation_id.clone());
        reply.properties.to = request.properties.reply_to.clone();
        reply.application_properties =
            answer.properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        reply.set_body_value(&answer.body);
        let reply_to = request.properties.reply_to.as_deref();
        let Some(key) = self.answer_link(channel, node, reply_to) else {
            tracing::debug!(node, ?reply_to, "nobody listens for the answer");
            return;
        };
        if let Some(Link { end: LinkEnd::Out(outgoing), .. }) = self.link_mut(key)
            && let LinkFeed::Answers { waiting, .. } = &mut outgoing.feed
        {
            let mut bytes: usize = waiting.iter().map(Vec::len).sum();
            while waiting.len() >= MAX_WAITING || bytes > MAX_WAITING_BYTES {
                bytes -= waiting.pop_front().map_or(0, |oldest| oldest.len());
            }
            waiting.push_back(reply.encode());
        }
        self.enqueue(key);
    }

    /// The link that listens at reply-to, preferably in the same session. Without one, a link from the same node.
    fn answer_link(&self, channel: u16, node: &str, reply_to: Option<&str>) -> Option<LinkKey> {
        let own = self.sessions.get_key_value(&channel).into_iter();
        let others = self.sessions.iter().filter(|(other, _)| **other != channel);
        let mut from_node = None;
        for (channel, slot) in own.chain(others) {
            let SessionSlot::Begun(session) = slot else { continue };
            for (handle, serial, listens_at, address) in answer_links(session) {
                let key = LinkKey { channel: *channel, handle, serial };
                if reply_to.is_some_and(|reply_to| reply_to == listens_at) {
                    return Some(key);
                }
                if from_node.is_none() && last_segment(address).eq_ignore_ascii_case(last_segment(node)) {
                    from_node = Some(key);
                }
            }
        }
        from_node
    }
}

fn answer_links(session: &Session) -> impl Iterator<Item = (u32, u64, &str, &str)> {
    session.links.iter().filter_map(|(handle, slot)| match slot {
        LinkSlot::Attached(Link { serial, address, end: LinkEnd::Out(outgoing), .. }) => match &outgoing.feed {
            LinkFeed::Answers { reply_to, .. } => Some((*handle, *serial, reply_to.as_str(), address.as_str())),
            _ => None,
        },
        _ => None,
    })
}

fn last_segment(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or(address)
}

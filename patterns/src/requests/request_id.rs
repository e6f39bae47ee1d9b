//! The ids of requests. They name the process that waits, so that it can tell its own replies from those of others.

use polybus_core::Envelope;
use uuid::Uuid;

/// One opened [`Requests`](super::Requests): 32 hex digits of a UUIDv7, which sort by the time at which it was opened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct InstanceId(Box<str>);

impl InstanceId {
    pub(super) fn new() -> Self {
        Self(Uuid::now_v7().simple().to_string().into())
    }

    /// The id of this instance's probe of this number.
    pub(super) fn probe(&self, number: u64) -> String {
        format!("{}-probe-{number}", self.0)
    }

    /// Whether an id is one of this instance's.
    pub(super) fn owns(&self, id: &str) -> bool {
        id.strip_prefix(&*self.0).is_some_and(|rest| rest.starts_with('-'))
    }

    /// The id of this instance's request of this number.
    pub(super) fn request(&self, number: u64) -> String {
        format!("{}-{number}", self.0)
    }
}

/// The request of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestId {
    pub(super) instance: InstanceId,
    pub(super) number: u64,
}

impl RequestId {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (instance, number) = text.split_once('-')?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_instance = instance.len() == 32 && instance.bytes().all(hex);
        let number = number.parse().ok().filter(|_| number.bytes().all(|b| b.is_ascii_digit()))?;
        is_instance.then(|| Self { instance: InstanceId(instance.into()), number })
    }

    /// The request that a message answers. polybus names it as the cause; other programs send the correlation id back.
    pub(super) fn answered_by(reply: &Envelope) -> Option<Self> {
        let ids = [&reply.causation_id, &reply.correlation_id];
        ids.into_iter().flatten().find_map(|id| Self::parse(id))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_and_others_are_none() {
        let instance = InstanceId::new();
        let id = RequestId::parse(&instance.request(7)).unwrap();
        assert_eq!(id, RequestId { instance: instance.clone(), number: 7 });
        let text = instance.request(7);
        for other in ["", "7", "x-7", &format!("{text}x"), &format!("+{text}"), &text.to_uppercase(), "order-7"] {
            assert_eq!(RequestId::parse(other), None, "{other}");
        }
        assert_eq!(RequestId::parse(&format!("{}-+7", &text[..32])), None);
    }

    #[test]
    fn instances_sort_by_their_time() {
        let earlier = InstanceId::new();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(earlier < InstanceId::new());
    }

    #[test]
    fn the_cause_counts_before_the_conversation() {
        let instance = InstanceId::new();
        let (one, two) = (instance.request(1), instance.request(2));
        let number = |reply: &Envelope| RequestId::answered_by(reply).map(|id| id.number);
        let reply = Envelope::new("a", "").correlation_id(one.as_str()).causation_id(two.as_str());
        assert_eq!(number(&reply), Some(2));
        assert_eq!(number(&Envelope::new("a", "").correlation_id(one.as_str()).causation_id("x")), Some(1));
        assert_eq!(number(&Envelope::new("a", "").correlation_id("basket-3")), None);
    }
}

//! Where the answer to a message goes.

use crate::{Address, Envelope, Topology, topology::names::check_name};

/// The extension attribute in which polybus tells where the answer goes.
const EXTENSION: &str = "replyto";
/// The headers in which adapters show what other programs say: RabbitMQ's `reply_to`, and Service Bus' `ReplyTo` and
/// `ReplyToSessionId`.
const NATIVE: &str = "native.reply-to";
const NATIVE_SESSION: &str = "native.reply-to-session-id";

/// The queue in which somebody waits for the answer to a message, by its name at the broker.
///
/// polybus writes it as the CloudEvents extension `replyto`, and on RabbitMQ and Service Bus as the native property that
/// other clients read. There the native correlation id is then the message's id, which other programs send back.
///
/// ```
/// use polybus_core::{Envelope, message::ReplyTo};
///
/// let request = Envelope::new("quote.wanted", "{}").reply_to("shop-replies-0");
/// assert_eq!(ReplyTo::of(&request).map(|to| to.queue().to_owned()).as_deref(), Some("shop-replies-0"));
/// assert!(ReplyTo::of(&Envelope::new("order.placed", "{}")).is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplyTo {
    queue: Box<str>,
    session: Option<Box<str>>,
    /// Whether another program gave the name, so that it must be used as it is.
    is_native: bool,
}

impl ReplyTo {
    /// Where the answer to this message goes; `None` if nobody waits for one.
    ///
    /// It reads what polybus writes, and the native properties of other programs.
    ///
    /// ```
    /// use polybus_core::{Envelope, message::ReplyTo};
    ///
    /// // What pika's `reply_to` becomes.
    /// let foreign = Envelope::bare(Envelope::FOREIGN_TYPE, "30").header("native.reply-to", "amq.gen-Xa2");
    /// assert_eq!(ReplyTo::of(&foreign).map(|to| to.queue().to_owned()).as_deref(), Some("amq.gen-Xa2"));
    /// ```
    pub fn of(message: &Envelope) -> Option<Self> {
        if let Some(queue) = message.extensions.get(EXTENSION).filter(|queue| !queue.is_empty()) {
            return Some(Self { queue: queue.into(), session: None, is_native: false });
        }
        let queue = message.headers.get(NATIVE).map(queue_of_native)?;
        let session = message.headers.get(NATIVE_SESSION).filter(|session| !session.is_empty()).map(Into::into);
        (!queue.is_empty()).then(|| Self { queue: queue.into(), session, is_native: true })
    }

    /// The name of the queue at the broker.
    ///
    /// ```
    /// # use polybus_core::{Envelope, message::ReplyTo};
    /// let to = ReplyTo::of(&Envelope::new("quote.wanted", "{}").reply_to("shop-replies-0"));
    /// assert!(to.is_some_and(|to| to.queue() == "shop-replies-0"));
    /// ```
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The session in which a client of Service Bus waits for its answer (`ReplyToSessionId`). It is the key of the
    /// answer.
    ///
    /// ```
    /// # use polybus_core::{Envelope, message::ReplyTo};
    /// let to = ReplyTo::of(&Envelope::new("quote.wanted", "{}").reply_to("shop-replies-0"));
    /// assert!(to.is_some_and(|to| to.session().is_none()));
    /// ```
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// The queue as an address of this topology: one that it declares, or else, for a caller that is polybus, the one
    /// of which topology and prefix make this name. `None` for a queue that no address names, such as another program's.
    ///
    /// An answer that goes through an outbox needs it.
    ///
    /// ```
    /// use polybus_core::{Address, Envelope, QueueSpec, Topology, message::ReplyTo};
    ///
    /// let topology = Topology::new().prefix("shop").queue("replies-0", QueueSpec::new());
    /// let address = |queue: &str| ReplyTo::of(&Envelope::new("a", "").reply_to(queue))?.address_in(&topology);
    /// assert_eq!(address("shop_replies-0"), Some(Address::queue("replies-0")));
    /// assert_eq!(address("amq.gen-Xa2"), None);
    /// ```
    pub fn address_in(&self, topology: &Topology) -> Option<Address> {
        let declared = topology.queues.keys().map(|name| Address::queue(name.as_str()));
        let mut same = declared.filter(|address| *topology.address(address).physical == *self.queue);
        if let Some(address) = same.next() {
            return Some(address);
        }
        let logical = match &topology.prefix {
            None => &*self.queue,
            Some(prefix) => self.queue.strip_prefix(&**prefix)?.strip_prefix('_')?,
        };
        (!self.is_native && check_name("queue", logical).is_ok()).then(|| Address::queue(logical))
    }

    pub(crate) fn is_native(&self) -> bool {
        self.is_native
    }
}

impl Envelope {
    /// Asks for an answer in this queue, by its name at the broker. `Requests` of polybus-patterns does it by itself.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let request = Envelope::new("quote.wanted", "{}").reply_to("shop-replies-0");
    /// assert_eq!(request.extensions.get("replyto"), Some("shop-replies-0"));
    /// ```
    pub fn reply_to(self, queue: impl Into<Box<str>>) -> Self {
        self.edit(|fields| {
            fields.extensions.remove(EXTENSION);
            fields.extensions.push(EXTENSION, queue);
        })
    }

    /// Takes back [`reply_to`](Self::reply_to).
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let request = Envelope::new("quote.wanted", "{}").reply_to("shop-replies-0");
    /// assert!(request.without_reply_to().extensions.is_empty());
    /// ```
    pub fn without_reply_to(self) -> Self {
        match self.extensions.get(EXTENSION) {
            Some(_) => self.edit(|fields| drop(fields.extensions.remove(EXTENSION))),
            None => self,
        }
    }

    /// What an adapter writes natively beside the attributes: the queue that waits for an answer, and the correlation
    /// id by which a program that knows no CloudEvents answers. `None` for a message that asks for no answer.
    ///
    /// The correlation id is the message's own id then, since the attribute `correlationid` belongs to a whole
    /// conversation, and two requests of one conversation must be told apart.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let request = Envelope::new("quote.wanted", "{}").id("7").correlation_id("basket-3").reply_to("replies");
    /// assert_eq!(request.native_reply(), Some(("replies", "7")));
    /// ```
    pub fn native_reply(&self) -> Option<(&str, &str)> {
        let queue = self.extensions.get(EXTENSION).filter(|queue| !queue.is_empty())?;
        Some((queue, &self.id))
    }
}

/// The queue that a native property names. A client of AMQP 1.0 may write it as an address: RabbitMQ's `/queues/name`
/// (<https://www.rabbitmq.com/docs/amqp#addresses>), or Service Bus' `amqps://namespace/name`.
fn queue_of_native(text: &str) -> &str {
    if let Some((_, rest)) = text.split_once("://") {
        return rest.split_once('/').map_or("", |(_, path)| path);
    }
    if text.starts_with("/exchanges/") || text.starts_with("/exchange/") {
        return "";
    }
    ["/queues/", "/queue/"].iter().find_map(|start| text.strip_prefix(start)).unwrap_or(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::QueueSpec;

    #[test]
    fn native_properties_name_queues_in_several_forms() {
        let of = |text: &str| {
            let to = ReplyTo::of(&Envelope::bare(Envelope::FOREIGN_TYPE, "").header(NATIVE, text));
            to.map(|to| to.queue().to_owned())
        };
        for text in ["replies", "/queues/replies", "/queue/replies", "amqps://shop.servicebus.windows.net/replies"] {
            assert_eq!(of(text).as_deref(), Some("replies"), "{text}");
        }
        assert_eq!(of("team/replies").as_deref(), Some("team/replies"));
        assert_eq!((of(""), of("sb://shop"), of("/exchanges/a/b")), (None, None, None));
    }

    #[test]
    fn the_extension_comes_before_the_native_property() {
        let both = Envelope::new("a", "").header(NATIVE, "other").reply_to("own");
        let to = ReplyTo::of(&both).unwrap();
        assert_eq!((to.queue(), to.is_native()), ("own", false));
        let native = Envelope::new("a", "").header(NATIVE, "other").header(NATIVE_SESSION, "s");
        let to = ReplyTo::of(&native).unwrap();
        assert_eq!((to.queue(), to.session(), to.is_native()), ("other", Some("s"), true));
    }

    #[test]
    fn a_queue_is_an_address_where_the_topology_can_name_it() {
        let to = |queue: &str| ReplyTo::of(&Envelope::new("a", "").reply_to(queue)).unwrap();
        let plain = Topology::new().queue("b", QueueSpec::new().physical("Legacy.B"));
        assert_eq!(to("Legacy.B").address_in(&plain), Some(Address::queue("b")));
        assert_eq!(to("replies-0").address_in(&plain), Some(Address::queue("replies-0")));
        assert_eq!(to("amq.gen-x").address_in(&plain), None);
        let native = |queue: &str| ReplyTo::of(&Envelope::bare("a", "").header(NATIVE, queue)).unwrap();
        assert_eq!(native("Legacy.B").address_in(&plain), Some(Address::queue("b")));
        assert_eq!(native("replies-0").address_in(&plain), None, "nobody says that a name of others is a logical one");
        let prefixed = Topology::new().prefix("shop");
        assert_eq!(to("shop_x").address_in(&prefixed), Some(Address::queue("x")));
        for other in ["shop_", "shopx", "x"] {
            assert_eq!(to(other).address_in(&prefixed), None, "{other}");
        }
    }
}

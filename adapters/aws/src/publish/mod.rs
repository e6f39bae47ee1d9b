//! Publishing: to a queue or a topic, ten messages a call.

pub(crate) mod batch_send;
pub(crate) mod sender;

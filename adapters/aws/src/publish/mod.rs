//! Publishing to a queue or a topic, up to ten messages a call.
//!
//! The sender encodes each message on its publisher's task; core forms batches of what it encoded. A batch for a topic
//! goes out from the sender, a batch for a queue through `batch_send`, which sends the copies of settlements too.

pub(crate) mod batch_send;
pub(crate) mod sender;

//! Envelopes as messages of SQS and SNS, and back: what AWS takes, and what others or SNS have made of a message.

pub(crate) mod envelope;
pub(crate) mod limits;
pub(crate) mod native_message;
pub(crate) mod notification;

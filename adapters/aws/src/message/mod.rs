//! Envelopes as messages of SQS and SNS, and back.
//!
//! `envelope` encodes what is published and decodes what is received, whoever wrote it. `notification` takes off the
//! wrapper of a topic without raw delivery. `limits` holds what AWS allows; it is checked before any call.

pub(crate) mod envelope;
pub(crate) mod limits;
pub(crate) mod native_message;
pub(crate) mod notification;

//! Envelopes as AMQP 0-9-1 messages, and back.
//!
//! [`envelope`] encodes what core publishes, decodes what any program published, and makes copies. A copy carries more
//! headers than its original. Where these do not fit a frame, [`packed_copies`] moves them into the body, and
//! [`fitting_copies`] decides what a copy goes without if that is not enough.

pub(crate) mod envelope;
pub(crate) mod fitting_copies;
pub(crate) mod packed_copies;

//! Messages that are held under their locks until they may come again, where no delayed copy of them can be made.
//!
//! A held message keeps its place in the consumer's prefetch. Its lock is renewed until its time has come. Then it is
//! abandoned, and the broker hands it out again, counted. There are two ways to renew, by what the transport can do:
//!
//! - [`batched`], over AMQP: one request renews many locks, so one task looks after all held messages of a consumer.
//! - [`single`], over HTTP: each lock takes a request of its own, so each held message has a task of its own. A request
//!   that hangs costs no other message its lock.
//!
//! Messages of sessions are held by the task of their session: see `amqp::sessions`.

pub(crate) mod batched;
#[cfg(feature = "rest")]
pub(crate) mod single;

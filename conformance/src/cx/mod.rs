//! What a scenario is handed: [`Cx`](context::Cx), and what it opens and breaks with it.
//!
//! [`setup`] opens a bus with the target's driver, [`fixture`] is the bus that most scenarios start with, [`proxy`]
//! stands between client and broker, and [`child`] is a consumer in another process. At the end of a scenario the
//! context deletes and closes everything that was opened with it.

pub(crate) mod child;
pub(crate) mod context;
pub(crate) mod fixture;
pub(crate) mod proxy;
pub(crate) mod setup;

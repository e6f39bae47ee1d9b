//! The queues, topics and subscriptions that an application uses.
//!
//! A [`Topology`] is what an operator writes in a configuration file or a program builds: a [`QueueSpec`] for each
//! queue, a [`TopicSpec`] with its [`SubscriptionSpec`]s for each topic. `resolve.rs` turns it into an [`Entity`] for
//! each of them: name at the broker, [`EntitySettings`] and adapter options, everything filled in. A [`DeclarePlan`]
//! holds them all, and [`Driver::declare`](crate::driver::Driver::declare) creates or verifies it. What is published to
//! is an [`Address`], what is consumed is a [`Source`].

mod adapter_options;
mod address;
mod entity;
pub(crate) mod names;
mod resolve;
mod specs;
pub(crate) mod type_filter;

pub use self::{
    adapter_options::AdapterOptions,
    address::{Address, Source},
    entity::{DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference, EntitySettings, SourceStats},
    specs::{QueueSpec, SubscriptionSpec, TopicSpec, Topology},
    type_filter::{TypeFilter, UnwantedPolicy},
};

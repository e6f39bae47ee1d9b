//! The core of polybus: envelope, portable types, driver traits, worker and the memory driver.
//!
//! Applications use the `polybus` crate; adapter authors implement [`Driver`], [`Sender`], [`Receiver`] and [`Settler`].

mod address;
mod admission;
pub mod attempt;
mod backoff;
mod buffer;
mod bus;
mod capabilities;
mod caught;
mod check;
mod clock;
pub mod cloudevents;
mod config;
mod config_file;
mod config_origin;
#[cfg(test)]
mod config_tests;
mod connector;
mod consumer;
mod consumer_settling;
mod context;
mod delivery;
mod driver;
pub mod duration;
mod entity;
mod envelope;
mod error;
mod event;
mod forward;
mod handled;
mod handler;
pub mod headers;
mod held;
pub mod inbox;
mod inline;
mod interpolate;
mod layer;
pub mod lease;
mod locks;
pub mod memory;
pub mod names;
mod options;
mod outgoing;
mod pasted;
mod patience;
mod polled;
mod publish_drive;
mod publish_queue;
mod publisher;
mod redact;
mod redrive;
mod refusals;
mod reply;
mod retry;
mod settle_queue;
pub mod size;
mod subscription;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(any(test, feature = "testing"))]
mod testing_record;
mod topology;
mod types;
mod worker;
mod worker_handling;
mod worker_pool;
mod worker_runner;
mod worker_settling;
mod worker_tally;

pub use address::{Address, Source};
pub use async_trait::async_trait;
pub use bus::{Bus, BusOptions};
pub use capabilities::{Capabilities, Durability, Hold, Ordered};
pub use clock::{Clock, SystemClock, TokioClock};
pub use config::{BusConfig, Config};
pub use connector::{ConnectUrl, Connector, Registry};
pub use context::Context;
pub use delivery::{Delivery, SettleError};
pub use driver::{
    Batching, DeadLetter, Driver, Prepared, Received, Receiver, Sender, Settle, Settlement, Settler, Token, lock_margin,
};
pub use entity::{DeclareMode, DeclareReport, Difference, Entity, Plan, Settings, Stats};
pub use envelope::{Envelope, FOREIGN, Parts};
pub use error::{Error, Kind, Result, Retry};
pub use event::{Codec, Event, Json};
pub use handler::{Handler, HandlerError, with};
pub use headers::Headers;
pub use layer::DriverLayer;
pub use options::Options;
pub use outgoing::{Outgoing, Receipt};
pub use publisher::{Publisher, Publishing, PublishingAll};
pub use redrive::{Ended, Guard, Letter, Sift, Sifted, Verdict};
pub use retry::RetryPolicy;
pub use subscription::{SubscribeBuilder, Subscription};
pub use topology::{QueueSpec, SubscriptionSpec, TopicSpec, Topology};
pub use types::{TypeFilter, Unwanted};
pub use worker::{WorkerBuilder, WorkerReport};
pub use worker_runner::Request;

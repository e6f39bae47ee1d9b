//! Cloud-agnostic messaging: publish, consume, acknowledge and dead-letter on any broker through one API.
//!
//! The broker is one URL. What a message means, when it counts as delivered, and what happens when it fails is the same
//! on every broker.
//!
//! ```
//! use polybus::{Address, BusOptions, Envelope, QueueSpec, Source, Topology};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> polybus::Result<()> {
//! let topology = Topology::new().queue("payments", QueueSpec::new().max_deliveries(5));
//! let bus = polybus::connect_with("memory://", BusOptions::topology(topology)).await?; // or amqp://…
//! bus.declare().await?;
//! bus.publish(Address::queue("payments"), Envelope::new("payment.made", r#"{"amount":7}"#)).await?;
//!
//! let mut payments = bus.subscribe(Source::queue("payments")).open().await?;
//! while let Some(delivery) = payments.next().await {
//!     let delivery = delivery?;
//!     println!("{} {:?}", delivery.envelope().event_type, delivery.envelope().data);
//!     delivery.ack().await?;
//!     # break;
//! }
//! # Ok(()) }
//! ```
//!
//! # Where to look
//!
//! | | |
//! |---|---|
//! | [`connect`], [`connect_with`], [`from_config`] | getting a [`Bus`] |
//! | [`Config`] | the file with the URL, the queues and the topics |
//! | [`Envelope`], [`Event`], [`Outgoing`] | what is published: bytes, a typed payload, the options of one publish |
//! | [`Address`], [`Source`] | what is published to, and what is consumed |
//! | [`worker`], [`Handler`], [`HandlerContext`] | a handler for each message, with retries and dead letters |
//! | [`Subscription`], [`Delivery`] | consuming and settling one message at a time |
//! | [`Topology`], [`QueueSpec`], [`TopicSpec`], [`SubscriptionSpec`] | queues and topics, their retries and limits |
//! | [`redrive`] | moving dead letters back |
//! | [`Error`], [`ErrorKind`], [`RetrySafety`] | what went wrong, and whether to try again |
//! | [`telemetry`] | spans, metrics and trace context |
//! | `patterns` (a feature) | outbox and inbox, sequence numbers, requests, schema versions, claim check, monitors |
//! | [`driver`], [`registry`] | for adapters of your own, to which [docs/adapters.md] is the guide |
//!
//! [docs/adapters.md]: https://github.com/polybus/polybus/blob/main/docs/adapters.md
//!
//! The examples on the following pages write `polybus_core`; in an application write `polybus`. The names are in the
//! same places.
//!
//! # Features
//!
//! `config`, `metrics` and `tower` are on by default. `memory://`, the broker in the process itself, is always there.
//!
//! | feature | brings |
//! |---|---|
//! | `config` | the configuration file: [`Config`], [`from_config`] |
//! | `metrics` | metrics through the facade `metrics`; without it nothing is counted |
//! | `tower` | workers that run a tower service: `WorkerBuilder::serve` |
//! | `aws` | Amazon SQS and SNS: `aws://` |
//! | `aws-sso` | credentials of AWS IAM Identity Center for `aws://` |
//! | `rabbitmq` | RabbitMQ: `amqp://` and `amqps://` |
//! | `servicebus` | Azure Service Bus: `servicebus://` |
//! | `servicebus-identity` | Azure Service Bus with Entra ID: `servicebus::ServicebusConnector::with_credential` |
//! | `servicebus-rest` | Azure Service Bus over HTTPS alone: `servicebus://…?transport=rest` |
//! | `patterns` | the module `patterns`: outbox, inbox, sequence numbers, requests, schema versions, claims, monitors |
//! | `webhook` | alerts of monitors sent to a URL, signed: `patterns::monitor::Webhook` |
//! | `schema` | [`Config`]'s JSON Schema: `Config::json_schema` |
//! | `testing` | the module `testing`: a bus for the tests of code that uses polybus |
//!
//! Databases for the patterns are in the crate `polybus-sql`, and the store of the claim check is `polybus-claims`.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "aws")]
#[cfg_attr(docsrs, doc(cfg(feature = "aws")))]
pub use polybus_aws as aws;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub use polybus_core::testing;
pub use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, Error, ErrorKind, Event, Handler, HandlerContext, HandlerError,
    Headers, Outgoing, Publisher, QueueSpec, Receipt, Registry, Result, RetryPolicy, RetrySafety, SettleError, Source,
    Subscription, SubscriptionSpec, TopicSpec, Topology, clock, consume, driver, memory, message, publish, redrive,
    stateful, telemetry, time, topology, worker,
};
#[cfg(feature = "config")]
#[cfg_attr(docsrs, doc(cfg(feature = "config")))]
pub use polybus_core::{Config, config};
#[cfg(feature = "patterns")]
#[cfg_attr(docsrs, doc(cfg(feature = "patterns")))]
pub use polybus_patterns as patterns;
#[cfg(feature = "rabbitmq")]
#[cfg_attr(docsrs, doc(cfg(feature = "rabbitmq")))]
pub use polybus_rabbitmq as rabbitmq;
#[cfg(feature = "servicebus")]
#[cfg_attr(docsrs, doc(cfg(feature = "servicebus")))]
pub use polybus_servicebus as servicebus;

/// Connects to the broker of this URL, with default options and no topology. That is enough to publish to and consume
/// what exists at the broker.
///
/// A broker that is not there yet is waited for, up to the publish timeout of 30 s.
///
/// # Errors
/// `ConfigInvalid` for a malformed URL and for a scheme that is unknown or whose cargo feature is off.
/// `Unauthenticated`, `PermissionDenied`, `NotFound` (for a virtual host) and `Unavailable` as the broker answers. None
/// shows the password.
///
/// # Cancel safety
/// Dropping the future leaves nothing behind.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus::Result<()> {
/// let bus = polybus::connect("memory://").await?;
/// # Ok(()) }
/// ```
pub async fn connect(url: &str) -> Result<Bus> {
    connect_with(url, BusOptions::default()).await
}

/// Connects to the broker of this URL with these options. Nothing is created at the broker before [`Bus::declare`].
///
/// A broker that is not there yet is waited for, up to [`BusOptions::publish_timeout`].
///
/// # Errors
/// Those of [`connect`]. `ConfigInvalid` for a topology that cannot be, and `Unsupported` for one that this broker
/// cannot keep.
///
/// # Cancel safety
/// Dropping the future leaves nothing behind.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus::Result<()> {
/// use polybus::{BusOptions, QueueSpec, Topology};
///
/// let topology = Topology::new().queue("payments", QueueSpec::new());
/// let bus = polybus::connect_with("memory://", BusOptions::topology(topology)).await?;
/// bus.declare().await?;
/// # Ok(()) }
/// ```
pub async fn connect_with(url: &str, options: BusOptions) -> Result<Bus> {
    Bus::new(registry().connect_within(url, options.publish_timeout).await?, options)
}

/// Connects as the configuration says.
///
/// # Errors
/// Those of [`connect_with`]. Errors about the topology name file and line.
///
/// # Cancel safety
/// Dropping the future leaves nothing behind.
///
/// ```no_run
/// # async fn run() -> polybus::Result<()> {
/// let config = polybus::Config::from_path("shop.toml")?;
/// let bus = polybus::from_config(&config).await?;
/// # Ok(()) }
/// ```
#[cfg(feature = "config")]
#[cfg_attr(docsrs, doc(cfg(feature = "config")))]
pub async fn from_config(config: &Config) -> Result<Bus> {
    config.check()?;
    let options = config.options();
    let driver =
        registry().connect_within(config.url()?, options.publish_timeout).await.map_err(|e| match e.kind() {
            ErrorKind::ConfigInvalid => config.locate(e.with_context("key", "bus.url")),
            _ => e,
        })?;
    Bus::new(driver, options).map_err(|e| config.locate(e))
}

/// The connectors of all adapters whose features are on, and that of `memory://`. Add your own with [`Registry::with`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus::Result<()> {
/// use polybus::{Bus, BusOptions};
///
/// let driver = polybus::registry().connect("memory://").await?;
/// let bus = Bus::new(driver, BusOptions::default())?;
/// # Ok(()) }
/// ```
pub fn registry() -> Registry {
    let registry = Registry::new();
    #[cfg(feature = "rabbitmq")]
    let registry = registry.with(polybus_rabbitmq::RabbitmqConnector);
    #[cfg(not(feature = "rabbitmq"))]
    let registry = registry.with_feature_off("amqp", "rabbitmq").with_feature_off("amqps", "rabbitmq");
    #[cfg(feature = "servicebus")]
    let registry = registry.with(polybus_servicebus::ServicebusConnector);
    #[cfg(not(feature = "servicebus"))]
    let registry = registry.with_feature_off("servicebus", "servicebus");
    #[cfg(feature = "aws")]
    let registry = registry.with(polybus_aws::AwsConnector);
    #[cfg(not(feature = "aws"))]
    let registry = registry.with_feature_off("aws", "aws");
    registry
}

/// Compiles the README's code.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

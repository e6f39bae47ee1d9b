//! Cloud-agnostic messaging: publish, consume, acknowledge and dead-letter on any broker through one API.
//!
//! The broker is one URL. What a message means, when it counts as delivered, and what happens when it fails is the same on
//! every broker.
//!
//! ```no_run
//! use polybus::{Address, BusOptions, Envelope, QueueSpec, Source, Topology};
//!
//! # async fn run() -> polybus::Result<()> {
//! let topology = Topology::new().queue("payments", QueueSpec::new().max_deliveries(5));
//! let bus = polybus::connect_with("memory://", BusOptions::topology(topology)).await?; // or amqp://…
//! bus.declare().await?;
//! bus.publish(&Address::queue("payments"), Envelope::new("payment.made", r#"{"amount":7}"#)).await?;
//!
//! let mut payments = bus.subscribe(Source::queue("payments")).open().await?;
//! while let Some(delivery) = payments.next().await {
//!     let delivery = delivery?;
//!     println!("{} {:?}", delivery.envelope().event_type, delivery.envelope().data);
//!     delivery.ack().await?;
//! }
//! # Ok(()) }
//! ```
//!
//! # Where to look
//!
//! | | |
//! |---|---|
//! | [`connect`], [`connect_with`], [`from_config`] | how to get a [`Bus`] |
//! | [`Config`] | the file with the URL, the queues and the topics |
//! | [`Envelope`], [`Outgoing`] | what is published |
//! | [`Address`], [`Source`] | what can be published to, what can be consumed |
//! | [`Subscription`], [`Delivery`] | consuming and settling one message at a time |
//! | [`Topology`], [`QueueSpec`], [`TopicSpec`] | queues and topics, their retries and limits |
//! | [`Error`], [`ErrorKind`], [`RetrySafety`] | what went wrong, and whether to try again |
//! | [`Driver`], [`Connector`], [`registry`] | for adapters of your own |
//!
//! # Features
//!
//! None is on by default; `memory://` is always there.
//!
//! | feature | brings |
//! |---|---|
//! | `aws` | Amazon SQS and SNS: `aws://` |
//! | `aws-sso` | credentials of AWS IAM Identity Center for `aws://` |
//! | `rabbitmq` | RabbitMQ: `amqp://` and `amqps://` |
//! | `servicebus` | Azure Service Bus: `servicebus://` |
//! | `servicebus-identity` | Azure Service Bus with Entra ID: `servicebus::ServicebusConnector::with_credential` |
//! | `servicebus-rest` | Azure Service Bus over HTTPS alone: `servicebus://…?transport=rest` |
//! | `schema` | [`Config`]'s JSON Schema: `Config::json_schema` |
//! | `testing` | helpers for the tests of code that uses polybus: the module `testing` |

#[cfg(feature = "aws")]
pub use polybus_aws as aws;
#[cfg(feature = "testing")]
pub use polybus_core::testing;
pub use polybus_core::{
    Address, Bus, BusOptions, Config, Delivery, Envelope, Error, ErrorKind, Event, Handler, HandlerContext,
    HandlerError, Headers, Outgoing, Publisher, QueueSpec, Receipt, Registry, Result, RetryPolicy, RetrySafety,
    SettleError, Source, Subscription, SubscriptionSpec, TopicSpec, Topology, clock, config, consume, driver, memory,
    message, publish, redrive, stateful, telemetry, time, topology, worker,
};
#[cfg(feature = "rabbitmq")]
pub use polybus_rabbitmq as rabbitmq;
#[cfg(feature = "servicebus")]
pub use polybus_servicebus as servicebus;

/// A bus on the broker of this URL, with default options and no topology: enough to publish to and consume what exists.
///
/// A broker that is not there yet is waited for, up to the publish timeout (30 s), as everything after it waits.
///
/// # Errors
/// `ConfigInvalid` for a malformed URL and for a scheme that is unknown or whose cargo feature is off; `Unauthenticated`,
/// `PermissionDenied`, `NotFound` (the virtual host) and `Unavailable` as the broker answers. None shows the password.
pub async fn connect(url: &str) -> Result<Bus> {
    connect_with(url, BusOptions::default()).await
}

/// A bus on the broker of this URL. Nothing is created at the broker before [`Bus::declare`].
///
/// A broker that is not there yet is waited for, up to [`BusOptions::publish_timeout`].
///
/// # Errors
/// Those of [`connect`]; `ConfigInvalid` and `Unsupported` for a topology that cannot be, or not on this broker.
pub async fn connect_with(url: &str, options: BusOptions) -> Result<Bus> {
    Bus::new(registry().connect_within(url, options.publish_timeout).await?, options)
}

/// A bus as the configuration says. Errors are those of [`connect_with`]; those about the topology name file and line.
///
/// ```no_run
/// # async fn run() -> polybus::Result<()> {
/// let config = polybus::Config::from_path("shop.toml")?;
/// let bus = polybus::from_config(&config).await?;
/// # Ok(()) }
/// ```
pub async fn from_config(config: &Config) -> Result<Bus> {
    config.check()?;
    let options = config.options();
    let driver = registry().connect_within(config.url()?, options.publish_timeout).await?;
    Bus::new(driver, options).map_err(|e| config.locate(e))
}

/// The connectors of all enabled adapters. Add your own with [`Registry::with`].
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

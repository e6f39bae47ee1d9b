//! What OpenTelemetry calls a broker, and where the broker is.

/// A messaging system by OpenTelemetry's names, and the server that a program talks to.
///
/// `system` is the value of the older attribute `messaging.system`, `system_name` that of `messaging.system.name`,
/// which replaces it. polybus writes both. The values are those of the semantic conventions for messaging,
/// <https://opentelemetry.io/docs/specs/semconv/registry/attributes/messaging/>.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessagingSystem {
    /// For `messaging.system`, such as `rabbitmq` or `aws_sqs`.
    pub system: &'static str,
    /// For `messaging.system.name`, such as `rabbitmq` or `aws.sqs`.
    pub system_name: &'static str,
    /// For `server.address`: a host name or an address. `None` where there is no server.
    pub server_address: Option<Box<str>>,
    /// For `server.port`; `None` where there is no server.
    pub server_port: Option<u16>,
}

impl MessagingSystem {
    /// A system without a server.
    ///
    /// ```
    /// use polybus_core::driver::MessagingSystem;
    ///
    /// let queues = MessagingSystem::new("aws_sqs", "aws.sqs").server("sqs.eu-west-1.amazonaws.com", 443);
    /// assert_eq!(queues.server_port, Some(443));
    /// ```
    pub fn new(system: &'static str, system_name: &'static str) -> Self {
        Self { system, system_name, server_address: None, server_port: None }
    }

    /// Sets the server.
    ///
    /// ```
    /// use polybus_core::driver::MessagingSystem;
    ///
    /// let system = MessagingSystem::new("rabbitmq", "rabbitmq").server("mq.example.com", 5672);
    /// assert_eq!(system.server_address.as_deref(), Some("mq.example.com"));
    /// ```
    pub fn server(mut self, address: impl Into<Box<str>>, port: u16) -> Self {
        (self.server_address, self.server_port) = (Some(address.into()), Some(port));
        self
    }
}

//! Where alerts go: the trait for authors, the log, and closures.

use std::{error::Error as StdError, fmt, future::Future, time::Duration};

use polybus_core::{Result, driver::async_trait};

use super::alert::{Alert, AlertState};

/// Takes alerts somewhere.
///
/// Each sink has a queue and a task of its own: a slow one delays neither polls nor other sinks. One alert after the
/// other is sent, in the order in which they came, and each up to three times. A try that takes longer than 15 s is
/// given up, and counts as one that may be done again; a panic too. What failed three times is put aside, and tried
/// again each 30 s to 5 min, until a newer one of the same alert comes or the monitor ends. A sink may be told of one
/// alert twice, with the same [`id`](Alert::id).
///
/// ```
/// use polybus_core::driver::async_trait;
/// use polybus_patterns::monitor::{Alert, AlertSink, SinkError};
///
/// struct Pager;
///
/// #[async_trait]
/// impl AlertSink for Pager {
///     fn name(&self) -> &str {
///         "pager"
///     }
///
///     async fn send(&self, alert: &Alert) -> Result<(), SinkError> {
///         println!("beep: {alert}");
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait AlertSink: Send + Sync + 'static {
    /// The name for logs and metrics. It must hold no secret.
    fn name(&self) -> &str;

    /// Whether this sink can work at all, asked once before the first poll. No I/O. By default it can.
    ///
    /// # Errors
    /// What is wrong: the monitor does not start then.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Sends one alert. It must not block the thread.
    ///
    /// # Errors
    /// [`SinkError::again`] is tried again, [`SinkError::refused`] is not.
    ///
    /// # Cancel safety
    /// The future is dropped when the try takes too long, and when the monitor ends. The alert may be sent then.
    async fn send(&self, alert: &Alert) -> Result<(), SinkError>;
}

/// Why an alert was not sent. Its text goes to the log, and must hold no secret.
#[derive(Debug)]
pub struct SinkError {
    message: String,
    pub(super) again: bool,
    pub(super) not_before: Option<Duration>,
}

impl SinkError {
    /// It may pass: try again.
    ///
    /// ```
    /// # use polybus_patterns::monitor::SinkError;
    /// assert_eq!(SinkError::again("the pager is busy").to_string(), "the pager is busy");
    /// ```
    pub fn again(message: impl Into<String>) -> Self {
        Self { message: message.into(), again: true, not_before: None }
    }

    /// It will not pass: this alert is dropped.
    ///
    /// ```
    /// # use polybus_patterns::monitor::SinkError;
    /// let error = SinkError::refused("the pager knows no such team");
    /// ```
    pub fn refused(message: impl Into<String>) -> Self {
        Self { message: message.into(), again: false, not_before: None }
    }

    /// The next try waits for at least so long, up to a minute.
    ///
    /// ```
    /// # use polybus_patterns::monitor::SinkError;
    /// # use std::time::Duration;
    /// let error = SinkError::again("the pager is busy").after(Duration::from_secs(20));
    /// ```
    pub fn after(mut self, wait: Duration) -> Self {
        self.not_before = Some(wait);
        self
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for SinkError {}

/// Writes alerts to the log, by `tracing`: one that fires as a warning, one that is resolved as information.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TracingSink;

#[async_trait]
impl AlertSink for TracingSink {
    fn name(&self) -> &str {
        "tracing"
    }

    async fn send(&self, alert: &Alert) -> Result<(), SinkError> {
        let Alert { name, source, backend, value, threshold, cause, reminder, .. } = alert;
        match alert.state {
            AlertState::Resolved => tracing::info!(
                target: "polybus", alert = name, kind = alert.kind.as_str(), source, backend, value, threshold, "{alert}"
            ),
            AlertState::Firing => tracing::warn!(
                target: "polybus", alert = name, kind = alert.kind.as_str(), source, backend, value, threshold, cause,
                reminder, "{alert}"
            ),
        }
        Ok(())
    }
}

/// A sink that is a closure. [`Monitor::sink_fn`](super::Monitor::sink_fn) makes it.
pub(super) struct ClosureSink<F> {
    name: String,
    send: F,
}

impl<F> ClosureSink<F> {
    pub(super) fn new(name: String, send: F) -> Self {
        Self { name, send }
    }
}

#[async_trait]
impl<F, Fut> AlertSink for ClosureSink<F>
where
    F: Fn(Alert) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), SinkError>> + Send + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    async fn send(&self, alert: &Alert) -> Result<(), SinkError> {
        (self.send)(alert.clone()).await
    }
}

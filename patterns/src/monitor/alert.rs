//! What sinks are told.

use std::{fmt, time::Duration};

use polybus_core::time::OffsetDateTime;
use uuid::Uuid;

/// What a rule measures, or `Unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AlertKind {
    /// How many messages wait in a source.
    Depth,
    /// By how many messages a minute that grows.
    Growth,
    /// For how long the oldest message has waited, in seconds.
    Age,
    /// How many dead letters there are.
    DeadLetters,
    /// How many dead letters came lately.
    DeadLettersRising,
    /// For how long the oldest row of an outbox could have been published, in seconds.
    OutboxAge,
    /// How many rows of an outbox are parked.
    OutboxParked,
    /// What the application measures.
    Measure,
    /// Nobody can tell: polls failed, or the broker does not say what a rule needs.
    Unknown,
}

impl AlertKind {
    /// The kind's name in logs, metrics, webhooks and the configuration file, such as `dead_letters`.
    ///
    /// ```
    /// assert_eq!(polybus_patterns::monitor::AlertKind::DeadLetters.as_str(), "dead_letters");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Depth => "depth",
            Self::Growth => "growth",
            Self::Age => "age",
            Self::DeadLetters => "dead_letters",
            Self::DeadLettersRising => "dead_letters_rising",
            Self::OutboxAge => "outbox_age",
            Self::OutboxParked => "outbox_parked",
            Self::Measure => "measure",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether an alert begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AlertState {
    /// It fires; with [`Alert::reminder`] it still does.
    Firing,
    /// It is over.
    Resolved,
}

impl AlertState {
    /// `firing` or `resolved`.
    ///
    /// ```
    /// assert_eq!(polybus_patterns::monitor::AlertState::Firing.as_str(), "firing");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// One thing that sinks are told: an alert fires, still fires, or is resolved.
///
/// It holds names, numbers and times: nothing of any message, no URL, no text of an error.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Alert {
    /// Identifies this telling. All tries to send it have the same.
    pub id: String,
    /// The name of the alert: the rule's, or `unknown` and what is unknown, such as `unknown queue:payments`.
    pub name: String,
    /// What is measured.
    pub kind: AlertKind,
    /// Whether it fires or is resolved.
    pub state: AlertState,
    /// Whether it was told before that it fires.
    pub reminder: bool,
    /// What is watched, such as `queue:payments`; the name of the rule where that is no source.
    pub source: String,
    /// The value of this poll. `None` if it is unknown.
    pub value: Option<f64>,
    /// The threshold. Of `Unknown` there is none.
    pub threshold: Option<f64>,
    /// Why it is unknown: the name of an [`ErrorKind`](polybus_core::ErrorKind), such as `NotFound`, or `NotTold` where
    /// the broker answered without this value.
    pub cause: Option<&'static str>,
    /// Since when: the first poll that found the value above its threshold.
    pub since: OffsetDateTime,
    /// When the poll was that this tells of.
    pub at: OffsetDateTime,
    /// The broker family, such as `rabbitmq`.
    pub backend: &'static str,
}

impl Alert {
    /// An alert about the backlog of `queue:payments`, for tests of sinks.
    ///
    /// ```
    /// use polybus_patterns::monitor::Alert;
    ///
    /// let text = "payments-backlog is firing: depth of queue:payments is 12000, above 10000";
    /// assert_eq!(Alert::sample().to_string(), text);
    /// ```
    pub fn sample() -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            name: "payments-backlog".into(),
            kind: AlertKind::Depth,
            state: AlertState::Firing,
            reminder: false,
            source: "queue:payments".into(),
            value: Some(12_000.0),
            threshold: Some(10_000.0),
            cause: None,
            since: OffsetDateTime::now_utc() - Duration::from_secs(60),
            at: OffsetDateTime::now_utc(),
            backend: "memory",
        }
    }
}

/// One line, such as `payments is firing: depth of queue:payments is 12000, above 10000`.
impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, state, source, kind, .. } = self;
        let still = if self.reminder { "still " } else { "" };
        write!(f, "{name} is {still}{}: {} of {source}", state.as_str(), kind.as_str())?;
        match (self.value, self.threshold, state) {
            (Some(value), Some(threshold), AlertState::Firing) => write!(f, " is {value}, above {threshold}"),
            (Some(value), ..) => write!(f, " is {value}"),
            _ => match self.cause {
                Some(cause) => write!(f, " ({cause})"),
                None => Ok(()),
            },
        }
    }
}

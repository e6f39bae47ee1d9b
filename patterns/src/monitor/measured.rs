//! One poll: the call that measures, limited in time, and what its answer means.

use std::{future::Future, pin::Pin};

use polybus_core::{Bus, Result, topology::SourceStats};

use super::rule::RuleTarget;
use crate::catch_panic::{self, panic_text};

/// A measurement of the application's.
pub(super) type MeasureFn = dyn Fn() -> Pin<Box<dyn Future<Output = Result<Option<f64>>> + Send>> + Send + Sync;

/// The cause of an unknown value where the one who was asked answered without it.
pub(super) const NOT_TOLD: &str = "NotTold";

/// The cause where the call panicked.
pub(super) const PANICKED: &str = "Panicked";

/// What a poll brought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Polled {
    Stats(SourceStats),
    Value(f64),
    /// Nothing, and why.
    Unknown(&'static str),
    /// The bus is closed, and there will be nothing any more.
    Closed,
}

/// Asks once. It has no limit of time.
pub(super) async fn ask(bus: &Bus, target: &RuleTarget) -> Polled {
    use polybus_core::ErrorKind;

    let asking = async {
        match target {
            RuleTarget::Source(source) => bus.stats(source).await.map(Polled::Stats),
            RuleTarget::Measure(_, measure) => {
                let value = measure().await?.filter(|value| value.is_finite());
                Ok(value.map_or(Polled::Unknown(NOT_TOLD), Polled::Value))
            }
        }
    };
    match caught(asking).await {
        Ok(Ok(polled)) => polled,
        Ok(Err(e)) if e.kind() == ErrorKind::Closed && matches!(target, RuleTarget::Source(_)) => Polled::Closed,
        Ok(Err(error)) => {
            tracing::debug!(target: "polybus", of = %target, %error, "a poll of the monitor failed");
            Polled::Unknown(error.kind().as_str())
        }
        Err(panic) => {
            tracing::warn!(target: "polybus", of = %target, panic, "a poll of the monitor panicked");
            Polled::Unknown(PANICKED)
        }
    }
}

/// Runs a future that may panic. The error is the panic's text.
pub(super) async fn caught<T>(call: impl Future<Output = T>) -> Result<T, String> {
    catch_panic::caught(call).await.map_err(|panic| panic_text(&*panic))
}

//! Failures that know their place in the code, and the checks that make them.

use std::{fmt, panic::Location};

use polybus_core::{Error, ErrorKind, HandlerError, SettleError};

/// The result of a scenario and of what it calls.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Why a scenario failed, and where in its code.
///
/// `?` makes one of an `Error`, a `SettleError` or an I/O error, and keeps the line of the `?`.
pub struct Failure {
    message: String,
    at: &'static Location<'static>,
}

impl Failure {
    /// A failure at the place of the caller.
    #[track_caller]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), at: Location::caller() }
    }

    /// Puts what was being done in front of the message.
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {}:{})", self.message, self.at.file(), self.at.line())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! failure_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            #[track_caller]
            fn from(e: $error) -> Self {
                Self::new(format!("{e:?}"))
            }
        }
    )*};
}
failure_from!(
    Error,
    SettleError,
    HandlerError,
    std::io::Error,
    tokio::task::JoinError,
    Box<dyn std::error::Error + Send + Sync>
);

/// Says what was being done when something failed: `bus.declare().await.during("second declare")?`.
pub trait During<T> {
    /// Puts what was being done in front of the failure's message.
    fn during(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: Into<Failure>> During<T> for Result<T, E> {
    #[track_caller]
    fn during(self, what: impl fmt::Display) -> Outcome<T> {
        match self {
            Ok(value) => Ok(value),
            Err(e) => Err(e.into().during(what)),
        }
    }
}

/// Fails unless the result is an error of this kind, and returns the error for further checks.
#[track_caller]
pub fn expect_error<T, E: Into<Error>>(result: Result<T, E>, kind: ErrorKind, what: &str) -> Outcome<Error> {
    match result.map_err(Into::into) {
        Err(e) if e.kind() == kind => Ok(e),
        Err(e) => Err(Failure::new(format!("{what}: expected {kind}, got {e:?}"))),
        Ok(_) => Err(Failure::new(format!("{what}: expected {kind}, got Ok"))),
    }
}

/// Fails unless the result is that of an ordered message which was not sent because an earlier one of its key failed.
#[track_caller]
pub fn expect_after_failed<T>(result: &Result<T, Error>, id: &str, what: &str) -> Outcome {
    match result {
        Err(e) if e.kind() == ErrorKind::Unavailable && e.context("after_failed") == Some(id) => Ok(()),
        Err(e) => Err(Failure::new(format!("{what}: expected Unavailable with after_failed={id}, got {e:?}"))),
        Ok(_) => Err(Failure::new(format!("{what}: expected Unavailable with after_failed={id}, got Ok"))),
    }
}

/// Returns a [`Failure`] unless the condition holds: `ensure!(n < 3, "{n} are too many")`.
#[macro_export]
macro_rules! ensure {
    ($cond:expr $(,)?) => {
        $crate::ensure!($cond, "{}", stringify!($cond))
    };
    ($cond:expr, $($arg:tt)+) => {
        let holds: bool = $cond;
        if !holds {
            return Err($crate::Failure::new(format!($($arg)+)));
        }
    };
}

/// Returns a [`Failure`] unless both are equal: `ensure_eq!(got, wanted, "after the restart")`.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(,)?) => {
        $crate::ensure_eq!($left, $right, "{}", stringify!($left))
    };
    ($left:expr, $right:expr, $($arg:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if !(*left == *right) {
                    let what = format!($($arg)+);
                    return Err($crate::Failure::new(format!("{what}: expected {right:?}, got {left:?}")));
                }
            }
        }
    };
}

/// Returns a [`Failure`] with this text.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)+) => {
        return Err($crate::Failure::new(format!($($arg)+)))
    };
}

/// Returns a [`Failure`] unless the result is an error of this kind; its value is the error:
/// `let e = expect_kind!(bus.publish(&to, m).await, ErrorKind::NotFound);`.
#[macro_export]
macro_rules! expect_kind {
    ($result:expr, $kind:expr $(,)?) => {
        $crate::expect_error($result, $kind, stringify!($result))?
    };
    ($result:expr, $kind:expr, $($arg:tt)+) => {
        $crate::expect_error($result, $kind, &format!($($arg)+))?
    };
}

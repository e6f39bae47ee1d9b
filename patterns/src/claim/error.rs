//! Why a claim is not redeemed, and what becomes of its message.

use std::{error::Error as StdError, fmt};

use polybus_core::{Error, HandlerContext, HandlerError};

/// How much of a foreign name an error shows, in characters.
const SHOWN: usize = 128;

/// Why a claim is not redeemed. Each has an ending of its own: [`ending`](Self::ending).
///
/// | the error | the message |
/// |---|---|
/// | [`Missing`](Self::Missing) | is tried again; at the last attempt, a dead letter `claim-missing` |
/// | [`Altered`](Self::Altered) | becomes a dead letter `claim-altered` at once |
/// | [`TooLarge`](Self::TooLarge) | becomes a dead letter `claim-too-large` at once |
/// | [`Outside`](Self::Outside) | becomes a dead letter `claim-outside` at once |
/// | [`Malformed`](Self::Malformed) | becomes a dead letter `claim-malformed` at once |
/// | [`Store`](Self::Store) | is tried again, as after any error |
///
/// No text of it has payload or secrets.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClaimError {
    /// There is no such object. Some stores show a new one late; else its retention has ended, or somebody deleted it.
    Missing {
        /// The name of the object.
        reference: Box<str>,
    },
    /// The object is not what was checked in.
    Altered {
        /// The name of the object.
        reference: Box<str>,
        /// What differs.
        difference: Box<str>,
    },
    /// The payload is larger than the consumer takes. It was not downloaded.
    TooLarge {
        /// The name of the object.
        reference: Box<str>,
        /// Its size in bytes.
        size: u64,
        /// The most that is taken.
        most: u64,
    },
    /// The name is not one of a claim. The store was not asked.
    Outside {
        /// The name, shortened.
        reference: Box<str>,
    },
    /// The attributes of the claim contradict each other, or cannot be read.
    Malformed {
        /// What is wrong.
        problem: &'static str,
    },
    /// The store failed, or does not answer.
    Store(Error),
}

impl ClaimError {
    /// A name that is not one of a claim. Whatever it holds, it is shown shortened and escaped.
    ///
    /// ```
    /// use polybus_patterns::claim::ClaimError;
    ///
    /// assert_eq!(ClaimError::outside("../secrets").reason(), "claim-outside");
    /// ```
    pub fn outside(reference: &str) -> Self {
        let shown: String = reference.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        Self::Outside { reference: shown.into() }
    }

    /// One word for machines, such as `claim-missing`. It is the reason of the dead letter, where it makes one.
    ///
    /// ```
    /// use polybus_patterns::claim::ClaimError;
    ///
    /// let error = ClaimError::Missing { reference: "claims/2026-05-01/0197a1c2".into() };
    /// assert_eq!(error.reason(), "claim-missing");
    /// ```
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "claim-missing",
            Self::Altered { .. } => "claim-altered",
            Self::TooLarge { .. } => "claim-too-large",
            Self::Outside { .. } => "claim-outside",
            Self::Malformed { .. } => "claim-malformed",
            Self::Store(_) => "claim-store",
        }
    }

    /// Whether another attempt may succeed.
    ///
    /// ```
    /// use polybus_patterns::claim::ClaimError;
    ///
    /// assert!(ClaimError::Missing { reference: "claims/2026-05-01/0197a1c2".into() }.is_transient());
    /// assert!(!ClaimError::outside("../secrets").is_transient());
    /// ```
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Store(_))
    }

    /// The error of a handler that redeems by itself. With a plain `?` every claim would be tried again.
    ///
    /// ```
    /// use polybus_core::{HandlerContext, Source};
    /// use polybus_patterns::claim::ClaimError;
    ///
    /// let context = HandlerContext::detached(&Source::queue("reports"), 1);
    /// assert!(ClaimError::outside("../secrets").ending(&context).is_permanent());
    /// ```
    pub fn ending(self, context: &HandlerContext) -> HandlerError {
        let ends = match &self {
            Self::Missing { .. } => context.is_last_attempt(),
            Self::Store(_) => false,
            _ => true,
        };
        match ends {
            true => HandlerError::dead_letter(self.reason(), self.to_string()),
            false => HandlerError::new(self),
        }
    }
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { reference } => write!(
                f,
                "the payload {reference} is not in the store: its retention has ended, or somebody deleted it"
            ),
            Self::Altered { reference, difference } => {
                write!(f, "the payload {reference} is not what was checked in: {difference}")
            }
            Self::TooLarge { reference, size, most } => {
                write!(f, "the payload {reference} has {size} bytes, and {most} are taken: raise max_size to take it")
            }
            Self::Outside { reference } => write!(
                f,
                "{reference:?} is not the name of a claim here: consumer and producer need the same prefix or bucket"
            ),
            Self::Malformed { problem } => write!(f, "the claim's attributes are wrong: {problem}"),
            Self::Store(error) => write!(f, "the store of the payload failed: {error}"),
        }
    }
}

impl StdError for ClaimError {}

impl From<Error> for ClaimError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_others_is_shortened_and_on_one_line() {
        let text = ClaimError::outside(&format!("../\n{}", "x".repeat(10_000))).to_string();
        assert!(text.len() < 400 && !text.contains('\n'), "{text}");
    }
}

//! A consumer's name belongs to one source.

use polybus_core::{Error, Result};

/// The number of a consumer that is known.
///
/// # Errors
/// `ConfigInvalid` where it consumes from another source.
pub(crate) fn same_source((id, known): (i32, String), consumer: &str, source: &str) -> Result<i32> {
    if known == source {
        return Ok(id);
    }
    Err(Error::config(format!(
        "the inbox' consumer {consumer:?} belongs to the source {known:?}, and here it is to consume from {source:?}: \
         both would take each other's messages for duplicates; give this one another name"
    )))
}

//! The one place that maps errors of the store.

use std::{error::Error as StdError, io};

use object_store::Error as StoreError;
use polybus_core::{Error, ErrorKind};

/// How much of the store's own words an error shows, in characters.
const SHOWN: usize = 300;

/// The error of a request. Nothing was published with it, so all of them are safe to do again.
pub(crate) fn map(error: &StoreError, operation: &'static str) -> Error {
    let kind = match error {
        StoreError::NotFound { .. } => ErrorKind::NotFound,
        StoreError::PermissionDenied { .. } => ErrorKind::PermissionDenied,
        StoreError::Unauthenticated { .. } => ErrorKind::Unauthenticated,
        StoreError::InvalidPath { .. } => ErrorKind::InvalidArgument,
        StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => ErrorKind::Unsupported,
        StoreError::UnknownConfigurationKey { .. } => ErrorKind::ConfigInvalid,
        error => match io_error(error).map(io::Error::kind) {
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => ErrorKind::PermissionDenied,
            _ => ErrorKind::Unavailable,
        },
    };
    let text = format!("the object store failed: {}", without_secrets(&error.to_string()));
    Error::new(kind, text).safe().with_operation(operation)
}

/// The error of the file system, where it is one.
fn io_error(error: &StoreError) -> Option<&io::Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

/// The store's words, without what may hold a signature: the queries of URLs, user and password in them, and what the
/// server sent as a document.
fn without_secrets(text: &str) -> String {
    let text = text.split('<').next().unwrap_or_default();
    let words = text.split_whitespace().map(|word| {
        let word = word.split('?').next().unwrap_or_default();
        match word.split_once("://") {
            Some((scheme, rest)) => {
                // A password may have a `@` itself.
                let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                format!("{scheme}://{host}{path}")
            }
            None => word.to_owned(),
        }
    });
    let mut shown = words.collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = shown.char_indices().nth(SHOWN) {
        shown.truncate(at);
        shown.push('…');
    }
    shown
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn signatures_and_passwords_are_not_shown() {
        let text = "Error performing PUT https://user:SEC@SECRET@a.blob.core.windows.net/c/k?sv=1&sig=SECRET in 1s - \
                    Server returned 403: <?xml><AWSAccessKeyId>SECRET</AWSAccessKeyId>";
        let error = StoreError::Generic { store: "S3", source: text.into() };
        let shown = map(&error, "check_in").to_string();
        assert!(!shown.contains("SECRET") && shown.contains("https://a.blob.core.windows.net/c/k in 1s"), "{shown}");
        let long = StoreError::Generic { store: "S3", source: "é".repeat(10_000).into() };
        assert!(map(&long, "check_in").message().chars().count() < 400);
    }
}

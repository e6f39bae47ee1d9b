//! Which servers will do.

use polybus_core::{Error, Result};

use super::SYSTEM;

/// PostgreSQL 13, in the form of `server_version_num`.
const OLDEST: u32 = 130_000;

/// # Errors
/// `ConfigInvalid` for a server that lacks what the statements need.
pub(super) fn check_version(number: Option<u32>) -> Result<()> {
    match number {
        Some(number) if number < OLDEST => {
            // Before 10 the middle part belonged to the major version.
            let version = if number >= 100_000 {
                format!("{}.{}", number / 10_000, number % 10_000)
            } else {
                format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
            };
            let text = format!("PostgreSQL {version} is too old: polybus needs 13 or newer");
            Err(Error::config(text).with_backend(SYSTEM).with_operation("verify"))
        }
        // What tells no version speaks the protocol and may be new.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_servers_are_named() {
        for good in [None, Some(130_000), Some(180_004)] {
            check_version(good).unwrap();
        }
        for (bad, named) in [(129_999, "12.9999"), (120_022, "12.22"), (90_624, "9.6.24")] {
            let error = check_version(Some(bad)).unwrap_err();
            assert_eq!(error.kind(), polybus_core::ErrorKind::ConfigInvalid);
            assert!(error.message().contains(named) && error.message().contains("13"), "{error}");
        }
    }
}

//! The SDK's clients: credentials, clocks, and how many calls are made.

pub(crate) mod call_count;
pub(crate) mod clients;
pub(crate) mod clock_skew;
pub(crate) mod credentials;
pub(crate) mod emulator_info;

//! The SDK's clients, and what belongs to every call: credentials, the clock that signs, and the count of calls.

pub(crate) mod call_count;
pub(crate) mod clients;
pub(crate) mod clock_skew;
pub(crate) mod credentials;
pub(crate) mod emulator_info;

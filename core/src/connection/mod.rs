//! Between a bus and its driver: what is refused before any call to a broker, and how long a broker that is not ready is waited for.

pub(crate) mod patience;
pub(crate) mod preflight;

//! Publishing with confirms: a sender an address, a confirmed publisher for each place, channels that are made again.

pub(crate) mod confirm_channel;
pub(crate) mod confirmed_publisher;
pub(crate) mod sender;

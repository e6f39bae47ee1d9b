//! The sanitizer changes what the broker sends where lapin would end the connection, or the process, over it.
//!
//! RabbitMQ passes on what any publisher wrote. So without this, whoever may publish could cut off every consumer,
//! again at each delivery. Three things are changed, in the bytes as they come, before lapin reads them:
//!
//! - headers that are [nested](nesting) too deeply become bytes,
//! - text that is not [UTF-8](utf8) gets question marks,
//! - [content headers that are larger than a frame](large_headers) are kept aside, and small ones take their places.
//!
//! Bytes go from the socket, or from TLS, through the [`stream`] into [`frames`], which finds the frames and has the
//! [`header_walk`] look through methods and content headers. From there lapin reads them.

pub(crate) mod frames;
pub(crate) mod header_walk;
pub(crate) mod large_headers;
pub(crate) mod nesting;
pub(crate) mod stream;
pub(crate) mod utf8;

//! What the broker sends, made safe for lapin before it reads it: headers that are nested too deeply or too large, and text that is none.

pub(crate) mod frames;
pub(crate) mod header_walk;
pub(crate) mod large_headers;
pub(crate) mod nesting;
pub(crate) mod stream;
pub(crate) mod utf8;

//! AMQP 1.0 values to and from bytes.
//!
//! Decoding is for bytes nobody vouches for: every length is checked against what is there, nesting is bounded, and a
//! count alone never makes the decoder allocate.

mod decode;
mod encode;
mod value;

pub use decode::{DecodeError, MAX_DEPTH, ValueReader, decode};
pub use encode::{
    begin_list, begin_map, encode, end_list, end_map, put_binary, put_bool, put_descriptor, put_null, put_string,
    put_symbol, put_uint, put_ulong, put_value,
};
pub use value::{Value, lookup};

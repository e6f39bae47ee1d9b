//! What the broker sends, made safe for fe2o3-amqp before it reads it: values that are nested too deeply.

pub(crate) mod nesting;
pub(crate) mod performative;
pub(crate) mod stream;
pub(crate) mod walk;

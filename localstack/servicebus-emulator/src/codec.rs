//! AMQP 1.0 values to and from bytes.

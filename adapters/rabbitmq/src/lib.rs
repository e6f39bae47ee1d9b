//! polybus

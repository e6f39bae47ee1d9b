//! From the word of a handler to the word of the broker: the rules decide what a settlement becomes, the batcher hands it to the driver.

pub(crate) mod batcher;
pub(crate) mod handling_record;
pub(crate) mod rules;

//! Publishing, always with publisher confirms.
//!
//! A message comes from core to a [`sender`], which encodes it; a copy for a retry or a dead letter comes from
//! the settler of a source. Both hand batches to a [`confirmed_publisher`], which opens channels
//! again, makes missing delay queues and gives every message an error of its own. The batch goes out on a
//! [`confirm_channel`], which awaits the broker's confirms and matches returned messages.

pub(crate) mod confirm_channel;
pub(crate) mod confirmed_publisher;
pub(crate) mod sender;

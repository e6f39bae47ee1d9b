//! A driver's panic as an error, so that it fails what it was called for and nothing else.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use crate::{Error, Kind, Result};

/// Runs a driver's future. What it did before it panicked is not known.
pub(crate) async fn caught<T>(future: impl Future<Output = T>) -> Result<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => {
            let text = format!("the driver panicked: {}", panic_text(&*panic));
            Poll::Ready(Err(Error::new(Kind::Unexpected, text).may_duplicate()))
        }
    })
    .await
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

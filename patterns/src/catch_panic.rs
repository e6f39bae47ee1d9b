//! Catches the panics of code that is not this crate's, so that they end the call they happened in and nothing else.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// What a panic left.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Runs a future up to its end or its panic.
///
/// # Cancel safety
/// As safe as the future.
pub(crate) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Panic> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// Makes a call that is not async.
pub(crate) fn caught_call<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call))
}

/// The text of a panic. It may quote a payload, where the code that panicked had one.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_call_and_keeps_its_text() {
        assert_eq!(caught(async { 7 }).await.unwrap(), 7);
        let late = async {
            tokio::task::yield_now().await;
            panic!("late, with {}", 7)
        };
        assert_eq!(panic_text(&*caught::<()>(late).await.unwrap_err()), "late, with 7");
        assert_eq!(caught_call(|| 7).unwrap(), 7);
        assert_eq!(panic_text(&*caught_call(|| panic!("at once")).unwrap_err() as &(dyn Any + Send)), "at once");
        let other = caught_call(|| std::panic::panic_any(7)).unwrap_err();
        assert_eq!(panic_text(&*other), "no message");
    }
}

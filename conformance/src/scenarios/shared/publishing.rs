//! Publishing many messages, or until an outcome.

use std::time::Duration;

use polybus_core::{Address, Bus, Envelope, Error, ErrorKind, Receipt};
use tokio::time::Instant;

use crate::{Cx, Fixture, Outcome, ensure, fail};

/// Publishes each message in a task of its own, all at once. The results are in the order of the messages.
pub(crate) fn publish_each<'a>(
    bus: &Bus,
    messages: impl IntoIterator<Item = (&'a Address, &'a Envelope)>,
) -> impl Future<Output = Outcome<Vec<Result<Receipt, Error>>>> + Send + 'static {
    let tasks: Vec<_> = messages.into_iter().map(|(to, message)| tokio::spawn(bus.publish(to, message))).collect();
    async move {
        let mut results = Vec::with_capacity(tasks.len());
        for task in tasks {
            results.push(task.await?);
        }
        Ok(results)
    }
}

/// Publishes this message again and again until it is Ok (`wanted` is `None`) or fails with this kind.
pub(crate) async fn publish_until(cx: &Cx, f: &Fixture, message: &Envelope, wanted: Option<ErrorKind>) -> Outcome {
    let deadline = cx.deadline() + cx.patience();
    loop {
        let result = f.bus.publish(&f.address, message).await;
        let kind = result.as_ref().err().map(Error::kind);
        if kind == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "a publish should end as {wanted:?} by now: {result:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The messages whose result is Ok. Fails if an error is of another kind than this.
pub(crate) fn stored_messages<'a>(
    messages: impl IntoIterator<Item = &'a Envelope>,
    results: &[Result<Receipt, Error>],
    kind: ErrorKind,
) -> Outcome<Vec<Envelope>> {
    let mut stored = Vec::new();
    for (i, (message, result)) in messages.into_iter().zip(results).enumerate() {
        match result {
            Ok(_) => stored.push(message.clone()),
            Err(e) if e.kind() == kind => {}
            Err(e) => fail!("result {i}: expected Ok or {kind}, got {e:?}"),
        }
    }
    Ok(stored)
}

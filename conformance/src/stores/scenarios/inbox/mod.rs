//! The inbox: the effects of a message happen once, or not at all.

mod ends;
mod identity;
mod outages;
mod own_transactions;
mod retention;
mod start;
mod twice;

use std::sync::Arc;

use polybus_core::{Envelope, Handler, HandlerContext, HandlerError, Source, time::OffsetDateTime};
use polybus_patterns::Inbox;

use crate::{
    Outcome,
    scenarios::shared::GoalCounter,
    stores::{
        cx::{StoreOf, TxOf},
        scenario::StoreScenario,
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    let mut all = twice::all();
    all.extend(ends::all());
    all.extend(identity::all());
    all.extend(own_transactions::all());
    all.extend(retention::all());
    all.extend(outages::all());
    all.extend(start::all());
    all
}

/// A handler that writes the message's payload as an effect, and counts its runs.
fn effect<T: StoreUnderTest>(inbox: &Inbox<StoreOf<T>>, runs: &GoalCounter) -> impl Handler + use<T> {
    inbox.handler(runs.clone(), |runs: GoalCounter, mut tx: TxOf<T>, _: HandlerContext, message: Envelope| async move {
        runs.add();
        T::add_effect(&mut tx, &text(&message)).await?;
        Ok::<_, HandlerError>(tx)
    })
}

/// Handles a message as a worker of the queue `q` would, in a task of its own.
pub(super) async fn handle(handler: &Arc<impl Handler>, message: &Envelope) -> Outcome<Result<(), HandlerError>> {
    handle_of(handler, "q", message).await
}

async fn handle_of(handler: &Arc<impl Handler>, queue: &str, message: &Envelope) -> Outcome<Result<(), HandlerError>> {
    let context = HandlerContext::detached(&Source::queue(queue), 1);
    Ok(handler.handle(context, message.clone()).await)
}

pub(super) fn text(message: &Envelope) -> String {
    String::from_utf8_lossy(&message.data).into_owned()
}

/// A message with this text and a time.
pub(super) fn message(text: impl Into<String>) -> Envelope {
    Envelope::new("t", text.into()).source("/shop").time(OffsetDateTime::now_utc())
}

//! The inbox as a worker's handler.

use std::future::Future;

use polybus_core::{Envelope, Handler, HandlerContext, HandlerError, Result, worker::WorkerInfo};

use super::engine::Engine;
use crate::store::InboxStore;

pub(super) struct InboxHandler<S, T, F> {
    engine: Engine<S>,
    state: T,
    f: F,
}

impl<S, T, F> InboxHandler<S, T, F> {
    pub(super) fn new(engine: Engine<S>, state: T, f: F) -> Self {
        Self { engine, state, f }
    }
}

impl<S, T, F, Fut> Handler for InboxHandler<S, T, F>
where
    S: InboxStore,
    T: Clone + Send + Sync + 'static,
    F: Fn(T, S::Tx, HandlerContext, Envelope) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<S::Tx, HandlerError>> + Send + 'static,
{
    async fn handle(&self, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
        let run = |tx| (self.f)(self.state.clone(), tx, cx.clone(), msg.clone());
        self.engine.handle(&cx, &msg, run).await
    }

    async fn starting(&self, worker: &WorkerInfo) -> Result<()> {
        self.engine.start(worker).await
    }
}

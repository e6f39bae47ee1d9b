//! The router behind an inbox.

use std::{fmt, future::Future};

use polybus_core::{
    Envelope, Event, Handler, HandlerContext, HandlerError, Result,
    message::{Codec, JsonCodec},
    worker::WorkerInfo,
};

use super::{
    Types,
    routes::{BoxedRun, Call, Routes},
};
use crate::{Inbox, inbox::Engine, store::InboxStore};

impl<C: Codec> Types<C> {
    /// A [router](Self::router) behind an inbox: its handlers take the transaction in which the message is marked, and
    /// give it back. See [`InboxRouter`].
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Event, Result, Source};
    /// # use polybus_patterns::{Inbox, store::InboxStore, types::Types};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # async fn example<S: InboxStore>(bus: Bus, db: S) -> Result<()> {
    /// let types = Types::new().event::<OrderPlaced>();
    /// let inbox = Inbox::new(&db, "billing");
    /// let router = types.inbox_router(&inbox, ()).on(async |(), tx, _cx, placed: OrderPlaced| {
    ///     println!("{}", placed.order); // and the application's own statements on `tx`
    ///     Ok(tx)
    /// });
    /// bus.worker(Source::queue("orders")).run(router).await?;
    /// # Ok(()) }
    /// ```
    pub fn inbox_router<S, T>(&self, inbox: &Inbox<S>, state: T) -> InboxRouter<S, T, C>
    where
        S: InboxStore,
        T: Clone + Send + Sync + 'static,
    {
        InboxRouter::new(inbox.engine(), Routes::new(self.clone()), state)
    }
}

/// A [`Handler`] that handles each message once, by the handler of its type, in the transaction of the inbox.
/// [`Types::inbox_router`] makes it.
///
/// It is what [`Inbox::handler`](crate::Inbox::handler) and [`Router`](super::Router) are: handlers take the
/// transaction and give it back, and may run more than once for one attempt. The message is read inside the
/// transaction, behind the mark. So a copy of a message that newer code has handled is a duplicate for older code, and
/// no dead letter. One that is skipped is marked, and counts for the sequence guard. One that is refused leaves
/// nothing.
///
/// ```no_run
/// # use polybus_core::{Address, Bus, Envelope, Event, Result, Source};
/// # use polybus_patterns::{Inbox, Outbox, store::{InboxStore, OutboxStore}, types::Types};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderPlaced { order: String }
/// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
/// # async fn example<S: InboxStore + OutboxStore>(bus: Bus, db: S, outbox: Outbox<S>, types: Types) -> Result<()> {
/// let inbox = Inbox::new(&db, "billing");
/// let router = types.inbox_router(&inbox, outbox).on(async |outbox, mut tx, _cx, placed: OrderPlaced| {
///     // … the application's own statements on `tx` …
///     outbox.enqueue(&mut tx, Address::queue("mail"), Envelope::new("mail.wanted", placed.order)).await?;
///     Ok(tx)
/// });
/// bus.worker(Source::queue("orders")).run(router).await?;
/// # Ok(()) }
/// ```
pub struct InboxRouter<S: InboxStore, T, C = JsonCodec> {
    engine: Engine<S>,
    routes: Routes<T, S::Tx, C>,
    state: T,
}

impl<S: InboxStore, T, C> fmt::Debug for InboxRouter<S, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxRouter").finish_non_exhaustive()
    }
}

impl<S, T, C> InboxRouter<S, T, C>
where
    S: InboxStore,
    T: Clone + Send + Sync + 'static,
    C: Codec,
{
    pub(super) fn new(engine: Engine<S>, routes: Routes<T, S::Tx, C>, state: T) -> Self {
        Self { engine, routes, state }
    }

    /// Handles the events of a type. The handler says by its argument which.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{Inbox, store::InboxStore, types::Types};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # fn example<S: InboxStore>(inbox: Inbox<S>, types: Types) {
    /// let router = types.inbox_router(&inbox, ()).on(async |(), tx, _cx, placed: OrderPlaced| {
    ///     println!("{}", placed.order); // and the application's own statements on `tx`
    ///     Ok(tx)
    /// });
    /// # }
    /// ```
    pub fn on<E, F, Fut>(self, f: F) -> Self
    where
        E: Event + 'static,
        F: Fn(T, S::Tx, HandlerContext, E) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send + 'static,
    {
        self.route(move |event: E, Call { state, tx, context, .. }| Box::pin(f(state, tx, context, event)))
    }

    /// Handles the events of a type, and gets the message as well.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{Inbox, store::InboxStore, types::Types};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # fn example<S: InboxStore>(inbox: Inbox<S>, types: Types) {
    /// let router = types.inbox_router(&inbox, ()).on_message(async |(), tx, _cx, placed: OrderPlaced, msg| {
    ///     println!("{} in {}", placed.order, msg.id);
    ///     Ok(tx)
    /// });
    /// # }
    /// ```
    pub fn on_message<E, F, Fut>(self, f: F) -> Self
    where
        E: Event + 'static,
        F: Fn(T, S::Tx, HandlerContext, E, Envelope) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send + 'static,
    {
        self.route(move |event: E, Call { state, tx, context, message }| {
            Box::pin(f(state, tx, context, event, message))
        })
    }

    /// Handles the messages of all types that have no handler, known or not. Default: what
    /// [`unknown_type`](Types::unknown_type) says.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, store::InboxStore, types::Types};
    /// # fn example<S: InboxStore>(inbox: Inbox<S>, types: Types) {
    /// let router = types.inbox_router(&inbox, ()).otherwise(async |(), tx, _cx, msg| {
    ///     println!("{} is none of ours", msg.event_type);
    ///     Ok(tx)
    /// });
    /// # }
    /// ```
    pub fn otherwise<F, Fut>(mut self, f: F) -> Self
    where
        F: Fn(T, S::Tx, HandlerContext, Envelope) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send + 'static,
    {
        self.routes.otherwise(move |Call { state, tx, context, message }| Box::pin(f(state, tx, context, message)));
        self
    }

    /// Looks for mistakes, as a worker does at its start. For tests.
    ///
    /// # Errors
    /// `InvalidArgument`, naming all mistakes.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, store::InboxStore, types::Types};
    /// # fn example<S: InboxStore>(inbox: Inbox<S>, types: Types) {
    /// assert!(types.inbox_router(&inbox, ()).check().is_err(), "it has no handler");
    /// # }
    /// ```
    pub fn check(&self) -> Result<()> {
        self.routes.check()
    }

    fn route<E: Event + 'static>(
        mut self,
        handler: impl Fn(E, Call<T, S::Tx>) -> BoxedRun<S::Tx> + Send + Sync + 'static,
    ) -> Self {
        self.routes.on(handler);
        self
    }
}

impl<S, T, C> Handler for InboxRouter<S, T, C>
where
    S: InboxStore,
    T: Clone + Send + Sync + 'static,
    C: Codec + Send + Sync + 'static,
{
    async fn handle(&self, context: HandlerContext, message: Envelope) -> Result<(), HandlerError> {
        let run = |tx| {
            let (state, context, message) = (self.state.clone(), context.clone(), message.clone());
            self.routes.run(Call { state, tx, context, message })
        };
        self.engine.handle(&context, &message, run).await
    }

    /// Looks at the handlers first, which needs no database.
    async fn starting(&self, worker: &WorkerInfo) -> Result<()> {
        self.routes.check()?;
        self.engine.start(worker).await
    }
}

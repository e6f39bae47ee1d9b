//! The router as a worker's handler.

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

impl<C: Codec> Types<C> {
    /// A handler for a worker that hands each message to the handler of its type: see [`Router`]. Each message gets a
    /// clone of the state.
    ///
    /// ```
    /// # use polybus_core::{Event, Handler};
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # fn is_handler(_: impl Handler) {}
    /// let types = Types::new().event::<OrderPlaced>();
    /// let router = types.router("billing").on(async |name, cx, placed: OrderPlaced| {
    ///     println!("{name}: {} at attempt {}", placed.order, cx.attempt());
    ///     Ok(())
    /// });
    /// # is_handler(router);
    /// ```
    pub fn router<T: Clone + Send + Sync + 'static>(&self, state: T) -> Router<T, C> {
        Router::new(Routes::new(self.clone()), state)
    }
}

/// A [`Handler`] that hands each message to the handler of its type. [`Types::router`] makes it.
///
/// The closures must not capture anything: the state holds what they need.
///
/// | the message | what becomes of it |
/// |---|---|
/// | has a handler | the handler gets its newest version |
/// | is of a type without a handler | [`otherwise`](Self::otherwise), or else [`unknown_type`](Types::unknown_type) |
/// | is of a newer version | [`unknown_version`](Types::unknown_version) |
/// | is of a retired version, malformed, or could not be made newer | a dead letter at once |
///
/// A worker does not start with two handlers for one type, with a handler of a type that is not registered, or with
/// types that [`Types::check`](Types::check) refuses.
///
/// ```
/// # use polybus_core::{Bus, BusOptions, Envelope, Event, QueueSpec, Source, Topology, memory::MemoryDriver};
/// # use polybus_patterns::types::Types;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderPlaced { order: String }
/// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderPaid { order: String }
/// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
/// # #[derive(Clone)] struct Db;
/// # impl Db { async fn save(&self, order: &str) -> std::io::Result<()> { Ok(()) } }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> polybus_core::Result<()> {
/// # let topology = Topology::new().queue("orders", QueueSpec::new());
/// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
/// # bus.declare().await?;
/// # let db = Db;
/// # let stop = tokio::time::sleep(std::time::Duration::from_secs(1));
/// # bus.publish(polybus_core::Address::queue("orders"), Envelope::event(&OrderPaid { order: "o".into() })?).await?;
/// let types = Types::new().event::<OrderPlaced>().event::<OrderPaid>();
/// let router = types
///     .router(db)
///     .on(async |db, _cx, placed: OrderPlaced| Ok(db.save(&placed.order).await?))
///     .on(async |db, _cx, paid: OrderPaid| Ok(db.save(&paid.order).await?));
/// let report = bus.worker(Source::queue("orders")).with_graceful_shutdown(stop).run(router).await?;
/// # assert_eq!(report.succeeded, 1);
/// # Ok(()) }
/// ```
pub struct Router<T, C = JsonCodec> {
    routes: Routes<T, (), C>,
    state: T,
}

impl<T, C> fmt::Debug for Router<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

impl<T, C> Router<T, C>
where
    T: Clone + Send + Sync + 'static,
    C: Codec,
{
    pub(super) fn new(routes: Routes<T, (), C>, state: T) -> Self {
        Self { routes, state }
    }

    /// Handles the events of a type. The handler says by its argument which.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # let types = Types::new().event::<OrderPlaced>();
    /// let router = types.router(()).on(async |(), cx, placed: OrderPlaced| {
    ///     println!("{} at attempt {}", placed.order, cx.attempt());
    ///     Ok(())
    /// });
    /// # router.check().unwrap();
    /// ```
    pub fn on<E, F, Fut>(self, f: F) -> Self
    where
        E: Event + 'static,
        F: Fn(T, HandlerContext, E) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.route(move |event: E, Call { state, context, .. }| Box::pin(f(state, context, event)))
    }

    /// Handles the events of a type, and gets the message as well: its id, key, headers, and so on.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # let types = Types::new().event::<OrderPlaced>();
    /// let router = types.router(()).on_message(async |(), _cx, placed: OrderPlaced, msg| {
    ///     println!("{} for {:?}", placed.order, msg.headers.get("tenant"));
    ///     Ok(())
    /// });
    /// # router.check().unwrap();
    /// ```
    pub fn on_message<E, F, Fut>(self, f: F) -> Self
    where
        E: Event + 'static,
        F: Fn(T, HandlerContext, E, Envelope) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.route(move |event: E, Call { state, context, message, .. }| Box::pin(f(state, context, event, message)))
    }

    /// Handles the messages of all types that have no handler, known or not. Default: what
    /// [`unknown_type`](Types::unknown_type) says.
    ///
    /// Messages of a type that has a handler never come here, of whatever version they are.
    ///
    /// ```
    /// # use polybus_patterns::types::Types;
    /// let router = Types::new().router(()).otherwise(async |(), _cx, msg| {
    ///     println!("{} is none of ours", msg.event_type);
    ///     Ok(())
    /// });
    /// # router.check().unwrap();
    /// ```
    pub fn otherwise<F, Fut>(mut self, f: F) -> Self
    where
        F: Fn(T, HandlerContext, Envelope) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.routes.otherwise(move |Call { state, context, message, .. }| Box::pin(f(state, context, message)));
        self
    }

    /// Looks for mistakes, as a worker does at its start. For tests.
    ///
    /// # Errors
    /// `InvalidArgument`, naming all mistakes.
    ///
    /// ```
    /// # use polybus_patterns::types::Types;
    /// assert!(Types::new().router(()).check().unwrap_err().to_string().contains("no handler"));
    /// ```
    pub fn check(&self) -> Result<()> {
        self.routes.check()
    }

    fn route<E: Event + 'static>(
        mut self,
        handler: impl Fn(E, Call<T, ()>) -> BoxedRun<()> + Send + Sync + 'static,
    ) -> Self {
        self.routes.on(handler);
        self
    }
}

impl<T, C> Handler for Router<T, C>
where
    T: Clone + Send + Sync + 'static,
    C: Codec + Send + Sync + 'static,
{
    async fn handle(&self, context: HandlerContext, message: Envelope) -> Result<(), HandlerError> {
        self.routes.run(Call { state: self.state.clone(), tx: (), context, message }).await
    }

    async fn starting(&self, _worker: &WorkerInfo) -> Result<()> {
        self.routes.check()
    }
}

//! One connection: it reads frames for the engine, writes the engine's output, and waits for timers, the broker and
//! faults.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::AmqpOptions;
use super::engine::{AcceptedSession, ConnectionEngine, ConnectionPhase};
use super::links::LinkKey;
use super::sasl::{self, SaslLogin};
use super::wire::error::FRAMING_ERROR;
use super::wire::frame::{self, AMQP};
use super::wire::{AmqpError, writer};
use crate::SharedState;
use crate::clock::Clock;
use crate::faults::FaultOrder;
use crate::transport::ByteStream;

/// The read buffer of an idle connection and of a busy one.
const SMALL_READ: usize = 4 * 1024;
const LARGE_READ: usize = 64 * 1024;
/// Reading stops while this much output waits. It bounds the memory that a client can take up by sending without
/// reading.
const TOO_MUCH_UNREAD: usize = 4 * 1024 * 1024;
/// How long a client may take from connecting to open, and from close to closing its socket.
const OPENING: Duration = Duration::from_secs(30);
const CLOSING: Duration = Duration::from_secs(2);

/// An event that a connection waits for.
enum ConnectionEvent {
    Read(usize),
    Wrote,
    Woken(Vec<LinkKey>),
    Session(AcceptedSession),
    Order(FaultOrder),
    Expiry,
    Tick,
    /// The socket is closed or broken.
    Gone,
}

type NextOrder = BoxFuture<'static, (Option<FaultOrder>, broadcast::Receiver<FaultOrder>)>;

struct AmqpConnection<'a> {
    io: &'a mut dyn ByteStream,
    input: BytesMut,
    /// How many bytes of the engine's output have been written.
    written: usize,
    flushing: bool,
    read_size: usize,
    engine: ConnectionEngine,
    /// The connection is open, and `tick` is set for heartbeats and the idle time-out.
    opened: bool,
    orders: NextOrder,
    /// Ready when the next claim or idle link expires, or when the clock is moved.
    expiry: Option<BoxFuture<'static, ()>>,
    tick: Pin<Box<Sleep>>,
    last_in: Instant,
    last_out: Instant,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(io: &mut dyn ByteStream, shared: SharedState, options: AmqpOptions) {
    let mut orders = shared.faults.orders();
    let mut input = BytesMut::with_capacity(SMALL_READ);
    let negotiated = tokio::select! {
        negotiated = timeout(OPENING, sasl::negotiate(io, &mut input, &shared)) => negotiated,
        () = told_to_go(&mut orders) => return,
    };
    let Ok(Ok(Some(SaslLogin(login)))) = negotiated else { return linger(io).await };
    let now = Instant::now();
    let mut connection = AmqpConnection {
        io,
        input,
        written: 0,
        flushing: false,
        read_size: SMALL_READ,
        engine: ConnectionEngine::new(shared, options, login),
        opened: false,
        orders: next_order(orders),
        expiry: None,
        tick: Box::pin(sleep(OPENING)),
        last_in: now,
        last_out: now,
    };
    connection.run().await;
    let dropped = connection.engine.phase == ConnectionPhase::Dropped;
    // Dropping the connection releases its locks and receivers. That comes before waiting for the peer to close its
    // socket.
    drop(connection);
    if !dropped {
        linger(io).await;
    }
}

/// Waits for the fault that drops connections. The other faults act on links, of which there are none yet.
async fn told_to_go(orders: &mut broadcast::Receiver<FaultOrder>) {
    loop {
        match orders.recv().await {
            Ok(FaultOrder::DropConnections) => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Shuts down the sending side, then reads until the peer closes. Closing a socket with unread input would reset it,
/// and the peer would lose the last frames.
async fn linger(io: &mut dyn ByteStream) {
    let _ = timeout(CLOSING, async {
        io.shutdown().await?;
        let mut sink = [0; 1024];
        while io.read(&mut sink).await? > 0 {}
        std::io::Result::Ok(())
    })
    .await;
}

fn next_order(mut orders: broadcast::Receiver<FaultOrder>) -> NextOrder {
    Box::pin(async move {
        loop {
            match orders.recv().await {
                Ok(order) => return (Some(order), orders),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return (None, orders),
            }
        }
    })
}

fn next_expiry(clock: Clock, at: i64) -> BoxFuture<'static, ()> {
    Box::pin(async move { clock.wait(Some(at), std::future::pending()).await })
}

impl AmqpConnection<'_> {
    async fn run(&mut self) {
        // The client may have sent frames together with its protocol header.
        self.frames().await;
        loop {
            match self.engine.phase {
                ConnectionPhase::Dropped => return,
                ConnectionPhase::Closing if self.engine.out.is_empty() && !self.flushing => return,
                _ => {}
            }
            match poll_fn(|context| self.poll_event(context)).await {
                ConnectionEvent::Read(0) | ConnectionEvent::Gone => return,
                ConnectionEvent::Read(read) => {
                    self.read_size = if read >= self.read_size { LARGE_READ } else { self.read_size };
                    self.last_in = Instant::now();
                    self.frames().await;
                    if !self.opened && self.engine.phase == ConnectionPhase::Open {
                        self.opened = true;
                        self.tick();
                    }
                }
                ConnectionEvent::Wrote => {}
                ConnectionEvent::Woken(keys) => keys.into_iter().for_each(|key| self.engine.woken(key)),
                ConnectionEvent::Session(accepted) => self.engine.session_accepted(accepted),
                ConnectionEvent::Order(order) => self.engine.order(&order),
                ConnectionEvent::Expiry => {
                    self.engine.expire_claims();
                    self.engine.expire_idle_links();
                    self.engine.claims_changed = true;
                }
                ConnectionEvent::Tick => self.tick(),
            }
            if std::mem::take(&mut self.engine.claims_changed) {
                self.expiry = self.engine.next_expiry().map(|at| next_expiry(self.engine.shared.clock().clone(), at));
            }
            let woken = self.engine.wakes.take();
            woken.into_iter().for_each(|key| self.engine.woken(key));
            self.engine.flush_settling();
            self.engine.pump();
        }
    }

    /// Handles every whole frame that came in.
    async fn frames(&mut self) {
        let max = usize::try_from(self.engine.options.max_frame_size).unwrap_or(usize::MAX);
        let delay = self.engine.shared.faults.delay();
        if !delay.is_zero() {
            sleep(delay).await;
        }
        loop {
            let frame = match frame::take(&mut self.input, max) {
                Ok(Some(frame)) if frame.kind == AMQP => frame,
                Ok(Some(_)) => return self.engine.fail(&AmqpError::new(FRAMING_ERROR, "not a frame of AMQP")),
                Ok(None) => return,
                Err(why) => {
                    self.input.clear();
                    return self.engine.fail(&AmqpError::new(FRAMING_ERROR, why));
                }
            };
            if self.engine.shared.faults.drops_at_frame() {
                self.engine.order(&FaultOrder::DropConnections);
            }
            if matches!(self.engine.phase, ConnectionPhase::Closing | ConnectionPhase::Dropped) {
                self.input.clear();
                return;
            }
            self.engine.frame(&frame);
        }
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<ConnectionEvent> {
        let mut wrote = false;
        if !self.engine.out.is_empty() || self.flushing {
            match self.poll_write(context) {
                Poll::Ready(Ok(())) => wrote = true,
                Poll::Ready(Err(_)) => return Poll::Ready(ConnectionEvent::Gone),
                Poll::Pending => {}
            }
        }
        // Reading comes last. Otherwise a peer that sends without pause would starve the other events.
        let woken = self.engine.wakes.poll(context);
        if !woken.is_empty() {
            return Poll::Ready(ConnectionEvent::Woken(woken));
        }
        if let Poll::Ready(Some(accepted)) = self.engine.accepting.poll_next_unpin(context) {
            return Poll::Ready(accepted.map_or(ConnectionEvent::Wrote, ConnectionEvent::Session));
        }
        if let Poll::Ready((order, orders)) = self.orders.as_mut().poll(context) {
            self.orders = next_order(orders);
            if let Some(order) = order {
                return Poll::Ready(ConnectionEvent::Order(order));
            }
        }
        if self.expiry.as_mut().is_some_and(|expiry| expiry.as_mut().poll(context).is_ready()) {
            return Poll::Ready(ConnectionEvent::Expiry);
        }
        if self.tick.as_mut().poll(context).is_ready() {
            return Poll::Ready(ConnectionEvent::Tick);
        }
        if self.engine.out.len() < TOO_MUCH_UNREAD
            && self.engine.phase != ConnectionPhase::Closing
            && let Poll::Ready(read) = self.poll_read(context)
        {
            return Poll::Ready(read.map_or(ConnectionEvent::Gone, ConnectionEvent::Read));
        }
        if wrote { Poll::Ready(ConnectionEvent::Wrote) } else { Poll::Pending }
    }

    /// Writes until the socket accepts no more. Ready when something was written.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut wrote = false;
        while self.written < self.engine.out.len() {
            match Pin::new(&mut *self.io).poll_write(context, &self.engine.out[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.written += n;
                    self.flushing = true;
                    wrote = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.engine.out.drain(..std::mem::take(&mut self.written));
                    return if wrote { Poll::Ready(Ok(())) } else { Poll::Pending };
                }
            }
        }
        self.written = 0;
        self.engine.out.clear();
        if self.engine.out.capacity() > LARGE_READ * 16 {
            self.engine.out = Vec::new();
        }
        if wrote {
            self.last_out = Instant::now();
        }
        match Pin::new(&mut *self.io).poll_flush(context) {
            Poll::Ready(Ok(())) => {
                self.flushing = false;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if wrote => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        self.input.reserve(self.read_size);
        // The future is made anew at each poll, which is correct because `read_buf` keeps no state between polls.
        pin!(self.io.read_buf(&mut self.input)).poll(context)
    }

    /// Sends a heartbeat when one is due, and fails the connection when the peer was silent for too long.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.engine.phase == ConnectionPhase::Waiting {
            self.engine.phase = ConnectionPhase::Dropped;
            return;
        }
        let idle = self.engine.options.idle_timeout;
        // The limit is twice the announced time-out, as the protocol advises.
        if now.duration_since(self.last_in) >= idle * 2 {
            return self.engine.idle();
        }
        let mut next = self.last_in + idle * 2;
        if let Some(ms) = self.engine.peer_idle_ms {
            let every = Duration::from_millis(u64::from(ms)) / 2;
            if now.duration_since(self.last_out) >= every {
                writer::heartbeat(&mut self.engine.out);
                self.last_out = now;
            }
            next = next.min(self.last_out + every);
        }
        self.tick.as_mut().reset(next);
    }
}

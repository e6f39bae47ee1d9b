//! The desks behind the counter: billing and mail, each with an inbox.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use polybus::{
    Address, Bus, Envelope, Handler, HandlerContext, HandlerError, Result as BusResult, Source,
    patterns::{Inbox, Outbox},
    worker::WorkerInfo,
};
use polybus_sql::Db;

use super::{
    Failure,
    shop::{MailWanted, OrderPlaced},
};

/// Writes an invoice for each order, and enqueues the mail with it, until `shutdown`.
pub async fn billing(
    bus: &Bus,
    store: &Db,
    outbox: Outbox<Db>,
    seen: Arc<Seen>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Failure> {
    let inbox = Inbox::new(store, "billing");
    // The inbox has marked the message in `tx`. What is written here is committed with that mark, or not at all.
    let handler = inbox.handler(outbox, async |outbox, mut tx, cx, msg| {
        let OrderPlaced { order, customer, number, cents } = msg.decode().map_err(HandlerError::permanent)?;
        let insert = "INSERT INTO invoices (order_id, customer, number, cents) VALUES (?, ?, ?, ?)";
        tx.execute(insert, [order.into(), customer.into(), number.into(), cents.into()]).await?;
        let mail = Envelope::event(&MailWanted { order, cents, reminder: false })?.caused_by(&msg);
        outbox.enqueue(&mut tx, Address::queue("mail"), mail).await?;
        if order % 10 == 3 && cx.attempt() == 1 {
            // Mark, invoice and mail are rolled back, and the message comes again.
            return Err("the tax office did not answer".into());
        }
        Ok(tx)
    });
    let worker = bus.worker(Source::subscription("order-events", "billing")).concurrency(8);
    worker.with_graceful_shutdown(shutdown).run(Watched { handler, seen }).await?;
    Ok(())
}

/// Sends mails until `shutdown`. Here a mail is sent by writing a row.
///
/// A mail server does not take part in the transaction, so with one a mail may be sent twice. It should then be told
/// the message's id, to know a repeated one.
pub async fn mail(
    bus: &Bus,
    store: &Db,
    seen: Arc<Seen>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Failure> {
    let inbox = Inbox::new(store, "mail");
    let handler = inbox.handler((), async |(), mut tx, _cx, msg| {
        let MailWanted { order, cents, reminder } = msg.decode().map_err(HandlerError::permanent)?;
        let insert = "INSERT INTO mails (order_id, cents, reminder) VALUES (?, ?, ?)";
        tx.execute(insert, [order.into(), cents.into(), i64::from(reminder).into()]).await?;
        Ok(tx)
    });
    let worker = bus.worker(Source::queue("mail")).concurrency(8);
    worker.with_graceful_shutdown(shutdown).run(Watched { handler, seen }).await?;
    Ok(())
}

/// How often each message was handled with success, the duplicates that the inbox sorted out included.
#[derive(Default)]
pub struct Seen(Mutex<HashMap<Box<str>, u64>>);

impl Seen {
    fn note(&self, id: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.into()).or_default() += 1;
    }

    pub fn messages(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    pub fn duplicates(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().map(|times| times - 1).sum()
    }

    pub fn times(&self, id: &str) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied().unwrap_or_default()
    }
}

/// A handler whose successes are noted.
struct Watched<H> {
    handler: H,
    seen: Arc<Seen>,
}

impl<H: Handler> Handler for Watched<H> {
    async fn handle(&self, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
        let id = msg.id.clone();
        self.handler.handle(cx, msg).await?;
        self.seen.note(&id);
        Ok(())
    }

    /// The inbox looks at the worker's settings before the worker subscribes.
    async fn starting(&self, worker: &WorkerInfo) -> BusResult<()> {
        self.handler.starting(worker).await
    }
}

//! The counter of the shop: orders, each written with its messages in one transaction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use polybus::{Address, Envelope, Event, Outgoing, patterns::Outbox};
use polybus_sql::Db;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::Failure;

/// The source of the shop's messages.
pub const SERVICE: &str = "/shop";
const CUSTOMERS: i64 = 40;
/// How many orders are taken at once.
const WRITERS: usize = 8;

/// What billing hears.
#[derive(Clone, Serialize, Deserialize)]
pub struct OrderPlaced {
    pub order: i64,
    pub customer: i64,
    /// The how many-th order of this customer it is.
    pub number: i64,
    pub cents: i64,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "order.placed";
    const VERSION: u32 = 1;
}

/// What is asked of the mail desk.
#[derive(Serialize, Deserialize)]
pub struct MailWanted {
    pub order: i64,
    pub cents: i64,
    /// A reminder to say how it was, instead of the invoice.
    pub reminder: bool,
}

impl Event for MailWanted {
    const TYPE: &'static str = "mail.wanted";
    const VERSION: u32 = 1;
}

/// The shop's own tables. Nothing in them forbids a second invoice or mail for an order, so the books would show it.
pub fn tables(serial: &str) -> String {
    let mut sql = format!(
        "CREATE TABLE customers (id BIGINT PRIMARY KEY, orders BIGINT NOT NULL);
         CREATE TABLE orders (id BIGINT PRIMARY KEY, customer BIGINT NOT NULL, cents BIGINT NOT NULL);
         CREATE TABLE invoices (position {serial}, order_id BIGINT NOT NULL, customer BIGINT NOT NULL,
                                number BIGINT NOT NULL, cents BIGINT NOT NULL);
         CREATE TABLE mails (position {serial}, order_id BIGINT NOT NULL, cents BIGINT NOT NULL,
                             reminder BIGINT NOT NULL);"
    );
    let customers: Vec<String> = (0..CUSTOMERS).map(|id| format!("({id}, 0)")).collect();
    sql.push_str(&format!("INSERT INTO customers VALUES {};", customers.join(", ")));
    sql
}

/// What the writers did.
#[derive(Default)]
pub struct Taken {
    pub rolled_back: u64,
    /// Some of the messages, to be published a second time later.
    pub copies: Vec<Envelope>,
}

/// Takes orders 1 to `orders`, several at once. `begun` says how many have been begun.
pub async fn take_orders(
    store: &Db,
    outbox: &Outbox<Db>,
    orders: i64,
    begun: Arc<AtomicI64>,
) -> Result<Taken, Failure> {
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (store, outbox, begun) = (store.clone(), outbox.clone(), begun.clone());
        writers.spawn(async move {
            let mut taken = Taken::default();
            loop {
                let order = begun.fetch_add(1, Ordering::Relaxed) + 1;
                if order > orders {
                    return Ok::<_, Failure>(taken);
                }
                match take_order(&store, &outbox, order).await? {
                    None => taken.rolled_back += 1,
                    Some(message) if order % 20 == 0 => taken.copies.push(message),
                    Some(_) => {}
                }
            }
        });
    }
    let mut all = Taken::default();
    while let Some(taken) = writers.join_next().await {
        let taken = taken??;
        all.rolled_back += taken.rolled_back;
        all.copies.extend(taken.copies);
    }
    Ok(all)
}

/// Takes one order. Answers its message, or `None` if the card is declined.
async fn take_order(store: &Db, outbox: &Outbox<Db>, order: i64) -> Result<Option<Envelope>, Failure> {
    let (customer, cents) = (order * 7 % CUSTOMERS, 500 + order * 37 % 9_500);
    let mut tx = store.begin().await?;

    // This locks the customer. So the customer's orders are committed, and their messages enqueued, in one order.
    tx.execute("UPDATE customers SET orders = orders + 1 WHERE id = ?", [customer.into()]).await?;
    let number = tx.fetch_one("SELECT orders FROM customers WHERE id = ?", [customer.into()]).await?.get(0)?;
    let insert = "INSERT INTO orders (id, customer, cents) VALUES (?, ?, ?)";
    tx.execute(insert, [order.into(), customer.into(), cents.into()]).await?;

    let placed = OrderPlaced { order, customer, number, cents };
    let message = Envelope::event(&placed)?.source(SERVICE).key(format!("customer-{customer}"));
    outbox.enqueue(&mut tx, Address::topic("order-events"), message.clone()).await?;
    if wants_reminder(order) {
        let reminder = Envelope::event(&MailWanted { order, cents, reminder: true })?.caused_by(&message);
        // The outbox waits, not the broker: so any delay works on any broker.
        outbox.enqueue(&mut tx, Address::queue("mail"), Outgoing::from(reminder).delay(Duration::from_secs(1))).await?;
    }

    if is_declined(order) {
        // The dropped transaction is rolled back, and its messages with it.
        return Ok(None);
    }
    tx.commit().await?;
    outbox.wake();
    Ok(Some(message))
}

fn is_declined(order: i64) -> bool {
    order % 7 == 0
}

pub fn wants_reminder(order: i64) -> bool {
    order % 20 == 1
}

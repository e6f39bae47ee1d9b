//! The counter of the shop: orders, each written with its jobs in one transaction.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use polybus::{
    Event,
    patterns::jobs::{Job, Jobs, NewJob, Unique},
};
use polybus_sql::Db;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::Failure;

/// The source of the shop's jobs.
pub const SERVICE: &str = "/shop";
const CUSTOMERS: i64 = 40;
/// How many orders are taken at once.
const WRITERS: usize = 8;

/// Write the invoice of an order, and let it be sent.
#[derive(Serialize, Deserialize)]
pub struct WriteInvoice {
    pub order: i64,
    pub customer: i64,
    pub cents: i64,
}

impl Event for WriteInvoice {
    const TYPE: &'static str = "invoice.write";
    const VERSION: u32 = 1;
}

impl Job for WriteInvoice {}

/// Add up all orders of a customer. One that waits does for all orders until it begins.
#[derive(Serialize, Deserialize)]
pub struct AddUp {
    pub customer: i64,
}

impl Event for AddUp {
    const TYPE: &'static str = "statement.add-up";
    const VERSION: u32 = 1;
}

impl Job for AddUp {
    const QUEUE: &'static str = "statements";
}

/// The shop's own tables. Nothing in them forbids a second invoice or report, so the books would show it.
pub fn tables(serial: &str) -> String {
    let mut sql = format!(
        "CREATE TABLE customers (id BIGINT PRIMARY KEY, address VARCHAR(100));
         CREATE TABLE orders (id BIGINT PRIMARY KEY, customer BIGINT NOT NULL, cents BIGINT NOT NULL);
         CREATE TABLE invoices (position {serial}, order_id BIGINT NOT NULL, cents BIGINT NOT NULL);
         CREATE TABLE mails (position {serial}, order_id BIGINT NOT NULL, cents BIGINT NOT NULL);
         CREATE TABLE statements (customer BIGINT PRIMARY KEY, added_up BIGINT NOT NULL, cents BIGINT NOT NULL);
         CREATE TABLE reports (position {serial}, ends_at BIGINT NOT NULL, invoices BIGINT NOT NULL);"
    );
    let customers = (0..CUSTOMERS).map(|id| match id % 20 {
        13 => format!("({id}, NULL)"),
        _ => format!("({id}, 'customer-{id}@example.com')"),
    });
    sql.push_str(&format!("INSERT INTO customers VALUES {};", customers.collect::<Vec<_>>().join(", ")));
    let statements: Vec<String> = (0..CUSTOMERS).map(|id| format!("({id}, 0, 0)")).collect();
    sql.push_str(&format!("INSERT INTO statements VALUES {};", statements.join(", ")));
    sql
}

/// What the writers did.
#[derive(Default)]
pub struct Taken {
    pub committed: u64,
    pub rolled_back: u64,
    /// Orders whose customer's statement was to be added up already.
    pub sooner: u64,
}

/// Takes orders 1 to `orders`, several at once. `begun` says how many have been begun.
pub async fn take_orders(store: &Db, jobs: &Jobs<Db>, orders: i64, begun: Arc<AtomicI64>) -> Result<Taken, Failure> {
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (store, jobs, begun) = (store.clone(), jobs.clone(), begun.clone());
        writers.spawn(async move {
            let mut taken = Taken::default();
            loop {
                let order = begun.fetch_add(1, Ordering::Relaxed) + 1;
                if order > orders {
                    return Ok::<_, Failure>(taken);
                }
                match take_order(&store, &jobs, order).await? {
                    None => taken.rolled_back += 1,
                    Some(is_new) => {
                        taken.committed += 1;
                        taken.sooner += u64::from(!is_new);
                    }
                }
            }
        });
    }
    let mut all = Taken::default();
    while let Some(taken) = writers.join_next().await {
        let taken = taken??;
        all.committed += taken.committed;
        all.rolled_back += taken.rolled_back;
        all.sooner += taken.sooner;
    }
    Ok(all)
}

/// Takes one order. Answers whether its customer's statement was not to be added up before; `None` if the card is
/// declined.
async fn take_order(store: &Db, jobs: &Jobs<Db>, order: i64) -> Result<Option<bool>, Failure> {
    let (customer, cents) = (order * 7 % CUSTOMERS, 500 + order * 37 % 9_500);
    let mut tx = store.begin().await?;
    let insert = "INSERT INTO orders (id, customer, cents) VALUES (?, ?, ?)";
    tx.execute(insert, [order.into(), customer.into(), cents.into()]).await?;

    jobs.enqueue(&mut tx, WriteInvoice { order, customer, cents }).await?;
    let add_up = NewJob::of(&AddUp { customer }).unique(Unique::UntilStarted);
    let add_up = jobs.enqueue(&mut tx, add_up).await?;

    if order % 7 == 0 {
        // The card is declined. The dropped transaction is rolled back, and its jobs with it.
        return Ok(None);
    }
    tx.commit().await?;
    jobs.wake();
    Ok(Some(add_up.is_new))
}

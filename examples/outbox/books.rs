//! The books at the end: what is in the tables, and whether it balances.

use std::{fmt, time::Duration};

use polybus::patterns::Outbox;
use polybus_sql::Db;

use super::{
    Failure,
    database::{number, numbers},
    shop::wants_reminder,
};

/// The rows of one table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entries {
    pub rows: u64,
    /// For how many different orders they are.
    pub orders: u64,
    pub cents: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub broker: String,
    pub database: String,
    /// Orders that were begun.
    pub begun: u64,
    /// Orders that were rolled back on purpose.
    pub rolled_back: u64,
    /// Committed orders.
    pub orders: Entries,
    pub invoices: Entries,
    pub mails: Entries,
    pub reminders: Entries,
    /// How many committed orders asked for a reminder.
    pub reminders_wanted: u64,
    /// Invoices and mails for orders that are not in the table of orders.
    pub of_no_order: u64,
    /// Invoices that were not written in the order of their customer's orders.
    pub out_of_order: u64,
    /// Deliveries that the inboxes knew.
    pub duplicates: u64,
    /// Rows of the outbox that can never be sent.
    pub parked: u64,
    /// Rows of the outbox that are not published yet.
    pub waiting: u64,
    pub interrupted: bool,
    pub took: Duration,
}

/// Reads the books.
pub async fn read(store: &Db, outbox: &Outbox<Db>) -> Result<Summary, Failure> {
    let stats = outbox.stats().await?;
    let of_no_order = "SELECT (SELECT COUNT(*) FROM invoices WHERE order_id NOT IN (SELECT id FROM orders))
                            + (SELECT COUNT(*) FROM mails WHERE order_id NOT IN (SELECT id FROM orders))";
    let out_of_order = "SELECT COUNT(*) FROM (
        SELECT number, ROW_NUMBER() OVER (PARTITION BY customer ORDER BY position) AS place FROM invoices
        ) AS placed WHERE number <> place";
    Ok(Summary {
        orders: entries(store, "id", "orders").await?,
        invoices: entries(store, "order_id", "invoices").await?,
        mails: entries(store, "order_id", "mails WHERE reminder = 0").await?,
        reminders: entries(store, "order_id", "mails WHERE reminder = 1").await?,
        reminders_wanted: reminders_wanted(store).await?,
        of_no_order: number(store, of_no_order).await? as u64,
        out_of_order: number(store, out_of_order).await? as u64,
        parked: stats.parked,
        waiting: stats.ready + stats.scheduled,
        ..Summary::default()
    })
}

/// How many committed orders asked for a reminder.
pub async fn reminders_wanted(store: &Db) -> Result<u64, Failure> {
    let orders = numbers(store, "SELECT id FROM orders").await?;
    Ok(orders.into_iter().filter(|order| wants_reminder(*order)).count() as u64)
}

async fn entries(store: &Db, order: &str, table: &str) -> Result<Entries, Failure> {
    Ok(Entries {
        rows: number(store, format!("SELECT COUNT(*) FROM {table}")).await? as u64,
        orders: number(store, format!("SELECT COUNT(DISTINCT {order}) FROM {table}")).await? as u64,
        cents: number(store, format!("SELECT COALESCE(SUM(cents), 0) FROM {table}")).await?,
    })
}

impl Summary {
    /// Messages of committed transactions that the relay has published.
    pub fn published(&self) -> u64 {
        let enqueued = self.orders.rows + self.reminders_wanted + self.invoices.rows;
        enqueued.saturating_sub(self.waiting + self.parked)
    }

    /// Everything that does not balance.
    pub fn problems(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |holds: bool, text: String| {
            if !holds {
                wrong.push(text);
            }
        };
        let Self { begun, rolled_back, orders, invoices, mails, reminders, .. } = self;
        let committed = orders.rows;
        check(
            *begun == committed + rolled_back,
            format!("{begun} orders were begun, which are not {committed} committed + {rolled_back} rolled back"),
        );
        for (name, entries, wanted) in [
            ("invoices", invoices, committed),
            ("mails", mails, committed),
            ("reminders", reminders, self.reminders_wanted),
        ] {
            let Entries { rows, orders, .. } = entries;
            check(*orders == wanted, format!("{name} for {orders} orders instead of {wanted}"));
            check(rows == orders, format!("{name}: {} orders have more than one", rows.saturating_sub(*orders)));
        }
        for (name, entries) in [("invoices", invoices), ("mails", mails)] {
            let (found, cents) = (entries.cents, orders.cents);
            check(found == cents, format!("{name} of {found} cents, and orders of {cents}"));
        }
        check(self.of_no_order == 0, format!("{} invoices or mails of rolled-back orders", self.of_no_order));
        check(self.out_of_order == 0, format!("{} invoices out of order", self.out_of_order));
        check(self.parked == 0, format!("{} messages parked in the outbox", self.parked));
        check(self.waiting == 0, format!("{} messages waiting in the outbox", self.waiting));
        wrong
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { broker, database, begun, took, .. } = self;
        writeln!(f, "{begun} orders on {database}, through {broker}, in {:.1} s\n", took.as_secs_f64())?;
        for (name, count, cents) in [
            ("orders committed", self.orders.rows, Some(self.orders.cents)),
            ("orders rolled back", self.rolled_back, None),
            ("messages published", self.published(), None),
            ("duplicates seen", self.duplicates, None),
            ("invoices", self.invoices.rows, Some(self.invoices.cents)),
            ("mails", self.mails.rows, Some(self.mails.cents)),
            ("reminders", self.reminders.rows, Some(self.reminders.cents)),
            ("parked", self.parked, None),
            ("waiting", self.waiting, None),
        ] {
            let cents = cents.map(|cents| format!("   {:>10}.{:02}", cents / 100, cents % 100)).unwrap_or_default();
            writeln!(f, "{name:<20} {count:>9}{cents}")?;
        }
        let problems = self.problems();
        match (self.interrupted, problems.is_empty()) {
            (true, _) => write!(f, "\nInterrupted: what is committed waits in the outbox, and nothing is lost."),
            (_, true) => write!(
                f,
                "\nThe books balance: one invoice and one mail for each committed order, none for another, to the cent."
            ),
            (_, false) => write!(f, "\nThe books do NOT balance:\n  {}", problems.join("\n  ")),
        }
    }
}

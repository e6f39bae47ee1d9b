//! The books at the end: what is in the tables, and whether it balances.

use std::{fmt, time::Duration};

use polybus::patterns::{
    jobs::JobAdmin,
    store::{JobOutcome, JobState},
};
use polybus_sql::Db;

use super::{Failure, database::number};

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
    pub database: String,
    /// Orders that were begun.
    pub begun: u64,
    /// Orders that were rolled back on purpose.
    pub rolled_back: u64,
    /// Committed orders.
    pub orders: Entries,
    pub invoices: Entries,
    pub mails: Entries,
    /// Mails that were given up, and sent once there was an address.
    pub sent_later: u64,
    /// Invoices and mails for orders that are not in the table of orders.
    pub of_no_order: u64,
    /// How often a customer's orders were added up.
    pub added_up: u64,
    /// Committed orders whose customer was to be added up already.
    pub sooner: u64,
    /// What all statements say together.
    pub statements_cents: i64,
    /// Reports, and the different days that they are for.
    pub reports: u64,
    pub days: u64,
    /// From the first of these days to the last one.
    pub days_between: u64,
    /// Runs that failed, and were tried again.
    pub retries: u64,
    /// Jobs that wait or run.
    pub waiting: u64,
    /// Jobs that were given up.
    pub discarded: u64,
    pub interrupted: bool,
    pub took: Duration,
}

/// Reads the books.
pub async fn read(store: &Db, admin: &JobAdmin) -> Result<Summary, Failure> {
    let of_no_order = "SELECT (SELECT COUNT(*) FROM invoices WHERE order_id NOT IN (SELECT id FROM orders))
                            + (SELECT COUNT(*) FROM mails WHERE order_id NOT IN (SELECT id FROM orders))";
    let between = "SELECT COALESCE(MAX(ends_at) - MIN(ends_at) + 1, 0) FROM reports";
    let (mut waiting, mut discarded) = (0, 0);
    for count in admin.counts().await? {
        match count.state {
            JobState::Finished(JobOutcome::Discarded) => discarded += count.jobs,
            JobState::Finished(_) => {}
            _ => waiting += count.jobs,
        }
    }
    Ok(Summary {
        orders: entries(store, "id", "orders").await?,
        invoices: entries(store, "order_id", "invoices").await?,
        mails: entries(store, "order_id", "mails").await?,
        of_no_order: number(store, of_no_order).await? as u64,
        added_up: number(store, "SELECT CAST(SUM(added_up) AS DECIMAL(18, 0)) FROM statements").await? as u64,
        statements_cents: number(store, "SELECT SUM(cents) FROM statements").await?,
        reports: number(store, "SELECT COUNT(*) FROM reports").await? as u64,
        days: number(store, "SELECT COUNT(DISTINCT ends_at) FROM reports").await? as u64,
        days_between: number(store, between).await? as u64,
        waiting,
        discarded,
        ..Summary::default()
    })
}

async fn entries(store: &Db, order: &str, table: &str) -> Result<Entries, Failure> {
    Ok(Entries {
        rows: number(store, format!("SELECT COUNT(*) FROM {table}")).await? as u64,
        orders: number(store, format!("SELECT COUNT(DISTINCT {order}) FROM {table}")).await? as u64,
        cents: number(store, format!("SELECT COALESCE(SUM(cents), 0) FROM {table}")).await?,
    })
}

impl Summary {
    /// Everything that does not balance.
    pub fn problems(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |holds: bool, text: String| {
            if !holds {
                wrong.push(text);
            }
        };
        let Self { begun, rolled_back, orders, invoices, mails, .. } = self;
        let committed = orders.rows;
        check(
            *begun == committed + rolled_back,
            format!("{begun} orders were begun, which are not {committed} committed + {rolled_back} rolled back"),
        );
        for (name, entries) in [("invoices", invoices), ("mails", mails)] {
            let Entries { orders, .. } = entries;
            check(*orders == committed, format!("{name} for {orders} orders instead of {committed}"));
        }
        let (rows, cents) = (invoices.rows, invoices.cents);
        check(rows == invoices.orders, format!("invoices: {rows} for {} orders", invoices.orders));
        check(cents == orders.cents, format!("invoices of {cents} cents, and orders of {}", orders.cents));
        check(mails.rows >= mails.orders, format!("mails: {} for {} orders", mails.rows, mails.orders));
        check(self.of_no_order == 0, format!("{} invoices or mails of rolled-back orders", self.of_no_order));
        let cents = self.statements_cents;
        check(cents == orders.cents, format!("statements of {cents} cents, and orders of {}", orders.cents));
        check(self.sent_later > 0, "no mail was given up and sent later".into());
        let Self { reports, days, days_between, .. } = self;
        check(reports == days, format!("{reports} reports for {days} days"));
        check(days == days_between, format!("reports for {days} of {days_between} days"));
        check(self.waiting == 0, format!("{} jobs wait or run", self.waiting));
        check(self.discarded == 0, format!("{} jobs are given up", self.discarded));
        wrong
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { database, begun, took, .. } = self;
        writeln!(f, "{begun} orders on {database}, in {:.1} s\n", took.as_secs_f64())?;
        for (name, count, cents) in [
            ("orders committed", self.orders.rows, Some(self.orders.cents)),
            ("orders rolled back", self.rolled_back, None),
            ("invoices", self.invoices.rows, Some(self.invoices.cents)),
            ("mails for", self.mails.orders, None),
            ("mails sent twice", self.mails.rows.saturating_sub(self.mails.orders), None),
            ("mails given up, then sent", self.sent_later, None),
            ("statements added up", self.added_up, Some(self.statements_cents)),
            ("added up with another order", self.sooner, None),
            ("reports", self.reports, None),
            ("failed runs", self.retries, None),
            ("waiting", self.waiting, None),
            ("given up", self.discarded, None),
        ] {
            let cents = cents.map(|cents| format!("   {:>10}.{:02}", cents / 100, cents % 100)).unwrap_or_default();
            writeln!(f, "{name:<28} {count:>9}{cents}")?;
        }
        let problems = self.problems();
        match (self.interrupted, problems.is_empty()) {
            (true, _) => write!(f, "\nInterrupted: the jobs of what is committed wait, and nothing is lost."),
            (_, true) => write!(
                f,
                "\nThe books balance: one invoice for each committed order, none for another, a mail at least, each \
                 order in its statement, to the cent, and one report a day."
            ),
            (_, false) => write!(f, "\nThe books do NOT balance:\n  {}", problems.join("\n  ")),
        }
    }
}

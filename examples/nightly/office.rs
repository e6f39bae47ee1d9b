//! The office behind the counter: handlers of the jobs, and the worker that runs them.

use std::time::Duration;

use polybus::{
    Event, HandlerError, RetryPolicy,
    patterns::{
        cron::{Cron, Missed},
        jobs::{Job, JobContext, JobReport, JobWorker, Jobs},
    },
};
use polybus_sql::{Db, DbTx};
use serde::{Deserialize, Serialize};

use super::{
    Failure,
    shop::{AddUp, WriteInvoice},
};

/// The schedule of the report. A day lasts a second.
pub const SCHEDULE: &str = "report";
const EACH_SECOND: &str = "* * * * * *";
/// How long jobs of a worker that was killed stand still.
const LEASE: Duration = Duration::from_secs(1);
/// How long a mail takes.
const MAIL: Duration = Duration::from_millis(2);

/// Send the invoice of an order.
#[derive(Serialize, Deserialize)]
struct SendMail {
    order: i64,
    customer: i64,
    cents: i64,
}

impl Event for SendMail {
    const TYPE: &'static str = "mail.send";
    const VERSION: u32 = 1;
}

impl Job for SendMail {
    const QUEUE: &'static str = "mail";
}

/// Write the report of the day.
#[derive(Serialize, Deserialize)]
struct WriteReport {}

impl Event for WriteReport {
    const TYPE: &'static str = "report.write";
    const VERSION: u32 = 1;
}

impl Job for WriteReport {
    const QUEUE: &'static str = "statements";
}

/// Runs jobs until `shutdown`, and fires the schedule together with all other workers that have it.
pub async fn worker(store: &Db, jobs: &Jobs<Db>, shutdown: impl Future<Output = ()>) -> Result<JobReport, Failure> {
    let report = Cron::new(SCHEDULE, EACH_SECOND, "Europe/Berlin", WriteReport {}).missed(Missed::All(100));
    let worker = JobWorker::new(store)
        .queue("default", 6)
        .queue("statements", 4)
        .queue("mail", 6)
        .on_tx(jobs.clone(), write_invoice)
        .on_tx((), add_up)
        .on(store.clone(), send_mail)
        .on_tx((), write_report)
        .cron(report)
        .retry(RetryPolicy::new([Duration::from_millis(50)]))
        .lease(LEASE);
    Ok(worker.run(shutdown).await?)
}

/// What it writes, the job of the mail and its own end are committed together: so there is one invoice, whatever fails.
async fn write_invoice(jobs: Jobs<Db>, mut tx: DbTx, cx: JobContext, job: WriteInvoice) -> Result<DbTx, HandlerError> {
    let WriteInvoice { order, customer, cents } = job;
    let insert = "INSERT INTO invoices (order_id, cents) VALUES (?, ?)";
    tx.execute(insert, [order.into(), cents.into()]).await?;
    jobs.enqueue(&mut tx, SendMail { order, customer, cents }).await?;
    if order % 10 == 3 && cx.attempt() == 1 {
        // The invoice and the job of the mail are rolled back, and this job runs again.
        return Err("the tax office did not answer".into());
    }
    Ok(tx)
}

/// Other jobs may add up the same customer at the same time, so the row is locked first.
async fn add_up(_: (), mut tx: DbTx, _cx: JobContext, AddUp { customer }: AddUp) -> Result<DbTx, HandlerError> {
    let lock = "UPDATE statements SET added_up = added_up + 1 WHERE customer = ?";
    tx.execute(lock, [customer.into()]).await?;
    let sum = "UPDATE statements SET cents = (SELECT SUM(cents) FROM orders WHERE customer = ?) WHERE customer = ?";
    tx.execute(sum, [customer.into(), customer.into()]).await?;
    Ok(tx)
}

/// Here a mail is sent by writing a row, in no transaction with the job: as with a mail server, a worker that is killed
/// at the wrong moment has sent it, and it is sent again.
async fn send_mail(store: Db, cx: JobContext, job: SendMail) -> Result<(), HandlerError> {
    let known = "SELECT id FROM customers WHERE id = ? AND address IS NOT NULL";
    if store.fetch_all(known, [job.customer.into()]).await?.is_empty() {
        return Err(HandlerError::permanent("the customer has no address"));
    }
    let insert = "INSERT INTO mails (order_id, cents) VALUES (?, ?)";
    store.execute(insert, [job.order.into(), job.cents.into()]).await?;
    tokio::time::sleep(MAIL).await;
    cx.set_result(&"250 accepted")?;
    Ok(())
}

/// The report knows which day it is for, however late it runs.
async fn write_report(_: (), mut tx: DbTx, cx: JobContext, _job: WriteReport) -> Result<DbTx, HandlerError> {
    let Some(ends_at) = cx.scheduled_at() else { return Err(HandlerError::permanent("a report of no day")) };
    let insert = "INSERT INTO reports (ends_at, invoices) SELECT ?, COUNT(*) FROM invoices";
    tx.execute(insert, [ends_at.unix_timestamp().into()]).await?;
    Ok(tx)
}

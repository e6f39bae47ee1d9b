//! The processes that are killed.
//!
//! A process of this test does nothing at its end and little at its start: whatever it was at when it was killed, the
//! tables and the broker say how to go on.

use std::{
    collections::{BTreeSet, HashSet},
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use polybus::{
    Address, Bus, Envelope, Handler, HandlerContext, HandlerError, Result as BusResult, Source,
    patterns::{Inbox, Outbox, Relay},
    stateful,
    worker::WorkerInfo,
};
use polybus_sql::{Db, DbTx};
use tokio::{sync::watch, task::JoinSet};

use super::{Failure, JOB, Job, QUEUE, Role, Without, database::numbers, lose::lose};

const WRITERS: usize = 8;
/// Rows of one transaction.
const BLOCK: i64 = 10;
const HANDLERS: u32 = 8;
/// How long the slots of a relay that was killed stand still: the shortest that is allowed.
pub const LEASE: Duration = Duration::from_secs(1);

/// The tables. Nothing forbids a second effect of a row, so it would be counted.
pub fn tables(serial: &str) -> String {
    format!(
        "CREATE TABLE business (id BIGINT PRIMARY KEY);
         CREATE TABLE effects (position {serial}, row_id BIGINT NOT NULL);
         CREATE TABLE taken (id BIGINT PRIMARY KEY);
         INSERT INTO taken VALUES (1);"
    )
}

pub async fn run(role: Role) -> Result<(), Failure> {
    let job = std::env::var(JOB).map_err(|_| "the controller starts this: run kill_test without a role")?;
    let job: Job = serde_json::from_str(&job)?;
    let orders = listen();
    let bus = job.connect().await?;
    let store = job.open(HANDLERS + 2).await?;
    match role {
        Role::Producer => produce(&job, bus, store, orders.allowed).await,
        Role::Relay => {
            let report = Relay::new(&bus, &store).lease(LEASE).run(orders.stopped()).await?;
            println!("{RELAYED} {} {}", report.may_duplicate, report.leases_lost);
            Ok(())
        }
        Role::Consumer => consume(&job, bus, store).await,
    }
}

/// What the controller says, each on a line of its own: up to which row the producer may write, or [`STOP`].
struct Orders {
    allowed: watch::Receiver<i64>,
    stop: watch::Receiver<bool>,
}

impl Orders {
    async fn stopped(mut self) {
        if self.stop.wait_for(|stop| *stop).await.is_err() {
            pending().await
        }
    }
}

/// Tells a process to end by itself.
pub const STOP: &str = "stop";

/// Hears the controller. When it is gone, so is this process.
fn listen() -> Orders {
    let (allow, allowed) = watch::channel(0);
    let (stop, stopped) = watch::channel(false);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            if line == STOP {
                stop.send_replace(true);
            } else {
                allow.send_replace(line.parse().unwrap_or_default());
            }
        }
        std::process::exit(0);
    });
    Orders { allowed, stop: stopped }
}

// ---- producer

/// Writes the blocks of rows that are not in the table yet.
async fn produce(job: &Job, bus: Bus, store: Db, allowed: watch::Receiver<i64>) -> Result<(), Failure> {
    let written: HashSet<i64> = numbers(&store, "SELECT id FROM business").await?.into_iter().collect();
    let missing: BTreeSet<i64> =
        (1..=job.rows).filter(|row| !written.contains(row)).map(|row| (row - 1) / BLOCK).collect();
    let missing = Arc::new(Mutex::new(missing));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let producer = Producer {
            job: job.clone(),
            bus: bus.clone(),
            outbox: Outbox::new(&store, "/kill-test"),
            store: store.clone(),
        };
        let (missing, mut allowed) = (missing.clone(), allowed.clone());
        writers.spawn(async move {
            loop {
                let block = missing.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
                let Some(block) = block else { return };
                let rows = block * BLOCK + 1..=job_end(block, producer.job.rows);
                if allowed.wait_for(|allowed| allowed >= rows.end()).await.is_err() {
                    return;
                }
                producer.write(rows).await;
            }
        });
    }
    writers.join_all().await;
    // It stays, so that it can be killed like the others.
    pending().await
}

fn job_end(block: i64, rows: i64) -> i64 {
    ((block + 1) * BLOCK).min(rows)
}

struct Producer {
    job: Job,
    bus: Bus,
    outbox: Outbox<Db>,
    store: Db,
}

impl Producer {
    /// Writes a block, however often it takes.
    async fn write(&self, rows: std::ops::RangeInclusive<i64>) {
        while let Err(e) = self.try_to_write(rows.clone()).await {
            // Another process may be writing, or the transaction of the killed predecessor was committed after all.
            eprintln!("rows from {}: {e}", rows.start());
            match self.is_written(*rows.start()).await {
                Ok(true) => return,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn try_to_write(&self, rows: std::ops::RangeInclusive<i64>) -> Result<(), Failure> {
        // Made once: its id and its time are those of all its copies.
        let messages: Vec<Envelope> =
            rows.clone().map(|row| Envelope::new("row.written", row.to_string()).id(format!("row-{row}"))).collect();
        let mut tx = self.store.begin().await?;
        for row in rows {
            tx.execute("INSERT INTO business (id) VALUES (?)", [row.into()]).await?;
        }
        if self.job.without == Some(Without::Outbox) {
            tx.commit().await?;
            for result in self.bus.publish_all(Address::queue(QUEUE), messages).await {
                result?;
            }
            return Ok(());
        }
        self.outbox.enqueue_all(&mut tx, Address::queue(QUEUE), messages).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn is_written(&self, row: i64) -> Result<bool, Failure> {
        let mut tx = self.store.begin().await?;
        Ok(tx.fetch_optional("SELECT 1 FROM business WHERE id = ?", [row.into()]).await?.is_some())
    }
}

// ---- consumer

async fn consume(job: &Job, bus: Bus, store: Db) -> Result<(), Failure> {
    let worker = bus.worker(Source::queue(QUEUE)).concurrency(HANDLERS as usize);
    if job.without == Some(Without::Inbox) {
        let handler = stateful(store, async |store, _cx, msg| {
            let mut tx = store.begin().await?;
            write_effect(&mut tx, &msg).await?;
            tx.commit().await?;
            Ok(())
        });
        worker.run(handler).await?;
        return Ok(());
    }
    let mut inbox = Inbox::new(&store, "effects");
    if job.without == Some(Without::ReadBack) {
        inbox = inbox.without_read_back();
    }
    let ran = Ran::default();
    let handler = inbox.handler(ran.clone(), async |ran, mut tx, cx, msg| {
        let row = write_effect(&mut tx, &msg).await?;
        // What a handler must not do: it swallows an error that has ended its transaction. The effect and the mark are
        // gone, though a COMMIT may say Ok. The inbox reads the mark back, and the message comes again.
        if row % 25 == 0 && cx.attempt() == 1 && lose(&mut tx).await {
            println!("{SWALLOWED}");
        }
        ran.note(&msg);
        Ok(tx)
    });
    worker.run(Counted { handler, ran }).await?;
    Ok(())
}

async fn write_effect(tx: &mut DbTx, msg: &Envelope) -> Result<i64, HandlerError> {
    let row: i64 = std::str::from_utf8(&msg.data)?.parse()?;
    tx.execute("INSERT INTO effects (row_id) VALUES (?)", [row.into()]).await?;
    Ok(row)
}

/// What a consumer tells the controller, on a line of its own as it happens.
pub const DUPLICATE: &str = "duplicate";
pub const SWALLOWED: &str = "swallowed";
/// What a relay tells at its end, with two numbers: rows that may have been published twice, and leases it lost.
pub const RELAYED: &str = "relayed";

/// The messages whose handler ran. One that was acknowledged without is a duplicate.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<HashSet<Box<str>>>>);

impl Ran {
    fn note(&self, msg: &Envelope) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(msg.id.clone());
    }

    fn take(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
    }
}

struct Counted<H> {
    handler: H,
    ran: Ran,
}

impl<H: Handler> Handler for Counted<H> {
    async fn handle(&self, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
        let id = msg.id.clone();
        let handled = self.handler.handle(cx, msg).await;
        // Also where it failed: another process may have the next attempt, and this one a copy.
        let ran = self.ran.take(&id);
        if handled.is_ok() && !ran {
            println!("{DUPLICATE}");
        }
        handled
    }

    async fn starting(&self, worker: &WorkerInfo) -> BusResult<()> {
        self.handler.starting(worker).await
    }
}

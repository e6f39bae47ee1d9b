//! One address that never answers, with very many rows, beside one that does.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use polybus_core::{
    Address, Bus, BusOptions, Error, Outgoing, QueueSpec, Receipt, Result, Topology,
    driver::{Batching, Driver, DriverLayer, PreparedMessage, Sender, async_trait},
    memory::MemoryDriver,
    topology::Entity,
};
use polybus_patterns::Relay;
use polybus_sql::Postgres;

use crate::{
    PAYLOAD, QUEUE,
    database::{Database, Tables},
    measure::message,
};

/// How long a row of another address may take.
const LIMIT: Duration = Duration::from_millis(100);

/// What waits for the address that never answers.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) rows: usize,
    pub(crate) payload: usize,
    pub(crate) probes: usize,
    /// Between two probes. So they last over checkpoints, vacuums, and the publishes that fail at their timeout.
    pub(crate) gap: Duration,
}

/// How long a row of the other address took, beside a twin that began in the same moment: one row inserted in a
/// transaction, found and deleted, without polybus.
struct Probe {
    at: Duration,
    row: Duration,
    twin: Duration,
}

pub(crate) struct Beside {
    load: Load,
    filled_in: Duration,
    /// The slowest first.
    probes: Vec<Probe>,
    direct: Duration,
}

/// Fills the outbox with rows for the address that never answers, runs a relay, and measures rows of another one.
pub(crate) async fn measure(database: &Database<Postgres>, load: Load) -> Beside {
    let bus = bus().await;
    database.store.clear().await;
    let filling = Instant::now();
    fill(database, load).await;
    let filled_in = filling.elapsed();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let relaying = tokio::spawn(Relay::new(&bus, &database.store).run(async move { drop(stopped.await) }));
    // The relay has its slots by then. It goes on at once, while the database still writes down what came.
    row(database).await;
    let began = Instant::now();
    let mut probes = Vec::with_capacity(load.probes);
    for n in 0..load.probes {
        let at = began.elapsed();
        let (row, twin) = tokio::join!(row(database), twin(database, n as i64));
        probes.push(Probe { at, row, twin });
        tokio::time::sleep(load.gap).await;
    }
    let publishing = Instant::now();
    bus.publish(Address::queue(QUEUE), message()).await.unwrap();
    let direct = publishing.elapsed();
    // Its lanes wait for an answer that does not come.
    relaying.abort();
    drop(stop);
    probes.sort_by_key(|probe| std::cmp::Reverse(probe.row));
    Beside { load, filled_in, probes, direct }
}

/// By the database itself, since what is measured is the relay. In parts, as no application has one transaction of many
/// gigabytes. Without compression, which would make the payload small.
async fn fill(database: &Database<Postgres>, Load { rows, payload, .. }: Load) {
    const PART: usize = 10_000;
    let as_it_is = "ALTER TABLE polybus_outbox ALTER COLUMN data SET STORAGE EXTERNAL";
    sqlx::raw_sql(as_it_is).execute(database.store.pool()).await.unwrap();
    let mut tx = database.store.pool().begin().await.unwrap();
    database.outbox().enqueue(&mut tx, Address::queue("stuck"), message()).await.unwrap();
    tx.commit().await.unwrap();
    for first in (0..rows).step_by(PART) {
        let last = (first + PART).min(rows) - 1;
        let fill = format!(
            "INSERT INTO polybus_outbox (slot, address, head, data, created_at)
             SELECT n % 16, 'queue:stuck', sample.head, convert_to(repeat('x', {payload}), 'UTF8'), n
             FROM generate_series({first}, {last}) n, (SELECT head FROM polybus_outbox ORDER BY id LIMIT 1) sample"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(fill)).execute(database.store.pool()).await.unwrap();
    }
    sqlx::raw_sql("ANALYZE polybus_outbox").execute(database.store.pool()).await.unwrap();
}

/// From the commit of a row until it is published and deleted.
async fn row(database: &Database<Postgres>) -> Duration {
    let mut tx = database.store.pool().begin().await.unwrap();
    database.outbox().enqueue(&mut tx, Address::queue(QUEUE), message()).await.unwrap();
    tx.commit().await.unwrap();
    let started = Instant::now();
    database.outbox().wake();
    while !database.store.is_published(QUEUE).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    started.elapsed()
}

async fn twin(database: &Database<Postgres>, id: i64) -> Duration {
    let started = Instant::now();
    let mut tx = database.store.pool().begin().await.unwrap();
    let insert = sqlx::query("INSERT INTO twin VALUES ($1, $2)").bind(id).bind(vec![b'x'; PAYLOAD]);
    insert.execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    let select = sqlx::query("SELECT id, data FROM twin WHERE id >= $1 ORDER BY id LIMIT 1").bind(id);
    select.fetch_one(database.store.pool()).await.unwrap();
    sqlx::query("DELETE FROM twin WHERE id = $1").bind(id).execute(database.store.pool()).await.unwrap();
    started.elapsed()
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Load { rows, payload, .. }, probes, direct) = (self.load, &self.probes, self.direct);
        let twins = {
            let mut twins: Vec<_> = probes.iter().map(|probe| probe.twin).collect();
            twins.sort_unstable_by_key(|twin| std::cmp::Reverse(*twin));
            twins
        };
        let place = |percent: usize| probes.len() * (100 - percent) / 100;
        writeln!(
            f,
            "beside {rows} rows of {payload} B for an address that never answers (filled in {:.0} s), {} MB at most:",
            self.filled_in.as_secs_f64(),
            peak_memory()
        )?;
        for (name, percent) in [("half", 50), ("90 %", 90), ("99 %", 99), ("slowest", 100)] {
            let (row, twin) = (probes[place(percent)].row, twins[place(percent)]);
            writeln!(f, "  {name:<8} a row passes in {row:>9.1?}   its twin in {twin:>9.1?}")?;
        }
        let late: Vec<_> = probes.iter().filter(|probe| probe.row > LIMIT).collect();
        write!(f, "  {} of {} above {LIMIT:?}; a direct publish in {direct:.1?}", late.len(), probes.len())?;
        for Probe { at, row, twin } in late.iter().take(10) {
            write!(f, "\n    {row:.1?} after {:.1} s, and its twin {twin:.1?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

/// A bus with the queues `bench` and `stuck`, of which the second never answers.
async fn bus() -> Bus {
    let topology = Topology::new().queue("bench", QueueSpec::new()).queue("stuck", QueueSpec::new());
    let driver: Arc<dyn Driver> = Arc::new(StuckDriver(MemoryDriver::new()));
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

struct StuckDriver(MemoryDriver);

#[async_trait]
impl DriverLayer for StuckDriver {
    fn inner(&self) -> &dyn Driver {
        &self.0
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        let inner = self.0.open_sender(to).await?;
        Ok(if to.name.name() == "stuck" { Arc::new(StuckSender(inner)) } else { inner })
    }
}

struct StuckSender(Arc<dyn Sender>);

#[async_trait]
impl Sender for StuckSender {
    fn batching(&self) -> Batching {
        self.0.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.0.prepare(message)
    }

    fn held_back(&self) -> Option<Error> {
        self.0.held_back()
    }

    async fn send(&self, _batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        std::future::pending().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

/// The memory that this process has taken so far at most, in MB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

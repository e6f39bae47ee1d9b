//! Starts the processes, kills them, starts them again, and counts.

use std::{
    collections::BTreeMap,
    fs::File,
    hash::{BuildHasher, RandomState},
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use polybus::{Bus, Source};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::Instant,
};

use super::{
    Failure, JOB, Job, QUEUE, Role,
    database::{Database, Sql},
    progress::{Progress, say},
    report::Report,
    roles::{DUPLICATE, SWALLOWED, tables},
};

const ROLES: [Role; 5] = [Role::Producer, Role::Relay, Role::Relay, Role::Consumer, Role::Consumer];
const TICK: Duration = Duration::from_millis(20);
/// Without progress for so long it is stuck.
const STALL: Duration = Duration::from_secs(60);
/// The same where a part is left out and rows will be missing.
const SHORT_STALL: Duration = Duration::from_secs(8);
/// After so long without progress the producer may go further ahead: what is missing may be lost.
const PAUSE: Duration = Duration::from_secs(1);

/// What the processes told.
#[derive(Default)]
struct Told {
    duplicates: AtomicU64,
    swallowed: AtomicU64,
}

pub async fn run(job: &Job, kills: u32, seed: u64, log: &Path) -> Result<Report, Failure> {
    let location = job.location()?;
    let bus = job.connect().await?;
    let broker = polybus::driver::ConnectUrl::parse(&job.url)?.to_string();
    say(&format!("{} rows and {kills} kills on {location}, through {broker}; seed {seed}", job.rows));
    location.create().await?;
    let done = match location.open(2).await? {
        Database::Sqlite(store) => {
            let done = with_store(job, &bus, &store, kills, seed, log).await;
            store.close().await;
            done
        }
        Database::Postgres(store) => {
            let done = with_store(job, &bus, &store, kills, seed, log).await;
            store.close().await;
            done
        }
    };
    let (removed, deleted) = (location.remove().await, bus.delete().await);
    bus.close().await?;
    let mut report = done?;
    removed?;
    deleted?;
    (report.broker, report.database) = (broker, location.to_string());
    Ok(report)
}

async fn with_store<S: Sql>(
    job: &Job,
    bus: &Bus,
    store: &S,
    kills: u32,
    seed: u64,
    log: &Path,
) -> Result<Report, Failure> {
    store.create(tables(S::SERIAL)).await?;
    bus.declare().await?;
    let began = Instant::now();
    let mut processes = Processes::start(job, log)?;
    let seen = Arc::new(Seen::default());
    let progress = {
        let (seen, rows) = (seen.clone(), job.rows);
        Progress::start(move || {
            let n = |count: &AtomicU64| count.load(Ordering::Relaxed);
            format!("{}/{rows} rows   {} effects   {}/{kills} kills", n(&seen.rows), n(&seen.effects), n(&seen.kills))
        })
    };
    let finished = tokio::select! {
        finished = kill_until_done(job, bus, store, &mut processes, &seen, kills, seed) => finished,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    drop(progress);
    let took = began.elapsed();
    processes.end().await;
    let stalled = !finished?;

    let one = async |sql: &str| Ok::<_, Failure>(store.numbers(sql).await?.first().copied().unwrap_or_default() as u64);
    Ok(Report {
        seed,
        without: job.without,
        rows: job.rows as u64,
        written: one("SELECT COUNT(*) FROM business").await?,
        effects: one("SELECT COUNT(*) FROM effects").await?,
        rows_with_effect: one("SELECT COUNT(DISTINCT row_id) FROM effects").await?,
        kills_wanted: kills,
        kills: processes.kills.clone(),
        ended: processes.ended,
        duplicates: processes.told.duplicates.load(Ordering::Relaxed),
        swallowed: processes.told.swallowed.load(Ordering::Relaxed),
        dead_letters: bus.stats(Source::queue(QUEUE)).await?.dead_lettered.unwrap_or_default(),
        stalled,
        took,
        ..Report::default()
    })
}

#[derive(Default)]
struct Seen {
    rows: AtomicU64,
    effects: AtomicU64,
    kills: AtomicU64,
}

/// Kills, spread evenly over the rows, until that is done and each row has its effect. Answers false if nothing happens
/// any more.
///
/// Kills follow the rows and not the clock, and the producer is held back so that it is never done before the others. So
/// a slow machine kills in the same places as a fast one.
async fn kill_until_done<S: Sql>(
    job: &Job,
    bus: &Bus,
    store: &S,
    processes: &mut Processes,
    seen: &Seen,
    kills: u32,
    seed: u64,
) -> Result<bool, Failure> {
    let mut dice = Dice(seed);
    let ahead = (job.rows / 10).max(200);
    let stall = if job.without.is_some() { SHORT_STALL } else { STALL };
    let kill_at = |killed: u32, dice: &mut Dice| {
        (f64::from(killed) + dice.fraction()) / f64::from(kills.max(1)) * job.rows as f64 * 0.95
    };
    let (mut killed, mut next_kill) = (0, kill_at(0, &mut dice));
    let mut state = (0, 0, 0);
    let (mut since, mut paused_since, mut allowed) = (Instant::now(), Instant::now(), ahead);
    loop {
        // Counting must not be what the database is busy with.
        let asked = Instant::now();
        let counts = store.numbers("SELECT COUNT(*) FROM business UNION ALL SELECT COUNT(*) FROM effects").await?;
        let (rows, effects) = (counts[0], counts[1]);
        let counting = asked.elapsed();
        seen.rows.store(rows as u64, Ordering::Relaxed);
        seen.effects.store(effects as u64, Ordering::Relaxed);
        if state != (rows, effects, killed) {
            state = (rows, effects, killed);
            (since, paused_since) = (Instant::now(), Instant::now());
        }
        if paused_since.elapsed() >= PAUSE {
            (allowed, paused_since) = (allowed + ahead, Instant::now());
        }
        allowed = allowed.max(effects + ahead);
        processes.allow(allowed).await;

        if killed < kills && rows as f64 >= next_kill {
            tokio::time::sleep(Duration::from_millis(30).mul_f64(dice.fraction())).await;
            processes.kill(dice.below(ROLES.len() as u64) as usize).await?;
            killed += 1;
            next_kill = kill_at(killed, &mut dice);
            seen.kills.store(u64::from(killed), Ordering::Relaxed);
        }
        processes.revive().await?;
        if killed == kills && rows == job.rows && effects >= job.rows && is_quiet(bus, store).await? {
            return Ok(true);
        }
        if since.elapsed() >= stall {
            return Ok(false);
        }
        tokio::time::sleep(TICK.max(counting * 10)).await;
    }
}

/// Whether every row has its effect and nothing is on its way any more, which might be a second effect.
async fn is_quiet<S: Sql>(bus: &Bus, store: &S) -> Result<bool, Failure> {
    let distinct = "SELECT COUNT(*) - (SELECT COUNT(DISTINCT row_id) FROM effects) FROM business";
    if store.numbers(distinct).await? != [0] {
        return Ok(false);
    }
    for _ in 0..5 {
        let (waiting, queue) = (store.outbox().stats(1).await?, bus.stats(Source::queue(QUEUE)).await?);
        let queued = [queue.ready, queue.in_flight, queue.delayed].into_iter().flatten().sum::<u64>();
        if waiting.ready + waiting.scheduled + queued > 0 {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(true)
}

struct Processes {
    job: String,
    log: File,
    running: Vec<Process>,
    kills: BTreeMap<&'static str, u32>,
    ended: u64,
    told: Arc<Told>,
    allowed: i64,
}

struct Process {
    role: Role,
    child: Child,
    stdin: ChildStdin,
    started: Instant,
}

impl Processes {
    fn start(job: &Job, log: &Path) -> Result<Self, Failure> {
        let log = File::options().create(true).append(true).open(log)?;
        let job = serde_json::to_string(job)?;
        let kills = ROLES.iter().map(|role| (role.name(), 0)).collect();
        let mut new = Self { job, log, running: Vec::new(), kills, ended: 0, told: Arc::default(), allowed: 0 };
        for role in ROLES {
            let process = new.spawn(role)?;
            new.running.push(process);
        }
        Ok(new)
    }

    fn spawn(&self, role: Role) -> Result<Process, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(role.name())
            .env(JOB, &self.job)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(self.log.try_clone()?)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a process without its pipes".into());
        };
        let told = self.told.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match &*line {
                    DUPLICATE => told.duplicates.fetch_add(1, Ordering::Relaxed),
                    SWALLOWED => told.swallowed.fetch_add(1, Ordering::Relaxed),
                    _ => 0,
                };
            }
        });
        Ok(Process { role, child, stdin, started: Instant::now() })
    }

    /// Tells the producers up to which row they may write.
    async fn allow(&mut self, allowed: i64) {
        if allowed != self.allowed {
            self.allowed = allowed;
            for process in self.running.iter_mut().filter(|process| process.role == Role::Producer) {
                // It may just have been killed.
                let _ = process.stdin.write_all(format!("{allowed}\n").as_bytes()).await;
            }
        }
    }

    /// SIGKILL: the process has no time for anything.
    async fn kill(&mut self, victim: usize) -> Result<(), Failure> {
        let process = &mut self.running[victim];
        process.child.kill().await?;
        *self.kills.entry(process.role.name()).or_default() += 1;
        self.replace(victim).await
    }

    /// Starts those again that ended by themselves.
    async fn revive(&mut self) -> Result<(), Failure> {
        for i in 0..self.running.len() {
            let Some(status) = self.running[i].child.try_wait()? else { continue };
            let Process { role, started, .. } = &self.running[i];
            say(&format!("a {} ended by itself after {:?}: {status}", role.name(), started.elapsed()));
            self.ended += 1;
            self.replace(i).await?;
        }
        Ok(())
    }

    async fn replace(&mut self, i: usize) -> Result<(), Failure> {
        self.running[i] = self.spawn(self.running[i].role)?;
        let allowed = std::mem::take(&mut self.allowed);
        self.allow(allowed).await;
        Ok(())
    }

    async fn end(&mut self) {
        for process in &mut self.running {
            let _ = process.child.kill().await;
        }
    }
}

pub fn random_seed() -> u64 {
    RandomState::new().hash_one("kill_test") >> 32
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

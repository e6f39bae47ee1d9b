//! Kills and pauses the processes while rows flow, and counts.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use polybus::{Bus, Source, patterns::store::OutboxStore};
use polybus_sql::Db;
use tokio::time::Instant;

use super::{
    Failure, Job, QUEUE, Trouble,
    database::{create, number, numbers, serial},
    processes::Processes,
    progress::{Progress, say, wait_for},
    report::Report,
    roles::{LEASE, tables},
    schedule::Schedule,
};

const TICK: Duration = Duration::from_millis(20);
/// Without progress for so long it is stuck.
const STALL: Duration = Duration::from_secs(60);
/// The same where a part is left out and rows will be missing.
const SHORT_STALL: Duration = Duration::from_secs(8);
/// After so long without progress the producer may go further ahead: what is missing may be lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// For how long a relay is paused, so that another one must take its slots.
const PAUSE: Duration = LEASE.saturating_mul(2);
/// It is paused for longer if nobody has taken them by then, but not for ever: it may hold what the others need.
const LONGEST_PAUSE: Duration = LEASE.saturating_mul(4);
/// For how long a relay is looked for that has published rows and not deleted them yet.
const SEARCH: Duration = Duration::from_secs(6);
/// So many rows at a time, while it is looked for.
const HANDFUL: i64 = 40;

pub async fn run(job: &Job, trouble: Trouble, log: &Path) -> Result<Report, Failure> {
    let location = job.location()?;
    let broker = polybus::driver::ConnectUrl::parse(&job.url)?.to_string();
    let Trouble { kills, pauses, seed } = trouble;
    let pauses = if pauses > 0 { format!(" and {pauses} pauses") } else { String::new() };
    say(&format!("{} rows and {kills} kills{pauses} on {location}, through {broker}; seed {seed}", job.rows));
    let bus = wait_for("the broker", job.connect()).await?;
    wait_for("the database", location.create()).await?;
    let done = match location.open(2).await {
        Ok(store) => {
            let done = with_store(job, &bus, &store, trouble, log).await;
            store.close().await;
            done
        }
        Err(e) => Err(e),
    };
    let (removed, deleted) = (location.remove().await, bus.delete().await);
    bus.close().await?;
    let mut report = done?;
    removed?;
    deleted?;
    (report.broker, report.database) = (broker, location.to_string());
    Ok(report)
}

async fn with_store(job: &Job, bus: &Bus, store: &Db, trouble: Trouble, log: &Path) -> Result<Report, Failure> {
    create(store, tables(serial(store))).await?;
    let row_of_data = match store.system() {
        "postgres" => "CAST(convert_from(data, 'UTF8') AS BIGINT)",
        "mysql" => "CAST(CONVERT(data USING utf8mb4) AS SIGNED)",
        _ => "CAST(CAST(data AS TEXT) AS BIGINT)",
    };
    bus.declare().await?;
    let began = Instant::now();
    let seen = Arc::new(Seen::default());
    let progress = {
        let (seen, rows) = (seen.clone(), job.rows);
        Progress::start(move || seen.line(rows, trouble))
    };
    let mut run = Run {
        job,
        bus,
        store,
        processes: Processes::start(job, log)?,
        seen: &seen,
        row_of_data,
        kills: Schedule::new(trouble.kills, job.rows, trouble.seed),
        pauses: Schedule::new(trouble.pauses, job.rows, !trouble.seed),
        paused: None,
        search_since: None,
        limit: 0,
        pauses_done: 0,
        taken_over: 0,
    };
    let finished = tokio::select! {
        finished = run.until_done() => finished,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    drop(progress);
    let took = began.elapsed();
    run.processes.end().await;
    let stalled = !finished?;

    let one = async |sql: &str| Ok::<_, Failure>(number(store, sql).await? as u64);
    let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let Processes { kills, ended, told: heard, .. } = &run.processes;
    Ok(Report {
        seed: trouble.seed,
        without: job.without,
        rows: job.rows as u64,
        written: one("SELECT COUNT(*) FROM business").await?,
        effects: one("SELECT COUNT(*) FROM effects").await?,
        rows_with_effect: one("SELECT COUNT(DISTINCT row_id) FROM effects").await?,
        kills_wanted: trouble.kills,
        kills: kills.clone(),
        pauses_wanted: trouble.pauses,
        pauses: run.pauses_done,
        taken_over: run.taken_over,
        leases_lost: told(&heard.leases_lost),
        may_duplicate: told(&heard.may_duplicate),
        ended: *ended,
        duplicates: told(&heard.duplicates),
        swallowed: told(&heard.swallowed),
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
    pauses: AtomicU64,
}

impl Seen {
    fn line(&self, rows: i64, Trouble { kills, pauses, .. }: Trouble) -> String {
        let n = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (written, effects, killed) = (n(&self.rows), n(&self.effects), n(&self.kills));
        let paused = if pauses > 0 { format!("   {}/{pauses} pauses", n(&self.pauses)) } else { String::new() };
        format!("{written}/{rows} rows   {effects} effects   {killed}/{kills} kills{paused}")
    }
}

struct Run<'a> {
    job: &'a Job,
    bus: &'a Bus,
    store: &'a Db,
    processes: Processes,
    seen: &'a Seen,
    /// The number of its row, from the data of a message, in SQL.
    row_of_data: &'static str,
    kills: Schedule,
    pauses: Schedule,
    paused: Option<Paused>,
    /// Since when a relay is looked for that can be paused.
    search_since: Option<Instant>,
    /// Up to which row the producer may write before the next pause.
    limit: i64,
    pauses_done: u32,
    /// Slots that another relay took while one was paused.
    taken_over: u64,
}

/// A relay that stands still.
struct Paused {
    relay: usize,
    since: Instant,
    /// What [`Run::takings`] was before.
    takings: i64,
}

impl Run<'_> {
    /// Kills and pauses until that is done and each row has its effect. Answers false if nothing happens any more.
    ///
    /// The producer is held back so that it is never done before the others.
    async fn until_done(&mut self) -> Result<bool, Failure> {
        let rows_wanted = self.job.rows;
        self.limit = self.pauses.place() + HANDFUL;
        let ahead = (rows_wanted / 10).max(200);
        let stall = if self.job.without.is_some() { SHORT_STALL } else { STALL };
        let mut state = (0, 0, 0, 0);
        let (mut since, mut quiet_since, mut allowed) = (Instant::now(), Instant::now(), ahead);
        loop {
            // Counting must not be what the database is busy with.
            let asked = Instant::now();
            let sql = "SELECT COUNT(*) FROM business UNION ALL SELECT COUNT(*) FROM effects";
            let counts = numbers(self.store, sql).await?;
            let (rows, effects) = (counts[0], counts[1]);
            let counting = asked.elapsed();
            self.seen.rows.store(rows as u64, Ordering::Relaxed);
            self.seen.effects.store(effects as u64, Ordering::Relaxed);
            let now = (rows, effects, self.kills.times(), self.pauses_done);
            if state != now {
                state = now;
                (since, quiet_since) = (Instant::now(), Instant::now());
            }
            if quiet_since.elapsed() >= PATIENCE {
                (allowed, quiet_since) = (allowed + ahead, Instant::now());
            }
            allowed = allowed.max(effects + ahead);
            let in_peace = self.kills.is_over() && self.pauses.is_over() && self.paused.is_none();
            let limit = if self.pauses.is_over() { allowed } else { self.limit };
            self.processes.allow(allowed.min(limit)).await;

            // One trouble at a time: a kill would end the pause, or take the slots that the other relay was to take.
            if self.paused.is_some() {
                self.resume_in_time().await?;
            } else if self.kills.is_due(rows) {
                self.kill().await?;
            } else if self.pauses.is_due(rows) {
                self.try_to_pause(rows).await?;
            }
            self.processes.revive().await?;
            // A pause, and the search for one, take as long as they take.
            if self.paused.is_some() || self.search_since.is_some() {
                since = Instant::now();
            }
            if in_peace && rows == rows_wanted && effects >= rows_wanted && self.is_quiet().await? {
                self.processes.stop_relays().await?;
                // What a relay had under way at its end may be a second effect.
                while !self.is_quiet().await? && since.elapsed() < stall {}
                return Ok(true);
            }
            if since.elapsed() >= stall {
                return Ok(false);
            }
            tokio::time::sleep(TICK.max(counting * 10)).await;
        }
    }

    async fn kill(&mut self) -> Result<(), Failure> {
        let dice = &mut self.kills.dice;
        tokio::time::sleep(Duration::from_millis(30).mul_f64(dice.fraction())).await;
        self.processes.kill(dice.below(self.processes.len())).await?;
        self.kills.done();
        self.seen.kills.store(u64::from(self.kills.times()), Ordering::Relaxed);
        Ok(())
    }

    /// Stops a relay, if it has rows in its hands, or none had for long.
    async fn try_to_pause(&mut self, rows: i64) -> Result<(), Failure> {
        let searching = self.search_since.get_or_insert_with(Instant::now).elapsed() < SEARCH;
        let last = self.number("SELECT COALESCE(MAX(id), 0) FROM polybus_outbox").await?;
        if searching && (last == 0 || !self.slots_are_shared().await?) {
            // Something for their hands, and not all that there is.
            if last == 0 {
                self.limit = self.limit.max(rows + HANDFUL);
            }
            return Ok(());
        }
        let relays = self.processes.relays();
        let relay = relays[self.pauses.dice.below(relays.len())];
        self.processes.pause(relay, true).await?;
        let paused = Paused { relay, since: Instant::now(), takings: self.takings().await? };
        if searching && !self.has_published(last).await? {
            return self.processes.pause(relay, false).await;
        }
        (self.paused, self.search_since) = (Some(paused), None);
        self.pauses.done();
        self.limit = self.pauses.place().max(rows) + HANDFUL;
        Ok(())
    }

    /// Whether a relay that stands still has published rows up to this one, and not deleted them yet.
    async fn has_published(&self, last: i64) -> Result<bool, Failure> {
        let left = format!("SELECT COUNT(*) FROM polybus_outbox WHERE id <= {last}");
        let with_effect = format!("{left} AND {} IN (SELECT row_id FROM effects)", self.row_of_data);
        // The other relay has deleted its own by then.
        tokio::time::sleep(TICK * 2).await;
        for _ in 0..10 {
            if self.number(&left).await? == 0 {
                return Ok(false);
            }
            if self.number(&with_effect).await? > 0 {
                return Ok(true);
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(false)
    }

    /// Whether the relays have equal parts, as they have a while after a kill or a pause.
    async fn slots_are_shared(&self) -> Result<bool, Failure> {
        let sql = "SELECT COUNT(*) FROM polybus_lease WHERE name LIKE 'outbox/%' AND owner <> '' GROUP BY owner";
        Ok(numbers(self.store, sql).await? == [8, 8])
    }

    /// Lets the relay go on when it has stood still for two leases, and another one has its slots.
    async fn resume_in_time(&mut self) -> Result<(), Failure> {
        let Some(paused) = self.paused.take_if(|paused| paused.since.elapsed() >= PAUSE) else { return Ok(()) };
        let taken = (self.takings().await? - paused.takings).max(0) as u64;
        if taken == 0 && paused.since.elapsed() < LONGEST_PAUSE {
            self.paused = Some(paused);
            return Ok(());
        }
        self.processes.pause(paused.relay, false).await?;
        self.taken_over += taken;
        self.pauses_done += 1;
        self.seen.pauses.store(u64::from(self.pauses_done), Ordering::Relaxed);
        Ok(())
    }

    /// How often relays have taken slots so far: each taking counts its lease's token up.
    async fn takings(&self) -> Result<i64, Failure> {
        let sql = "SELECT COALESCE(SUM(token), 0) FROM polybus_lease WHERE name LIKE 'outbox/%'";
        self.number(sql).await
    }

    async fn number(&self, sql: &str) -> Result<i64, Failure> {
        Ok(number(self.store, sql).await?)
    }

    /// Whether every row has its effect and nothing is on its way any more, which might be a second effect.
    async fn is_quiet(&self) -> Result<bool, Failure> {
        let distinct = "SELECT COUNT(*) - (SELECT COUNT(DISTINCT row_id) FROM effects) FROM business";
        if numbers(self.store, distinct).await? != [0] {
            return Ok(false);
        }
        for _ in 0..5 {
            let (waiting, queue) = (self.store.outbox().stats(1).await?, self.bus.stats(Source::queue(QUEUE)).await?);
            let queued = [queue.ready, queue.in_flight, queue.delayed].into_iter().flatten().sum::<u64>();
            if waiting.ready + waiting.scheduled + queued > 0 {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(true)
    }
}

//! A driver whose counts are what the test says, and a sink that remembers.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use parking_lot::Mutex;
use polybus_core::{
    Bus, BusOptions, Error, ErrorKind, QueueSpec, Result, Source, Topology,
    driver::{Capabilities, Driver, DriverLayer, async_trait},
    memory::MemoryDriver,
    topology::{Entity, SourceStats},
};
use polybus_patterns::monitor::{Alert, AlertKind, AlertState, Monitor, MonitorReport};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

/// What the broker answers for one queue.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// So many that wait, and so many dead letters.
    Counts(u64, u64),
    /// So many that wait, and nothing of dead letters.
    DepthAlone(u64),
    Fails(ErrorKind),
    Hangs,
    Panics,
    Takes(Duration, u64),
}

/// The answers by queue. The rest of the driver is the memory driver.
pub(crate) struct Scripted {
    inner: MemoryDriver,
    capabilities: Capabilities,
    answers: Mutex<HashMap<String, Answer>>,
    asked: Mutex<Vec<(String, Instant)>>,
}

impl Scripted {
    pub(crate) fn new() -> Arc<Self> {
        let inner = MemoryDriver::new();
        let capabilities = Driver::capabilities(&inner).clone();
        Arc::new(Self { inner, capabilities, answers: Mutex::default(), asked: Mutex::default() })
    }

    /// A broker that tells no counts.
    pub(crate) fn without_stats() -> Arc<Self> {
        let inner = MemoryDriver::new();
        let mut capabilities = Driver::capabilities(&inner).clone();
        capabilities.stats = false;
        Arc::new(Self { inner, capabilities, answers: Mutex::default(), asked: Mutex::default() })
    }

    pub(crate) fn answer(&self, queue: &str, answer: Answer) {
        self.answers.lock().insert(format!("queue:{queue}"), answer);
    }

    pub(crate) fn bus(self: &Arc<Self>, queues: &[&str]) -> Bus {
        let topology = queues.iter().fold(Topology::new(), |all, queue| all.queue(*queue, QueueSpec::new()));
        Bus::new(self.clone(), BusOptions::topology(topology)).unwrap()
    }

    /// When this queue was asked about.
    pub(crate) fn asked(&self, queue: &str) -> Vec<Instant> {
        let queue = format!("queue:{queue}");
        self.asked.lock().iter().filter(|(name, _)| *name == queue).map(|(_, at)| *at).collect()
    }
}

#[async_trait]
impl DriverLayer for Scripted {
    fn inner(&self) -> &dyn Driver {
        &self.inner
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        let name = of.name.to_string();
        self.asked.lock().push((name.clone(), Instant::now()));
        let answer = self.answers.lock().get(&name).copied().unwrap_or(Answer::Counts(0, 0));
        match answer {
            Answer::Counts(ready, dead) => Ok(SourceStats::exact(ready, 0, 0, dead)),
            Answer::DepthAlone(ready) => {
                let mut stats = SourceStats::default();
                stats.ready = Some(ready);
                Ok(stats)
            }
            Answer::Fails(kind) => Err(Error::new(kind, "amqp://user:hunter2@host is away").safe()),
            Answer::Hangs => pending().await,
            Answer::Panics => panic!("the driver panics"),
            Answer::Takes(time, ready) => {
                tokio::time::sleep(time).await;
                Ok(SourceStats::exact(ready, 0, 0, 0))
            }
        }
    }
}

/// What a sink was told, and when.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<(u64, Alert)>>>);

impl Told {
    pub(crate) fn sink(&self, monitor: Monitor) -> Monitor {
        let (told, start) = (self.clone(), Instant::now());
        monitor.sink_fn("told", move |alert| {
            told.0.lock().push((start.elapsed().as_secs(), alert));
            async { Ok(()) }
        })
    }

    pub(crate) fn all(&self) -> Vec<Alert> {
        self.0.lock().iter().map(|(_, alert)| alert.clone()).collect()
    }

    /// Seconds since the start, name, and what: `firing`, `reminder` or `resolved`.
    pub(crate) fn lines(&self) -> Vec<(u64, String, &'static str)> {
        let what = |alert: &Alert| match alert.state {
            AlertState::Firing if alert.reminder => "reminder",
            state => state.as_str(),
        };
        self.0.lock().iter().map(|(at, alert)| (*at, alert.name.clone(), what(alert))).collect()
    }

    pub(crate) fn of(&self, kind: AlertKind) -> Vec<Alert> {
        self.all().into_iter().filter(|alert| alert.kind == kind).collect()
    }
}

/// A line of [`Told::lines`].
pub(crate) fn line(at: u64, name: &str, what: &'static str) -> (u64, String, &'static str) {
    (at, name.to_owned(), what)
}

/// A monitor that runs.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<Result<MonitorReport>>,
}

impl Running {
    pub(crate) fn start(monitor: Monitor) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(monitor.run(async { drop(stopped.await) }));
        Self { stop, task }
    }

    pub(crate) async fn end(self) -> MonitorReport {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap()
    }
}

/// Lets so many polls of 15 s pass, the last one included with all that it leads to.
pub(crate) async fn polls(n: u64) {
    tokio::time::sleep(Duration::from_secs(15 * n)).await;
}

//! The processes: started, killed, paused, started again, and heard.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    Failure, JOB, Job, Role,
    progress::say,
    roles::{DUPLICATE, RELAYED, STOP, SWALLOWED},
};

const ROLES: [Role; 5] = [Role::Producer, Role::Relay, Role::Relay, Role::Consumer, Role::Consumer];

/// For how long a relay that is told to stop may go on.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What the processes told.
#[derive(Default)]
pub struct Told {
    /// By consumers: copies that the inbox stopped.
    pub duplicates: AtomicU64,
    /// By consumers: errors that a handler swallowed.
    pub swallowed: AtomicU64,
    /// By relays at their end: rows that they, or another one, published twice.
    pub may_duplicate: AtomicU64,
    /// By relays at their end: leases that another one took.
    pub leases_lost: AtomicU64,
}

impl Told {
    fn hear(&self, line: &str) {
        let add = |count: &AtomicU64, n| {
            count.fetch_add(n, Ordering::Relaxed);
        };
        let mut words = line.split(' ');
        match words.next() {
            Some(DUPLICATE) => add(&self.duplicates, 1),
            Some(SWALLOWED) => add(&self.swallowed, 1),
            Some(RELAYED) => {
                let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
                add(&self.may_duplicate, number());
                add(&self.leases_lost, number());
            }
            _ => {}
        }
    }
}

pub struct Processes {
    job: String,
    log: File,
    running: Vec<Process>,
    pub kills: BTreeMap<&'static str, u32>,
    /// Those that ended though nobody killed them.
    pub ended: u64,
    pub told: Arc<Told>,
    allowed: i64,
}

struct Process {
    role: Role,
    child: Child,
    stdin: ChildStdin,
    hearing: JoinHandle<()>,
    started: Instant,
}

impl Processes {
    pub fn start(job: &Job, log: &Path) -> Result<Self, Failure> {
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
        let program = std::env::current_exe()?;
        let mut child = Command::new(&program)
            .arg(role.name())
            .env(JOB, &self.job)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(self.log.try_clone()?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("cannot start {} as a {}: {e}", program.display(), role.name()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a process without its pipes".into());
        };
        let told = self.told.clone();
        let hearing = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                told.hear(&line);
            }
        });
        Ok(Process { role, child, stdin, hearing, started: Instant::now() })
    }

    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// The places of the relays.
    pub fn relays(&self) -> Vec<usize> {
        (0..self.running.len()).filter(|i| self.running[*i].role == Role::Relay).collect()
    }

    /// Tells the producers up to which row they may write.
    pub async fn allow(&mut self, allowed: i64) {
        if allowed != self.allowed {
            self.allowed = allowed;
            for process in self.running.iter_mut().filter(|process| process.role == Role::Producer) {
                // It may just have been killed.
                let _ = process.stdin.write_all(format!("{allowed}\n").as_bytes()).await;
            }
        }
    }

    /// SIGKILL: the process has no time for anything.
    pub async fn kill(&mut self, victim: usize) -> Result<(), Failure> {
        let process = &mut self.running[victim];
        process.child.kill().await?;
        *self.kills.entry(process.role.name()).or_default() += 1;
        self.replace(victim).await
    }

    /// SIGSTOP: the process stands still wherever it is, and does not know. SIGCONT lets it go on as if nothing was.
    pub async fn pause(&mut self, victim: usize, pause: bool) -> Result<(), Failure> {
        let Some(id) = self.running[victim].child.id() else { return Ok(()) };
        let signal = if pause { "-STOP" } else { "-CONT" };
        let status = Command::new("kill").args([signal, &id.to_string()]).status().await;
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("`kill {signal} {id}` did not work: {status}").into()),
            Err(e) => Err(format!("--pauses needs the command `kill`, of Linux, macOS and BSD: {e}").into()),
        }
    }

    /// Starts those again that ended by themselves.
    pub async fn revive(&mut self) -> Result<(), Failure> {
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

    /// Lets the relays end by themselves, which is when they tell what they did.
    pub async fn stop_relays(&mut self) -> Result<(), Failure> {
        for i in self.relays() {
            let relay = &mut self.running[i];
            // Whether it hears this is seen by its end.
            let _ = relay.stdin.write_all(format!("{STOP}\n").as_bytes()).await;
            match timeout(STOP_LIMIT, relay.child.wait()).await {
                Ok(Ok(status)) if status.success() => (&mut relay.hearing).await?,
                Ok(_) => say("a relay failed at its end, and told nothing"),
                Err(_) => say(&format!("a relay did not end within {STOP_LIMIT:?}, and told nothing")),
            }
        }
        Ok(())
    }

    pub async fn end(&mut self) {
        for process in &mut self.running {
            let _ = process.child.kill().await;
        }
    }
}

//! Shows how far things are: one line drawn anew on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::Arc,
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};

use super::desk::Desk;

pub struct Progress(JoinHandle<()>);

impl Progress {
    pub fn start(desks: Vec<Arc<Desk>>) -> Self {
        Self(tokio::spawn(async move {
            let (mut shown, mut since) = (String::new(), Instant::now());
            loop {
                let line = line(&desks);
                if stderr().is_terminal() {
                    let _ = write!(stderr(), "\r\x1b[2K{line}");
                } else if line != shown && since.elapsed() >= Duration::from_secs(1) {
                    say(&line);
                    (shown, since) = (line, Instant::now());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }))
    }
}

/// Takes the line away.
impl Drop for Progress {
    fn drop(&mut self) {
        self.0.abort();
        clear();
    }
}

/// A line that stays.
pub fn say(text: &str) {
    clear();
    let _ = writeln!(stderr(), "{text}");
}

fn clear() {
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r\x1b[2K");
    }
}

fn line(desks: &[Arc<Desk>]) -> String {
    let each = desks.iter().map(|desk| {
        let counts = desk.counts();
        let name = super::short(&desk.source);
        format!("{name} {}/{} ({} retried)", counts.handled, desk.wanted, counts.retried)
    });
    format!("  {}", each.collect::<Vec<_>>().join("   "))
}

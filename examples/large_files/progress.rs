//! Shows how far things are: one line drawn anew on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};

pub struct Progress(JoinHandle<()>);

impl Progress {
    pub fn start(line: impl Fn() -> String + Send + 'static) -> Self {
        Self(tokio::spawn(async move {
            let (mut shown, mut since) = (String::new(), Instant::now());
            loop {
                let line = line();
                if stderr().is_terminal() {
                    let _ = write!(stderr(), "\r\x1b[2K  {line}");
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

/// How long somebody in front of it waits without wondering.
const SILENCE: Duration = Duration::from_secs(3);

/// Says what it waits for, if that takes long.
pub async fn wait_for<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let mut waiting = std::pin::pin!(waiting);
    tokio::select! {
        done = &mut waiting => return done,
        () = tokio::time::sleep(SILENCE) => say(&format!("{what} does not answer yet; it is waited for")),
    }
    waiting.await
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

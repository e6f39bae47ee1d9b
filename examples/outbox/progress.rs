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

//! The emulator, in a process of its own: this program again, told to serve.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
};

use polybus_servicebus_emulator::{Emulator, EmulatorOptions};

pub(crate) const SERVE: &str = "--serve";

/// Serves until its standard input ends, which the end of its parent ends.
pub(crate) fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let emulator = Emulator::start(EmulatorOptions::default()).await.unwrap();
        println!("{} {}", emulator.amqp_addr(), emulator.http_addr());
        std::io::stdout().flush().unwrap();
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    });
}

pub(crate) struct EmulatorProcess {
    process: std::process::Child,
    pub(crate) url: String,
}

impl EmulatorProcess {
    pub(crate) fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let process = command.arg(SERVE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = process.unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (amqp, http) = line.trim().split_once(' ').unwrap();
        Self { process, url: format!("servicebus://{amqp}?emulator=true&management=http://{http}") }
    }
}

impl Drop for EmulatorProcess {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// How busy the machine is, as Linux counts it; empty elsewhere.
pub(crate) fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().unwrap_or_default().to_owned()
}

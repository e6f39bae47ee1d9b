//! The official Python and JavaScript SDKs against the emulator: `checks/` holds their suites, this starts what they need.
//!
//! They come from package registries, so they run only where the whole local stack does, under `./localstack/test`.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

const KEY: &str = "SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE";

#[test]
fn python() {
    check("python");
}

#[test]
fn javascript() {
    check("js");
}

/// Each suite has an emulator of its own, so that they can run side by side.
fn check(suite: &str) {
    let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
    if !required.split(',').any(|service| service.trim() == "servicebus") {
        eprintln!("SKIPPED: POLYBUS_REQUIRE does not name servicebus");
        return;
    }
    let emulator = Emulator::start(certificates());
    let output = run()
        .arg(suite)
        .env(
            "SERVICEBUS_CONNECTION_STRING",
            format!("Endpoint=sb://{};{KEY};UseDevelopmentEmulator=true", emulator.amqp),
        )
        // By name: the SDKs hold it against the certificate.
        .env("SERVICEBUS_ADMIN_CONNECTION_STRING", format!("Endpoint=sb://localhost:{};{KEY}", emulator.http_port))
        .output()
        .unwrap();
    // Shown where the test fails or its output is asked for.
    print!("{}", text(&output));
    assert!(output.status.success(), "the {suite} checks failed: {}", output.status);
}

fn run() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("checks/run"));
    command.stdin(Stdio::null());
    command
}

/// Installs what the suites need, once, and returns the folder with the certificates.
fn certificates() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let output = run().arg("prepare").output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

struct Emulator {
    process: Child,
    amqp: String,
    http_port: String,
}

impl Emulator {
    fn start(certificates: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_polybus-servicebus-emulator"))
            .args(["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .arg("--tls-cert")
            .arg(certificates.join("server.pem"))
            .arg("--tls-key")
            .arg(certificates.join("server.key"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // `amqp 127.0.0.1:40001`, `http 127.0.0.1:40002`, `ready`.
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut emulator = Self { process, amqp: String::new(), http_port: String::new() };
        loop {
            let line = lines.next().expect("the emulator ended before it was ready");
            match line.split_once(' ') {
                Some(("amqp", address)) => emulator.amqp = address.to_owned(),
                Some(("http", address)) => emulator.http_port = address.rsplit(':').next().unwrap().to_owned(),
                _ if line == "ready" => return emulator,
                _ => {}
            }
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

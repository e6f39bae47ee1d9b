//! The official Python and JavaScript SDKs against the emulator: `checks/` holds their suites, this starts what they
//! need.
//!
//! They come from package registries, so they run only where the whole local stack does, under `./localstack/test`.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ten times what a suite takes on two cores: only one that hangs meets it.
const PATIENCE: Duration = Duration::from_secs(600);
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
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("official-sdk-{suite}.log"));
    let output = File::create(&log).unwrap();
    let mut checks = run()
        .arg(suite)
        .env(
            "SERVICEBUS_CONNECTION_STRING",
            format!("Endpoint=sb://{};{KEY};UseDevelopmentEmulator=true", emulator.amqp),
        )
        // By name: the SDKs hold it against the certificate.
        .env("SERVICEBUS_ADMIN_CONNECTION_STRING", format!("Endpoint=sb://localhost:{};{KEY}", emulator.http_port))
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let began = Instant::now();
    let status = loop {
        match checks.try_wait().unwrap() {
            Some(status) => break status.to_string(),
            None if began.elapsed() > PATIENCE => {
                checks.kill().unwrap();
                break format!("still running after {PATIENCE:?}");
            }
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    // Shown where the test fails or its output is asked for.
    println!("{}", std::fs::read_to_string(&log).unwrap());
    assert_eq!(status, "exit status: 0", "the {suite} checks");
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
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

struct Emulator {
    process: Child,
    /// Open as long as the emulator may write to it.
    output: BufReader<ChildStdout>,
    amqp: String,
    http_port: String,
}

impl Emulator {
    fn start(certificates: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_polybus-servicebus-emulator"))
            .args(["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--key", "SAS_KEY_VALUE"])
            .arg("--config")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../brokers/servicebus/Config.json"))
            .arg("--tls-cert")
            .arg(certificates.join("server.pem"))
            .arg("--tls-key")
            .arg(certificates.join("server.key"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut emulator = Self { process, output, amqp: String::new(), http_port: String::new() };
        // `amqp 127.0.0.1:40001`, `http 127.0.0.1:40002`, `ready`.
        loop {
            let mut line = String::new();
            emulator.output.read_line(&mut line).unwrap();
            match line.trim_end().split_once(' ') {
                Some(("amqp", address)) => emulator.amqp = address.to_owned(),
                Some(("http", address)) => emulator.http_port = address.rsplit(':').next().unwrap().to_owned(),
                _ if line == "ready\n" => return emulator,
                _ => assert!(!line.is_empty(), "the emulator ended before it was ready"),
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

//! The command: what it prints, how fast it is there, how little it takes, how it ends.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use polybus_servicebus_emulator::codec::{Value, encode};

struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// What it says up to `ready`.
    fn ready(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.out.read_line(&mut line).unwrap(), 0, "it ended before it was ready: {lines:?}");
            match line.trim_end() {
                "ready" => return lines,
                line => lines.push(line.to_owned()),
            }
        }
    }

    /// The addresses it serves, in the order it prints them.
    fn addresses(&mut self) -> Vec<SocketAddr> {
        self.ready().iter().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn resident_kilobytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polybus-servicebus-emulator"));
    command.args(["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(arguments).stdin(Stdio::null());
    command.env_remove("SERVICEBUS_EMULATOR_KEY").env_remove("RUST_LOG");
    command
}

fn refused(arguments: &[&str]) -> String {
    let output = command(arguments).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// As soon as any process is: it waits for nothing. Measured against the same command that only says its version, by
/// turns, since a machine that is busy elsewhere slows both down; the best of ten counts.
#[test]
fn it_is_there_at_once_and_idles_under_20_mb() {
    let (mut best, mut least) = (Duration::MAX, Duration::MAX);
    let mut most = 0;
    for _ in 0..10 {
        let started = Instant::now();
        assert!(command(&["--version"]).output().unwrap().status.success());
        least = least.min(started.elapsed());
        let started = Instant::now();
        let mut process = Process::start(&[]);
        process.ready();
        best = best.min(started.elapsed());
        most = most.max(process.resident_kilobytes());
    }
    println!("ready after {best:?}, its version after {least:?}, {most} kB resident");
    assert!(best < least * 20, "{best:?}, where a process takes {least:?}");
    assert!(most < 20 * 1024, "{most} kB");
}

#[test]
fn it_prints_its_addresses_and_writes_its_certificate() {
    let folder = std::env::temp_dir().join(format!("polybus-servicebus-emulator-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("certificate.pem");
    let mut process = Process::start(&["--amqps", "127.0.0.1:0", "--tls-self-signed", path.to_str().unwrap()]);
    let lines = process.ready();
    let names: Vec<&str> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["amqp", "amqps", "http", "https"]);
    for line in &lines {
        let address: SocketAddr = line.split(' ').nth(1).unwrap().parse().unwrap();
        TcpStream::connect(address).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap().contains("BEGIN CERTIFICATE"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn it_ends_when_it_is_asked_to() {
    for signal in ["-TERM", "-INT"] {
        let mut process = Process::start(&[]);
        process.ready();
        let killed = Command::new("kill").args([signal, &process.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert!(process.child.wait().unwrap().success(), "{signal}");
        let mut rest = String::new();
        process.out.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

#[test]
fn mistakes_are_named() {
    assert!(refused(&["--config", "/none/Config.json"]).contains("/none/Config.json: No such file"));
    assert!(refused(&["--tls-cert", "/none/cert.pem"]).contains("--tls-key"));
    let both = ["--tls-cert", "/none/cert.pem", "--tls-key", "/none/key.pem"];
    assert!(refused(&both).contains("/none/cert.pem"));
    assert!(refused(&["--amqps", "nowhere"]).contains("invalid value 'nowhere'"));
}

#[test]
fn the_key_is_shown_nowhere() {
    let run = |argument: &str| {
        let output = command(&[argument]).env("SERVICEBUS_EMULATOR_KEY", "s3cret").output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert!(run("--help").contains("SERVICEBUS_EMULATOR_KEY"));
    assert!(!run("--help").contains("s3cret"));
    assert!(!run("--none").contains("s3cret"));
}

fn frame(descriptor: u64, fields: Vec<Value>) -> Vec<u8> {
    let body = encode(&Value::described(descriptor, Value::List(fields)));
    let size = u32::try_from(body.len() + 8).unwrap();
    [&size.to_be_bytes()[..], &[2, 0, 0, 0], &body].concat()
}

/// A connection with a session and a receiver of `q` that waits for ten messages.
fn waiting_receiver() -> Vec<u8> {
    let node = |descriptor| Value::described(descriptor, Value::List(vec![Value::string("q")]));
    let attach = vec![
        Value::string("link"),
        Value::Uint(0),
        Value::Bool(true),
        Value::Null,
        Value::Null,
        node(0x28),
        node(0x29),
    ];
    let window = || [Value::Uint(0), Value::Uint(100), Value::Uint(0), Value::Uint(100)];
    let flow = window().into_iter().chain([Value::Uint(0), Value::Uint(0), Value::Uint(10)]).collect();
    [
        b"AMQP\x00\x01\x00\x00".to_vec(),
        frame(0x10, vec![Value::string("test")]),
        frame(0x11, vec![Value::Null, Value::Uint(0), Value::Uint(100), Value::Uint(100)]),
        frame(0x12, attach),
        frame(0x13, flow),
    ]
    .concat()
}

fn read_up_to_attach(socket: &mut TcpStream) {
    socket.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    socket.read_exact(&mut [0; 8]).unwrap();
    loop {
        let mut head = [0; 8];
        socket.read_exact(&mut head).unwrap();
        let size = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let mut body = vec![0; usize::try_from(size).unwrap() - 8];
        socket.read_exact(&mut body).unwrap();
        // Descriptors of frames are small: 0x00 0x53 and their last byte.
        if body[2] == 0x12 {
            return;
        }
    }
}

fn http(address: SocketAddr, request: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(socket, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let mut process = Process::start(&[]);
    let [amqp, rest] = process.addresses()[..] else { panic!() };
    let files = process.open_files();
    let queue = r#"<entry xmlns="http://www.w3.org/2005/Atom"><content type="application/xml"><QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"/></content></entry>"#;
    let made = http(rest, "PUT /q?api-version=2021-05", queue);
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    let open_and_drop = |count: usize| {
        let sent = waiting_receiver();
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    for _ in 0..count / 10 {
                        let mut socket = TcpStream::connect(amqp).unwrap();
                        socket.write_all(&sent).unwrap();
                        read_up_to_attach(&mut socket);
                    }
                });
            }
        });
    };
    let settled = |process: &Process| {
        let deadline = Instant::now() + Duration::from_secs(300);
        while process.open_files() > files && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(process.open_files(), files);
        process.resident_kilobytes()
    };
    // The first thousand fill the allocator's pools.
    open_and_drop(1_000);
    let kilobytes = settled(&process);
    open_and_drop(9_000);
    let kilobytes_after = settled(&process);
    println!("{kilobytes} kB after 1,000, {kilobytes_after} after 10,000");
    assert!(kilobytes_after < kilobytes + 4 * 1024);
    // No dead receiver takes what comes.
    assert!(http(rest, "POST /q/messages", "hello").starts_with("HTTP/1.1 201"));
    assert!(http(rest, "DELETE /q/messages/head?timeout=5", "").ends_with("hello"));
}

#[test]
fn access_rules_come_from_a_file_and_their_mistakes_are_told_without_the_keys() {
    let folder = std::env::temp_dir().join(format!("polybus-servicebus-emulator-rules-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("rules.json");
    std::fs::write(&path, r#"[{"keyName":"a","primaryKey":"s3cret","rights":["Peek"]}]"#).unwrap();
    let said = refused(&["--access-rules", path.to_str().unwrap()]);
    assert!(said.contains(path.to_str().unwrap()) && said.contains("rights") && !said.contains("s3cret"), "{said}");
    std::fs::write(&path, r#"[{"keyName":"a","primaryKey":"s3cret","rights":["Listen"]}]"#).unwrap();
    Process::start(&["--access-rules", path.to_str().unwrap(), "--idle-links", "600"]).ready();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_refused_configuration_is_told_with_its_file_and_without_debug_prints() {
    let folder = std::env::temp_dir().join(format!("polybus-servicebus-emulator-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("Config.json");
    let told = |queues: &str| {
        std::fs::write(&path, format!(r#"{{"UserConfig": {{"Namespaces": [{{"Queues": [{queues}]}}]}}}}"#)).unwrap();
        refused(&["--config", path.to_str().unwrap()])
    };
    let file = path.to_str().unwrap();
    assert_eq!(
        told(r#"{"Name": "q", "Properties": {"LockDuration": "PT1S"}}"#),
        format!(
            "error: {file}: Queues[0] 'q': LockDuration is 1000 ms; it must be from five seconds to five minutes.\n"
        )
    );
    assert_eq!(
        told(r#"{"Name": "q"}, {"Name": "q"}"#),
        format!("error: {file}: queue 'q': The messaging entity 'q' already exists.\n")
    );
    std::fs::remove_dir_all(&folder).unwrap();
}

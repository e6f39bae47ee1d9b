//! How many messages a second the emulator carries from send to receive to complete, over TCP, clients and server in
//! this process and on two threads.
//!
//! `cargo run --release --example throughput [messages [bytes [pairs]]]`
//!
//! Each pair is a sender and a receiver on connections of their own. The sender keeps 500 unsettled, the receiver
//! completes each message in a disposition of its own and counts it when the server has confirmed it.

use std::collections::VecDeque;
use std::error::Error;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use polybus_servicebus_emulator::broker::{Broker, NamespaceLimits, QueueSettings};
use polybus_servicebus_emulator::clock::Clock;
use polybus_servicebus_emulator::codec::{Value, ValueReader, encode};
use polybus_servicebus_emulator::message::Message;
use polybus_servicebus_emulator::{SharedState, amqp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn Error + Send + Sync>;

const OPEN: u64 = 0x10;
const BEGIN: u64 = 0x11;
const ATTACH: u64 = 0x12;
const FLOW: u64 = 0x13;
const TRANSFER: u64 = 0x14;
const DISPOSITION: u64 = 0x15;
const ACCEPTED: u64 = 0x24;

const WINDOW: u32 = 500;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let messages = arguments.next().transpose()?.unwrap_or(400_000);
    let bytes = arguments.next().transpose()?.unwrap_or(256);
    let pairs = arguments.next().transpose()?.unwrap_or(4).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(messages / pairs, bytes, pairs))
}

async fn measure(each: u32, bytes: u32, pairs: u32) -> Result<(), Failure> {
    let broker = Broker::new(Clock::system(), NamespaceLimits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    for pair in 0..pairs {
        broker.create_queue(&format!("q{pair}"), QueueSettings::default())?;
    }
    tokio::spawn(amqp::serve(listener, None, SharedState::new(broker)));
    let started = Instant::now();
    let mut tasks = Vec::new();
    for pair in 0..pairs {
        let (sending, receiving, queue) = (address.clone(), address.clone(), format!("q{pair}"));
        let to = queue.clone();
        tasks.push(tokio::spawn(async move { send(&sending, &to, each, bytes).await }));
        tasks.push(tokio::spawn(async move { receive(&receiving, &queue, each).await }));
    }
    for task in tasks {
        task.await??;
    }
    let seconds = started.elapsed().as_secs_f64();
    let total = each * pairs;
    println!(
        "{total} messages of {bytes} bytes, {pairs} queues: {seconds:.2} s, {:.0} messages/s",
        f64::from(total) / seconds
    );
    Ok(())
}

async fn send(address: &str, queue: &str, count: u32, bytes: u32) -> Result<(), Failure> {
    let mut link = Link::attach(address, queue, false).await?;
    let mut message = Message::default();
    message.properties.message_id = Some(Value::string("throughput"));
    message.set_body_value(&Value::string("x".repeat(usize::try_from(bytes)?)));
    let message = message.encode();
    let (mut sent, mut settled, mut limit) = (0, 0, 0);
    while settled < count {
        while sent < count && sent < limit && sent - settled < WINDOW {
            let fields = vec![
                Value::Uint(0),
                Value::Uint(sent),
                Value::Binary(bytes::Bytes::copy_from_slice(&sent.to_be_bytes())),
                Value::Uint(0),
                Value::Bool(false),
                Value::Bool(false),
            ];
            link.put(TRANSFER, fields, &message);
            sent += 1;
        }
        for (code, fields) in link.exchange().await? {
            match code {
                DISPOSITION => settled = number(&fields, 2).max(number(&fields, 1)) + 1,
                FLOW if fields.len() > 6 => limit = number(&fields, 5) + number(&fields, 6),
                _ => {}
            }
        }
    }
    Ok(())
}

async fn receive(address: &str, queue: &str, count: u32) -> Result<(), Failure> {
    let mut link = Link::attach(address, queue, true).await?;
    let (mut received, mut confirmed, mut granted) = (0, 0, 0);
    while confirmed < count {
        if granted - received < WINDOW {
            granted = received + WINDOW * 2;
            link.put_flow(received, granted - received);
        }
        for (code, fields) in link.exchange().await? {
            match code {
                TRANSFER => {
                    let id = Value::Uint(number(&fields, 1));
                    let accepted = Value::described(ACCEPTED, Value::List(Vec::new()));
                    link.put(DISPOSITION, vec![Value::Bool(true), id.clone(), id, Value::Bool(false), accepted], &[]);
                    received += 1;
                }
                DISPOSITION => confirmed += number(&fields, 2) - number(&fields, 1) + 1,
                _ => {}
            }
        }
    }
    Ok(())
}

fn number(fields: &[Value], at: usize) -> u32 {
    fields.get(at).and_then(Value::as_u32).unwrap_or(0)
}

/// One link on a connection of its own.
struct Link {
    socket: TcpStream,
    input: BytesMut,
    output: Vec<u8>,
    waiting: VecDeque<(u64, Vec<Value>)>,
}

impl Link {
    async fn attach(address: &str, queue: &str, receives: bool) -> Result<Self, Failure> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let input = BytesMut::with_capacity(64 * 1024);
        let mut link = Self { socket, input, output: b"AMQP\x00\x01\x00\x00".to_vec(), waiting: VecDeque::new() };
        let end = |code: u64, address: &str| Value::described(code, Value::List(vec![Value::string(address)]));
        link.put(OPEN, vec![Value::string("throughput")], &[]);
        link.put(BEGIN, vec![Value::Null, Value::Uint(0), Value::Uint(u32::MAX / 2), Value::Uint(5000)], &[]);
        let mut attach = vec![
            Value::string("link"),
            Value::Uint(0),
            Value::Bool(receives),
            Value::Ubyte(0),
            Value::Ubyte(u8::from(receives)),
            end(0x28, queue),
            end(0x29, queue),
        ];
        attach.extend([Value::Null, Value::Null, Value::Uint(0)]);
        link.put(ATTACH, attach, &[]);
        link.socket.write_all(&std::mem::take(&mut link.output)).await?;
        let mut header = [0; 8];
        link.socket.read_exact(&mut header).await?;
        loop {
            let frames = link.exchange().await?;
            let attached = frames.iter().any(|(code, _)| *code == ATTACH);
            link.waiting.extend(frames);
            if attached {
                return Ok(link);
            }
        }
    }

    fn put(&mut self, code: u64, fields: Vec<Value>, payload: &[u8]) {
        let body = encode(&Value::described(code, Value::List(fields)));
        let size = u32::try_from(8 + body.len() + payload.len()).unwrap_or(u32::MAX);
        self.output.extend(size.to_be_bytes());
        self.output.extend([2, 0, 0, 0]);
        self.output.extend(body);
        self.output.extend_from_slice(payload);
    }

    fn put_flow(&mut self, delivery_count: u32, credit: u32) {
        let window = Value::Uint(u32::MAX / 2);
        let fields = vec![
            Value::Uint(delivery_count),
            window.clone(),
            Value::Uint(0),
            window,
            Value::Uint(0),
            Value::Uint(delivery_count),
            Value::Uint(credit),
        ];
        self.put(FLOW, fields, &[]);
    }

    /// Writes what is to be written and returns the performatives that came, at least one read's worth.
    async fn exchange(&mut self) -> Result<Vec<(u64, Vec<Value>)>, Failure> {
        if !self.waiting.is_empty() {
            return Ok(self.waiting.drain(..).collect());
        }
        self.socket.write_all(&self.output).await?;
        self.output.clear();
        self.input.reserve(64 * 1024);
        if self.socket.read_buf(&mut self.input).await? == 0 {
            return Err("the server closed the connection".into());
        }
        let mut frames = Vec::new();
        while let Some(head) = self.input.first_chunk::<4>() {
            let size = usize::try_from(u32::from_be_bytes(*head))?;
            if self.input.len() < size {
                break;
            }
            let mut frame = self.input.split_to(size);
            frame.advance(8);
            let mut reader = ValueReader::new(&frame);
            if reader.is_empty() {
                continue;
            }
            let Value::Ulong(code) = reader.descriptor()? else { return Err("no performative".into()) };
            let Value::List(fields) = reader.value()? else { return Err("no performative".into()) };
            frames.push((code, fields));
        }
        Ok(frames)
    }
}

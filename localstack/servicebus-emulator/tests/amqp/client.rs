//! Frames by hand: no state beyond the socket, and nothing is put right.

use std::time::Duration;

use bytes::Bytes;
use polybus_servicebus_emulator::codec::{Value, ValueReader, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) const OPEN: u64 = 0x10;
pub(crate) const BEGIN: u64 = 0x11;
pub(crate) const ATTACH: u64 = 0x12;
pub(crate) const FLOW: u64 = 0x13;
pub(crate) const TRANSFER: u64 = 0x14;
pub(crate) const DISPOSITION: u64 = 0x15;
pub(crate) const DETACH: u64 = 0x16;
pub(crate) const END: u64 = 0x17;
pub(crate) const CLOSE: u64 = 0x18;

pub(crate) const ACCEPTED: u64 = 0x24;
pub(crate) const REJECTED: u64 = 0x25;
pub(crate) const RELEASED: u64 = 0x26;
pub(crate) const MODIFIED: u64 = 0x27;

pub(crate) const AMQP_HEADER: &[u8; 8] = b"AMQP\x00\x01\x00\x00";
pub(crate) const SASL_HEADER: &[u8; 8] = b"AMQP\x03\x01\x00\x00";

/// Longer than anything takes here, so that a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

pub(crate) struct Client {
    pub(crate) socket: Box<dyn Socket>,
}

/// A performative that came in.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) channel: u16,
    pub(crate) code: u64,
    pub(crate) fields: Vec<Value>,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn field(&self, at: usize) -> &Value {
        self.fields.get(at).unwrap_or(&Value::Null)
    }

    pub(crate) fn number(&self, at: usize) -> u32 {
        self.field(at).as_u32().unwrap_or_else(|| panic!("no number at {at}: {self:?}"))
    }

    /// The condition of the error at this place.
    pub(crate) fn condition(&self, at: usize) -> &str {
        described(self.field(at)).1[0].as_text().expect("a condition")
    }
}

/// The code and the fields of a described list.
pub(crate) fn described(value: &Value) -> (u64, &[Value]) {
    let Value::Described(described) = value else { panic!("not described: {value:?}") };
    let Value::Ulong(code) = described.0 else { panic!("no numeric descriptor: {value:?}") };
    (code, described.1.as_items().expect("a list"))
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Self {
        let socket = TcpStream::connect(address).await.expect("connect");
        socket.set_nodelay(true).expect("nodelay");
        Self { socket: Box::new(socket) }
    }

    /// Connected, opened and with a session on channel 0.
    pub(crate) async fn begun(address: &str) -> Self {
        let mut client = Self::connect(address).await;
        client.open(65536, None).await;
        client.begin(0).await;
        client
    }

    pub(crate) async fn open(&mut self, max_frame_size: u32, idle_ms: Option<u32>) -> Frame {
        self.write(AMQP_HEADER).await;
        assert_eq!(&self.read(8).await, AMQP_HEADER);
        let idle = idle_ms.map_or(Value::Null, Value::Uint);
        let fields = vec![Value::string("test"), Value::Null, Value::Uint(max_frame_size), Value::Ushort(65535), idle];
        self.send(0, OPEN, fields).await;
        self.expect(OPEN).await
    }

    pub(crate) async fn begin(&mut self, channel: u16) {
        let fields = vec![Value::Null, Value::Uint(0), Value::Uint(2048), Value::Uint(2048)];
        self.send(channel, BEGIN, fields).await;
        let begin = self.expect(BEGIN).await;
        assert_eq!((begin.channel, begin.number(0)), (channel, u32::from(channel)));
    }

    /// Attaches a sender and takes its first credit.
    pub(crate) async fn sender(&mut self, handle: u32, address: &str) -> Frame {
        self.send(0, ATTACH, sender(handle, address)).await;
        let attach = self.expect(ATTACH).await;
        let flow = self.expect(FLOW).await;
        assert!(flow.number(6) >= 100, "{flow:?}");
        attach
    }

    /// Attaches a receiver, with no credit yet.
    pub(crate) async fn receiver(&mut self, handle: u32, address: &str) -> Frame {
        self.send(0, ATTACH, receiver(handle, address, 0)).await;
        self.expect(ATTACH).await
    }

    pub(crate) async fn credit(&mut self, handle: u32, delivery_count: u32, credit: u32, drain: bool) {
        self.send(0, FLOW, flow(handle, delivery_count, credit, drain)).await;
    }

    /// Sends one message in one frame and returns the state it gets.
    pub(crate) async fn publish(&mut self, handle: u32, id: u32, payload: &[u8]) -> Value {
        self.transfer(handle, id, 0, false, payload).await;
        let disposition = self.expect(DISPOSITION).await;
        assert_eq!((disposition.field(0), disposition.number(1)), (&Value::Bool(true), id));
        disposition.fields[4].clone()
    }

    pub(crate) async fn transfer(&mut self, handle: u32, id: u32, format: u32, more: bool, payload: &[u8]) {
        let fields = transfer(handle, Some(id), format, more);
        self.send_with(0, TRANSFER, fields, payload).await;
    }

    pub(crate) async fn settle(&mut self, first: u32, last: u32, state: Value) {
        self.send(0, DISPOSITION, disposition(first, last, false, state)).await;
    }

    pub(crate) async fn send(&mut self, channel: u16, code: u64, fields: Vec<Value>) {
        self.send_with(channel, code, fields, &[]).await;
    }

    pub(crate) async fn send_with(&mut self, channel: u16, code: u64, fields: Vec<Value>, payload: &[u8]) {
        let mut body = encode(&Value::described(code, Value::List(fields)));
        body.extend_from_slice(payload);
        self.write(&frame(0, channel, &body)).await;
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("write");
    }

    pub(crate) async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        timeout(PATIENCE, self.socket.read_exact(&mut bytes)).await.expect("in time").expect("bytes");
        bytes
    }

    /// The next frame; `None` for a heartbeat.
    pub(crate) async fn next_or_heartbeat(&mut self) -> Option<Frame> {
        let head = self.read(8).await;
        let size = u32::from_be_bytes(head[..4].try_into().expect("four bytes")) as usize;
        let body = self.read(size - 8).await;
        if body.is_empty() {
            return None;
        }
        let mut reader = ValueReader::new(&body);
        let value = reader.value().expect("a performative");
        let (code, fields) = described(&value);
        let (fields, payload) = (fields.to_vec(), reader.rest().to_vec());
        Some(Frame { channel: u16::from_be_bytes([head[6], head[7]]), code, fields, payload })
    }

    pub(crate) async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.next_or_heartbeat().await {
                return frame;
            }
        }
    }

    pub(crate) async fn expect(&mut self, code: u64) -> Frame {
        let frame = self.next().await;
        assert_eq!(frame.code, code, "{frame:?}");
        frame
    }

    /// Says something that is always answered, and expects nothing but the answer.
    pub(crate) async fn expect_nothing(&mut self) {
        let echo = [Value::Uint(0), Value::Uint(2048), Value::Uint(0), Value::Uint(2048)];
        let mut fields = echo.to_vec();
        fields.extend(vec![Value::Null; 5]);
        fields.push(Value::Bool(true));
        self.send(0, FLOW, fields).await;
        let frame = self.expect(FLOW).await;
        assert!(frame.field(4).is_null(), "{frame:?}");
    }

    /// Reads until the server closes the socket.
    pub(crate) async fn expect_end_of_stream(&mut self) {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.socket.read_to_end(&mut rest)).await.expect("in time");
        // Whether the server's system resets or ends the stream depends on what was under way.
        if read.is_ok() {
            assert!(rest.is_empty(), "unexpected bytes: {rest:02x?}");
        }
    }
}

pub(crate) fn frame(kind: u8, channel: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len() + 8).expect("short").to_be_bytes().to_vec();
    bytes.extend([2, kind]);
    bytes.extend(channel.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn source(address: &str) -> Value {
    Value::described(0x28, Value::List(vec![Value::string(address)]))
}

pub(crate) fn target(address: &str) -> Value {
    Value::described(0x29, Value::List(vec![Value::string(address)]))
}

pub(crate) fn sender(handle: u32, address: &str) -> Vec<Value> {
    let mut fields = vec![
        Value::string(format!("sender-{handle}")),
        Value::Uint(handle),
        Value::Bool(false),
        Value::Ubyte(2),
        Value::Ubyte(0),
        source("here"),
        target(address),
    ];
    fields.extend([Value::Null, Value::Null, Value::Uint(0)]);
    fields
}

/// `snd_settle_mode` 1 is receive-and-delete.
pub(crate) fn receiver(handle: u32, address: &str, snd_settle_mode: u8) -> Vec<Value> {
    vec![
        Value::string(format!("receiver-{handle}")),
        Value::Uint(handle),
        Value::Bool(true),
        Value::Ubyte(snd_settle_mode),
        Value::Ubyte(1),
        source(address),
        target("here"),
    ]
}

pub(crate) fn flow(handle: u32, delivery_count: u32, credit: u32, drain: bool) -> Vec<Value> {
    vec![
        Value::Uint(0),
        Value::Uint(1_000_000),
        Value::Uint(0),
        Value::Uint(2048),
        Value::Uint(handle),
        Value::Uint(delivery_count),
        Value::Uint(credit),
        Value::Null,
        Value::Bool(drain),
    ]
}

pub(crate) fn transfer(handle: u32, id: Option<u32>, format: u32, more: bool) -> Vec<Value> {
    vec![
        Value::Uint(handle),
        id.map_or(Value::Null, Value::Uint),
        Value::Binary(Bytes::from_static(b"tag")),
        Value::Uint(format),
        Value::Bool(false),
        Value::Bool(more),
    ]
}

pub(crate) fn disposition(first: u32, last: u32, settled: bool, state: Value) -> Vec<Value> {
    vec![Value::Bool(true), Value::Uint(first), Value::Uint(last), Value::Bool(settled), state]
}

pub(crate) fn state(code: u64) -> Value {
    Value::described(code, Value::List(Vec::new()))
}

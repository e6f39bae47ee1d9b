//! A publisher that writes AMQP frames itself, for messages that client libraries do not send.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// The largest frame, in bytes.
pub(crate) const FRAME: usize = 131_072;

pub(crate) fn short(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&[text.len() as u8], text].concat()
}

pub(crate) fn long(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

pub(crate) struct RawPublisher(TcpStream);

impl RawPublisher {
    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(long(payload));
        frame.push(0xce);
        self.0.write_all(&frame).unwrap();
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        self.frame(1, channel, &[&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat());
    }

    /// The next method of the broker's.
    fn expect(&mut self, class: u16, method: u16) {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).unwrap();
        let mut rest = vec![0; u32::from_be_bytes(head[3..].try_into().unwrap()) as usize + 1];
        self.0.read_exact(&mut rest).unwrap();
        let got = (u16::from_be_bytes([rest[0], rest[1]]), u16::from_be_bytes([rest[2], rest[3]]));
        assert_eq!(got, (class, method), "{}", String::from_utf8_lossy(&rest));
    }

    pub(crate) fn connect(url: &str) -> Self {
        let (_, host) = url.split_once('@').unwrap();
        let mut raw = Self(TcpStream::connect(host.split('/').next().unwrap()).unwrap());
        raw.0.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        raw.0.write_all(b"AMQP\0\0\x09\x01").unwrap();
        raw.expect(10, 10);
        let login = long(b"\0guest\0guest");
        raw.method(0, 10, 11, &[long([]), short("PLAIN"), login, short("en_US")].concat());
        raw.expect(10, 30);
        raw.method(0, 10, 31, &[&[0, 7][..], &(FRAME as u32).to_be_bytes(), &[0, 0]].concat());
        raw.method(0, 10, 40, &[short("/"), short(""), vec![0]].concat());
        raw.expect(10, 41);
        raw.method(1, 20, 10, &short(""));
        raw.expect(20, 11);
        raw.method(1, 85, 10, &[0]);
        raw.expect(85, 11);
        raw
    }

    /// Publishes a message with the properties that the flags name, and waits for the confirm.
    pub(crate) fn publish(&mut self, exchange: &str, routing_key: &[u8], flags: u16, properties: &[u8], body: &[u8]) {
        self.method(1, 60, 40, &[vec![0, 0], short(exchange), short(routing_key), vec![0]].concat());
        let mut head = vec![0, 60, 0, 0];
        head.extend((body.len() as u64).to_be_bytes());
        head.extend(flags.to_be_bytes());
        head.extend(properties);
        self.frame(2, 1, &head);
        self.frame(3, 1, body);
        self.expect(60, 80);
    }
}

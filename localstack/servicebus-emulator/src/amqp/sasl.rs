//! What comes before AMQP itself: protocol headers, and SASL where the client asks for it.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::cbs::Claim;
use super::frame::{self, SASL};
use super::io::Io;
use crate::Shared;
use crate::codec::{Reader, begin_list, end_list, put_descriptor, put_value};
use crate::value::Value;

const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";

const MECHANISMS: u64 = 0x40;
const INIT: u64 = 0x41;
const OUTCOME: u64 = 0x44;

/// A SASL frame is never longer.
const MAX_FRAME: usize = 4096;

/// What a client proved before it opened the connection.
#[derive(Debug)]
pub(crate) struct Login(
    /// What the key allows that it named by PLAIN; otherwise claims come through `$cbs`.
    pub(crate) Option<Claim>,
);

/// Brings a connection to where its open frame comes next. `None` when it is no client of this protocol, or not let in.
pub(crate) async fn negotiate(
    io: &mut (dyn Io + '_),
    input: &mut BytesMut,
    shared: &Shared,
) -> std::io::Result<Option<Login>> {
    let mut header = read_header(io, input).await?;
    let mut login = Login(None);
    if header == SASL_HEADER {
        io.write_all(&greeting()).await?;
        io.flush().await?;
        let Some(init) = read_frame(io, input).await? else { return Ok(None) };
        let accepted = authenticate(&init, shared);
        io.write_all(&outcome(accepted.is_some())).await?;
        io.flush().await?;
        match accepted {
            Some(accepted) => login = accepted,
            None => return Ok(None),
        }
        header = read_header(io, input).await?;
    }
    // The answer to a header nobody here speaks is the one that is spoken, and the end.
    io.write_all(&AMQP_HEADER).await?;
    io.flush().await?;
    Ok((header == AMQP_HEADER).then_some(login))
}

async fn read_header(io: &mut (dyn Io + '_), input: &mut BytesMut) -> std::io::Result<[u8; 8]> {
    while input.len() < 8 {
        more(io, input).await?;
    }
    let mut header = [0; 8];
    input.copy_to_slice(&mut header);
    Ok(header)
}

async fn read_frame(io: &mut (dyn Io + '_), input: &mut BytesMut) -> std::io::Result<Option<frame::Frame>> {
    loop {
        match frame::take(input, MAX_FRAME) {
            Ok(Some(frame)) => return Ok((frame.kind == SASL).then_some(frame)),
            Ok(None) => more(io, input).await?,
            Err(_) => return Ok(None),
        }
    }
}

async fn more(io: &mut (dyn Io + '_), input: &mut BytesMut) -> std::io::Result<()> {
    match io.read_buf(input).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn greeting() -> Vec<u8> {
    let mechanisms = ["MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL"].map(Value::symbol).to_vec();
    let mut out = SASL_HEADER.to_vec();
    frame::put(&mut out, SASL, 0, |out| {
        put_descriptor(out, MECHANISMS);
        let list = begin_list(out);
        put_value(out, &Value::Array(mechanisms));
        end_list(out, list, 1);
    });
    out
}

fn outcome(ok: bool) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, SASL, 0, |out| {
        put_descriptor(out, OUTCOME);
        let list = begin_list(out);
        put_value(out, &Value::Ubyte(u8::from(!ok)));
        end_list(out, list, 1);
    });
    out
}

fn authenticate(init: &frame::Frame, shared: &Shared) -> Option<Login> {
    let mut reader = Reader::new(&init.body);
    if reader.descriptor().ok()? != Value::Ulong(INIT) {
        return None;
    }
    let init = reader.value().ok()?;
    let fields = init.as_items()?;
    match fields.first()?.as_text()? {
        "ANONYMOUS" | "MSSBCBS" | "EXTERNAL" => Some(Login(None)),
        "PLAIN" => plain(fields.get(1)?.as_bytes()?, shared),
        _ => None,
    }
}

/// `authorization NUL name NUL key`.
fn plain(response: &[u8], shared: &Shared) -> Option<Login> {
    let mut parts = response.split(|byte| *byte == 0).skip(1);
    let name = std::str::from_utf8(parts.next()?).ok()?;
    let key = std::str::from_utf8(parts.next()?).ok()?;
    if shared.keys.is_empty() {
        return Some(Login(None));
    }
    let keys = shared.keys.all();
    let known = keys.iter().find(|known| known.name() == name && known.has_secret(key))?;
    Some(Login(Some(Claim::of_login(known))))
}

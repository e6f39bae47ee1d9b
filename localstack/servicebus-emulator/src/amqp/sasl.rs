//! The negotiation before AMQP: protocol headers, and SASL when the client asks for it.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::requests::cbs::CbsClaim;
use super::wire::frame::{self, SASL};
use crate::SharedState;
use crate::codec::{Value, ValueReader, begin_list, end_list, put_descriptor, put_value};
use crate::transport::ByteStream;

const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";

const MECHANISMS: u64 = 0x40;
const INIT: u64 = 0x41;
const OUTCOME: u64 = 0x44;

/// The longest SASL frame that is accepted.
const MAX_FRAME: usize = 4096;

/// The result of the negotiation: how the client logged in.
#[derive(Debug)]
pub(crate) struct SaslLogin(
    /// The claim of the key that the client sent by PLAIN. Without one the client puts its claims through `$cbs`.
    pub(crate) Option<CbsClaim>,
);

/// Negotiates until the open frame comes next. Returns `None` when the client speaks another protocol or its login
/// failed.
pub(crate) async fn negotiate(
    io: &mut (dyn ByteStream + '_),
    input: &mut BytesMut,
    shared: &SharedState,
) -> std::io::Result<Option<SaslLogin>> {
    let mut header = read_header(io, input).await?;
    let mut login = SaslLogin(None);
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
    // An unknown header is answered with the one that is supported, after which the connection ends.
    io.write_all(&AMQP_HEADER).await?;
    io.flush().await?;
    Ok((header == AMQP_HEADER).then_some(login))
}

async fn read_header(io: &mut (dyn ByteStream + '_), input: &mut BytesMut) -> std::io::Result<[u8; 8]> {
    while input.len() < 8 {
        more(io, input).await?;
    }
    let mut header = [0; 8];
    input.copy_to_slice(&mut header);
    Ok(header)
}

async fn read_frame(io: &mut (dyn ByteStream + '_), input: &mut BytesMut) -> std::io::Result<Option<frame::Frame>> {
    loop {
        match frame::take(input, MAX_FRAME) {
            Ok(Some(frame)) => return Ok((frame.kind == SASL).then_some(frame)),
            Ok(None) => more(io, input).await?,
            Err(_) => return Ok(None),
        }
    }
}

async fn more(io: &mut (dyn ByteStream + '_), input: &mut BytesMut) -> std::io::Result<()> {
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

fn authenticate(init: &frame::Frame, shared: &SharedState) -> Option<SaslLogin> {
    let mut reader = ValueReader::new(&init.body);
    if reader.descriptor().ok()? != Value::Ulong(INIT) {
        return None;
    }
    let init = reader.value().ok()?;
    let fields = init.as_items()?;
    match fields.first()?.as_text()? {
        "ANONYMOUS" | "MSSBCBS" | "EXTERNAL" => Some(SaslLogin(None)),
        "PLAIN" => plain(fields.get(1)?.as_bytes()?, shared),
        _ => None,
    }
}

/// Checks the response of PLAIN, which is `authorization NUL name NUL key`.
fn plain(response: &[u8], shared: &SharedState) -> Option<SaslLogin> {
    let mut parts = response.split(|byte| *byte == 0).skip(1);
    let name = std::str::from_utf8(parts.next()?).ok()?;
    let key = std::str::from_utf8(parts.next()?).ok()?;
    if shared.keys.is_empty() {
        return Some(SaslLogin(None));
    }
    let keys = shared.keys.all();
    let known = keys.iter().find(|known| known.name() == name && known.has_secret(key))?;
    Some(SaslLogin(Some(CbsClaim::of_login(known))))
}

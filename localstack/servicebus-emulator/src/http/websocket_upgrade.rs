//! The handshake of AMQP over WebSockets. After it the AMQP server owns the connection.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, StatusCode};
use sha1::{Digest, Sha1};

use super::response::{self, Answer};

/// The path at which the service accepts WebSockets.
pub(super) const PATH: &str = "$servicebus/websocket";

/// The subprotocol's standard name, and the name that Microsoft's SDKs use.
const PROTOCOLS: [&str; 2] = ["amqp", "AMQPWSB10"];

/// The constant of RFC 6455 with which a server proves that it understood the handshake.
const PROOF: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Answers a handshake with 101, or with the reason for its refusal.
pub(super) fn answer(method: &Method, headers: &HeaderMap) -> Answer {
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|_| *method == Method::GET && wants(headers)) else {
        return response::failed(StatusCode::UPGRADE_REQUIRED, "A WebSocket of version 13 is expected here.");
    };
    let Some(protocol) = PROTOCOLS.into_iter().find(|protocol| lists(headers, &SEC_WEBSOCKET_PROTOCOL, protocol))
    else {
        return response::failed(StatusCode::BAD_REQUEST, "The subprotocol 'amqp' is expected.");
    };
    let proof = STANDARD.encode(Sha1::new().chain_update(key).chain_update(PROOF).finalize());
    let Ok(proof) = HeaderValue::from_str(&proof) else {
        return response::failed(StatusCode::BAD_REQUEST, "The key makes no sense.");
    };
    let mut answer = response::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, proof);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    answer
}

fn wants(headers: &HeaderMap) -> bool {
    lists(headers, &UPGRADE, "websocket")
        && lists(headers, &CONNECTION, "upgrade")
        && lists(headers, &SEC_WEBSOCKET_VERSION, "13")
}

/// True when a header, which may occur more than once, has this among its values.
fn lists(headers: &HeaderMap, name: &hyper::header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
}

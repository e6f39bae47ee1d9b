//! Writes the frames that the server sends.

use super::frame::{self, AMQP};
use super::performative::{ATTACH, BEGIN, CLOSE, DETACH, DISPOSITION, END, FLOW, OPEN, TRANSFER};
use super::{AmqpError, DeliveryState};
use crate::codec::{
    Value, begin_list, end_list, put_binary, put_bool, put_descriptor, put_null, put_string, put_uint, put_ulong,
    put_value,
};

/// Appends a frame with one performative of `count` fields.
fn perform(out: &mut Vec<u8>, channel: u16, code: u64, count: usize, fields: impl FnOnce(&mut Vec<u8>)) {
    frame::put(out, AMQP, channel, |out| {
        put_descriptor(out, code);
        let list = begin_list(out);
        fields(out);
        end_list(out, list, count);
    });
}

fn put_ushort(out: &mut Vec<u8>, n: u16) {
    put_value(out, &Value::Ushort(n));
}

fn put_nulls(out: &mut Vec<u8>, count: usize) {
    (0..count).for_each(|_| put_null(out));
}

pub(crate) fn heartbeat(out: &mut Vec<u8>) {
    frame::put(out, AMQP, 0, |_| {});
}

pub(crate) fn open(out: &mut Vec<u8>, container: &str, max_frame_size: u32, channel_max: u16, idle_timeout_ms: u32) {
    perform(out, 0, OPEN, 5, |out| {
        put_string(out, container);
        put_null(out);
        put_uint(out, max_frame_size);
        put_ushort(out, channel_max);
        put_uint(out, idle_timeout_ms);
    });
}

pub(crate) fn begin(out: &mut Vec<u8>, channel: u16, next_outgoing_id: u32, window: u32, handle_max: u32) {
    perform(out, channel, BEGIN, 5, |out| {
        put_ushort(out, channel);
        put_uint(out, next_outgoing_id);
        put_uint(out, window);
        put_uint(out, window);
        put_uint(out, handle_max);
    });
}

/// The reply to an attach.
pub(crate) struct AttachReply<'a> {
    pub(crate) name: &'a str,
    pub(crate) handle: u32,
    /// The server receives on this link.
    pub(crate) receives: bool,
    pub(crate) snd_settle_mode: u8,
    pub(crate) rcv_settle_mode: u8,
    pub(crate) source: &'a Value,
    pub(crate) target: &'a Value,
    pub(crate) max_message_size: u64,
    pub(crate) properties: &'a Value,
}

/// Writes an attach. Initial-delivery-count and properties are always present, because SDKs read them without a check.
pub(crate) fn attach(out: &mut Vec<u8>, channel: u16, reply: &AttachReply<'_>) {
    perform(out, channel, ATTACH, 14, |out| {
        put_string(out, reply.name);
        put_uint(out, reply.handle);
        put_bool(out, reply.receives);
        put_value(out, &Value::Ubyte(reply.snd_settle_mode));
        put_value(out, &Value::Ubyte(reply.rcv_settle_mode));
        put_value(out, reply.source);
        put_value(out, reply.target);
        put_nulls(out, 2);
        if reply.receives {
            put_null(out)
        } else {
            put_uint(out, 0)
        }
        put_ulong(out, reply.max_message_size);
        put_nulls(out, 2);
        put_value(out, reply.properties);
    });
}

/// The session's windows in a flow frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionWindows {
    pub(crate) next_incoming_id: u32,
    pub(crate) incoming_window: u32,
    pub(crate) next_outgoing_id: u32,
    pub(crate) outgoing_window: u32,
}

/// The link's part of a flow frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkFlow {
    pub(crate) handle: u32,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    pub(crate) drain: bool,
}

pub(crate) fn flow(out: &mut Vec<u8>, channel: u16, windows: SessionWindows, link: Option<LinkFlow>) {
    perform(out, channel, FLOW, if link.is_some() { 9 } else { 4 }, |out| {
        put_uint(out, windows.next_incoming_id);
        put_uint(out, windows.incoming_window);
        put_uint(out, windows.next_outgoing_id);
        put_uint(out, windows.outgoing_window);
        if let Some(link) = link {
            put_uint(out, link.handle);
            put_uint(out, link.delivery_count);
            put_uint(out, link.credit);
            put_null(out);
            put_bool(out, link.drain);
        }
    });
}

/// One frame of a delivery.
pub(crate) struct TransferFrame<'a> {
    pub(crate) handle: u32,
    pub(crate) delivery_id: u32,
    pub(crate) tag: &'a [u8],
    pub(crate) settled: bool,
    pub(crate) more: bool,
    pub(crate) payload: &'a [u8],
}

/// The most bytes that a transfer frame takes besides its payload.
pub(crate) const TRANSFER_OVERHEAD: usize = 64;

pub(crate) fn transfer(out: &mut Vec<u8>, channel: u16, transfer: &TransferFrame<'_>) {
    frame::put(out, AMQP, channel, |out| {
        put_descriptor(out, TRANSFER);
        let list = begin_list(out);
        put_uint(out, transfer.handle);
        put_uint(out, transfer.delivery_id);
        put_binary(out, transfer.tag);
        put_uint(out, 0);
        put_bool(out, transfer.settled);
        put_bool(out, transfer.more);
        end_list(out, list, 6);
        out.extend_from_slice(transfer.payload);
    });
}

/// Settles a range of deliveries.
pub(crate) fn disposition(
    out: &mut Vec<u8>,
    channel: u16,
    as_receiver: bool,
    first: u32,
    last: u32,
    state: &DeliveryState,
) {
    perform(out, channel, DISPOSITION, 5, |out| {
        put_bool(out, as_receiver);
        put_uint(out, first);
        put_uint(out, last);
        put_bool(out, true);
        state.encode_into(out);
    });
}

pub(crate) fn detach(out: &mut Vec<u8>, channel: u16, handle: u32, closed: bool, error: Option<&AmqpError>) {
    perform(out, channel, DETACH, if error.is_some() { 3 } else { 2 }, |out| {
        put_uint(out, handle);
        put_bool(out, closed);
        if let Some(error) = error {
            error.encode_into(out);
        }
    });
}

pub(crate) fn end(out: &mut Vec<u8>, channel: u16, error: Option<&AmqpError>) {
    farewell(out, channel, END, error);
}

pub(crate) fn close(out: &mut Vec<u8>, error: Option<&AmqpError>) {
    farewell(out, 0, CLOSE, error);
}

fn farewell(out: &mut Vec<u8>, channel: u16, code: u64, error: Option<&AmqpError>) {
    perform(out, channel, code, usize::from(error.is_some()), |out| {
        if let Some(error) = error {
            error.encode_into(out);
        }
    });
}

//! Incoming transfers: joined to deliveries and passed to the link's node.

use super::attach::{CREDIT, MAX_REQUEST_BYTES};
use super::{IncomingLink, Link, LinkEnd, LinkSlot, PartialDelivery, TargetNode};
use crate::amqp::engine::ConnectionEngine;
use crate::amqp::session::WINDOW;
use crate::amqp::wire::error::{DECODE_ERROR, MESSAGE_SIZE, RESOURCE_LIMIT, TRANSFER_LIMIT, UNATTACHED_HANDLE};
use crate::amqp::wire::{AmqpError, DeliveryState, Transfer, writer};
use crate::broker::Target;
use crate::faults::BusyOperation;
use crate::message::{BATCH_FORMAT, Message};

/// The most bytes that all incomplete deliveries of one connection may take.
const MAX_PARTIAL_BYTES: usize = 256 * 1024 * 1024;

/// A complete delivery.
struct IncomingDelivery {
    id: u32,
    format: u32,
    settled: bool,
}

impl ConnectionEngine {
    pub(crate) fn transfer(&mut self, channel: u16, transfer: &Transfer, payload: &[u8]) -> Result<(), AmqpError> {
        let Some(session) = self.session_mut(channel) else { return Ok(()) };
        session.next_incoming_id = session.next_incoming_id.wrapping_add(1);
        session.incoming_window = session.incoming_window.saturating_sub(1);
        if session.incoming_window <= WINDOW / 2 {
            session.incoming_window = WINDOW;
            let windows = session.windows();
            writer::flow(&mut self.out, channel, windows, None);
        }
        let now = self.shared.clock().now_ms();
        let Some(session) = self.session_mut(channel) else { return Ok(()) };
        let link = match session.links.get_mut(&transfer.handle) {
            Some(LinkSlot::Attached(link)) => link,
            Some(LinkSlot::Leaving) => return Ok(()),
            None => return Err(AmqpError::new(UNATTACHED_HANDLE, format!("no link has handle {}", transfer.handle))),
        };
        link.used_at = now;
        let Link { end: LinkEnd::In(incoming), .. } = link else {
            return Err(AmqpError::new(UNATTACHED_HANDLE, "a transfer came in on a link that the peer receives on"));
        };
        let (before, limit) = (incoming.held(), incoming.limit());
        let step = incoming.step(transfer, payload, limit);
        let after = incoming.held();
        self.partial_bytes = self.partial_bytes + after - before;
        let step = match step {
            Ok(step) if self.partial_bytes <= MAX_PARTIAL_BYTES => step,
            Ok(_) => {
                let error =
                    AmqpError::new(RESOURCE_LIMIT, "the incomplete deliveries of this connection take too much");
                self.fail(&error);
                return Ok(());
            }
            Err(error) => {
                self.detach(channel, transfer.handle, Some(&error));
                return Ok(());
            }
        };
        match step {
            Assembly::More => {}
            Assembly::Whole(delivery) => self.deliver(channel, transfer.handle, &delivery, payload),
            Assembly::Joined(delivery, bytes) => self.deliver(channel, transfer.handle, &delivery, &bytes),
            Assembly::Oversize(delivery) => {
                let error = AmqpError::new(
                    MESSAGE_SIZE,
                    format!(
                        "The received message (delivery-id:{}) exceeds the limit ({limit} bytes) currently allowed on the link.",
                        delivery.id
                    ),
                );
                self.answer_send(channel, transfer.handle, &delivery, Err(error));
            }
        }
        Ok(())
    }

    fn deliver(&mut self, channel: u16, handle: u32, delivery: &IncomingDelivery, payload: &[u8]) {
        let Some(Link { end: LinkEnd::In(incoming), .. }) =
            self.session_mut(channel).and_then(|session| session.link_mut(handle))
        else {
            return;
        };
        let low = incoming.credit <= CREDIT / 2;
        let done = match &incoming.node {
            TargetNode::Entity(target) => {
                let target = target.clone();
                let done = self.shared.check_busy(BusyOperation::Send).map_err(AmqpError::from);
                done.and_then(|()| store(&target, delivery.format, payload))
            }
            TargetNode::Cbs => Message::decode(payload).map_err(AmqpError::from).map(|request| {
                self.cbs_request(channel, &request);
            }),
            TargetNode::Management(address) => {
                let address = address.clone();
                Message::decode(payload).map_err(AmqpError::from).map(|request| {
                    self.management_request(channel, &address, &request);
                })
            }
        };
        self.answer_send(channel, handle, delivery, done);
        if low {
            self.grant(channel, handle);
        }
    }

    fn answer_send(&mut self, channel: u16, handle: u32, delivery: &IncomingDelivery, done: Result<(), AmqpError>) {
        match (done, delivery.settled) {
            (Ok(()), true) => {}
            (Ok(()), false) => self.settle(channel, true, delivery.id, delivery.id, DeliveryState::Accepted),
            (Err(error), false) => {
                self.settle(channel, true, delivery.id, delivery.id, DeliveryState::Rejected(Some(error)));
            }
            // A sender that settles in advance hears of no outcome, so a detach is the only way to report the error.
            (Err(error), true) => self.detach(channel, handle, Some(&error)),
        }
    }
}

fn store(target: &Target, format: u32, payload: &[u8]) -> Result<(), AmqpError> {
    let limit = target.max_message_bytes();
    if payload.len() as u64 > limit {
        return Err(AmqpError::new(
            MESSAGE_SIZE,
            format!(
                "The received message (size:{} bytes) exceeds the limit ({limit} bytes) currently allowed on the link.",
                payload.len()
            ),
        ));
    }
    if format != BATCH_FORMAT {
        return Ok(target.send(vec![Message::decode(payload)?])?);
    }
    let limit = target.max_batch_bytes();
    if payload.len() as u64 > limit {
        return Err(AmqpError::new(
            MESSAGE_SIZE,
            format!("The received batch (size:{} bytes) exceeds the limit ({limit} bytes) of a batch.", payload.len()),
        ));
    }
    let (envelope, messages) = Message::decode_batch(payload)?;
    Ok(target.send_batch(messages, &envelope)?)
}

/// The state of a delivery after one of its transfers.
enum Assembly {
    More,
    /// The payload of this transfer is all of it.
    Whole(IncomingDelivery),
    Joined(IncomingDelivery, Vec<u8>),
    Oversize(IncomingDelivery),
}

impl IncomingLink {
    pub(super) fn new(node: TargetNode, delivery_count: u32) -> Self {
        Self { node, delivery_count, credit: 0, partial: None }
    }

    fn held(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.len())
    }

    fn limit(&self) -> u64 {
        match &self.node {
            TargetNode::Entity(target) => target.max_message_bytes(),
            TargetNode::Cbs | TargetNode::Management(_) => MAX_REQUEST_BYTES,
        }
    }

    fn step(&mut self, transfer: &Transfer, payload: &[u8], limit: u64) -> Result<Assembly, AmqpError> {
        if transfer.aborted {
            self.partial = None;
            return Ok(Assembly::More);
        }
        let Some(mut partial) = self.partial.take() else {
            let id = transfer
                .delivery_id
                .ok_or_else(|| AmqpError::new(DECODE_ERROR, "the first transfer of a delivery has no delivery-id"))?;
            if self.credit == 0 {
                return Err(AmqpError::new(TRANSFER_LIMIT, "a delivery came in without credit"));
            }
            self.credit -= 1;
            self.delivery_count = self.delivery_count.wrapping_add(1);
            let format = transfer.message_format.unwrap_or(0);
            let settled = transfer.settled.unwrap_or(false);
            if transfer.more {
                let oversize = payload.len() as u64 > limit;
                let bytes = if oversize { Vec::new() } else { payload.to_vec() };
                self.partial = Some(PartialDelivery { delivery_id: id, format, settled, bytes, oversize });
                return Ok(Assembly::More);
            }
            return Ok(Assembly::Whole(IncomingDelivery { id, format, settled }));
        };
        if transfer.delivery_id.is_some_and(|id| id != partial.delivery_id) {
            return Err(AmqpError::new(DECODE_ERROR, "a delivery began within another one of the same link"));
        }
        partial.settled |= transfer.settled.unwrap_or(false);
        if (partial.bytes.len() + payload.len()) as u64 > limit {
            partial.oversize = true;
            partial.bytes = Vec::new();
        }
        if !partial.oversize {
            partial.bytes.extend_from_slice(payload);
        }
        if transfer.more {
            self.partial = Some(partial);
            return Ok(Assembly::More);
        }
        let delivery = IncomingDelivery { id: partial.delivery_id, format: partial.format, settled: partial.settled };
        Ok(if partial.oversize { Assembly::Oversize(delivery) } else { Assembly::Joined(delivery, partial.bytes) })
    }
}

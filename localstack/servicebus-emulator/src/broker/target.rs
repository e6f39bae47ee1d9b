//! Sending: stores messages in a queue, or routes them through a topic to its subscriptions.

use std::sync::{Arc, MutexGuard, PoisonError};

use uuid::Uuid;

use super::dispatch::DeadLetter;
use super::entities::{EntityStatus, Queue, Subscription, Topic};
use super::rules::RuleMatches;
use super::store::DuplicateHistory;
use super::store::NewMessage;
use super::store::partitions;
use crate::codec::Value;
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

/// An entity to send to. A clone refers to the same target. After the entity is deleted every call is refused.
#[derive(Clone)]
pub struct Target {
    pub(super) entity: TargetEntity,
    pub(super) max_message_bytes: u64,
}

#[derive(Clone)]
pub(super) enum TargetEntity {
    Queue(Arc<Queue>),
    Topic(Arc<Topic>),
}

/// Annotations that an earlier entity gave a message. They are removed, because the new entity adds its own.
const STALE_ANNOTATIONS: [&str; 6] = [
    "x-opt-sequence-number",
    "x-opt-enqueue-sequence-number",
    "x-opt-enqueued-time",
    "x-opt-locked-until",
    "x-opt-message-state",
    "x-opt-deadletter-source",
];

const MAX_BATCH_BYTES: u64 = 1024 * 1024;

const SCHEDULED: &str = "x-opt-scheduled-enqueue-time";

impl Target {
    /// Stores all of these messages or, with a refusal, none.
    pub fn send(&self, messages: Vec<Message>) -> Result<(), Refusal> {
        self.send_together(messages, None)
    }

    /// The same for a batch and its envelope, whose session id or partition key routes the whole batch in a partitioned
    /// entity.
    pub fn send_batch(&self, messages: Vec<Message>, envelope: &Message) -> Result<(), Refusal> {
        self.send_together(messages, Some(envelope))
    }

    fn send_together(&self, messages: Vec<Message>, envelope: Option<&Message>) -> Result<(), Refusal> {
        self.check_together(messages.iter(), envelope)?;
        let messages = messages
            .into_iter()
            .map(|message| {
                let at = message.annotation(SCHEDULED).and_then(Value::as_i64);
                (message, at)
            })
            .collect();
        self.admit(messages).map(drop)
    }

    /// Schedules messages for times in milliseconds since the epoch, all or none. Returns the sequence numbers, which
    /// cancel them.
    pub fn schedule(&self, messages: Vec<(Message, i64)>) -> Result<Vec<i64>, Refusal> {
        self.check_together(messages.iter().map(|(message, _)| message), None)?;
        self.admit(messages.into_iter().map(|(message, at)| (message, Some(at))).collect())
    }

    /// Cancels scheduled messages: all of them or, with a refusal, none.
    pub fn cancel_scheduled(&self, sequence_numbers: &[i64]) -> Result<(), Refusal> {
        let store = match &self.entity {
            TargetEntity::Queue(queue) => &queue.backing.main,
            TargetEntity::Topic(topic) => &topic.scheduled,
        };
        store.try_with(|state, _, _| state.cancel(sequence_numbers))
    }

    fn check_together<'a>(
        &self,
        messages: impl Iterator<Item = &'a Message>,
        envelope: Option<&Message>,
    ) -> Result<(), Refusal> {
        let (partitioned, detects) = match &self.entity {
            TargetEntity::Queue(queue) => {
                let settings = queue.settings.read().unwrap_or_else(PoisonError::into_inner);
                (settings.enable_partitioning, settings.requires_duplicate_detection)
            }
            TargetEntity::Topic(topic) => {
                let settings = topic.settings.read().unwrap_or_else(PoisonError::into_inner);
                (settings.enable_partitioning, settings.requires_duplicate_detection)
            }
        };
        if partitioned { partitions::check_together(messages, envelope, detects) } else { Ok(()) }
    }

    /// Refuses while the entity is disabled for sending.
    pub fn check_sends(&self) -> Result<(), Refusal> {
        match &self.entity {
            TargetEntity::Queue(queue) => check_sends(&queue.name, queue.settings().status),
            TargetEntity::Topic(topic) => check_sends(&topic.name, topic.settings().status),
        }
    }

    /// The largest batch this entity takes, in bytes: 1 MiB also where single messages may be larger
    /// (<https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>).
    pub fn max_batch_bytes(&self) -> u64 {
        self.max_message_bytes().min(MAX_BATCH_BYTES)
    }

    /// The largest message this entity takes, in bytes.
    pub fn max_message_bytes(&self) -> u64 {
        let own = match &self.entity {
            TargetEntity::Queue(queue) => queue.settings().max_message_size_in_kilobytes,
            TargetEntity::Topic(topic) => topic.settings().max_message_size_in_kilobytes,
        };
        own.map_or(self.max_message_bytes, |kilobytes| kilobytes * 1024)
    }

    fn admit(&self, messages: Vec<(Message, Option<i64>)>) -> Result<Vec<i64>, Refusal> {
        let limit = self.max_message_bytes();
        let total = messages.iter().map(|(message, _)| message.encoded_size as u64).sum();
        if let Some((message, _)) = messages.iter().find(|(message, _)| message.encoded_size as u64 > limit) {
            return Err(Refusal::new(
                Condition::MessageSizeExceeded,
                format!(
                    "The received message (delivery-id:0, size:{} bytes) exceeds the limit ({limit} bytes) currently allowed on the link.",
                    message.encoded_size
                ),
            ));
        }
        self.accepts(messages.iter().map(|(message, _)| message), total)?;
        let incoming = messages
            .into_iter()
            .map(|(message, at)| NewMessage { scheduled_for: at, ..NewMessage::new(Arc::new(cleaned(message))) })
            .collect();
        match &self.entity {
            TargetEntity::Queue(queue) => queue.take_in(incoming),
            TargetEntity::Topic(topic) => topic.take_in(incoming),
        }
    }

    /// Refuses messages of `bytes` in total that the entity may not take: a session id is missing, sending is disabled,
    /// or the quota is full.
    pub(super) fn accepts<'a>(
        &self,
        mut messages: impl Iterator<Item = &'a Message>,
        bytes: u64,
    ) -> Result<(), Refusal> {
        let (name, status, megabytes, stored) = match &self.entity {
            TargetEntity::Queue(queue) => {
                let settings = queue.settings.read().unwrap_or_else(PoisonError::into_inner);
                // The empty id names a session like any other.
                let homeless = |message: &Message| message.properties.group_id.is_none();
                if settings.requires_session && messages.any(homeless) {
                    return Err(Refusal::new(
                        Condition::NotAllowed,
                        "The SessionId was not set on a message, and it cannot be sent to the entity. Entities that have session \
                         support enabled can only receive messages that have the SessionId set to a valid value.",
                    ));
                }
                (&queue.name, settings.status, settings.quota_in_megabytes(), queue.backing.bytes())
            }
            TargetEntity::Topic(topic) => {
                let settings = topic.settings.read().unwrap_or_else(PoisonError::into_inner);
                let stored = topic.subscriptions.read().unwrap_or_else(PoisonError::into_inner);
                let stored = stored.values().map(|subscription| subscription.backing.bytes()).sum::<u64>();
                (&topic.name, settings.status, settings.quota_in_megabytes(), stored + topic.scheduled.bytes())
            }
        };
        check_sends(name, status)?;
        let quota = megabytes.saturating_mul(1024 * 1024);
        if stored.saturating_add(bytes) > quota {
            return Err(Refusal::new(
                Condition::QuotaExceeded,
                format!(
                    "The maximum entity size has been reached or exceeded for '{name}'. Size of entity in bytes: {stored}, max entity size in bytes: {quota}."
                ),
            ));
        }
        Ok(())
    }

    /// Stores a forwarded message that `accepts` allowed before.
    pub(super) fn take_in(&self, incoming: NewMessage) {
        // If the entity was deleted in between, the message is dropped like all its other messages.
        let _ = match &self.entity {
            TargetEntity::Queue(queue) => queue.take_in(vec![incoming]),
            TargetEntity::Topic(topic) => topic.take_in(vec![incoming]),
        };
    }
}

impl Queue {
    fn take_in(&self, incoming: Vec<NewMessage>) -> Result<Vec<i64>, Refusal> {
        let (detects, window, partitioned) = {
            let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
            (
                settings.requires_duplicate_detection,
                settings.duplicate_detection_history_ms,
                settings.enable_partitioning,
            )
        };
        let mut duplicates = detects.then(|| self.duplicates.lock().unwrap_or_else(PoisonError::into_inner));
        self.backing.main.try_with(|state, now, changes| {
            self.times.touch(now);
            Ok(incoming
                .into_iter()
                .map(|incoming| {
                    // A duplicate is answered as if it had been stored, and its sequence number names no message.
                    if is_duplicate(&mut duplicates, &incoming.message, partitioned, now, window) {
                        return state.number(&incoming.message);
                    }
                    state.insert(incoming, now, changes)
                })
                .collect())
        })
    }
}

impl Topic {
    fn take_in(&self, incoming: Vec<NewMessage>) -> Result<Vec<i64>, Refusal> {
        let (detects, window, partitioned) = {
            let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
            (
                settings.requires_duplicate_detection,
                settings.duplicate_detection_history_ms,
                settings.enable_partitioning,
            )
        };
        let mut duplicates = detects.then(|| self.duplicates.lock().unwrap_or_else(PoisonError::into_inner));
        let mut due = Vec::with_capacity(incoming.len());
        let numbers = self.scheduled.try_with(|state, now, changes| {
            self.times.touch(now);
            Ok(incoming
                .into_iter()
                .map(|mut incoming| {
                    if is_duplicate(&mut duplicates, &incoming.message, partitioned, now, window) {
                        return state.number(&incoming.message);
                    }
                    if incoming.scheduled_for.is_some_and(|at| at > now) {
                        return state.insert(incoming, now, changes);
                    }
                    let number = state.number(&incoming.message);
                    incoming.enqueued_sequence_number.get_or_insert(number);
                    due.push(incoming);
                    number
                })
                .collect())
        })?;
        drop(duplicates);
        self.route(due);
        Ok(numbers)
    }

    /// Gives each subscription the copies that its rules ask for.
    pub(super) fn route(&self, messages: Vec<NewMessage>) {
        for subscription in self.subscriptions() {
            subscription.take_in(&messages);
        }
    }
}

impl Subscription {
    fn take_in(&self, messages: &[NewMessage]) {
        let (dead_letters, sessions) = {
            let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
            (settings.dead_lettering_on_filter_evaluation_exceptions, settings.requires_session)
        };
        let rules = self.rules();
        let mut wanted: Vec<(NewMessage, Option<DeadLetter>)> = Vec::new();
        for incoming in messages {
            let copy = |message| NewMessage {
                message,
                size: incoming.size,
                scheduled_for: None,
                enqueued_sequence_number: incoming.enqueued_sequence_number,
                dead_letter_source: incoming.dead_letter_source.clone(),
                hops: incoming.hops,
            };
            match RuleMatches::of(&rules, &incoming.message) {
                Ok(verdict) => {
                    // A subscription with sessions cannot store a message without a session id.
                    let fits = |message: &Arc<Message>| !sessions || message.properties.group_id.is_some();
                    let copies = verdict.into_copies(&incoming.message).into_iter();
                    wanted.extend(copies.filter(fits).map(|message| (copy(message), None)));
                }
                Err(why) if dead_letters => {
                    wanted.push((copy(incoming.message.clone()), Some(DeadLetter::filter_failed(&why))));
                }
                Err(_) => {}
            }
        }
        if wanted.is_empty() {
            return;
        }
        self.backing.main.with(|state, now, changes| {
            for (incoming, failure) in wanted {
                match failure {
                    None => {
                        state.insert(incoming, now, changes);
                    }
                    Some(why) => state.insert_failed(incoming, why, now, changes),
                }
            }
        });
    }
}

fn check_sends(name: &str, status: EntityStatus) -> Result<(), Refusal> {
    if status.sends() {
        return Ok(());
    }
    Err(Refusal::new(
        Condition::EntityDisabled,
        format!("Messaging entity '{name}' is currently disabled for send operations."),
    ))
}

/// True when a message id was seen before. In a partitioned entity ids are compared within one partition key:
/// <https://learn.microsoft.com/azure/service-bus-messaging/duplicate-detection>.
fn is_duplicate(
    seen: &mut Option<MutexGuard<'_, DuplicateHistory>>,
    message: &Message,
    partitioned: bool,
    now: i64,
    window: i64,
) -> bool {
    let (Some(seen), Some(id)) = (seen, &message.properties.message_id) else { return false };
    let key = message.properties.group_id.clone().or_else(|| partitions::partition_key(message));
    match key.filter(|_| partitioned) {
        Some(key) => !seen.is_new(&Value::List(vec![Value::String(key), id.clone()]), now, window),
        None => !seen.is_new(id, now, window),
    }
}

fn cleaned(mut message: Message) -> Message {
    // The sender's other delivery annotations are kept.
    message.delivery_annotations.retain(|(key, _)| key.as_text() != Some("x-opt-lock-token"));
    message.annotations.retain(|(key, _)| !key.as_text().is_some_and(|key| STALE_ANNOTATIONS.contains(&key)));
    message.header.delivery_count = 0;
    if message.properties.message_id.is_none() {
        message.properties.message_id = Some(Value::string(Uuid::new_v4().simple().to_string()));
    }
    message
}

//! Partitioned entities: the partition of a message, and which messages may not be in one request.
//!
//! The rules and texts are the service's:
//! <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-partitioning>,
//! <https://github.com/Azure/azure-service-bus-dotnet/issues/386> (lock tokens),
//! <https://github.com/Azure/azure-service-bus/issues/287> (sequence numbers),
//! <https://github.com/Azure/azure-service-bus/issues/103> and
//! <https://github.com/Azure/azure-sdk-for-python/issues/21955> (batches).

use crate::codec::Value;
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

/// Partitions of an entity of the standard tier.
pub(crate) const PARTITIONS: i64 = 16;
/// The partition stands in the upper 16 bits of a sequence number:
/// <https://learn.microsoft.com/azure/service-bus-messaging/message-sequencing>.
const SHIFT: u32 = 48;
const PARTITION_KEY: &str = "x-opt-partition-key";

/// The key that decides about the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PartitionKey {
    /// The session id, or the partition key that the sender gave.
    Given(String),
    /// With duplicate detection, the id stands in for a key.
    MessageId(String),
}

impl PartitionKey {
    /// The key of a message, or of a batch as a whole; `None` lets the entity choose.
    fn of(message: &Message, detects_duplicates: bool) -> Option<Self> {
        let given = message.properties.group_id.clone().or_else(|| partition_key(message));
        given.map(Self::Given).or_else(|| {
            let id = message.properties.message_id.as_ref().filter(|_| detects_duplicates)?;
            Some(Self::MessageId(id.as_text().map_or_else(|| format!("{id:?}"), str::to_owned)))
        })
    }
}

/// The key the sender gave, if any.
pub(crate) fn partition_key(message: &Message) -> Option<String> {
    message.annotation(PARTITION_KEY).and_then(Value::as_text).map(str::to_owned)
}

/// The partition of a sequence number.
pub(super) fn partition_of(number: i64) -> i64 {
    number >> SHIFT
}

/// A sequence number of a partition.
pub(super) fn numbered(partition: i64, count: i64) -> i64 {
    (partition << SHIFT) | count
}

/// The partition that the message's key leads to; `None` where it has none.
pub(super) fn chosen(message: &Message, detects_duplicates: bool) -> Option<i64> {
    let (PartitionKey::Given(text) | PartitionKey::MessageId(text)) = PartitionKey::of(message, detects_duplicates)?;
    // FNV-1a: the same key leads to the same partition in every run.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    i64::try_from(hash % PARTITIONS.unsigned_abs()).ok()
}

/// Refuses messages of different partition keys in one batch. `envelope` is the batch message, by which the service
/// routes all of them.
pub(crate) fn check_together<'a>(
    messages: impl Iterator<Item = &'a Message>,
    envelope: Option<&Message>,
    detects_duplicates: bool,
) -> Result<(), Refusal> {
    let mut whole = envelope.map(|envelope| PartitionKey::of(envelope, detects_duplicates));
    if detects_duplicates && whole == Some(None) {
        return Err(no_key());
    }
    for message in messages {
        if let (Some(session), Some(key)) = (&message.properties.group_id, partition_key(message))
            && *session != key
        {
            return Err(not_allowed(
                "The SessionId and the PartitionKey of a message must be the same where both are set.",
            ));
        }
        let own = PartitionKey::of(message, detects_duplicates);
        if *whole.get_or_insert_with(|| own.clone()) != own {
            return Err(distinct(detects_duplicates));
        }
    }
    Ok(())
}

/// Refuses to settle or renew messages of different partitions in one request.
pub(super) fn check_locks(numbers: &[i64]) -> Result<(), Refusal> {
    if same(numbers) {
        return Ok(());
    }
    Err(not_allowed(
        "Batching lock tokens for different partitions is not supported for an entity with partitioning enabled.",
    ))
}

/// Refuses sequence numbers of different partitions in one request.
pub(super) fn check_numbers(numbers: &[i64]) -> Result<(), Refusal> {
    if same(numbers) {
        return Ok(());
    }
    Err(not_allowed(
        "ReceiveBatch of sequence numbers from different partitions is not supported for an entity with partitioning enabled.",
    ))
}

fn same(numbers: &[i64]) -> bool {
    numbers.windows(2).all(|pair| partition_of(pair[0]) == partition_of(pair[1]))
}

fn no_key() -> Refusal {
    not_allowed(
        "Message to a partitioned entity with duplicate detection enabled must have either PartitionKey or MessageId.",
    )
}

fn distinct(detects_duplicates: bool) -> Refusal {
    not_allowed(match detects_duplicates {
        true => {
            "Batching brokered messages with distinct SessionId, PartitionKey, or MessageId is not supported for an entity with \
             partitioning and duplicate detection enabled."
        }
        false => {
            "Batching brokered messages with distinct SessionId or PartitionKey is not supported for an entity with partitioning \
             enabled."
        }
    })
}

fn not_allowed(description: &str) -> Refusal {
    Refusal::new(Condition::NotAllowed, description)
}

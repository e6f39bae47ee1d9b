//! Draws the numbers of messages in the transaction that writes them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Once},
};

use bytes::Bytes;
use polybus_core::{Address, Envelope, Error, ErrorKind, Result, driver::async_trait};
use tokio::sync::watch;

use super::NUMBERS_RETENTION;
use crate::{
    store::{AnySequences, SequenceStore, SequenceTable, Store, StoreControl},
    sweeper::{self, Sweep, SweptRows},
};

/// Numbers the messages of an outbox.
pub(crate) struct Numbers<S> {
    sequences: Arc<dyn AnySequences<S>>,
    control: Arc<dyn StoreControl>,
    sweeper: Once,
    /// Closed when the last outbox is dropped, which ends the sweeper.
    alive: watch::Sender<()>,
}

impl<S: Store> Numbers<S> {
    pub(crate) fn new(store: &S) -> Self
    where
        S: SequenceStore,
    {
        let (sequences, control) = (Arc::new(store.clone()), store.control());
        Self { sequences, control, sweeper: Once::new(), alive: watch::Sender::new(()) }
    }

    /// How many numbers these messages need: those that have a key.
    ///
    /// # Errors
    /// `InvalidArgument` for one that has a number already, or another source: numbers are followed source by source.
    pub(crate) fn needed<'a>(
        &self,
        source: &str,
        to: &Address,
        messages: impl IntoIterator<Item = &'a Envelope>,
    ) -> Result<NeededNumbers> {
        let mut counts: BTreeMap<Bytes, i64> = BTreeMap::new();
        for message in messages {
            let Some(key) = key_of(message) else { continue };
            let text = if message.sequence.is_some() {
                "the message has a number already: leave out Envelope::sequence, or Outbox::sequenced"
            } else if &*message.source != source {
                "the message has another source, and a sequenced outbox numbers those of its own: leave out \
                 Envelope::source, or use an outbox of that source"
            } else {
                *counts.entry(key).or_default() += 1;
                continue;
            };
            return Err(Error::invalid(text).with_context("address", to).with_context("id", &message.id));
        }
        // In ascending order, as a map has it: whoever draws for the same keys waits instead of locking each other out.
        Ok(NeededNumbers { address: to.to_string(), keys: counts.into_iter().collect() })
    }

    /// Draws the numbers, and gives them to the messages.
    pub(crate) async fn draw<'a>(
        &self,
        conn: &mut S::Conn,
        needed: &NeededNumbers,
        messages: impl IntoIterator<Item = &'a mut Envelope>,
    ) -> Result<()> {
        let drawn = self.sequences.draw(conn, &needed.address, &needed.keys).await?;
        if drawn.len() != needed.keys.len() {
            return Err(Error::new(ErrorKind::Unexpected, "the store drew fewer numbers than were asked for"));
        }
        let below = |((key, count), last): (&(Bytes, i64), i64)| (key.clone(), last - count);
        let mut last: BTreeMap<Bytes, i64> = needed.keys.iter().zip(drawn).map(below).collect();
        for message in messages {
            let Some(n) = key_of(message).and_then(|key| last.get_mut(&key)) else { continue };
            *n += 1;
            *message = std::mem::replace(message, Envelope::bare("", "")).sequence(n.unsigned_abs());
        }
        self.sweeper.call_once(|| self.sweep());
        Ok(())
    }

    /// The messages are written, or they are not: the caller may go on with its transaction then, and numbers that stay
    /// drawn would be a gap.
    pub(crate) async fn settle(&self, conn: &mut S::Conn, needed: &NeededNumbers, written: bool) {
        let settled = match written {
            true => self.sequences.keep_draw(conn).await,
            false => self.sequences.undo_draw(conn, &needed.address, &needed.keys).await,
        };
        if let Err(error) = settled {
            tracing::debug!(target: "polybus", %error, written, "a draw of numbers could not be settled");
        }
    }

    fn sweep(&self) {
        let rows = Arc::new(OldNumbers(self.sequences.sequences()));
        let sweep = Sweep::new("sequence-sweep", "numbers of keys that are not used any more", rows);
        sweeper::start(sweep, self.control.clone(), self.alive.subscribe());
    }
}

/// How many numbers are needed for each key of an address.
#[derive(Default)]
pub(crate) struct NeededNumbers {
    address: String,
    keys: Vec<(Bytes, i64)>,
}

impl NeededNumbers {
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

fn key_of(message: &Envelope) -> Option<Bytes> {
    message.key.as_deref().map(|key| Bytes::copy_from_slice(key.as_bytes()))
}

struct OldNumbers(Arc<dyn SequenceTable>);

#[async_trait]
impl SweptRows for OldNumbers {
    async fn sweep(&self, limit: u32) -> Result<u64> {
        self.0.sweep_numbers(NUMBERS_RETENTION, limit).await
    }
}

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

    /// Numbers those of these messages that have a key.
    ///
    /// # Errors
    /// `InvalidArgument` for one that has a number already. Those of the database.
    pub(crate) async fn number<'a>(
        &self,
        conn: &mut S::Conn,
        to: &Address,
        messages: impl IntoIterator<Item = &'a mut Envelope>,
    ) -> Result<Drawn> {
        let messages: Vec<&mut Envelope> = messages.into_iter().filter(|message| message.key.is_some()).collect();
        let mut counts: BTreeMap<Bytes, i64> = BTreeMap::new();
        for message in &messages {
            if message.sequence.is_some() {
                let text = "the message has a number already: leave out Envelope::sequence, or Outbox::sequenced";
                return Err(Error::invalid(text).with_context("address", to).with_context("id", &message.id));
            }
            *counts.entry(key_of(message)).or_default() += 1;
        }
        if counts.is_empty() {
            return Ok(Drawn::default());
        }
        // In ascending order, as a map has it: whoever draws for the same keys waits instead of locking each other out.
        let keys: Vec<(Bytes, i64)> = counts.into_iter().collect();
        let drawn = self.sequences.draw(conn, &to.to_string(), &keys).await?;
        if drawn.len() != keys.len() {
            return Err(Error::new(ErrorKind::Unexpected, "the store drew fewer numbers than were asked for"));
        }
        let below = |((key, count), last): (&(Bytes, i64), i64)| (key.clone(), last - count);
        let mut last: BTreeMap<Bytes, i64> = keys.iter().zip(drawn).map(below).collect();
        for message in messages {
            let Some(n) = last.get_mut(&key_of(message)) else { continue };
            *n += 1;
            *message = std::mem::replace(message, Envelope::bare("", "")).sequence(n.unsigned_abs());
        }
        self.sweeper.call_once(|| self.sweep());
        Ok(Drawn(keys))
    }

    /// Gives numbers back whose messages could not be written: the caller may go on with its transaction, and without this
    /// there would be a gap. Where the transaction is lost, so are the numbers.
    pub(crate) async fn give_back(&self, conn: &mut S::Conn, to: &Address, drawn: Drawn) {
        let keys: Vec<(Bytes, i64)> = drawn.0.into_iter().map(|(key, count)| (key, -count)).collect();
        if !keys.is_empty() {
            let _ = self.sequences.draw(conn, &to.to_string(), &keys).await;
        }
    }

    fn sweep(&self) {
        let rows = Arc::new(OldNumbers(self.sequences.sequences()));
        let sweep = Sweep::new("sequence-sweep", "numbers of keys that are not used any more", rows);
        sweeper::start(sweep, self.control.clone(), self.alive.subscribe());
    }
}

/// How many numbers were drawn for each key.
#[derive(Default)]
pub(crate) struct Drawn(Vec<(Bytes, i64)>);

fn key_of(message: &Envelope) -> Bytes {
    Bytes::copy_from_slice(message.key.as_deref().unwrap_or_default().as_bytes())
}

struct OldNumbers(Arc<dyn SequenceTable>);

#[async_trait]
impl SweptRows for OldNumbers {
    async fn sweep(&self, limit: u32) -> Result<u64> {
        self.0.sweep_numbers(NUMBERS_RETENTION, limit).await
    }
}

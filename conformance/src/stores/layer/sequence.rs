//! Sequence numbers.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use polybus_core::{Error, ErrorKind, Result, driver::async_trait};
use polybus_patterns::store::{
    GuardKey, GuardedKey, InboxStore, OutboxStore, SequenceStore, SequenceTable, StoredGap, StoredProgress,
};

use super::{LayerState, SuiteStore};
use crate::stores::fault::StoreFault;

impl<S: OutboxStore + InboxStore + SequenceStore> SuiteStore<S> {
    /// The key as a fault sees it.
    fn guarded(&self, key: &GuardKey) -> GuardKey {
        let consumer = if self.has(StoreFault::OneProgress) { 0 } else { key.consumer };
        GuardKey { consumer, key: key.key }
    }

    fn told<V>(&self, answer: Result<V>) -> Result<V> {
        match answer {
            Err(e) if self.has(StoreFault::TellsNoBusyKey) && e.context("sequence").is_some() => {
                Err(Error::new(ErrorKind::Unexpected, "the statement was ended"))
            }
            answer => answer,
        }
    }
}

impl<S: OutboxStore + InboxStore + SequenceStore> SequenceStore for SuiteStore<S> {
    async fn draw(&self, conn: &mut S::Conn, address: &str, keys: &[(Bytes, i64)]) -> Result<Vec<i64>> {
        match self.state.fault {
            Some(StoreFault::DrawsAnew) => Ok(keys.iter().map(|(_, count)| *count).collect()),
            Some(StoreFault::DrawsForOneKey) => {
                let mut last = Vec::new();
                for (_, count) in keys {
                    last.extend(self.inner.draw(conn, address, &[(Bytes::from_static(b"one"), *count)]).await?);
                }
                Ok(last)
            }
            Some(StoreFault::DrawsForOneAddress) => self.inner.draw(conn, "queue:one", keys).await,
            Some(StoreFault::DrawsUnsorted) if self.state.draws.fetch_add(1, SeqCst).is_multiple_of(2) => {
                let turned: Vec<(Bytes, i64)> = keys.iter().rev().cloned().collect();
                let mut last = self.inner.draw(conn, address, &turned).await?;
                last.reverse();
                Ok(last)
            }
            _ => self.inner.draw(conn, address, keys).await,
        }
    }

    async fn undo_draw(&self, conn: &mut S::Conn, address: &str, keys: &[(Bytes, i64)]) -> Result<()> {
        if self.has(StoreFault::UndoesNoDraw) {
            return self.inner.keep_draw(conn).await;
        }
        self.inner.undo_draw(conn, address, keys).await
    }

    async fn keep_draw(&self, conn: &mut S::Conn) -> Result<()> {
        self.inner.keep_draw(conn).await
    }

    async fn advance(&self, conn: &mut S::Conn, key: &GuardKey, n: i64) -> Result<bool> {
        if self.has(StoreFault::AdvancesOutside) {
            let mut tx = self.inner.begin().await?;
            let advanced = self.inner.advance(&mut tx, key, n).await?;
            S::commit(tx).await?;
            return Ok(advanced);
        }
        self.state.advances.fetch_add(1, SeqCst);
        if self.has(StoreFault::AlwaysNext) {
            return Ok(true);
        }
        self.told(self.inner.advance(conn, &self.guarded(key), n).await)
    }

    async fn lock_progress(&self, conn: &mut S::Conn, key: &GuardKey, of: &GuardedKey<'_>) -> Result<StoredProgress> {
        let mut progress = self.told(self.inner.lock_progress(conn, &self.guarded(key), of).await)?;
        if self.has(StoreFault::ForgetsMissing) {
            progress.missing = progress.missing.map(|_| String::new());
        }
        Ok(progress)
    }

    async fn write_progress(&self, conn: &mut S::Conn, key: &GuardKey, progress: &StoredProgress) -> Result<()> {
        if self.has(StoreFault::WritesProgressOutside) {
            // In a task: on a database with one writer it has to wait for the caller's transaction.
            let (store, key, progress) = (self.inner.clone(), self.guarded(key), progress.clone());
            let write = async move {
                let mut tx = store.begin().await?;
                let of = GuardedKey { source: "", key: "" };
                store.lock_progress(&mut tx, &key, &of).await?;
                store.write_progress(&mut tx, &key, &progress).await?;
                S::commit(tx).await
            };
            self.state.inserts.lock().push(tokio::spawn(async move { drop(write.await) }));
            return Ok(());
        }
        self.inner.write_progress(conn, &self.guarded(key), progress).await
    }

    fn sequences(&self) -> Arc<dyn SequenceTable> {
        Arc::new(SuiteSequences { inner: self.inner.sequences(), state: self.state.clone() })
    }
}

struct SuiteSequences {
    inner: Arc<dyn SequenceTable>,
    state: Arc<LayerState>,
}

#[async_trait]
impl SequenceTable for SuiteSequences {
    async fn next(&self, key: &GuardKey) -> Result<Option<i64>> {
        if self.state.has(StoreFault::KnowsNoNext) {
            return Ok(None);
        }
        self.inner.next(key).await
    }

    async fn note_stopped(&self, key: &GuardKey, of: &GuardedKey<'_>, next: i64) -> Result<bool> {
        let news = self.inner.note_stopped(key, of, next).await?;
        Ok(news || self.state.has(StoreFault::AlwaysNews))
    }

    async fn gaps(&self, consumer: i32, after: Option<[u8; 16]>, limit: u32) -> Result<Vec<StoredGap>> {
        let after = after.filter(|_| !self.state.has(StoreFault::GapsFromTheFront));
        self.inner.gaps(consumer, after, limit).await
    }

    async fn sweep_progress(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        let (older_than, limit) = self.swept(older_than, limit);
        self.inner.sweep_progress(consumer, older_than, limit).await
    }

    async fn sweep_numbers(&self, older_than: Duration, limit: u32) -> Result<u64> {
        let (older_than, limit) = self.swept(older_than, limit);
        self.inner.sweep_numbers(older_than, limit).await
    }
}

impl SuiteSequences {
    fn swept(&self, older_than: Duration, limit: u32) -> (Duration, u32) {
        let young = self.state.has(StoreFault::SweepsYoungNumbers);
        let all = self.state.has(StoreFault::SweepsWithoutLimit);
        (if young { Duration::ZERO } else { older_than }, if all { 1_000_000 } else { limit })
    }
}

//! Snapshots: states that are kept, so that long streams are not read from the beginning each time.

use bytes::Bytes;
use polybus_core::Result;
use serde::{Serialize, de::DeserializeOwned};

use super::{Aggregate, EventLog, Loaded, append::check_stream};
use crate::store::{
    LogStore, StoredSnapshot,
    calls::{in_time, rows_limit},
};

/// The largest snapshot, as JSON: 4 MiB.
const MAX_SNAPSHOT: usize = 4 << 20;

/// A state that can be kept beside its stream. A snapshot is a cache: one of another schema, or one that cannot be read,
/// is passed over and replaced, and the state is made of all events again.
///
/// ```
/// # use polybus_core::HandlerError;
/// # use polybus_patterns::log::{Aggregate, LoggedEvent};
/// use polybus_patterns::log::Snapshot;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Account {
///     cents: i64,
/// }
/// # impl Aggregate for Account { fn apply(&mut self, _: &LoggedEvent) -> Result<(), HandlerError> { Ok(()) } }
///
/// impl Snapshot for Account {
///     const KIND: &'static str = "account";
///     const SCHEMA: u32 = 1; // raise it with each change of the type, or of what `apply` does
/// }
/// ```
pub trait Snapshot: Aggregate + Serialize + DeserializeOwned {
    /// What tells it from states of other types of the same streams, 1 to 128 bytes.
    const KIND: &'static str;
    /// The version of the type, and of what it makes of events. One of another version is not read.
    const SCHEMA: u32;
    /// A new one is kept once so many events had to be read.
    const EVERY: u64 = 100;
}

impl<S: LogStore> EventLog<S> {
    /// [`load`](Self::load) from the last snapshot on, if there is one. Where many events had to be read, a new one is
    /// kept; if that fails, the log says so, and the state is answered all the same.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, but that a snapshot may be kept.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::*, store::LogStore};
    /// # async fn example<S: LogStore, Account: Snapshot>(log: EventLog<S>) -> polybus_core::Result<()> {
    /// let account = log.load_snapshot::<Account>("account-7").await?;
    /// println!("version {}", account.version);
    /// # Ok(()) }
    /// ```
    pub async fn load_snapshot<A: Snapshot>(&self, stream: &str) -> Result<Loaded<A>> {
        check_stream(stream)?;
        let begin = self.find_snapshot::<A>(stream).await?;
        let known = begin.version;
        let loaded = self.load_from(stream, begin).await?;
        if loaded.version >= known + A::EVERY {
            self.keep_snapshot(stream, &loaded).await;
        }
        Ok(loaded)
    }

    /// The snapshot, if it can be read and its last event is there; else the state before the first event.
    async fn find_snapshot<A: Snapshot>(&self, stream: &str) -> Result<Loaded<A>> {
        let nothing = Loaded { state: A::default(), version: 0 };
        let limit = rows_limit(&*self.store.control());
        let Some(found) = in_time(limit, self.store.log().snapshot(stream, A::KIND)).await? else {
            return Ok(nothing);
        };
        let version = u64::try_from(found.version).unwrap_or_default();
        if found.schema != A::SCHEMA || version == 0 {
            return Ok(nothing);
        }
        let Ok(state) = serde_json::from_slice(&found.data) else {
            let kind = A::KIND;
            tracing::warn!(target: "polybus", stream, kind, version, "a snapshot cannot be read, and is made anew");
            return Ok(nothing);
        };
        // One from before the database went back knows events that never were.
        let last = self.read(stream, version - 1, 1).await?;
        let is_there = last.first().is_some_and(|event| event.version == version);
        Ok(if is_there { Loaded { state, version } } else { nothing })
    }

    async fn keep_snapshot<A: Snapshot>(&self, stream: &str, loaded: &Loaded<A>) {
        let kind = A::KIND;
        let data = match serde_json::to_vec(&loaded.state) {
            Ok(data) if data.len() <= MAX_SNAPSHOT => data,
            Ok(data) => {
                let bytes = data.len();
                tracing::warn!(target: "polybus", stream, kind, bytes, "a snapshot is too large to be kept");
                return;
            }
            Err(e) => {
                tracing::warn!(target: "polybus", stream, kind, error = %e, "a snapshot cannot be written as JSON");
                return;
            }
        };
        let version = i64::try_from(loaded.version).unwrap_or(i64::MAX);
        let snapshot = StoredSnapshot { schema: A::SCHEMA, version, data: Bytes::from(data) };
        let table = self.store.log();
        let put = table.put_snapshot(stream, kind, &snapshot);
        if let Err(e) = in_time(rows_limit(&*self.store.control()), put).await {
            tracing::warn!(target: "polybus", stream, kind, error = %e, "a snapshot cannot be kept");
        }
    }
}

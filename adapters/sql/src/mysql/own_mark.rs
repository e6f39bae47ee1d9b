//! The mark of a transaction that ended before its commit.

use polybus_core::Result;
use polybus_patterns::store::MarkKey;

use super::{
    MySql,
    literals::{Value, fill},
};

/// A mark that a transaction has written.
///
/// A statement that commits by itself commits the mark with what the handler had written by then. The rest is lost, and
/// the copy that comes next would be taken for a duplicate: so the mark is taken away.
#[derive(Clone, Debug)]
pub(super) struct OwnMark {
    pub(super) key: MarkKey,
    /// When it was set. A copy's mark has another time.
    pub(super) at: i64,
}

impl OwnMark {
    /// Takes the mark away if it is there though its transaction is over, and answers whether it was.
    pub(super) async fn take_away(&self, store: &MySql) -> Result<bool> {
        let sql = store.statements().await?;
        let MarkKey { consumer, hour, key } = &self.key;
        let values = [i64::from(*consumer).into(), i64::from(*hour).into(), Value::Bytes(key), self.at.into()];
        // Read first: a DELETE would wait for a copy that is under way.
        if store.look("inbox.mark", &fill(sql.mark.is_there.as_str(), &values)).await?.rows.is_empty() {
            return Ok(false);
        }
        let gone = store.run("inbox.mark", &fill(sql.mark.take_away.as_str(), &values)).await?;
        if gone.affected > 0 {
            tracing::error!(
                target: "polybus",
                "a handler ran a statement that commits by itself: what it wrote before is there, what came after is \
                 not, and the message comes again; run no such statement in a handler"
            );
        }
        Ok(gone.affected > 0)
    }
}

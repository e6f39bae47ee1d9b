//! The rows of an inbox that become too old.

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};

use crate::{store::InboxTable, sweeper::SweptRows};

/// The marks of one consumer that are older than the retention.
pub(super) struct OldMarks {
    pub(super) table: Arc<dyn InboxTable>,
    pub(super) consumer: i32,
    pub(super) retention: Duration,
}

#[async_trait]
impl SweptRows for OldMarks {
    async fn sweep(&self, limit: u32) -> Result<u64> {
        self.table.sweep(self.consumer, self.retention, limit).await
    }
}

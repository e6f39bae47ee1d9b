//! Leases and members.

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{Lease, LeaseTable};

use super::LayerState;
use crate::stores::{
    fault::StoreFault,
    table_troubles::{TableCall, TableTroubles},
};

pub(super) struct SuiteLeases {
    pub(super) inner: Arc<dyn LeaseTable>,
    pub(super) state: Arc<LayerState>,
    pub(super) tables: TableTroubles,
}

#[async_trait]
impl LeaseTable for SuiteLeases {
    async fn acquire(&self, names: &[String], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        self.tables.check(TableCall::Leases).await?;
        let mut taken = self.inner.acquire(names, owner, term).await?;
        if self.state.has(StoreFault::TakesHeldLeases) {
            let held: Vec<Lease> = names
                .iter()
                .filter(|name| !taken.iter().any(|lease| lease.name == **name))
                .map(|name| Lease { name: name.clone(), token: i64::MAX })
                .collect();
            taken.extend(held);
        }
        Ok(taken)
    }

    async fn renew(&self, leases: &[Lease], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        self.tables.check(TableCall::Leases).await?;
        let renewed = self.inner.renew(leases, owner, term).await?;
        Ok(if self.state.has(StoreFault::RenewsForAll) { leases.to_vec() } else { renewed })
    }

    async fn release(&self, leases: &[Lease], owner: &str) -> Result<()> {
        self.tables.check(TableCall::Leases).await?;
        if self.state.has(StoreFault::ReleasesNothing) {
            return Ok(());
        }
        self.inner.release(leases, owner).await
    }

    async fn join(&self, group: &str, member: &str, term: Duration) -> Result<u32> {
        self.tables.check(TableCall::Leases).await?;
        let members = self.inner.join(group, member, term).await?;
        Ok(if self.state.has(StoreFault::CountsNoMembers) { 1 } else { members })
    }

    async fn leave(&self, group: &str, member: &str) -> Result<()> {
        self.tables.check(TableCall::Leases).await?;
        self.inner.leave(group, member).await
    }
}

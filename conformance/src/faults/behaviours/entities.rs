//! Faults of entities, counts and connections.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Result, Source,
    driver::Driver,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

use super::faulty_driver::FaultBehaviour;

/// Changes the counts.
pub(crate) struct MiscountsStats(pub(crate) fn(&mut SourceStats));

#[async_trait]
impl FaultBehaviour for MiscountsStats {
    async fn stats(&self, driver: &dyn Driver, of: &Entity<Source>) -> Result<SourceStats> {
        let mut stats = driver.stats(of).await?;
        (self.0)(&mut stats);
        Ok(stats)
    }
}

/// Answers stats of a missing entity as if it were empty.
pub(crate) struct MissingIsEmpty;

#[async_trait]
impl FaultBehaviour for MissingIsEmpty {
    async fn stats(&self, driver: &dyn Driver, of: &Entity<Source>) -> Result<SourceStats> {
        driver
            .stats(of)
            .await
            .or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(SourceStats::default()) } else { Err(e) })
    }

    async fn purge(&self, driver: &dyn Driver, from: &Entity<Source>) -> Result<u64> {
        driver.purge(from).await.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(0) } else { Err(e) })
    }
}

/// Purges nothing, and says it has.
pub(crate) struct PurgesNothing;

#[async_trait]
impl FaultBehaviour for PurgesNothing {
    async fn purge(&self, driver: &dyn Driver, from: &Entity<Source>) -> Result<u64> {
        Ok(driver.stats(from).await?.ready.unwrap_or(0))
    }
}

/// Tells a wrong number of purged messages.
pub(crate) struct PurgeMiscounts;

#[async_trait]
impl FaultBehaviour for PurgeMiscounts {
    async fn purge(&self, driver: &dyn Driver, from: &Entity<Source>) -> Result<u64> {
        Ok(driver.purge(from).await? + 1)
    }
}

/// Declares wrongly.
pub(crate) enum DeclaresWrongly {
    /// Deletes an entity that differs, and makes it again.
    Changing,
    /// Says nothing of differences.
    Silent,
    /// Checks nothing in verify mode.
    VerifySilent,
    /// Makes what is missing, also in verify mode.
    VerifyCreating,
    /// Refuses entities that exist already.
    Twice,
    /// Makes queues and no topics.
    NoTopics,
    /// Reports everything as created, also what existed.
    AllCreated,
}

#[async_trait]
impl FaultBehaviour for DeclaresWrongly {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        let verify = mode == DeclareMode::Verify;
        match self {
            Self::Changing if !verify => {
                let report = driver.declare(plan, mode).await?;
                if report.differences.is_empty() {
                    return Ok(report);
                }
                driver.delete(plan).await?;
                driver.declare(plan, mode).await?;
                Ok(report)
            }
            Self::Silent if !verify => {
                let mut report = driver.declare(plan, mode).await?;
                report.differences.clear();
                Ok(report)
            }
            Self::VerifySilent if verify => Ok(DeclareReport::default()),
            Self::VerifyCreating if verify => {
                let report = driver.declare(plan, mode).await?;
                driver.declare(plan, DeclareMode::Create).await?;
                Ok(report)
            }
            Self::Twice if !verify => {
                let report = driver.declare(plan, mode).await?;
                if report.created.is_empty() && !plan.sources.is_empty() {
                    return Err(Error::new(ErrorKind::AlreadyExists, "it is there already"));
                }
                Ok(report)
            }
            Self::NoTopics if !verify => {
                let mut smaller = plan.clone();
                smaller.topics.clear();
                driver.declare(&smaller, mode).await
            }
            Self::AllCreated if !verify => {
                let mut report = driver.declare(plan, mode).await?;
                report.created = plan.sources.iter().map(|s| s.name.to_string()).collect();
                Ok(report)
            }
            _ => driver.declare(plan, mode).await,
        }
    }
}

/// Refuses a declare that runs beside another one.
#[derive(Default)]
pub(crate) struct DeclareRaces(AtomicUsize);

#[async_trait]
impl FaultBehaviour for DeclareRaces {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        let others = self.0.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        let report = driver.declare(plan, mode).await;
        self.0.fetch_sub(1, Ordering::SeqCst);
        if others > 0 {
            return Err(Error::new(ErrorKind::AlreadyExists, "another process was quicker"));
        }
        report
    }
}

/// Deletes nothing, and says it has.
pub(crate) struct DeletesNothing;

#[async_trait]
impl FaultBehaviour for DeletesNothing {
    async fn delete(&self, _: &dyn Driver, _: &DeclarePlan) -> Result<()> {
        Ok(())
    }
}

/// Refuses to be closed.
#[derive(Default)]
pub(crate) struct CloseFails(AtomicBool);

#[async_trait]
impl FaultBehaviour for CloseFails {
    async fn close(&self, driver: &dyn Driver) -> Result<()> {
        driver.close().await?;
        if self.0.swap(true, Ordering::SeqCst) { Err(Error::new(ErrorKind::Closed, "closed already")) } else { Ok(()) }
    }
}

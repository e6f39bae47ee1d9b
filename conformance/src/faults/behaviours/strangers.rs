//! Faults that only messages of other producers, lost acks or header names show.

use std::{
    collections::BTreeSet,
    mem::{Discriminant, discriminant},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use polybus_core::{
    Outgoing, Result,
    driver::{PreparedMessage, SettleRequest, Settlement},
};

use super::faulty_driver::{FaultBehaviour, ReceivePath, SendPath};

/// Deduplicates copies by the message's id: drops the second one and answers Ok.
#[derive(Default)]
pub(crate) struct CopiesById(Mutex<BTreeSet<(Box<str>, String)>>);

fn kind(how: &Settlement) -> Discriminant<Settlement> {
    discriminant(how)
}

#[async_trait]
impl FaultBehaviour for CopiesById {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let copy = (settle.envelope.id.clone(), format!("{:?}", kind(&settle.how)));
            let first = !settle.how.copies() || self.0.lock().insert(copy);
            answers.push(at.settle(settle, if first { settle.how.clone() } else { Settlement::Ack }).await);
        }
        answers
    }
}

/// Answers acks first and carries them out later, if the consumer exists that long.
pub(crate) struct AcksLater;

#[async_trait]
impl FaultBehaviour for AcksLater {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            if settle.how != Settlement::Ack {
                answers.push(at.settle(settle, settle.how.clone()).await);
                continue;
            }
            let (settler, settle) = (at.settler.clone(), settle.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                settler.settle(&[settle]).await
            });
            answers.push(Ok(()));
        }
        answers
    }

    async fn close_settler(&self, at: &ReceivePath) -> Result<()> {
        at.settler.close().await
    }
}

/// Obeys a header of the application as if it were an instruction to the broker.
pub(crate) struct ObeysHeader;

#[async_trait]
impl FaultBehaviour for ObeysHeader {
    fn prepare(&self, at: &SendPath, mut message: Outgoing) -> Result<PreparedMessage> {
        if message.envelope.headers.get("x-delay").is_some() {
            message = message.delay(Duration::from_secs(3600));
        }
        at.sender.prepare(message)
    }
}

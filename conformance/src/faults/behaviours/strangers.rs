//! Promises about what others made, broken.

use std::{
    collections::BTreeSet,
    mem::{Discriminant, discriminant},
    sync::Mutex,
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Outgoing, Result,
    driver::{PreparedMessage, SettleRequest, Settlement},
};

use super::wrapper::{Break, In, Out, lock};

/// Copies are deduplicated by the message's id: the second one is answered Ok and dropped.
#[derive(Default)]
pub(super) struct CopiesById(Mutex<BTreeSet<(Box<str>, String)>>);

fn kind(how: &Settlement) -> Discriminant<Settlement> {
    discriminant(how)
}

#[async_trait]
impl Break for CopiesById {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let copy = (settle.envelope.id.clone(), format!("{:?}", kind(&settle.how)));
            let first = !settle.how.copies() || lock(&self.0).insert(copy);
            answers.push(at.settle(settle, if first { settle.how.clone() } else { Settlement::Ack }).await);
        }
        answers
    }
}

/// Acks are answered first and carried out later, if the consumer lives that long.
pub(super) struct AcksLater;

#[async_trait]
impl Break for AcksLater {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
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

    async fn close_settler(&self, at: &In) -> Result<()> {
        at.settler.close().await
    }
}

/// Takes a header of the application for the broker's own instruction.
pub(super) struct Obeys;

#[async_trait]
impl Break for Obeys {
    fn prepare(&self, at: &Out, mut message: Outgoing) -> Result<PreparedMessage> {
        if message.envelope.headers.get("x-delay").is_some() {
            message = message.delay(Duration::from_secs(3600));
        }
        at.sender.prepare(message)
    }
}

//! Faults of settling and closing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Outgoing, Result,
    driver::{DriverToken, ReceivedMessage, Receiver, SettleRequest, Settlement},
    message::EnvelopeFields,
};
use tokio::time::Instant;

use super::faulty_driver::{FaultBehaviour, ReceivePath};

/// Settles in another way than was asked for.
pub(crate) struct SettlesOtherwise(pub(crate) fn(&ReceivePath, &SettleRequest) -> Option<Settlement>);

#[async_trait]
impl FaultBehaviour for SettlesOtherwise {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let how = (self.0)(at, settle).unwrap_or_else(|| settle.how.clone());
            answers.push(at.settle(settle, how).await);
        }
        answers
    }
}

/// Changes the answers to a batch.
pub(crate) struct SettleAnswers(pub(crate) fn(Vec<Result<()>>) -> Vec<Result<()>>);

#[async_trait]
impl FaultBehaviour for SettleAnswers {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        (self.0)(at.settler.settle(batch).await)
    }
}

/// Settles each message twice.
pub(crate) struct SettlesTwice;

#[async_trait]
impl FaultBehaviour for SettlesTwice {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        at.settler.settle(batch).await;
        at.settler.settle(batch).await
    }
}

/// Acks other messages.
pub(crate) enum AcksOthers {
    /// Acks another delivery of this consumer in its place.
    Another,
    /// Acks all older deliveries as well.
    AllBefore,
}

#[async_trait]
impl FaultBehaviour for AcksOthers {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let others = if settle.how == Settlement::Ack { at.held() } else { Vec::new() };
            match self {
                AcksOthers::Another if !others.is_empty() => {
                    answers.push(at.settle_held(&others[0], Settlement::Ack).await);
                }
                AcksOthers::Another => answers.push(at.settle(settle, settle.how.clone()).await),
                AcksOthers::AllBefore => {
                    answers.push(at.settle(settle, settle.how.clone()).await);
                    for other in others {
                        // It is LockLost if it was settled meanwhile.
                        let _ = at.settle_held(&other, Settlement::Ack).await;
                    }
                }
            }
        }
        answers
    }
}

/// Delays a short retry until a longer one is due.
#[derive(Default)]
pub(crate) struct HeadOfLine(Mutex<Option<Instant>>);

#[async_trait]
impl FaultBehaviour for HeadOfLine {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let mut how = settle.how.clone();
            if let Settlement::RetryAfter(delay) = &mut how {
                let now = Instant::now();
                let mut last = self.0.lock();
                let due = last.unwrap_or(now).max(now + *delay);
                *last = Some(due);
                *delay = due - now;
            }
            answers.push(at.settle(settle, how).await);
        }
        answers
    }
}

/// Makes a copy by publishing to the address of the message, so that every subscription gets it.
pub(crate) struct RepublishesCopy {
    pub(crate) when: fn(&Settlement) -> bool,
    pub(crate) edit: fn(&mut EnvelopeFields),
    /// How the message itself is settled.
    pub(crate) then: Settlement,
}

#[async_trait]
impl FaultBehaviour for RepublishesCopy {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            if !(self.when)(&settle.how) {
                answers.push(at.settle(settle, settle.how.clone()).await);
                continue;
            }
            let mut copy = Outgoing::from(settle.envelope.clone().edit(self.edit));
            if let Settlement::RetryAfter(delay) = settle.how {
                copy = copy.delay(delay);
            }
            let copied = at.publish(copy).await;
            answers.push(match copied {
                Ok(()) => at.settle(settle, self.then.clone()).await,
                Err(e) => Err(e),
            });
        }
        answers
    }
}

/// Acks, and answers that the settlement failed.
pub(crate) struct AcksAndFails(pub(crate) fn(&Settlement) -> bool);

#[async_trait]
impl FaultBehaviour for AcksAndFails {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            if (self.0)(&settle.how) {
                let _ = at.settle(settle, Settlement::Ack).await;
                answers.push(Err(Error::new(ErrorKind::Unavailable, "no copy could be made")));
            } else {
                answers.push(at.settle(settle, settle.how.clone()).await);
            }
        }
        answers
    }
}

/// Tells wrong attempts of a message after some settlement of it.
pub(crate) struct MiscountsAttempts {
    pub(crate) when: fn(&Settlement) -> bool,
    /// The attempt to tell, from the true one and the one at that settlement.
    pub(crate) say: fn(u32, u32) -> u32,
    pub(crate) at: Mutex<BTreeMap<Box<str>, u32>>,
}

impl MiscountsAttempts {
    pub(crate) fn new(when: fn(&Settlement) -> bool, say: fn(u32, u32) -> u32) -> Self {
        Self { when, say, at: Mutex::default() }
    }
}

#[async_trait]
impl FaultBehaviour for MiscountsAttempts {
    async fn receive(&self, _: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in &mut batch {
            if let Some(then) = self.at.lock().get(&received.envelope.id) {
                received.attempt = (self.say)(received.attempt, *then);
            }
        }
        Ok(batch)
    }

    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        for settle in batch.iter().filter(|s| (self.when)(&s.how)) {
            self.at.lock().insert(settle.envelope.id.clone(), settle.attempt);
        }
        at.settler.settle(batch).await
    }
}

type LockHolder = (Arc<dyn polybus_core::driver::Settler>, DriverToken);

/// Lets a late settlement settle the message of its next holder, and hides from core that the lock ran out.
#[derive(Default)]
pub(crate) struct LateAckTakes(Mutex<BTreeMap<Box<str>, LockHolder>>);

#[async_trait]
impl FaultBehaviour for LateAckTakes {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in &mut batch {
            received.locked_until = received.locked_until.map(|until| until + Duration::from_secs(3600));
            let holder = (at.settler.clone(), received.token.clone());
            self.0.lock().insert(received.envelope.id.clone(), holder);
        }
        Ok(batch)
    }

    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let mut answer = at.settle(settle, settle.how.clone()).await;
            let now = self.0.lock().get(&settle.envelope.id).cloned();
            if let (Err(_), Some((settler, token))) = (&answer, now) {
                let other = settle.with_token(token);
                answer = settler.settle(&[other]).await.pop().unwrap_or(Ok(()));
            }
            answers.push(answer);
        }
        answers
    }

    fn holds(&self, _: &ReceivePath, _: &DriverToken) -> bool {
        true
    }
}

/// Answers that locks were extended, and extends none.
pub(crate) struct ExtendsNothing;

#[async_trait]
impl FaultBehaviour for ExtendsNothing {
    async fn extend(&self, _: &ReceivePath, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        tokens.iter().map(|_| Ok(Instant::now() + by)).collect()
    }
}

/// Refuses to extend locks.
pub(crate) struct ExtendFails(pub(crate) ErrorKind);

#[async_trait]
impl FaultBehaviour for ExtendFails {
    async fn extend(&self, _: &ReceivePath, tokens: &[DriverToken], _: Duration) -> Vec<Result<Instant>> {
        Error::new(self.0, "not held").for_each_of(tokens.len())
    }
}

/// What a consumer does wrongly at its end.
pub(crate) enum AtClose {
    /// Loses what it holds.
    Loses,
    /// Puts what it holds at the end of the queue.
    Reorders,
    /// Keeps what it holds until the locks run out.
    Keeps,
}

#[async_trait]
impl FaultBehaviour for AtClose {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let back = settle.how == Settlement::GiveBack && !at.is_dead();
            answers.push(match self {
                AtClose::Loses if back => at.settle(settle, Settlement::Ack).await,
                AtClose::Keeps if back => Ok(()),
                AtClose::Reorders if back => match at.publish(settle.envelope.clone()).await {
                    Ok(()) => at.settle(settle, Settlement::Ack).await,
                    Err(e) => Err(e),
                },
                _ => at.settle(settle, settle.how.clone()).await,
            });
        }
        answers
    }

    async fn close_settler(&self, at: &ReceivePath) -> Result<()> {
        let held = if at.is_dead() { Vec::new() } else { at.held() };
        for received in held {
            match self {
                AtClose::Loses => {
                    let _ = at.settle_held(&received, Settlement::Ack).await;
                }
                AtClose::Reorders => {
                    if at.settler.holds(&received.token) {
                        at.publish(received.envelope.clone()).await?;
                        at.settle_held(&received, Settlement::Ack).await?;
                    }
                }
                AtClose::Keeps => {}
            }
        }
        if matches!(self, AtClose::Keeps) {
            // The consumer below is not closed, as if the broker had not been told of its end.
            std::mem::forget(at.settler.clone());
            return Ok(());
        }
        at.settler.close().await
    }
}

/// Goes on receiving after the consumer was closed.
pub(crate) struct ReceivesAfterClose;

#[async_trait]
impl FaultBehaviour for ReceivesAfterClose {
    async fn close_receiver(&self, at: &ReceivePath, receiver: &mut dyn Receiver) -> Result<()> {
        receiver.close().await?;
        let (driver, mut from) = (at.driver.clone(), at.from.clone());
        from.prefetch = 1;
        tokio::spawn(async move {
            let Ok((mut again, settler)) = driver.open_receiver(&from).await else { return };
            let _taken = again.receive(1).await;
            std::future::pending::<()>().await;
            drop(settler);
        });
        Ok(())
    }
}

/// Answers Ok to a settlement after the end of its consumer.
pub(crate) struct LateIsOk;

#[async_trait]
impl FaultBehaviour for LateIsOk {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let lie = |r: Result<()>| r.or_else(|e| if e.kind() == ErrorKind::LockLost { Ok(()) } else { Err(e) });
        at.settler.settle(batch).await.into_iter().map(lie).collect()
    }

    fn holds(&self, _: &ReceivePath, _: &DriverToken) -> bool {
        true
    }
}

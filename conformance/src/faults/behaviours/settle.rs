//! Promises of settling and closing, broken.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Outgoing, Result,
    driver::{DriverToken, ReceivedMessage, Receiver, SettleRequest, Settlement},
    message::EnvelopeFields,
};
use tokio::time::Instant;

use super::wrapper::{Break, In, lock};

/// Settles in another way than was asked.
pub(super) struct Missettle(pub(super) fn(&In, &SettleRequest) -> Option<Settlement>);

#[async_trait]
impl Break for Missettle {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let how = (self.0)(at, settle).unwrap_or_else(|| settle.how.clone());
            answers.push(at.settle(settle, how).await);
        }
        answers
    }
}

/// Changes the answers to a batch.
pub(super) struct SettleAnswers(pub(super) fn(Vec<Result<()>>) -> Vec<Result<()>>);

#[async_trait]
impl Break for SettleAnswers {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        (self.0)(at.settler.settle(batch).await)
    }
}

/// Settles each message twice.
pub(super) struct Twice;

#[async_trait]
impl Break for Twice {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        at.settler.settle(batch).await;
        at.settler.settle(batch).await
    }
}

/// Acks something else.
pub(super) enum Acks {
    /// Another delivery of this consumer in place of this one.
    Another,
    /// All older ones, too.
    AllBefore,
}

#[async_trait]
impl Break for Acks {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let others = if settle.how == Settlement::Ack { at.held() } else { Vec::new() };
            match self {
                Acks::Another if !others.is_empty() => {
                    answers.push(at.settle_held(&others[0], Settlement::Ack).await);
                }
                Acks::Another => answers.push(at.settle(settle, settle.how.clone()).await),
                Acks::AllBefore => {
                    answers.push(at.settle(settle, settle.how.clone()).await);
                    for other in others {
                        // LockLost where it was settled since.
                        let _ = at.settle_held(&other, Settlement::Ack).await;
                    }
                }
            }
        }
        answers
    }
}

/// A short retry waits behind a long one.
#[derive(Default)]
pub(super) struct HeadOfLine(Mutex<Option<Instant>>);

#[async_trait]
impl Break for HeadOfLine {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let mut how = settle.how.clone();
            if let Settlement::RetryAfter(delay) = &mut how {
                let now = Instant::now();
                let mut last = lock(&self.0);
                let due = last.unwrap_or(now).max(now + *delay);
                *last = Some(due);
                *delay = due - now;
            }
            answers.push(at.settle(settle, how).await);
        }
        answers
    }
}

/// Makes a copy by publishing it to where the message came from, where the contract says that it must not.
pub(super) struct Republishes {
    pub(super) when: fn(&Settlement) -> bool,
    pub(super) edit: fn(&mut EnvelopeFields),
    /// What becomes of the message itself.
    pub(super) then: Settlement,
}

#[async_trait]
impl Break for Republishes {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
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

/// Acks, and says that the settlement failed.
pub(super) struct AcksAndFails(pub(super) fn(&Settlement) -> bool);

#[async_trait]
impl Break for AcksAndFails {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
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

/// Counts attempts wrongly from some settlement on, by message.
pub(super) struct Recount {
    pub(super) when: fn(&Settlement) -> bool,
    /// The attempt to say, from the true one and the one at that settlement.
    pub(super) say: fn(u32, u32) -> u32,
    pub(super) at: Mutex<BTreeMap<Box<str>, u32>>,
}

impl Recount {
    pub(super) fn new(when: fn(&Settlement) -> bool, say: fn(u32, u32) -> u32) -> Self {
        Self { when, say, at: Mutex::default() }
    }
}

#[async_trait]
impl Break for Recount {
    async fn receive(&self, _: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in &mut batch {
            if let Some(then) = lock(&self.at).get(&received.envelope.id) {
                received.attempt = (self.say)(received.attempt, *then);
            }
        }
        Ok(batch)
    }

    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        for settle in batch.iter().filter(|s| (self.when)(&s.how)) {
            lock(&self.at).insert(settle.envelope.id.clone(), settle.attempt);
        }
        at.settler.settle(batch).await
    }
}

type Holder = (Arc<dyn polybus_core::driver::Settler>, DriverToken);

/// A late settlement takes the message from whoever holds it by then. That the deadline passed is kept from core.
#[derive(Default)]
pub(super) struct LateAckTakes(Mutex<BTreeMap<Box<str>, Holder>>);

#[async_trait]
impl Break for LateAckTakes {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in &mut batch {
            received.locked_until = received.locked_until.map(|until| until + Duration::from_secs(3600));
            let holder = (at.settler.clone(), received.token.clone());
            lock(&self.0).insert(received.envelope.id.clone(), holder);
        }
        Ok(batch)
    }

    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let mut answer = at.settle(settle, settle.how.clone()).await;
            let now = lock(&self.0).get(&settle.envelope.id).cloned();
            if let (Err(_), Some((settler, token))) = (&answer, now) {
                let other = settle.with_token(token);
                answer = settler.settle(&[other]).await.pop().unwrap_or(Ok(()));
            }
            answers.push(answer);
        }
        answers
    }

    fn holds(&self, _: &In, _: &DriverToken) -> bool {
        true
    }
}

/// Says that locks were lengthened, and does nothing.
pub(super) struct ExtendsNothing;

#[async_trait]
impl Break for ExtendsNothing {
    async fn extend(&self, _: &In, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        tokens.iter().map(|_| Ok(Instant::now() + by)).collect()
    }
}

/// Refuses to lengthen locks.
pub(super) struct ExtendFails(pub(super) ErrorKind);

#[async_trait]
impl Break for ExtendFails {
    async fn extend(&self, _: &In, tokens: &[DriverToken], _: Duration) -> Vec<Result<Instant>> {
        Error::new(self.0, "not held").for_each_of(tokens.len())
    }
}

/// What a consumer does wrongly at its end.
pub(super) enum AtClose {
    /// Takes what it holds with it.
    Loses,
    /// Puts what it holds behind everything else.
    Reorders,
    /// Keeps it until the locks run out.
    Keeps,
}

#[async_trait]
impl Break for AtClose {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
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

    async fn close_settler(&self, at: &In) -> Result<()> {
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
            // The driver's consumer lives on, as one does whose end the broker was never told.
            std::mem::forget(at.settler.clone());
            return Ok(());
        }
        at.settler.close().await
    }
}

/// A consumer that was closed goes on taking messages.
pub(super) struct Zombie;

#[async_trait]
impl Break for Zombie {
    async fn close_receiver(&self, at: &In, receiver: &mut dyn Receiver) -> Result<()> {
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

/// A settlement after the end of its consumer answers Ok.
pub(super) struct LateIsOk;

#[async_trait]
impl Break for LateIsOk {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let lie = |r: Result<()>| r.or_else(|e| if e.kind() == ErrorKind::LockLost { Ok(()) } else { Err(e) });
        at.settler.settle(batch).await.into_iter().map(lie).collect()
    }

    fn holds(&self, _: &In, _: &DriverToken) -> bool {
        true
    }
}

//! Settling over AMQP by requests to the management node, whose answer is the result.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use polybus_core::{
    Error, ErrorKind, Result, Source,
    driver::{Batching, DeadLetter, DriverToken, SettleRequest, Settlement, Settler},
    message::cloudevents::{self, CopyState},
    topology::Entity,
};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::{
    amqp::{
        consumer::{AmqpConsumer, AmqpDelivery, LinkDelivery},
        locks::MessageLock,
        management::{ManagementNode, SettleStatus},
        receive_task::Disposition,
        send_link::SendLink,
    },
    capabilities::EXPIRES_BEFORE_RETRY,
    consume::in_place_hold::batched,
    error,
    message::envelope,
    topology::{
        names::EntityPath,
        targeting::{self, CopyTargeting},
    },
    transport::http::HttpPool,
};

/// The most settlements in one batch.
const LOCKS_PER_REQUEST: usize = 128;
/// How long closing tries to give back the unsettled messages.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct ServicebusSettler {
    pub(crate) consumer: Arc<AmqpConsumer>,
    /// The management node of the queue or topic that copies go to.
    pub(crate) target_node: Arc<ManagementNode>,
    pub(crate) send_link: Arc<SendLink>,
    pub(crate) place: EntityPath,
    pub(crate) ordered: bool,
    /// Whether the broker refuses requests that schedule several copies.
    pub(crate) one_copy_per_request: AtomicBool,
    /// Whether a copy reaches this source alone.
    targeting: CopyTargeting,
    /// The longest time to hold a message in place, where a copy would reach others or where there is no room for one.
    pub(crate) max_hold: Duration,
}

impl ServicebusSettler {
    pub(crate) fn new(consumer: Arc<AmqpConsumer>, http: Arc<HttpPool>, from: &Entity<Source>) -> Result<Self> {
        let place = EntityPath::of(from);
        let namespace = consumer.namespace.clone();
        Ok(Self {
            target_node: match (&place, from.name.is_dead_letters()) {
                (EntityPath::Queue(_), false) => consumer.management.clone(),
                _ => Arc::new(ManagementNode::new(namespace.clone(), place.address())),
            },
            send_link: Arc::new(SendLink::new(namespace, place.address())),
            targeting: CopyTargeting::new(http, &place),
            one_copy_per_request: AtomicBool::new(false),
            max_hold: from.settings.max_hold,
            consumer,
            place,
            ordered: from.settings.ordered,
        })
    }

    /// What a dead letter tells: reason and detail in the broker's own fields, the rest in application properties.
    fn dead_letter(&self, settle: &SettleRequest, held: &AmqpDelivery, reason: &str, detail: &str) -> SettleStatus {
        let mut dead_letter = DeadLetter::default();
        dead_letter.attempt = Some(settle.attempt);
        dead_letter.origin = Some(self.consumer.source.to_string().into());
        dead_letter.time = Some(settle.time);
        let mut carried = CopyState::default();
        carried.dead_letter = Some(Box::new(dead_letter));
        let mut notes = vec![(envelope::DELIVERIES.to_owned(), held.original.delivery_count.to_string())];
        cloudevents::encode_carried(&carried, &mut |name, value| notes.push((name.to_owned(), value.to_owned())));
        SettleStatus::DeadLettered { reason: shortened(reason), detail: shortened(detail), notes }
    }

    async fn settle_batch(&self, batch: &[SettleRequest], held: &[&AmqpDelivery]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let (mut completed, mut releases, mut retries, mut redrives) = (vec![], vec![], vec![], vec![]);
        let mut dead_letters = vec![];
        let dead = self.consumer.source.is_dead_letters();
        for (i, settle) in batch.iter().enumerate() {
            match &settle.how {
                Settlement::Ack => completed.push(i),
                Settlement::GiveBack if self.give_back(held[i]) => {}
                Settlement::Release | Settlement::GiveBack => releases.push(i),
                // The message expires before its retry is due, but its copy would live on. It becomes a dead letter,
                // where it can be seen.
                Settlement::RetryAfter(delay)
                    if !dead && settle.envelope.expires_at.is_none() && held[i].original.expires_within(*delay) =>
                {
                    let mut late = settle.clone();
                    late.time = OffsetDateTime::now_utc();
                    dead_letters.push((i, self.dead_letter(&late, held[i], "expired", EXPIRES_BEFORE_RETRY)));
                }
                Settlement::RetryAfter(_) if !dead => retries.push(i),
                Settlement::DeadLetter { reason, detail } if !dead => {
                    dead_letters.push((i, self.dead_letter(settle, held[i], reason, detail)));
                }
                Settlement::Redrive | Settlement::RedriveAs(_) if dead => redrives.push(i),
                other => {
                    let text = format!("{other:?} on {}", self.consumer.source);
                    results[i] = Err(Error::unsupported(text).with_operation("settle"));
                }
            }
        }
        self.consumer.settle_all(held, &completed, &SettleStatus::Completed, &mut results).await;
        self.consumer.settle_all(held, &releases, &SettleStatus::Abandoned, &mut results).await;
        let dead_lettered = join_all(dead_letters.into_iter().map(|(i, status)| async move {
            if !self.consumer.holds(held[i]) {
                return (i, Err(error::not_held()));
            }
            match self.consumer.settle_group(held, vec![i], &status).await.pop() {
                Some(done) => done,
                None => (i, Err(error::new(ErrorKind::Unexpected, "settle", "no answer"))),
            }
        }));
        for (i, result) in dead_lettered.await {
            results[i] = result;
        }
        if !retries.is_empty() {
            if !self.ordered && self.targeting.reaches_only_target().await {
                self.retry(batch, held, &retries, &mut results).await;
            } else {
                self.hold(batch, held, &retries, &mut results);
            }
        }
        if !redrives.is_empty() {
            if self.targeting.reaches_only_target().await {
                self.redrive(batch, held, &redrives, &mut results).await;
            } else {
                let refused = targeting::redrive_refused();
                redrives.iter().for_each(|i| results[*i] = Err(refused.clone()));
            }
        }
        results
    }

    /// Gives back a message that was never handed out, so that the hand-over does not count. Only its link can do that,
    /// and the broker does not confirm it: at worst the message comes back when its lock ends. False if the link is
    /// gone.
    fn give_back(&self, held: &AmqpDelivery) -> bool {
        let Some(task) = held.task.as_ref().filter(|_| self.consumer.holds(held)) else { return false };
        let info = self.consumer.delivery_info(&held.lock.token);
        let sent = info.is_some_and(|info| task.settle(vec![info], Disposition::Released));
        if sent {
            self.consumer.remove_unsettled([held.lock.token]);
        }
        sent
    }

    /// Holds messages in place until they may come again.
    fn hold(&self, batch: &[SettleRequest], held: &[&AmqpDelivery], which: &[usize], results: &mut [Result<()>]) {
        for i in which {
            let Settlement::RetryAfter(delay) = &batch[*i].how else { continue };
            results[*i] = match self.ordered {
                true => self.hold_session(held[*i], *delay),
                false => self.hold_message(held[*i], *delay),
            };
        }
    }

    /// The task of the session keeps the session, and abandons the message when its time has come.
    fn hold_session(&self, held: &AmqpDelivery, delay: Duration) -> Result<()> {
        let session = held.session.as_ref().filter(|_| self.consumer.holds(held));
        let (Some(session), Some(info)) = (session, self.consumer.delivery_info(&held.lock.token)) else {
            return Err(error::lock_lost("the session is gone"));
        };
        self.consumer.unsettled.hold_in_place(&held.lock.token);
        session.hold(info, delay);
        Ok(())
    }

    fn hold_message(&self, held: &AmqpDelivery, delay: Duration) -> Result<()> {
        if !self.consumer.holds(held) {
            return Err(error::not_held());
        }
        if delay > self.max_hold {
            return Err(targeting::hold_refused());
        }
        batched::start(self.consumer.clone(), held, delay)
    }
}

/// At most as long as the broker takes a reason or a description.
/// <https://learn.microsoft.com/dotnet/api/azure.messaging.servicebus.servicebusreceiver.deadlettermessageasync>
fn shortened(text: &str) -> Box<str> {
    text.chars().take(4096).collect()
}

#[async_trait]
impl Settler for ServicebusSettler {
    fn batching(&self) -> Batching {
        // Several requests at once keep a prefetch of some hundred full: while one is answered, the messages that the
        // others made room for are on their way.
        let mut batching = Batching::new(LOCKS_PER_REQUEST, 8 << 20, 4);
        // A request costs both sides more than the locks that it names. With more partial batches under way, each would
        // name fewer.
        batching.partial = 2;
        batching
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut held = Vec::with_capacity(batch.len());
        for settle in batch {
            match settle.token.get::<AmqpDelivery>() {
                Ok(found) => held.push(found),
                Err(e) => return e.for_each_of(batch.len()),
            }
        }
        self.settle_batch(batch, &held).await
    }

    async fn extend(&self, tokens: &[DriverToken], _by: Duration) -> Vec<Result<Instant>> {
        let held: Result<Vec<&AmqpDelivery>> = tokens.iter().map(DriverToken::get).collect();
        match held {
            Ok(held) => self.consumer.renew_all(&held).await,
            Err(e) => e.for_each_of(tokens.len()),
        }
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<AmqpDelivery>().is_ok_and(|held| self.consumer.holds(held))
    }

    fn forget(&self, token: &DriverToken) {
        if let Ok(held) = token.get::<AmqpDelivery>() {
            self.consumer.forget(held);
        }
    }

    async fn close(&self) -> Result<()> {
        self.consumer.closed.store(true, Ordering::Release);
        let (sessions, plain): (Vec<_>, Vec<_>) =
            self.consumer.unsettled.take().into_iter().partition(|(_, delivery)| delivery.session.is_some());
        let lock = |(token, delivery): (_, LinkDelivery)| MessageLock { token, partition: delivery.partition };
        let plain: Vec<MessageLock> = plain.into_iter().map(lock).collect();
        let giving_back = async {
            self.consumer.settle_locks(&plain, &SettleStatus::Abandoned).await;
            let sessions = sessions.into_iter().filter_map(|(_, delivery)| delivery.session);
            join_all(sessions.map(|session| async move { session.end(true).await })).await;
        };
        // Closing does not wait for a new connection: without one the messages come back when their locks end.
        if !self.consumer.namespace.is_connected() || timeout(CLOSE_TIMEOUT, giving_back).await.is_err() {
            tracing::debug!(source = %self.consumer.source, "what was held comes back when its lock ends");
        }
        self.consumer.close_kept_link().await;
        self.send_link.close().await;
        Ok(())
    }
}

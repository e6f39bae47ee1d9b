//! Settling deliveries on the management link, where the broker answers.

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
        consumer::{Feed, Held},
        locks::{Lock, not_held},
        management::{Management, Status},
        receive_task::Fate,
        send_link::Outlet,
    },
    consume::in_place_hold,
    error,
    message::envelope,
    topology::{names::Place, targeting::Targeting},
    transport::http::Http,
};

/// Most settlements in one request.
const AT_ONCE: usize = 128;
/// How long closing tries to give back what is held.
const GOODBYE: Duration = Duration::from_secs(5);

/// Why a message whose time to live ends before its retry is due is dead-lettered.
pub(crate) const LIFE_ENDS: &str = "the time to live that its sender gave it ends before its retry is due";

pub(crate) struct ServicebusSettler {
    pub(crate) feed: Arc<Feed>,
    /// Of the queue or topic that copies go to.
    pub(crate) target: Arc<Management>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) place: Place,
    pub(crate) ordered: bool,
    /// The broker takes no request to schedule several copies.
    pub(crate) singly: AtomicBool,
    /// On subscriptions: whether copies reach this one alone.
    targeting: Option<Targeting>,
    /// How long a message is held in place where they do not, or where there is no room for a copy.
    pub(crate) max_hold: Duration,
}

impl ServicebusSettler {
    pub(crate) fn new(feed: Arc<Feed>, http: Arc<Http>, from: &Entity<Source>) -> Result<Self> {
        let place = Place::of(from);
        let wires = feed.wires.clone();
        Ok(Self {
            target: match (&place, from.name.is_dead_letters()) {
                (Place::Queue(_), false) => feed.management.clone(),
                _ => Arc::new(Management::new(wires.clone(), place.address())),
            },
            outlet: Arc::new(Outlet::new(wires, place.address())),
            targeting: place.target().map(|name| Targeting::new(http, place.address(), name)),
            singly: AtomicBool::new(false),
            max_hold: from.settings.max_hold,
            feed,
            place,
            ordered: from.settings.ordered,
        })
    }

    fn dead(&self) -> bool {
        self.feed.source.is_dead_letters()
    }

    /// What dead letters tell beside reason and detail, which the broker has fields for.
    fn burial(&self, settle: &SettleRequest, held: &Held, reason: &str, detail: &str) -> Status {
        let mut told = DeadLetter::default();
        told.attempt = Some(settle.attempt);
        told.origin = Some(self.feed.source.to_string().into());
        told.time = Some(settle.time);
        let mut carried = CopyState::default();
        carried.dead_letter = Some(Box::new(told));
        let mut notes = vec![(envelope::DELIVERIES.to_owned(), held.original.delivery_count.to_string())];
        cloudevents::encode_carried(&carried, &mut |name, value| notes.push((name.to_owned(), value.to_owned())));
        Status::DeadLettered { reason: shortened(reason), detail: shortened(detail), notes }
    }

    async fn settle_batch(&self, batch: &[SettleRequest], held: &[&Held]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let (mut acks, mut releases, mut retries, mut redrives) = (vec![], vec![], vec![], vec![]);
        let mut burials = vec![];
        for (i, settle) in batch.iter().enumerate() {
            match &settle.how {
                Settlement::Ack => acks.push(i),
                Settlement::GiveBack if self.give_back(held[i]) => {}
                Settlement::Release | Settlement::GiveBack => releases.push(i),
                // Its copy would live on from the time it is due: what cannot be back in time is seen among the dead letters.
                Settlement::RetryAfter(delay)
                    if !self.dead() && settle.envelope.expires_at.is_none() && held[i].original.ends_within(*delay) =>
                {
                    let mut late = settle.clone();
                    late.time = OffsetDateTime::now_utc();
                    burials.push((i, self.burial(&late, held[i], "expired", LIFE_ENDS)));
                }
                Settlement::RetryAfter(_) if !self.dead() => retries.push(i),
                Settlement::DeadLetter { reason, detail } if !self.dead() => {
                    burials.push((i, self.burial(settle, held[i], reason, detail)));
                }
                Settlement::Redrive | Settlement::RedriveAs(_) if self.dead() => redrives.push(i),
                other => {
                    let text = format!("{other:?} on {}", self.feed.source);
                    results[i] = Err(Error::unsupported(text).with_operation("settle"));
                }
            }
        }
        self.feed.settle_all(held, &acks, &Status::Completed, &mut results).await;
        self.feed.settle_all(held, &releases, &Status::Abandoned, &mut results).await;
        let buried = join_all(burials.into_iter().map(|(i, status)| async move {
            if !self.feed.holds(held[i]) {
                return (i, Err(not_held()));
            }
            match self.feed.settle_group(held, vec![i], &status).await.pop() {
                Some(done) => done,
                None => (i, Err(error::new(ErrorKind::Unexpected, "settle", "no answer"))),
            }
        }));
        for (i, result) in buried.await {
            results[i] = result;
        }
        if !retries.is_empty() {
            if self.ordered {
                self.hold(batch, held, &retries, &mut results);
            } else if self.is_exact().await {
                self.retry(batch, held, &retries, &mut results).await;
            } else {
                self.keep(batch, held, &retries, &mut results);
            }
        }
        if !redrives.is_empty() {
            if self.is_exact().await {
                self.redrive(batch, held, &redrives, &mut results).await;
            } else {
                let text =
                    "the topic has rules that polybus did not make: what is moved back could reach other subscriptions";
                let refused = Error::unsupported(text).with_operation("settle");
                redrives.iter().for_each(|i| results[*i] = Err(refused.clone()));
            }
        }
        results
    }

    /// What was never handed out goes back uncounted, which only its link can do. The broker does not answer; at worst it comes
    /// back when its lock ends. False if the link is gone.
    fn give_back(&self, held: &Held) -> bool {
        let Some(pump) = held.pump.as_ref().filter(|_| self.feed.holds(held)) else { return false };
        let sent = self.feed.info(&held.lock.token).is_some_and(|info| pump.forget(vec![info], Fate::Released));
        if sent {
            self.feed.let_go([held.lock.token]);
        }
        sent
    }

    async fn is_exact(&self) -> bool {
        match &self.targeting {
            Some(targeting) => targeting.is_exact().await,
            None => true,
        }
    }

    /// In place without a session: the lock is renewed until the time has come.
    fn keep(&self, batch: &[SettleRequest], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        for i in which {
            let (held, Settlement::RetryAfter(delay)) = (held[*i], &batch[*i].how) else { continue };
            results[*i] = if !self.feed.holds(held) {
                Err(not_held())
            } else if *delay > self.max_hold {
                let text =
                    "the topic has rules that polybus did not make, so a retry holds the message: longer than max_hold";
                Err(Error::unsupported(text).with_operation("settle"))
            } else {
                in_place_hold::start(self.feed.clone(), held, *delay)
            };
        }
    }

    /// In place: the session is kept, and its message abandoned when the time has come.
    fn hold(&self, batch: &[SettleRequest], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        for i in which {
            let (held, how) = (held[*i], &batch[*i].how);
            let session = held.session.as_ref().filter(|_| self.feed.holds(held));
            results[*i] = match (session, self.feed.info(&held.lock.token), how) {
                (Some(session), Some(info), Settlement::RetryAfter(delay)) => {
                    self.feed.keep_back(&held.lock.token);
                    session.hold(info, *delay);
                    Ok(())
                }
                _ => Err(error::lock_lost("the session is gone")),
            };
        }
    }
}

/// What the broker takes for a reason and for its description:
/// <https://learn.microsoft.com/dotnet/api/azure.messaging.servicebus.servicebusreceiver.deadlettermessageasync>
fn shortened(text: &str) -> Box<str> {
    text.chars().take(4096).collect()
}

#[async_trait]
impl Settler for ServicebusSettler {
    fn batching(&self) -> Batching {
        // Some requests fill a window of several hundred: while one is answered, what the others freed is on its way.
        let mut batching = Batching::new(AT_ONCE, 8 << 20, 4);
        // A request costs both sides more than the locks it names: with more under way each would name fewer.
        batching.partial = 2;
        batching
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut held = Vec::with_capacity(batch.len());
        for settle in batch {
            match settle.token.get::<Held>() {
                Ok(found) => held.push(found),
                Err(e) => return e.for_each_of(batch.len()),
            }
        }
        self.settle_batch(batch, &held).await
    }

    async fn extend(&self, tokens: &[DriverToken], _by: Duration) -> Vec<Result<Instant>> {
        let held: Result<Vec<&Held>> = tokens.iter().map(DriverToken::get).collect();
        match held {
            Ok(held) => self.feed.renew_all(&held).await,
            Err(e) => e.for_each_of(tokens.len()),
        }
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<Held>().is_ok_and(|held| self.feed.holds(held))
    }

    fn forget(&self, token: &DriverToken) {
        if let Ok(held) = token.get::<Held>() {
            self.feed.forget(held);
        }
    }

    async fn close(&self) -> Result<()> {
        self.feed.closed.store(true, Ordering::Release);
        let open = self.feed.take_open();
        let (sessions, plain): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, session)| session.is_some());
        let plain: Vec<Lock> = plain.into_iter().map(|(lock, _)| lock).collect();
        let giving_back = async {
            self.feed.settle_locks(&plain, &Status::Abandoned).await;
            let sessions = sessions.into_iter().filter_map(|(_, session)| session);
            join_all(sessions.map(|session| async move { session.end(true).await })).await;
        };
        // Without a connection they come back when their locks end; closing does not wait for one.
        if !self.feed.wires.stands() || timeout(GOODBYE, giving_back).await.is_err() {
            tracing::debug!(source = %self.feed.source, "what was held comes back when its lock ends");
        }
        self.feed.end().await;
        self.outlet.close().await;
        Ok(())
    }
}

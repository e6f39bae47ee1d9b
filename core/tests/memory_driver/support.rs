//! One queue and one topic on a broker of its own, and short words for what the tests do.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use polybus_core::{
    Address, Envelope, ErrorKind, Outgoing, QueueSpec, Result, Source, SubscriptionSpec, TopicSpec, Topology,
    driver::{Driver, PreparedMessage, ReceivedMessage, Receiver, Sender, SettleRequest, Settlement, Settler},
    memory::MemoryDriver,
    topology::{DeclareMode, SourceStats},
};

pub(crate) const LOCK: Duration = Duration::from_secs(30);

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) struct World {
    pub(crate) driver: MemoryDriver,
    pub(crate) topology: Topology,
}

pub(crate) struct Consumer {
    pub(crate) rx: Box<dyn Receiver>,
    pub(crate) settler: Arc<dyn Settler>,
}

/// Queues `q` and `o` (ordered), topic `t` with subscriptions `all` and `a` (types `a.*`).
pub(crate) async fn world() -> World {
    let topology = Topology::new()
        .queue("q", QueueSpec::new().lock(LOCK))
        .queue("o", QueueSpec::new().lock(LOCK).ordered(true))
        .topic(
            "t",
            TopicSpec::new()
                .subscription("all", SubscriptionSpec::new())
                .subscription("a", SubscriptionSpec::new().types(["a.*"])),
        );
    let world = World { driver: MemoryDriver::new(), topology };
    let report = world.driver.declare(&world.topology.plan(), DeclareMode::Create).await.unwrap();
    assert!(report.differences.is_empty() && report.created.len() == 5, "{report:?}");
    world
}

impl World {
    pub(crate) async fn sender(&self, to: &str) -> Arc<dyn Sender> {
        self.driver.open_sender(&self.topology.address(&to.parse().unwrap())).await.unwrap()
    }

    /// Publishes messages with these ids; the key is what stands before a `/`.
    pub(crate) async fn publish(&self, to: &str, ids: &[&str]) {
        let all: Vec<Outgoing> = ids.iter().map(|id| message(id).into()).collect();
        publish(&*self.sender(to).await, all).await.into_iter().for_each(|r| r.unwrap());
    }

    pub(crate) async fn consume(&self, source: &str, prefetch: usize) -> Consumer {
        self.try_consume(source, prefetch).await.unwrap()
    }

    pub(crate) async fn try_consume(&self, source: &str, prefetch: usize) -> Result<Consumer> {
        let mut entity = self.topology.source(&source.parse::<Source>().unwrap());
        entity.prefetch = prefetch;
        let (rx, settler) = self.driver.open_receiver(&entity).await?;
        Ok(Consumer { rx, settler })
    }

    pub(crate) async fn stats(&self, source: &str) -> [u64; 4] {
        let entity = self.topology.source(&source.parse().unwrap());
        let SourceStats { ready, in_flight, delayed, dead_lettered, approximate, .. } =
            self.driver.stats(&entity).await.unwrap();
        assert!(!approximate);
        [ready.unwrap(), in_flight.unwrap(), delayed.unwrap(), dead_lettered.unwrap_or_default()]
    }
}

pub(crate) fn message(id: &str) -> Envelope {
    let envelope = Envelope::new("a.b", id.to_owned()).id(id);
    match id.split_once('/') {
        Some((key, _)) => envelope.key(key),
        None => envelope,
    }
}

pub(crate) async fn publish(sender: &dyn Sender, messages: Vec<Outgoing>) -> Vec<Result<()>> {
    let batch: Vec<PreparedMessage> = messages.into_iter().map(|m| sender.prepare(m).unwrap()).collect();
    let results = sender.send(&batch).await;
    assert_eq!(results.len(), batch.len());
    results.into_iter().map(|r| r.map(drop)).collect()
}

impl Consumer {
    /// What can be had without waiting.
    pub(crate) fn ready(&mut self, max: usize) -> Vec<ReceivedMessage> {
        let mut receive = self.rx.receive(max);
        match receive.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result.unwrap(),
            Poll::Pending => Vec::new(),
        }
    }

    /// Ids and attempts of what can be had without waiting.
    pub(crate) fn seen(&mut self, max: usize) -> Vec<(String, u32)> {
        self.ready(max).iter().map(|r| (r.envelope.id.to_string(), r.attempt)).collect()
    }

    /// The one message that comes next.
    pub(crate) async fn one(&mut self) -> ReceivedMessage {
        let mut got = self.rx.receive(1).await.unwrap();
        assert_eq!(got.len(), 1);
        got.remove(0)
    }

    pub(crate) async fn settle(&mut self, of: &ReceivedMessage, how: Settlement) -> Result<()> {
        settle_by(&*self.settler, of, how).await
    }

    pub(crate) async fn ack(&mut self, of: &ReceivedMessage) {
        self.settle(of, Settlement::Ack).await.unwrap();
    }

    /// Asserts that the delivery is lost, for every way of settling it there.
    pub(crate) async fn is_lost(&mut self, of: &ReceivedMessage) {
        assert!(!self.settler.holds(&of.token));
        let copying = if of.dead_letter.is_some() { vec![Settlement::Redrive] } else { vec![retry(1), dead("no")] };
        for how in [Settlement::Ack, Settlement::Release, Settlement::GiveBack].into_iter().chain(copying) {
            assert_eq!(self.settle(of, how.clone()).await.unwrap_err().kind(), ErrorKind::LockLost, "{how:?}");
        }
        let extended = self.settler.extend(std::slice::from_ref(&of.token), LOCK).await.remove(0);
        assert_eq!(extended.unwrap_err().kind(), ErrorKind::LockLost);
    }
}

pub(crate) async fn settle_by(settler: &dyn Settler, of: &ReceivedMessage, how: Settlement) -> Result<()> {
    let item = SettleRequest::new(of.token.clone(), of.envelope.clone(), of.attempt, how);
    let mut results = settler.settle(&[item]).await;
    assert_eq!(results.len(), 1);
    results.remove(0)
}

pub(crate) fn retry(n: u64) -> Settlement {
    Settlement::RetryAfter(secs(n))
}

pub(crate) fn dead(reason: &str) -> Settlement {
    Settlement::DeadLetter { reason: reason.into(), detail: "because".into() }
}

pub(crate) fn ids(of: &[(&str, u32)]) -> Vec<(String, u32)> {
    of.iter().map(|(id, attempt)| ((*id).to_owned(), *attempt)).collect()
}

pub(crate) fn queue(name: &str) -> Address {
    Address::queue(name)
}

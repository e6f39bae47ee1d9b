//! Taking messages and settling them: the receive loop, and locks that are the group's pending entries.

use std::{pin::Pin, sync::Arc, time::Duration};

use polybus_core::{
    ErrorKind, Result, Source,
    driver::{
        Batching, DriverToken, ReceivedMessage, Receiver, SettleRequest, Settlement, Settler, async_trait, lock_margin,
    },
    message::cloudevents::CopyState,
};
use redis::Pipeline;
use tokio::time::{Instant, sleep};

use crate::{
    connection::SharedConnection,
    error,
    message::{self, EntryFields},
    scripts::{self, LEAVE, SETTLE, TAKE},
};

/// How long an empty stream is left alone. A driver in earnest waits at the broker, on a connection of its own.
const PAUSE: Duration = Duration::from_millis(20);

/// What a receiver and its settler share.
pub(crate) struct StreamConsumer {
    pub(crate) connection: Arc<SharedConnection>,
    /// The stream, and where copies go: from the live one to the dead letters, and back.
    pub(crate) keys: [String; 2],
    /// No other consumer is called so, in any process.
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) lock: Duration,
}

/// What a delivery is settled by: an entry, and which of its deliveries.
struct HeldDelivery {
    entry: String,
    delivery: u32,
    fields: EntryFields,
    carried: CopyState,
}

impl StreamConsumer {
    fn script<'a>(&self, commands: &'a mut Pipeline, script: &str) -> &'a mut Pipeline {
        scripts::add(commands, script, [&self.keys[0], &self.keys[1]], &self.name)
    }

    async fn take(&self, max: usize) -> Result<Vec<ReceivedMessage>> {
        // The lock counts from before the request went out: then it surely ends here first.
        let until = self.locked_from(Instant::now());
        let mut commands = Pipeline::new();
        self.script(&mut commands, TAKE).arg(self.lock.as_millis() as u64).arg(max);
        let answers = self.connection.round_trip::<Vec<(String, u32, EntryFields)>>(commands, "receive").await?;
        let taken = answers.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten();
        Ok(taken.map(|(entry, delivery, fields)| self.received(entry, delivery, fields, until)).collect())
    }

    fn received(&self, entry: String, delivery: u32, fields: EntryFields, until: Instant) -> ReceivedMessage {
        let decoded = message::read(&entry, &fields, &self.source);
        let (carried, known_by) = (decoded.carried, entry.as_str().into());
        let attempt = carried.attempts.saturating_add(delivery);
        let (mark, dead_letter) = (carried.mark.clone(), carried.dead_letter.clone());
        let token = DriverToken::new(HeldDelivery { entry, delivery, fields, carried });
        let mut received = ReceivedMessage::new(token, decoded.envelope, attempt);
        (received.locked_until, received.malformed) = (Some(until), decoded.malformed);
        (received.known_by, received.mark) = (Some(known_by), mark);
        received.dead_letter = dead_letter.filter(|_| self.source.is_dead_letters());
        received
    }

    fn locked_from(&self, asked: Instant) -> Instant {
        asked + self.lock - lock_margin(self.lock)
    }

    /// Adds one settlement to a round trip.
    fn add(&self, commands: &mut Pipeline, settle: &SettleRequest) -> Result<()> {
        let HeldDelivery { entry, delivery, fields, carried } = settle.token.get::<HeldDelivery>()?;
        let (how, copy) = match &settle.how {
            Settlement::Ack => ("ack", None),
            Settlement::Release => ("release", None),
            Settlement::GiveBack => ("give-back", None),
            Settlement::DeadLetter { .. } | Settlement::Redrive => {
                ("move", Some(message::copy(entry, fields, carried, settle, &self.source)))
            }
            Settlement::RedriveAs(other) => {
                ("move", Some(message::encode(other, &carried.copied(settle, &self.source))))
            }
            // To act upon what is not known would lose messages.
            _ => return Err(error::new(ErrorKind::Unsupported, "this settlement")),
        };
        self.script(commands, SETTLE).arg(entry).arg(delivery).arg(how).arg(copy);
        Ok(())
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut commands = Pipeline::new();
        let added: Vec<Result<()>> = batch.iter().map(|settle| self.add(&mut commands, settle)).collect();
        let mut answers = match self.connection.round_trip::<u32>(commands, "settle").await {
            Ok(answers) => answers.into_iter(),
            // Safe, though it may have been carried out: the script settles a delivery once, however often it is asked.
            Err(e) => return e.safe().for_each_of(batch.len()),
        };
        let mut answer = || answers.next().unwrap_or_else(|| Err(error::new(ErrorKind::Unexpected, "no answer")));
        added.into_iter().map(|added| added.and_then(|()| answer().map(drop))).collect()
    }
}

type TakeRequest = Pin<Box<dyn Future<Output = Result<Vec<ReceivedMessage>>> + Send>>;

pub(crate) struct RedisReceiver {
    pub(crate) consumer: Arc<StreamConsumer>,
    /// The request that is under way. It lives here: in the future of `receive`, which may be dropped, its answer would
    /// be lost.
    pub(crate) request: Option<TakeRequest>,
    pub(crate) closed: bool,
}

#[async_trait]
impl Receiver for RedisReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        if self.closed {
            return Err(error::new(ErrorKind::Closed, "the receiver was closed"));
        }
        loop {
            let consumer = &self.consumer;
            let begin = || -> TakeRequest {
                let consumer = consumer.clone();
                Box::pin(async move { consumer.take(max).await })
            };
            let taken = self.request.get_or_insert_with(begin).await;
            // After the await: a `receive` that is dropped while it waits leaves the request for the next one.
            self.request = None;
            match taken {
                Ok(none) if none.is_empty() => sleep(PAUSE).await,
                taken => return taken,
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.closed = true;
        let Some(request) = self.request.take() else { return Ok(()) };
        let give_back = |m: ReceivedMessage| SettleRequest::new(m.token, m.envelope, m.attempt, Settlement::GiveBack);
        // A request that failed has taken nothing, or what it took comes back when its lock ends.
        let Ok(taken) = request.await else { return Ok(()) };
        let back: Vec<SettleRequest> = taken.into_iter().map(give_back).collect();
        self.consumer.settle(&back).await.into_iter().collect()
    }
}

pub(crate) struct RedisSettler(pub(crate) Arc<StreamConsumer>);

#[async_trait]
impl Settler for RedisSettler {
    fn batching(&self) -> Batching {
        Batching::new(100, 1 << 20, 4)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        self.0.settle(batch).await
    }

    /// The broker gives every lock its whole length anew, whatever was asked for.
    async fn extend(&self, tokens: &[DriverToken], _: Duration) -> Vec<Result<Instant>> {
        let until = self.0.locked_from(Instant::now());
        let mut commands = Pipeline::new();
        for token in tokens {
            let held = match token.get::<HeldDelivery>() {
                Ok(held) => held,
                Err(e) => return e.for_each_of(tokens.len()),
            };
            self.0.script(&mut commands, SETTLE).arg(&held.entry).arg(held.delivery).arg("extend");
        }
        match self.0.connection.round_trip::<u32>(commands, "extend").await {
            Ok(answers) => answers.into_iter().map(|answer| answer.map(|_| until)).collect(),
            Err(e) => e.for_each_of(tokens.len()),
        }
    }

    async fn close(&self) -> Result<()> {
        let mut commands = Pipeline::new();
        self.0.script(&mut commands, LEAVE);
        self.0
            .connection
            .round_trip::<u32>(commands, "close")
            .await?
            .into_iter()
            .try_for_each(|answer| answer.map(drop))
    }
}

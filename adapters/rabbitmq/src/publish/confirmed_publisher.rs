//! Publishes for one address or source, and gives each message of a batch its own result.
//!
//! The broker answers some errors by closing the channel, which takes the other messages of the batch with it. The
//! publisher then finds out which messages caused that, fails these alone, and sends the others again on a new channel.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use lapin::types::ShortString;
use polybus_core::{Error, ErrorKind, Result};
use tokio::time::timeout;

use crate::{
    error,
    publish::confirm_channel::{ConfirmChannel, PublishOutcome, PublishRequest},
    topology::{
        channel_operations::ProbeChannel,
        delay_queues::{DelayQueue, KnownDelayQueues},
    },
    transport::connection::{ConnectionRole, DriverConnections},
};

/// How long the confirms of a batch may take. Core's publish timeout ends most waits before.
const CONFIRM_LIMIT: Duration = Duration::from_secs(60);
const REFUSED: &str = "the broker refused to store the message: a queue is full, or away";
/// How often a message is sent within one call, where other messages close its channel or its delay queue is missing.
const MAX_ROUNDS: usize = 3;

/// Publishes to one address, or the copies of one source. Many tasks share it, and all use one channel.
pub(crate) struct ConfirmedPublisher {
    connections: Arc<DriverConnections>,
    delay_queues: Arc<KnownDelayQueues>,
    /// The exchange that is looked for before a channel opens, since publishing to a missing one closes the channel.
    exchange: Option<String>,
    /// The address or source as errors name it.
    name: String,
    role: ConnectionRole,
    channel: tokio::sync::Mutex<Option<Arc<ConfirmChannel>>>,
}

/// One message of a call to [`ConfirmedPublisher::publish`].
struct PublishItem<'a> {
    delay_queue: Option<&'a DelayQueue>,
    /// An earlier round may have stored the message, so an error must not claim that it is not stored.
    ambiguous: bool,
    /// `None` as long as the message is to be sent, in this round or the next.
    result: Option<Result<()>>,
}

impl ConfirmedPublisher {
    pub(crate) fn new(
        connections: Arc<DriverConnections>,
        delay_queues: Arc<KnownDelayQueues>,
        exchange: Option<String>,
        name: String,
    ) -> Self {
        let role = ConnectionRole::Publish;
        Self { connections, delay_queues, exchange, name, role, channel: tokio::sync::Mutex::default() }
    }

    /// Publishes through the connection of this role.
    pub(crate) fn through(mut self, role: ConnectionRole) -> Self {
        self.role = role;
        self
    }

    /// Publishes a batch and answers with one result per message, in order.
    ///
    /// `delay_queues` has an entry for every message. `request` makes the message of a place, and is called again where
    /// the message must be sent again.
    ///
    /// # Cancel safety
    /// If the future is dropped, what was sent stays on its way and may be stored.
    pub(crate) async fn publish(
        &self,
        delay_queues: &[Option<&DelayQueue>],
        mut request: impl FnMut(usize) -> Result<PublishRequest>,
    ) -> Vec<Result<()>> {
        let mut items: Vec<PublishItem<'_>> = delay_queues
            .iter()
            .map(|delay_queue| PublishItem { delay_queue: *delay_queue, ambiguous: false, result: None })
            .collect();
        for round in 1..=MAX_ROUNDS {
            self.ensure_delay_queues(&mut items).await;
            let mut open: Vec<usize> = (0..items.len()).filter(|i| items[*i].result.is_none()).collect();
            if open.is_empty() {
                break;
            }
            let channel = match self.channel_for(open.len()).await {
                Ok(channel) => channel,
                Err(e) => {
                    self.fail_all(&mut items, &open, &e);
                    break;
                }
            };
            let mut requests = Vec::with_capacity(open.len());
            open.retain(|i| match request(*i) {
                Ok(made) => {
                    requests.push(made);
                    true
                }
                Err(e) => {
                    items[*i].result = Some(Err(e));
                    false
                }
            });
            let routes: Vec<_> = requests.iter().map(|r| (r.exchange.clone(), r.routing_key.clone())).collect();
            let sizes: Vec<_> = requests.iter().map(|r| r.body.len()).collect();
            let Ok(outcomes) = timeout(CONFIRM_LIMIT, channel.send(requests)).await else {
                let e = error::timeout("publish", CONFIRM_LIMIT).may_duplicate().with_context("address", &self.name);
                self.fail_all(&mut items, &open, &e.clone());
                break;
            };
            let mut closed = None;
            let (mut again, mut returned) = (Vec::new(), Vec::new());
            for (at, outcome) in outcomes.into_iter().enumerate() {
                let item = &mut items[open[at]];
                match outcome {
                    PublishOutcome::Stored => item.result = Some(Ok(())),
                    PublishOutcome::Refused => {
                        let e = error::new(ErrorKind::Throttled, "publish", REFUSED);
                        // Behind an exchange several queues may take the message, and all but one may have stored it.
                        // So only a message to a queue is surely not stored.
                        item.result = Some(Err(match routes[at].0.as_str().is_empty() {
                            true => self.complete_error(e, item.ambiguous),
                            false => self.complete_error(e, false).may_duplicate(),
                        }));
                    }
                    PublishOutcome::Returned(text) => match item.delay_queue.filter(|_| round < MAX_ROUNDS) {
                        // The next round makes the delay queue again.
                        Some(delay_queue) => self.delay_queues.forget(delay_queue),
                        None => returned.push((at, text)),
                    },
                    PublishOutcome::Lost { written, error } => {
                        item.ambiguous |= written;
                        again.push(at);
                        closed = Some(error);
                    }
                }
            }
            self.explain_returned(&mut items, &open, &routes, returned).await;
            if let Some(e) = closed {
                if channel.connection.alive() {
                    // Only the broker's reply tells a cause. Without one the channel was closed before this call used
                    // it, and the next round opens another.
                    if error::reply(&e).is_some() {
                        let lost = LostMessages { at: &again, open: &open, routes: &routes, sizes: &sizes, error: &e };
                        self.fail_culprits(&mut items, lost, round).await;
                    }
                } else {
                    let e = error::new(ErrorKind::Unavailable, "publish", "connection lost before the confirm")
                        .with_source(e);
                    let which: Vec<usize> = again.iter().map(|at| open[*at]).collect();
                    self.fail_all(&mut items, &which, &e);
                    break;
                }
            }
        }
        let none = || error::new(ErrorKind::Unavailable, "publish", "the channel was closed again and again");
        let finished =
            items.into_iter().map(|i| i.result.unwrap_or_else(|| Err(self.complete_error(none(), i.ambiguous))));
        finished.collect()
    }

    /// Gives returned messages their errors. The broker returns a message for a queue that does not exist and for one
    /// whose node is down, and says the same of both, so this looks for the queue.
    async fn explain_returned(
        &self,
        items: &mut [PublishItem<'_>],
        open: &[usize],
        routes: &[(ShortString, ShortString)],
        returned: Vec<(usize, String)>,
    ) {
        let mut known: HashMap<ShortString, Option<Error>> = HashMap::new();
        for (at, text) in returned {
            let (exchange, key) = &routes[at];
            let item = &mut items[open[at]];
            let queue = Some(key).filter(|_| exchange.as_str().is_empty());
            if let Some(queue) = queue.filter(|queue| !known.contains_key(*queue)) {
                let passing = match ProbeChannel::new(&self.connections).find_queue(queue.as_str()).await {
                    Ok(None) => None,
                    // The queue was away when the message was returned, and is back by now.
                    Ok(Some(_)) => Some(error::new(ErrorKind::Unavailable, "publish", "the queue was away")),
                    Err(e) => Some(e.with_operation("publish")),
                };
                known.insert(queue.clone(), passing);
            }
            let passing = queue.and_then(|queue| known.get(queue).cloned().flatten());
            item.result = Some(Err(match passing {
                Some(e) => self.complete_error(e, item.ambiguous),
                None => self.missing_error(&text),
            }));
        }
    }

    /// Makes the delay queues that the open messages need. A message whose queue cannot be made fails.
    async fn ensure_delay_queues(&self, items: &mut [PublishItem<'_>]) {
        let mut seen: HashMap<Duration, Result<()>> = HashMap::new();
        for item in items.iter_mut().filter(|i| i.result.is_none()) {
            let Some(delay_queue) = item.delay_queue else { continue };
            let made = match seen.entry(delay_queue.delay) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.delay_queues.ensure(delay_queue).await),
            };
            if let Err(e) = made {
                item.result = Some(Err(self.complete_error(e.clone(), item.ambiguous)));
            }
        }
    }

    /// The error of a broker that blocks publishing; `None` if it takes messages. Known without I/O.
    pub(crate) fn held_back(&self) -> Option<Error> {
        self.connections.is_publishing_blocked().then(blocked_error)
    }

    /// The channel, if the broker takes `n` more messages on it now. Opens one where none stands.
    async fn channel_for(&self, n: usize) -> Result<Arc<ConfirmChannel>> {
        let channel = self.channel().await?;
        if channel.connection.is_blocked() {
            return Err(blocked_error());
        }
        if channel.is_full_with(n) {
            return Err(error::new(ErrorKind::Throttled, "publish", "too many messages await their confirms"));
        }
        Ok(channel)
    }

    /// The channel that stands, or a new one. Concurrent callers wait for one attempt.
    async fn channel(&self) -> Result<Arc<ConfirmChannel>> {
        let mut held = self.channel.lock().await;
        if let Some(channel) = held.as_ref().filter(|c| c.alive()) {
            return Ok(channel.clone());
        }
        *held = None;
        if let Some(exchange) = &self.exchange {
            let mut probe = ProbeChannel::new(&self.connections);
            if !probe.find_exchange(exchange).await? {
                return Err(self.missing_error("NO_EXCHANGE"));
            }
            probe.close().await;
        }
        let connection = self.connections.get(self.role).await?;
        // On a blocked connection the broker does not read `channel.open` either, so opening would only time out.
        if connection.is_blocked() {
            return Err(blocked_error());
        }
        let channel = Arc::new(ConfirmChannel::new(connection.confirming_channel().await?, connection.clone()));
        Ok(held.insert(channel).clone())
    }

    /// Fails the messages that made the broker close the channel, and leaves the others open for the next round.
    ///
    /// A 404 names a missing exchange, a 403 an exchange that this user may not write to, and a 406 a size limit that
    /// some bodies exceed. For any other reply every lost message is a culprit. A missing delay queue is made again.
    async fn fail_culprits(&self, items: &mut [PublishItem<'_>], lost: LostMessages<'_>, round: usize) {
        let cause = error::of(lost.error, "publish");
        // Where nobody is proven guilty, those that were written beside the culprit may be stored.
        let mut is_proven = true;
        let guilty: Vec<usize> = match error::reply(lost.error) {
            Some((404, _)) => {
                let mut missing: HashMap<&str, bool> = HashMap::new();
                for at in lost.at {
                    let exchange = lost.routes[*at].0.as_str();
                    if exchange.is_empty() || missing.contains_key(exchange) {
                        continue;
                    }
                    match ProbeChannel::new(&self.connections).find_exchange(exchange).await {
                        Ok(found) => missing.insert(exchange, !found),
                        Err(e) => return self.fail_all(items, &lost.all_items(), &e),
                    };
                }
                lost.items_where(|at| missing.get(lost.routes[at].0.as_str()).copied().unwrap_or(false))
            }
            Some((403, text)) => lost.items_where(|at| {
                let exchange = Some(lost.routes[at].0.as_str()).filter(|name| !name.is_empty());
                text.contains(&format!("exchange '{}'", exchange.unwrap_or("amq.default")))
            }),
            Some((406, text)) if cause.kind() == ErrorKind::PayloadTooLarge => {
                let limit = text.rsplit(' ').next().and_then(|n| n.trim_end_matches('\'').parse().ok());
                let limit = limit.unwrap_or_else(|| lost.at.iter().map(|at| lost.sizes[*at]).max().unwrap_or(1) - 1);
                lost.items_where(|at| lost.sizes[at] > limit)
            }
            _ => {
                is_proven = lost.at.len() == 1;
                lost.all_items()
            }
        };
        for i in guilty {
            let item = &mut items[i];
            match item.delay_queue.filter(|_| cause.kind() == ErrorKind::NotFound && round < MAX_ROUNDS) {
                Some(delay_queue) => self.delay_queues.forget(delay_queue),
                None if cause.kind() == ErrorKind::NotFound => {
                    item.result = Some(Err(self.missing_error(cause.message())))
                }
                None if item.ambiguous && !is_proven => {
                    item.result = Some(Err(self.complete_error(cause.clone(), true).may_duplicate()));
                }
                None => item.result = Some(Err(self.complete_error(cause.clone(), item.ambiguous))),
            }
        }
    }

    fn fail_all(&self, items: &mut [PublishItem<'_>], which: &[usize], e: &Error) {
        for i in which {
            items[*i].result = Some(Err(self.complete_error(e.clone(), items[*i].ambiguous)));
        }
    }

    /// Adds the address, and says `MayDuplicate` of a message that an earlier round may have stored.
    fn complete_error(&self, e: Error, ambiguous: bool) -> Error {
        let e = if e.context("address").is_some() { e } else { e.with_context("address", &self.name) };
        match e.kind() {
            // Core does not send a `Throttled` message again that may be stored. Here an earlier round lost the message
            // and the broker pushes back only now, so `Unavailable` lets core go on.
            ErrorKind::Throttled if ambiguous => {
                let again = error::new(ErrorKind::Unavailable, "publish", e.message().to_owned());
                again.with_context("address", &self.name).may_duplicate()
            }
            ErrorKind::Unavailable | ErrorKind::Timeout if ambiguous => e.may_duplicate(),
            _ => e,
        }
    }

    fn missing_error(&self, text: &str) -> Error {
        let message = format!("{} does not exist at the broker ({text}); declare it, or check its name", self.name);
        error::new(ErrorKind::NotFound, "publish", message).with_context("address", &self.name)
    }

    pub(crate) async fn close(&self) {
        let channel = self.channel.lock().await.take();
        if let Some(channel) = channel {
            channel.close().await;
        }
    }
}

/// The messages of a batch that were lost with their channel, and the error that closed it.
struct LostMessages<'a> {
    /// The places of the lost messages in the batch that was sent.
    at: &'a [usize],
    /// For each place in that batch the place among the call's items.
    open: &'a [usize],
    /// Exchange and routing key of each message sent.
    routes: &'a [(ShortString, ShortString)],
    /// Body sizes in bytes.
    sizes: &'a [usize],
    error: &'a lapin::Error,
}

impl LostMessages<'_> {
    fn items_where(&self, guilty: impl Fn(usize) -> bool) -> Vec<usize> {
        self.at.iter().filter(|at| guilty(**at)).map(|at| self.open[*at]).collect()
    }

    fn all_items(&self) -> Vec<usize> {
        self.items_where(|_| true)
    }
}

/// The error while the broker blocks publishing. It is answered at once: core waits, tries again, and reports it when
/// the publish timeout runs out.
fn blocked_error() -> Error {
    error::new(ErrorKind::Throttled, "publish", "the broker blocks publishing: it is out of memory or disk")
}

//! Publishing to one place with confirms: opens the channel again, finds out who caused a closed one, sends the others again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use lapin::types::ShortString;
use polybus_core::{Error, ErrorKind, Result};
use tokio::time::timeout;

use crate::{
    error,
    publish::confirm_channel::{ConfirmChannel, Outcome, Parcel},
    topology::{
        channel_operations::Scratch,
        delay_queues::{Rungs, Target},
    },
    transport::connection::{Links, Role},
};

/// How long a confirm may take. Core's publish timeout ends most waits before.
const CONFIRM: Duration = Duration::from_secs(60);
const REFUSED: &str = "the broker refused to store the message: a queue is full, or away";
/// Times a message is sent within one call when its channel was closed by another.
const ROUNDS: usize = 3;

/// Publishes to one address or source. Shared by many tasks.
pub(crate) struct Outlet {
    links: Arc<Links>,
    rungs: Arc<Rungs>,
    /// What must exist: publishing to a missing exchange closes the channel.
    exchange: Option<String>,
    /// For errors.
    name: String,
    channel: tokio::sync::Mutex<Option<Arc<ConfirmChannel>>>,
}

/// A delayed message's way.
#[derive(Clone, Debug)]
pub(crate) struct Rung {
    pub(crate) target: Target,
    pub(crate) delay: Duration,
}

/// One message of a call.
struct Item<'a> {
    rung: Option<&'a Rung>,
    /// An earlier round may have stored it.
    ambiguous: bool,
    result: Option<Result<()>>,
}

impl Outlet {
    pub(crate) fn new(links: Arc<Links>, rungs: Arc<Rungs>, exchange: Option<String>, name: String) -> Self {
        Self { links, rungs, exchange, name, channel: tokio::sync::Mutex::default() }
    }

    /// Publishes a batch. `parcel` makes each message, more than once if it has to be sent again.
    pub(crate) async fn publish(
        &self,
        rungs: &[Option<&Rung>],
        mut parcel: impl FnMut(usize) -> Result<Parcel>,
    ) -> Vec<Result<()>> {
        let mut items: Vec<Item<'_>> =
            rungs.iter().map(|rung| Item { rung: *rung, ambiguous: false, result: None }).collect();
        for round in 1..=ROUNDS {
            self.ensure_rungs(&mut items).await;
            let mut open: Vec<usize> = (0..items.len()).filter(|i| items[*i].result.is_none()).collect();
            if open.is_empty() {
                break;
            }
            let channel = match self.ready(open.len()).await {
                Ok(channel) => channel,
                Err(e) => {
                    self.fail(&mut items, &open, &e);
                    break;
                }
            };
            let mut parcels = Vec::with_capacity(open.len());
            open.retain(|i| match parcel(*i) {
                Ok(made) => {
                    parcels.push(made);
                    true
                }
                Err(e) => {
                    items[*i].result = Some(Err(e));
                    false
                }
            });
            let exchanges: Vec<_> = parcels.iter().map(|p| p.exchange.clone()).collect();
            let routes: Vec<_> = parcels.iter().map(|p| (p.exchange.clone(), p.routing_key.clone())).collect();
            let sizes: Vec<_> = parcels.iter().map(|p| p.body.len()).collect();
            let Ok(outcomes) = timeout(CONFIRM, channel.send(parcels)).await else {
                let e = error::timeout("publish", CONFIRM).may_duplicate().with_context("address", &self.name);
                self.fail(&mut items, &open, &e.clone());
                break;
            };
            let mut closed = None;
            let (mut again, mut returned) = (Vec::new(), Vec::new());
            for (at, outcome) in outcomes.into_iter().enumerate() {
                let item = &mut items[open[at]];
                match outcome {
                    Outcome::Stored => item.result = Some(Ok(())),
                    Outcome::Refused => {
                        let e = error::new(ErrorKind::Throttled, "publish", REFUSED);
                        // Where several queues take it, the others have it: sent again, they would have it again.
                        item.result = Some(Err(match exchanges[at].as_str().is_empty() {
                            true => self.finish(e, item.ambiguous),
                            false => self.finish(e, false).may_duplicate(),
                        }));
                    }
                    Outcome::Returned(text) => match item.rung.filter(|_| round < ROUNDS) {
                        Some(rung) => self.rungs.forget(&rung.target, rung.delay),
                        None => returned.push((at, text)),
                    },
                    Outcome::Lost { written, error } => {
                        item.ambiguous |= written;
                        again.push(at);
                        closed = Some(error);
                    }
                }
            }
            self.tell_returned(&mut items, &open, &routes, returned).await;
            if let Some(e) = closed {
                if channel.link.alive() {
                    // Without a reason from the broker the channel was closed before: the next round opens another.
                    if error::reply(&e).is_some() {
                        let lost = Lost { at: &again, open: &open, exchanges: &exchanges, sizes: &sizes, error: &e };
                        self.blame(&mut items, lost, round).await;
                    }
                } else {
                    let e = error::new(ErrorKind::Unavailable, "publish", "connection lost before the confirm")
                        .with_source(e);
                    let which: Vec<usize> = again.iter().map(|at| open[*at]).collect();
                    self.fail(&mut items, &which, &e);
                    break;
                }
            }
        }
        let none = || error::new(ErrorKind::Unavailable, "publish", "the channel was closed again and again");
        let finished = items.into_iter().map(|i| i.result.unwrap_or_else(|| Err(self.finish(none(), i.ambiguous))));
        finished.collect()
    }

    /// A message comes back from a queue that is not there, and from one whose node is down: the broker says the same of both, so it is
    /// asked about the queue.
    async fn tell_returned(
        &self,
        items: &mut [Item<'_>],
        open: &[usize],
        routes: &[(ShortString, ShortString)],
        returned: Vec<(usize, String)>,
    ) {
        let mut known: HashMap<ShortString, Option<Error>> = HashMap::new();
        for (at, text) in returned {
            let (exchange, key) = &routes[at];
            let item = &mut items[open[at]];
            let queue = Some(key).filter(|_| exchange.as_str().is_empty());
            let passing = match queue {
                None => None,
                Some(queue) => match known.get(queue) {
                    Some(known) => known.clone(),
                    None => {
                        let passing = match Scratch::new(&self.links).find_queue(queue.as_str()).await {
                            Ok(None) => None,
                            // It came back with its node after the message did.
                            Ok(Some(_)) => Some(error::new(ErrorKind::Unavailable, "publish", "the queue was away")),
                            Err(e) => Some(e.with_operation("publish")),
                        };
                        known.insert(queue.clone(), passing.clone());
                        passing
                    }
                },
            };
            item.result = Some(Err(match passing {
                Some(e) => self.finish(e, item.ambiguous),
                None => self.missing(&text),
            }));
        }
    }

    async fn ensure_rungs(&self, items: &mut [Item<'_>]) {
        let mut seen: HashMap<Duration, Result<()>> = HashMap::new();
        for item in items.iter_mut().filter(|i| i.result.is_none()) {
            let Some(rung) = item.rung else { continue };
            let made = match seen.get(&rung.delay) {
                Some(known) => known.clone(),
                None => {
                    let made = self.rungs.ensure(&rung.target, rung.delay).await;
                    seen.insert(rung.delay, made.clone());
                    made
                }
            };
            if let Err(e) = made {
                item.result = Some(Err(self.finish(e, item.ambiguous)));
            }
        }
    }

    /// What a blocked broker says, if it is one.
    pub(crate) fn held_back(&self) -> Option<Error> {
        self.links.is_publishing_blocked().then(blocked)
    }

    /// The channel, with the broker willing to take `n` more.
    async fn ready(&self, n: usize) -> Result<Arc<ConfirmChannel>> {
        let channel = self.channel().await?;
        if channel.link.is_blocked() {
            return Err(blocked());
        }
        if channel.full(n) {
            return Err(error::new(ErrorKind::Throttled, "publish", "too many messages await their confirms"));
        }
        Ok(channel)
    }

    async fn channel(&self) -> Result<Arc<ConfirmChannel>> {
        let mut held = self.channel.lock().await;
        if let Some(channel) = held.as_ref().filter(|c| c.alive()) {
            return Ok(channel.clone());
        }
        *held = None;
        if let Some(exchange) = &self.exchange {
            let mut scratch = Scratch::new(&self.links);
            if !scratch.find_exchange(exchange).await? {
                return Err(self.missing("NO_EXCHANGE"));
            }
            scratch.finish().await;
        }
        let link = self.links.get(Role::Publish).await?;
        // A blocked connection carries no channel.open either.
        if link.is_blocked() {
            return Err(blocked());
        }
        let channel = Arc::new(ConfirmChannel::new(link.confirming_channel().await?, link.clone()));
        Ok(held.insert(channel).clone())
    }

    /// The broker closed the channel because of some of these: only they get the error, the others are left open.
    async fn blame(&self, items: &mut [Item<'_>], lost: Lost<'_>, round: usize) {
        let cause = error::of(lost.error, "publish");
        let guilty: Vec<usize> = match error::reply(lost.error) {
            Some((404, _)) => {
                let mut missing: HashMap<&str, bool> = HashMap::new();
                for at in lost.at {
                    let exchange = lost.exchanges[*at].as_str();
                    if exchange.is_empty() || missing.contains_key(exchange) {
                        continue;
                    }
                    match Scratch::new(&self.links).find_exchange(exchange).await {
                        Ok(found) => missing.insert(exchange, !found),
                        Err(e) => return self.fail(items, &lost.items(), &e),
                    };
                }
                lost.which(|at| missing.get(lost.exchanges[at].as_str()).copied().unwrap_or(false))
            }
            Some((403, text)) => lost.which(|at| {
                let exchange = Some(lost.exchanges[at].as_str()).filter(|name| !name.is_empty());
                text.contains(&format!("exchange '{}'", exchange.unwrap_or("amq.default")))
            }),
            Some((406, text)) if cause.kind() == ErrorKind::PayloadTooLarge => {
                let limit = text.rsplit(' ').next().and_then(|n| n.trim_end_matches('\'').parse().ok());
                let limit = limit.unwrap_or_else(|| lost.at.iter().map(|at| lost.sizes[*at]).max().unwrap_or(1) - 1);
                lost.which(|at| lost.sizes[at] > limit)
            }
            _ => lost.items(),
        };
        for i in guilty {
            let item = &mut items[i];
            match item.rung.filter(|_| cause.kind() == ErrorKind::NotFound && round < ROUNDS) {
                Some(rung) => self.rungs.forget(&rung.target, rung.delay),
                None if cause.kind() == ErrorKind::NotFound => item.result = Some(Err(self.missing(cause.message()))),
                None => item.result = Some(Err(self.finish(cause.clone(), item.ambiguous))),
            }
        }
    }

    fn fail(&self, items: &mut [Item<'_>], which: &[usize], e: &Error) {
        for i in which {
            items[*i].result = Some(Err(self.finish(e.clone(), items[*i].ambiguous)));
        }
    }

    fn finish(&self, e: Error, ambiguous: bool) -> Error {
        let e = if e.context("address").is_some() { e } else { e.with_context("address", &self.name) };
        match e.kind() {
            // Core sends nothing again that may be there and is pushed back; here it was lost before, and the pushing back is of now.
            ErrorKind::Throttled if ambiguous => {
                let again = error::new(ErrorKind::Unavailable, "publish", e.message().to_owned());
                again.with_context("address", &self.name).may_duplicate()
            }
            ErrorKind::Unavailable | ErrorKind::Timeout if ambiguous => e.may_duplicate(),
            _ => e,
        }
    }

    fn missing(&self, text: &str) -> Error {
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

/// The messages of a batch that were lost with their channel.
struct Lost<'a> {
    /// Places in the batch as it was sent.
    at: &'a [usize],
    /// From there to the call's items.
    open: &'a [usize],
    exchanges: &'a [ShortString],
    sizes: &'a [usize],
    error: &'a lapin::Error,
}

impl Lost<'_> {
    fn which(&self, guilty: impl Fn(usize) -> bool) -> Vec<usize> {
        self.at.iter().filter(|at| guilty(**at)).map(|at| self.open[*at]).collect()
    }

    fn items(&self) -> Vec<usize> {
        self.which(|_| true)
    }
}

/// Answered at once: core waits and tries again, and says so itself when its time runs out.
fn blocked() -> Error {
    error::new(ErrorKind::Throttled, "publish", "the broker blocks publishing: it is out of memory or disk")
}

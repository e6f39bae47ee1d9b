//! What the scenarios about order share.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use polybus_core::{Delivery, Envelope, Publisher, Subscription};
use tokio::{sync::watch, time::timeout};

use crate::{Cx, During, Failure, Outcome, ensure, ensure_eq, message, number};

/// A small message with this key and number.
pub(super) fn keyed(key: &str, n: usize) -> Envelope {
    message(n).key(key)
}

/// The numbers of the messages of one key, in their order.
pub(super) fn numbers_of(envelopes: &[Envelope], key: &str) -> Outcome<Vec<usize>> {
    envelopes.iter().filter(|e| e.key.as_deref() == Some(key)).map(number).collect()
}

/// The same without repetitions: each number where it came first.
pub(super) fn first_numbers_of(envelopes: &[Envelope], key: &str) -> Outcome<Vec<usize>> {
    let mut seen = BTreeSet::new();
    Ok(numbers_of(envelopes, key)?.into_iter().filter(|n| seen.insert(*n)).collect())
}

/// Makes all publishes begin in this order, with many under way at once. All must be Ok.
pub(super) async fn submit_in_order(publisher: &Publisher, messages: &[Envelope]) -> Outcome {
    let mut under_way = Vec::new();
    // In parts: a task that polls hundreds of futures without a pause is made to yield by tokio, before they have begun.
    for part in messages.chunks(25) {
        for message in part {
            let mut publishing = publisher.publish(message);
            let polled = poll_fn(|cx| Poll::Ready(pin!(&mut publishing).poll(cx))).await;
            match polled {
                Poll::Ready(result) => drop(result.during("publish")?),
                Poll::Pending => under_way.push(publishing),
            }
        }
        tokio::task::yield_now().await;
    }
    for (i, publishing) in under_way.into_iter().enumerate() {
        publishing.await.during(format!("publish {i} of those that waited"))?;
    }
    Ok(())
}

/// What many consumers see of the keys, checked as it happens.
#[derive(Clone)]
pub(super) struct Lanes(Arc<Inner>);

struct Inner {
    goal: usize,
    state: Mutex<State>,
    done: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    busy: BTreeSet<String>,
    acked: BTreeMap<String, Vec<usize>>,
    seen: BTreeMap<(String, usize), usize>,
    total: usize,
}

impl Lanes {
    /// Done after this many acks.
    pub(super) fn new(goal: usize) -> Self {
        Self(Arc::new(Inner { goal, state: Mutex::default(), done: watch::Sender::new(false) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A delivery begins: nobody else holds one of its key, and it is the one after the last acked. How often it has come.
    pub(super) fn begin(&self, key: &str, n: usize) -> Outcome<usize> {
        let mut state = self.state();
        ensure!(state.busy.insert(key.into()), "{key}: {n} was handed out while another of its key was unsettled");
        let next = state.acked.get(key).map_or(0, Vec::len);
        ensure_eq!(n, next, "the next of {key}");
        let seen = state.seen.entry((key.into(), n)).or_default();
        *seen += 1;
        Ok(*seen)
    }

    /// A delivery is about to be settled.
    pub(super) fn end(&self, key: &str, acked: Option<usize>) {
        let mut state = self.state();
        state.busy.remove(key);
        if let Some(n) = acked {
            state.acked.entry(key.into()).or_default().push(n);
            state.total += 1;
            if state.total >= self.0.goal {
                self.0.done.send_replace(true);
            }
        }
    }

    /// Each of `keys` keys was acked from 0 to `per_key`.
    pub(super) fn all_in_order(&self, keys: usize, per_key: usize) -> Outcome {
        let state = self.state();
        ensure_eq!(state.acked.len(), keys, "keys");
        for (key, acked) in &state.acked {
            ensure_eq!(*acked, (0..per_key).collect::<Vec<_>>(), "what was acked of {key}");
        }
        Ok(())
    }
}

/// Consumes with all of these until the goal is reached. `release(number, how often it has come)` says what is released.
pub(super) async fn group(
    cx: &Cx,
    lanes: &Lanes,
    subs: Vec<Subscription>,
    release: fn(usize, usize) -> bool,
) -> Outcome {
    let mut tasks = tokio::task::JoinSet::new();
    for sub in subs {
        tasks.spawn(consume(lanes.clone(), sub, release));
    }
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    };
    let ended = timeout(cx.patience() * 4, all).await;
    ended.unwrap_or_else(|_| {
        let state = lanes.state();
        Err(Failure::new(format!("only {} of {} were handled in time", state.total, lanes.0.goal)))
    })
}

async fn consume(lanes: Lanes, mut sub: Subscription, release: fn(usize, usize) -> bool) -> Outcome {
    let mut done = lanes.0.done.subscribe();
    loop {
        let delivery: Delivery = tokio::select! {
            next = sub.next() => match next {
                Some(delivery) => delivery?,
                None => return Err(Failure::new(format!("{} ended", sub.source()))),
            },
            _ = done.wait_for(|done| *done) => return Ok(()),
        };
        let key = delivery.envelope().key.as_deref().unwrap_or_default().to_owned();
        let n = number(delivery.envelope())?;
        let seen = lanes.begin(&key, n)?;
        if n % 5 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            tokio::task::yield_now().await;
        }
        if release(n, seen) {
            lanes.end(&key, None);
            delivery.release().await.during("release")?;
        } else {
            lanes.end(&key, Some(n));
            delivery.ack().await.during("ack")?;
        }
    }
}

//! Messages with keys, and consumers that check the order of each key.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use polybus_core::{Delivery, Envelope, Publisher, Subscription};
use tokio::{sync::watch, time::timeout};

use crate::{Cx, During, Failure, Outcome, ensure, ensure_eq, message, number};

/// A [`message`] of this number with this key.
pub(crate) fn keyed(key: &str, n: usize) -> Envelope {
    message(n).key(key)
}

/// The numbers of the messages of one key, in the order in which they came.
pub(crate) fn numbers_of(envelopes: &[Envelope], key: &str) -> Outcome<Vec<usize>> {
    envelopes.iter().filter(|e| e.key.as_deref() == Some(key)).map(number).collect()
}

/// Like [`numbers_of`], but each number only where it came first.
pub(crate) fn first_numbers_of(envelopes: &[Envelope], key: &str) -> Outcome<Vec<usize>> {
    let mut seen = BTreeSet::new();
    Ok(numbers_of(envelopes, key)?.into_iter().filter(|n| seen.insert(*n)).collect())
}

/// Publishes in this order with many publishes under way at once. All must be Ok.
pub(crate) async fn submit_in_order(publisher: &Publisher, messages: &[Envelope]) -> Outcome {
    let mut under_way = Vec::new();
    // In parts: tokio makes a task that polls hundreds of futures yield before all of them have begun.
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

/// What several consumers see of each key, checked as it happens. Clones share it.
#[derive(Clone)]
pub(crate) struct KeyOrderLog(Arc<KeyOrderInner>);

struct KeyOrderInner {
    goal: usize,
    state: Mutex<KeyOrderState>,
    done: watch::Sender<bool>,
}

#[derive(Default)]
struct KeyOrderState {
    busy: BTreeSet<String>,
    acked: BTreeMap<String, Vec<usize>>,
    seen: BTreeMap<(String, usize), usize>,
    total: usize,
}

impl KeyOrderLog {
    /// A log that is done after `goal` acks.
    pub(crate) fn new(goal: usize) -> Self {
        Self(Arc::new(KeyOrderInner { goal, state: Mutex::default(), done: watch::Sender::new(false) }))
    }

    fn state(&self) -> MutexGuard<'_, KeyOrderState> {
        self.0.state.lock()
    }

    /// Notes that a delivery came, and returns how often this message has come.
    ///
    /// Fails unless no other message of its key is held, and it is the one after the last that was acked.
    pub(crate) fn begin(&self, key: &str, n: usize) -> Outcome<usize> {
        let mut state = self.state();
        ensure!(state.busy.insert(key.into()), "{key}: {n} was handed out while another of its key was unsettled");
        let next = state.acked.get(key).map_or(0, Vec::len);
        ensure_eq!(n, next, "the next of {key}");
        let seen = state.seen.entry((key.into(), n)).or_default();
        *seen += 1;
        Ok(*seen)
    }

    /// Notes that a delivery is about to be settled, and whether by an ack.
    pub(crate) fn end(&self, key: &str, acked: Option<usize>) {
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

    /// Fails unless `keys` keys were acked, each from 0 up to `per_key`.
    pub(crate) fn all_in_order(&self, keys: usize, per_key: usize) -> Outcome {
        let state = self.state();
        ensure_eq!(state.acked.len(), keys, "keys");
        for (key, acked) in &state.acked {
            ensure_eq!(*acked, (0..per_key).collect::<Vec<_>>(), "what was acked of {key}");
        }
        Ok(())
    }
}

/// Consumes with all of these until the goal is reached. `release(number, times it has come)` says what to release.
pub(crate) async fn consume_with_all(
    cx: &Cx,
    lanes: &KeyOrderLog,
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

async fn consume(lanes: KeyOrderLog, mut sub: Subscription, release: fn(usize, usize) -> bool) -> Outcome {
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

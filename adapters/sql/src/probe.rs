//! Whether the database answers, asked by one task for all.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// How long whoever asks waits.
const WAIT: Duration = Duration::from_secs(1);

/// The limit of the first try. It doubles with each one that ends in vain.
const FIRST_LIMIT: Duration = Duration::from_secs(2);

const LONGEST_LIMIT: Duration = Duration::from_secs(60);

/// For how long an answer counts that came when nobody waited any more. Who looks for a database that is away looks
/// more often.
const FRESH: Duration = Duration::from_secs(5);

/// For how long a connection that is there is waited for, before another one is made.
const HEAD_START: Duration = Duration::from_millis(300);

/// Whether one of two ways of asking says yes: the second begins after a moment, or when the first says no.
pub(crate) async fn either(first: impl Future<Output = bool>, second: impl Future<Output = bool>) -> bool {
    let mut first = pin!(first);
    match timeout(HEAD_START, &mut first).await {
        Ok(yes) => yes || second.await,
        Err(_) => {
            let mut second = pin!(second);
            tokio::select! {
                yes = &mut first => yes || second.await,
                yes = &mut second => yes || first.await,
            }
        }
    }
}

/// One try at a time to reach the database.
///
/// A try goes on after those who asked have left, and the next ones wait for the same. Else a database to which it
/// takes longer to connect than anybody waits, would be away for ever.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    current: Mutex<Option<Try>>,
    /// How many tries in a row reached their limit.
    in_vain: AtomicU32,
}

/// A try, with its answer once it is there.
#[derive(Clone, Debug)]
struct Try(watch::Receiver<Option<Answer>>);

#[derive(Clone, Copy, Debug)]
struct Answer {
    there: bool,
    at: Instant,
}

impl Probe {
    /// Whether the database is there, as `ask` finds out. It takes at most a second.
    pub(crate) async fn is_there<F>(self: &Arc<Self>, ask: impl Fn() -> F) -> bool
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let until = Instant::now() + WAIT;
        loop {
            let (current, is_own) = self.join_or_begin(&ask);
            let mut answers = current.0;
            let answer = tokio::time::timeout_at(until, answers.wait_for(Option::is_some)).await;
            match answer.map(|answer| answer.ok().and_then(|answer| *answer)) {
                Err(_) => return false,
                Ok(Some(answer)) if answer.there => return true,
                // That one was begun before this question. Its task is gone where there is no answer.
                Ok(_) if !is_own && Instant::now() < until => {}
                Ok(_) => return false,
            }
        }
    }

    fn join_or_begin<F>(self: &Arc<Self>, ask: impl Fn() -> F) -> (Try, bool)
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let mut current = self.current.lock();
        // What was heard is taken out: it says nothing of now.
        if let Some(known) = current.take_if(|known| known.0.borrow().is_some() || known.0.has_changed().is_err()) {
            let answer = *known.0.borrow();
            if answer.is_some_and(|answer| answer.there && answer.at.elapsed() < FRESH) {
                return (known, false);
            }
        }
        if let Some(running) = &*current {
            return (running.clone(), false);
        }
        let (answer, answers) = watch::channel(None);
        let begun = Try(answers);
        *current = Some(begun.clone());
        let (probe, asking) = (self.clone(), ask());
        tokio::spawn(async move {
            let in_vain = probe.in_vain.load(Ordering::Relaxed);
            let limit = FIRST_LIMIT.saturating_mul(1 << in_vain.min(16)).min(LONGEST_LIMIT);
            let there = timeout(limit, asking).await;
            probe.in_vain.store(if there.is_ok() { 0 } else { in_vain.saturating_add(1) }, Ordering::Relaxed);
            answer.send_replace(Some(Answer { there: there.unwrap_or(false), at: Instant::now() }));
            // Whoever waited has it. Where nobody did, the next one takes it.
            if answer.receiver_count() > 1 {
                probe.current.lock().take();
            }
        });
        (begun, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each try takes this long.
    async fn asks(probe: &Arc<Probe>, takes: Duration) -> bool {
        probe
            .is_there(|| async move {
                tokio::time::sleep(takes).await;
                true
            })
            .await
    }

    async fn asks_until_there(takes: Duration) -> Duration {
        let (probe, since) = (Arc::default(), Instant::now());
        while !asks(&probe, takes).await {
            assert!(since.elapsed() < takes * 20, "in vain for {:?}", since.elapsed());
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        since.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_database_is_there() {
        for millis in [300, 900, 1_100, 1_600, 5_000, 29_000] {
            let takes = Duration::from_millis(millis);
            let took = asks_until_there(takes).await;
            // The limits of the tries double: together they are less than four times the time that is needed.
            assert!(took <= takes * 4 + WAIT * 2, "{takes:?} took {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_waits_a_second_and_an_answer_is_not_used_twice() {
        let probe = Arc::default();
        let since = Instant::now();
        assert!(!asks(&probe, Duration::from_millis(1_500)).await);
        assert_eq!(since.elapsed(), WAIT);
        tokio::time::sleep(Duration::from_secs(1)).await;
        // That of the first try. After it, it is asked anew.
        let away = async || probe.is_there(|| async { false }).await;
        assert!(away().await);
        assert!(!away().await);
        // One that is old says nothing.
        assert!(!asks(&probe, Duration::from_millis(1_500)).await);
        tokio::time::sleep(FRESH * 2).await;
        assert!(!away().await);
    }

    #[tokio::test(start_paused = true)]
    async fn many_ask_with_one_try() {
        let (probe, tries) = (Arc::<Probe>::default(), Arc::new(AtomicU32::new(0)));
        let ask = || {
            let tries = tries.clone();
            probe.is_there(move || {
                tries.fetch_add(1, Ordering::Relaxed);
                async {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    true
                }
            })
        };
        let all = tokio::join!(ask(), ask(), ask());
        assert_eq!((all, tries.load(Ordering::Relaxed)), ((true, true, true), 1));
        assert!(ask().await);
        assert_eq!(tries.load(Ordering::Relaxed), 2);
    }
}

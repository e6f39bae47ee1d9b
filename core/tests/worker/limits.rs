//! How many handlers run at once, and in which order.

use std::{
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::{QueueSpec, RetryPolicy, stateful};

use crate::support::*;

/// The first so many wait for each other: that they run side by side is no matter of time.
struct Meeting {
    missing: AtomicUsize,
    all: tokio::sync::Barrier,
}

impl Meeting {
    fn of(n: usize) -> Self {
        Self { missing: AtomicUsize::new(n), all: tokio::sync::Barrier::new(n) }
    }

    async fn join(&self) {
        let one_less = |missing: usize| missing.checked_sub(1);
        if self.missing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            self.all.wait().await;
        }
    }
}

#[derive(Clone, Default)]
struct Peak(Arc<(AtomicUsize, AtomicUsize)>);

impl Peak {
    fn enter(&self) {
        let now = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(now, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

async fn concurrency_is_used_and_kept() {
    let bus = bus(QueueSpec::new()).await;
    for (concurrency, prefetch) in [(1, 2), (7, 14), (7, 3), (64, 128)] {
        let most = concurrency.min(prefetch);
        let (peak, tally, first) = (Peak::default(), Counter::default(), Arc::new(Meeting::of(most)));
        publish(&bus, (0..300).map(|n| n.to_string())).await;
        let handler = stateful((peak.clone(), tally.clone(), first), async |(peak, tally, first), _cx, msg| {
            peak.enter();
            first.join().await;
            // Some end at once, so that tasks are woken and put to sleep in many ways.
            if msg.id.parse::<u32>()? % 3 > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            peak.leave();
            tally.add();
            Ok(())
        });
        let worker = bus.worker(q()).concurrency(concurrency).prefetch(prefetch);
        let running = worker.with_graceful_shutdown(tally.reaches(300)).run(handler);
        let report = tokio::time::timeout(secs(300), running).await.expect("as many as may run do").unwrap();
        assert_eq!(report.succeeded, 300);
        assert_eq!(peak.most(), most, "of {concurrency}, {prefetch}");
        assert_eq!(counts(&bus).await, [0, 0, 0, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_used_and_kept_on_one_thread() {
    concurrency_is_used_and_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrency_is_used_and_kept_on_many_threads() {
    concurrency_is_used_and_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_that_block_their_threads_run_side_by_side() {
    let bus = bus(QueueSpec::new()).await;
    let (meet, tally) = (Arc::new(Barrier::new(3)), Counter::default());
    // Each blocks until all three are there: one after the other would never end. Once with tasks that start, then with
    // tasks that wake up.
    let (again, first) = (bus.clone(), tally.reaches(3));
    publish(&bus, ["a", "b", "c"]).await;
    tokio::spawn(async move {
        first.await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        publish(&again, ["d", "e", "f"]).await;
    });
    let handler = stateful((meet, tally.clone()), async |(meet, tally), _cx, _msg| {
        meet.wait();
        tally.add();
        Ok(())
    });
    let running = bus.worker(q()).concurrency(3).with_graceful_shutdown(tally.reaches(6)).run(handler);
    let report = tokio::time::timeout(secs(300), running).await.expect("they meet").unwrap();
    assert_eq!(report.succeeded, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_blocked_handler_holds_nobody_up() {
    let bus = bus(QueueSpec::new()).await;
    let (others, seen) = std::sync::mpsc::channel();
    let tally = Counter::default();
    let state = (tally.clone(), others, Arc::new(Mutex::new(seen)));
    // One keeps its thread until 200 others, which come one after the other, have been handled.
    let handler = stateful(state, async |(tally, others, seen), _cx, msg| {
        match &*msg.id {
            "block" => (0..200).try_for_each(|_| seen.lock().unwrap().recv())?,
            _ => others.send(())?,
        }
        tally.add();
        Ok(())
    });
    let publisher = bus.clone();
    tokio::spawn(async move {
        for n in 0..200 {
            publish(&publisher, [if n == 20 { "block".to_owned() } else { n.to_string() }]).await;
        }
        publish(&publisher, ["last"]).await;
    });
    let running = bus.worker(q()).concurrency(4).with_graceful_shutdown(tally.reaches(201)).run(handler);
    let report = tokio::time::timeout(secs(300), running).await.expect("the others go on").unwrap();
    assert_eq!(report.succeeded, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_quick_handlers_starves_nobody() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, (0..20_000).map(|n| n.to_string())).await;
    let (tally, told) = (Counter::default(), Counter::default());
    let (reached, tells) = (tally.reaches(100), told.clone());
    let shutdown = async move {
        reached.await;
        tells.add();
    };
    // The second half of the backlog waits until the worker has been told: this thread may be late.
    let handler = stateful((tally.clone(), told), async |(tally, told), _cx, _msg| {
        if tally.add() > 10_000 {
            told.reaches(1).await;
        }
        Ok(())
    });
    // The shutdown must be seen long before the backlog ends.
    let running = bus.worker(q()).with_graceful_shutdown(shutdown).run(handler);
    let report = tokio::time::timeout(secs(300), running).await.expect("it ends").unwrap();
    assert!(report.succeeded < 20_000, "{report:?}");
    let [ready, in_flight, ..] = counts(&bus).await;
    assert_eq!(ready + report.succeeded, 20_000);
    assert_eq!(in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn ordered_sources_retry_in_place() {
    let bus = bus(QueueSpec::new().ordered(true).max_hold(secs(20))).await;
    publish(&bus, ["a/1", "a/2", "b/1", "a/3", "b/2", "b/3"]).await;
    let (log, tally) = (Log::new(), Counter::default());
    let handler = stateful((log.clone(), tally.clone()), async |(log, tally), cx, msg| {
        log.add(&msg.id, cx.attempt());
        if &*msg.id == "a/1" && cx.attempt() < 3 {
            Err("not yet")?;
        }
        tally.add();
        Ok(())
    });
    // Longer than the source holds a message: cut to that.
    let worker = bus.worker(q()).concurrency(8).retry(RetryPolicy::fixed(secs(60)));
    let report = worker.with_graceful_shutdown(tally.reaches(6)).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.retried), (6, 2));
    let seen = log.all();
    let of = |key: &str| -> Vec<_> {
        seen.iter().filter(|(id, ..)| id.starts_with(key)).map(|(id, attempt, _)| (id.as_str(), *attempt)).collect()
    };
    assert_eq!(of("a"), [("a/1", 1), ("a/1", 2), ("a/1", 3), ("a/2", 1), ("a/3", 1)]);
    assert_eq!(of("b"), [("b/1", 1), ("b/2", 1), ("b/3", 1)]);
    let at = |id: &str, n: usize| seen.iter().filter(|(i, ..)| i == id).nth(n).unwrap().2;
    assert!(at("b/3", 0) < at("a/1", 1), "b did not wait for a: {seen:?}");
    let held = at("a/1", 1) - at("a/1", 0);
    assert!(held >= secs(20) && held <= secs(22), "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn an_ordered_retry_keeps_no_handlers_place() {
    let bus = bus(QueueSpec::new().ordered(true)).await;
    publish(&bus, ["a/1", "b/1", "c/1", "d/1"]).await;
    let (log, tally) = (Log::new(), Counter::default());
    let handler = stateful((log.clone(), tally.clone()), async |(log, tally), cx, msg| {
        log.add(&msg.id, cx.attempt());
        if &*msg.id != "d/1" && cx.attempt() == 1 {
            Err("not yet")?;
        }
        tally.add();
        Ok(())
    });
    let worker = bus.worker(q()).concurrency(1).prefetch(8).retry(RetryPolicy::fixed(secs(50)));
    worker.with_graceful_shutdown(tally.reaches(4)).run(handler).await.unwrap();
    let seen = log.all();
    let d = seen.iter().find(|(id, ..)| id == "d/1").unwrap();
    assert!(d.2 < secs(1), "{seen:?}");
}

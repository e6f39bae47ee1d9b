use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Counter {
    fn taken(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

fn waiting(broker: &Broker) -> (Receiver, Arc<Counter>) {
    let counter = Arc::new(Counter::default());
    let mut receiver = broker.source("q").unwrap().receiver(ReceiveMode::PeekLock, None, counter.clone()).unwrap();
    assert!(receiver.try_receive(1).unwrap().is_empty());
    (receiver, counter)
}

#[test]
fn who_waits_is_woken_once() {
    let broker = with_queue(QueueSettings::default());
    let (mut receiver, wakes) = waiting(&broker);
    send(&broker, "q", [message("a"), message("b")]);
    send(&broker, "q", [message("c")]);
    assert_eq!(wakes.taken(), 1);
    assert_eq!(receiver.try_receive(3).unwrap().len(), 3);
    send(&broker, "q", [message("d")]);
    assert_eq!(wakes.taken(), 0, "it got all it asked for and does not wait");
    assert_eq!(receiver.try_receive(9).unwrap().len(), 1);
    send(&broker, "q", [message("e")]);
    assert_eq!(wakes.taken(), 1, "it got less than it asked for and waits");
}

#[test]
fn everything_that_makes_a_message_available_wakes() {
    let broker = with_queue(QueueSettings { lock_duration_ms: 5_000, ..QueueSettings::default() });
    send(&broker, "q", [message("a"), message("b"), message("c")]);
    let got = lock(&broker, "q", 3);
    broker.target("q").unwrap().schedule(vec![(message("d"), START_MS + 2_500)]).unwrap();
    let (mut receiver, wakes) = waiting(&broker);
    settle(&broker, "q", &got[0], abandon()).unwrap();
    assert_eq!((wakes.taken(), receiver.try_receive(5).unwrap().len()), (1, 1));
    settle(&broker, "q", &got[1], Outcome::Release).unwrap();
    assert_eq!((wakes.taken(), receiver.try_receive(5).unwrap().len()), (1, 1));
    move_clock(&broker, 2_500);
    assert_eq!((wakes.taken(), receiver.try_receive(5).unwrap().len()), (1, 1));
    move_clock(&broker, 2_500);
    assert_eq!((wakes.taken(), receiver.try_receive(5).unwrap().len()), (1, 3), "three locks ran out at once");
}

#[test]
fn a_dropped_receiver_is_not_woken() {
    let broker = with_queue(QueueSettings::default());
    let (receiver, wakes) = waiting(&broker);
    let (_other, others) = waiting(&broker);
    drop(receiver);
    send(&broker, "q", [message("a")]);
    assert_eq!((wakes.taken(), others.taken()), (0, 1));
}

#[test]
fn the_end_of_an_entity_wakes() {
    let broker = with_queue(QueueSettings::default());
    let (mut receiver, wakes) = waiting(&broker);
    broker.update_queue("q", QueueSettings { status: EntityStatus::Disabled, ..QueueSettings::default() }).unwrap();
    assert_eq!(wakes.taken(), 1);
    assert_eq!(condition(receiver.try_receive(1)), Condition::EntityDisabled);
    broker.update_queue("q", QueueSettings::default()).unwrap();
    assert!(receiver.try_receive(1).unwrap().is_empty());
    broker.delete("q").unwrap();
    assert_eq!(wakes.taken(), 1);
}

#[test]
fn a_session_wakes_its_holder_alone() {
    let broker = with_queue(QueueSettings { requires_session: true, ..QueueSettings::default() });
    let source = broker.source("q").unwrap();
    let holder = |id: &str| {
        let counter = Arc::new(Counter::default());
        let session = source.backing.main.accept(Some(id)).unwrap();
        let mut receiver = source.receiver(ReceiveMode::PeekLock, session, counter.clone()).unwrap();
        assert!(receiver.try_receive(1).unwrap().is_empty());
        (receiver, counter)
    };
    let ((mut a, wakes_a), (b, wakes_b)) = (holder("a"), holder("b"));
    send(&broker, "q", [in_session("1", "a")]);
    assert_eq!((wakes_a.taken(), wakes_b.taken()), (1, 0));
    assert_eq!(a.try_receive(2).unwrap().len(), 1);
    move_clock(&broker, 60_000);
    move_clock(&broker, 999);
    assert_eq!((wakes_a.taken(), wakes_b.taken()), (0, 0), "a link outlives the lock");
    move_clock(&broker, 1);
    assert_eq!((wakes_a.taken(), wakes_b.taken()), (1, 1), "both hear of it");
    assert_eq!(condition(a.try_receive(1)), Condition::SessionLockLost);
    drop((a, b));
    source.backing.main.with(|state, _, _| assert!(state.waiting.is_empty()));
}

#[test]
fn many_threads_lose_and_double_nothing() {
    const SENDERS: usize = 4;
    const EACH: usize = 2_000;
    let broker = with_queue(QueueSettings::default());
    let seen = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let target = broker.target("q").unwrap();
            scope.spawn(move || {
                for i in 0..EACH {
                    target.send(vec![message(&format!("{sender}-{i}"))]).unwrap();
                }
            });
        }
        for _ in 0..2 {
            let (broker, seen) = (&broker, &seen);
            scope.spawn(move || {
                let source = broker.source("q").unwrap();
                let mut receiver = source.receiver(ReceiveMode::PeekLock, None, Arc::new(Notify::new())).unwrap();
                loop {
                    let got = receiver.try_receive(50).unwrap();
                    for (i, got) in got.iter().enumerate() {
                        let outcome = if i == 7 && got.delivery_count == 0 { abandon() } else { Outcome::Complete };
                        let done = outcome == Outcome::Complete;
                        source.settle(got.lock_token.unwrap(), outcome).unwrap();
                        if done {
                            seen.lock().unwrap().push(id(got));
                        }
                    }
                    if seen.lock().unwrap().len() == SENDERS * EACH {
                        return;
                    }
                    std::thread::yield_now();
                }
            });
        }
    });
    let mut seen = seen.into_inner().unwrap();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), SENDERS * EACH);
    assert_eq!(broker.queue("q").unwrap().counts.total(), 0);
}

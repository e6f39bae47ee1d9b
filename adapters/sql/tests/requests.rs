//! Request and reply with a database: slots that are held by leases, and answers that go through the outbox.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod database;

use std::{future::IntoFuture, sync::Arc, time::Duration};

use database::TestDatabase;
use polybus_core::{
    Address, Bus, BusOptions, Envelope, ErrorKind, Event, QueueSpec, Source, Topology, memory::MemoryDriver,
};
use polybus_patterns::{
    Inbox, Outbox, Relay, Requests,
    requests::{Reply, RequestError},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, time::Instant};

const PATIENCE: Duration = Duration::from_secs(60);

on_both![slots_are_taken_one_by_one, a_slot_that_is_lost_ends_the_calls, an_answer_goes_through_the_outbox];

#[derive(Serialize, Deserialize)]
struct Book {
    seat: u32,
}

impl Event for Book {
    const TYPE: &'static str = "seat.wanted";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct Booked {
    seat: u32,
}

impl Event for Booked {
    const TYPE: &'static str = "seat.booked";
    const VERSION: u32 = 1;
}

async fn bus() -> (Bus, Arc<MemoryDriver>) {
    let queues = ["bookings", "replies-0", "replies-1"].into_iter();
    let topology = queues.fold(Topology::new(), |all, queue| all.queue(queue, QueueSpec::new()));
    let memory = Arc::new(MemoryDriver::new());
    memory.record(true);
    let bus = Bus::new(memory.clone(), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    (bus, memory)
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn replies() -> [Source; 2] {
    ["replies-0", "replies-1"].map(Source::queue)
}

async fn slots_are_taken_one_by_one<S: TestDatabase>(store: S) {
    let (bus, _) = bus().await;
    let first = Requests::slots(&bus, replies(), &store).open().await.unwrap();
    let second = Requests::slots(&bus, replies(), &store).open().await.unwrap();
    assert_eq!([first.replies(), second.replies()], replies().each_ref());
    let full = Requests::slots(&bus, replies(), &store).patience(Duration::ZERO).open().await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Unavailable, "{full}");
    // The third waits for the end of the first.
    let third = tokio::spawn({
        let (bus, store) = (bus.clone(), store.clone());
        async move { Requests::slots(&bus, replies(), &store).patience(PATIENCE).open().await }
    });
    first.close().await;
    assert_eq!(third.await.unwrap().unwrap().replies(), first.replies());
    let none = Requests::slots(&bus, [], &store).open().await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::InvalidArgument, "{none}");
}

async fn a_slot_that_is_lost_ends_the_calls<S: TestDatabase>(store: S) {
    let (bus, _) = bus().await;
    let term = Duration::from_secs(3);
    let requests = Requests::slots(&bus, replies(), &store).slot_term(term).open().await.unwrap();
    let call = requests.call::<Booked>(Address::queue("bookings"), &Book { seat: 7 }).timeout(PATIENCE * 10);
    let call = tokio::spawn(call.into_future());
    eventually("the call waits", async || requests.stats().waiting == 1).await;
    // The lease runs out, as it does while a process stands still, and another one takes the slot.
    let leases = store.control().leases();
    let name = ["requests/replies-0".to_owned()];
    eventually("another process takes the slot", async || {
        store.move_clock(30_000_000);
        !leases.acquire(&name, "another", Duration::from_secs(3600)).await.unwrap().is_empty()
    })
    .await;
    let ended = call.await.unwrap();
    assert!(
        matches!(&ended, Err(RequestError::Closed { cause, .. })
        if cause.to_string().contains("another process")),
        "{:?}",
        ended.err()
    );
}

async fn an_answer_goes_through_the_outbox<S: TestDatabase>(store: S) {
    let (bus, memory) = bus().await;
    let requests = Requests::open(&bus, Source::queue("replies-0")).await.unwrap();
    let outbox = Outbox::new(&store, "/booking");
    let (stop, stopped) = oneshot::channel::<()>();
    let relay = tokio::spawn(Relay::new(&bus, &store).run(async { drop(stopped.await) }));
    let handler =
        Inbox::new(&store, "booking").handler((bus.clone(), outbox), async |(bus, outbox), mut tx, _cx, msg| {
            let seat = msg.decode::<Book>()?.seat;
            if let Some(reply) = Reply::to(&msg, &Booked { seat })? {
                let address = reply.address_in(bus.topology())?;
                outbox.enqueue(&mut tx, address, reply).await?;
            }
            Ok(tx)
        });
    let worker = tokio::spawn(bus.worker(Source::queue("bookings")).concurrency(2).run(handler));

    let booked: Booked = requests.call(Address::queue("bookings"), &Book { seat: 7 }).timeout(PATIENCE).await.unwrap();
    assert_eq!(booked.seat, 7);
    // A copy of the request books nothing, and is not answered again.
    let request: Envelope = memory.published(&Address::queue("bookings")).pop().unwrap();
    bus.publish(Address::queue("bookings"), request).await.unwrap();
    let again: Booked = requests.call(Address::queue("bookings"), &Book { seat: 8 }).timeout(PATIENCE).await.unwrap();
    assert_eq!(again.seat, 8);
    eventually("both are handled", async || {
        let stats = bus.stats(Source::queue("bookings")).await.unwrap();
        (stats.ready, stats.in_flight) == (Some(0), Some(0))
    })
    .await;
    drop(stop);
    relay.await.unwrap().unwrap();
    // All that was ever sent, whatever became of it.
    let replies = memory.published(&Address::queue("replies-0"));
    assert_eq!(replies.iter().filter(|reply| &*reply.event_type == Booked::TYPE).count(), 2);
    eventually("both are there", async || requests.stats().answered == 2).await;
    worker.abort();
}

//! The helpers for tests, as a user's unit test would use them: a worker with retries, under a paused clock.

use polybus::{
    Address, Bus, Envelope, HandlerContext, HandlerError, QueueSpec, Source, TopicSpec, Topology, stateful,
    testing::TestBus,
};
use tokio::time::Instant;

/// The code under test: confirms each order, but only at the third attempt.
async fn confirm(bus: Bus, cx: HandlerContext, order: Envelope) -> Result<(), HandlerError> {
    if cx.attempt() < 3 {
        return Err("not yet".into());
    }
    bus.publish(Address::topic("confirmed"), Envelope::new("order.confirmed", "{}").caused_by(&order)).await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_worker_with_retries() {
    let topology = Topology::new().queue("orders", QueueSpec::new()).topic("confirmed", TopicSpec::new());
    let bus = TestBus::new(topology).await.unwrap();
    let worker = bus.worker(Source::queue("orders"));
    let worker = tokio::spawn(worker.run(stateful(bus.clone(), confirm)));
    let order = Envelope::new("order.placed", "{}");
    let began = Instant::now();
    bus.publish(Address::queue("orders"), &order).await.unwrap();
    bus.run_until_idle().await.unwrap();

    let confirmed = bus.published(&Address::topic("confirmed"));
    assert_eq!(confirmed.len(), 1);
    assert_eq!(confirmed[0].envelope.causation_id, Some(order.id.clone()));
    assert!(began.elapsed().as_secs() >= 5, "the default delays are 1 s and 5 s: {:?}", began.elapsed());
    worker.abort();
}

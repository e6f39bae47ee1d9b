//! The smallest useful program: a work queue with retry.
//!
//! ```text
//! cargo run --example orders
//! POLYBUS_URL=amqp://… cargo run --features rabbitmq --example orders
//! ```

use std::{sync::Arc, time::Duration};

use polybus::{
    Address, BusOptions, Envelope, Event, HandlerContext, HandlerError, QueueSpec, Result, Source, Topology, stateful,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    number: u32,
    cents: u64,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "order.placed";
    const VERSION: u32 = 1;
}

const ORDERS: u32 = 10;

/// Charges a card. The card service answers every third order at the second attempt only.
async fn charge(done: Arc<Semaphore>, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    let order: OrderPlaced = msg.decode()?;
    if order.number.is_multiple_of(3) && cx.attempt() == 1 {
        println!("order {}: the card service did not answer, again in 1 s", order.number);
        return Err("the card service did not answer".into());
    }
    println!("order {}: {} cents charged at attempt {}", order.number, order.cents, cx.attempt());
    done.add_permits(1);
    Ok(())
}

/// Publishes ten orders and charges them all. Returns how many were charged.
pub async fn run(url: &str, prefix: &str) -> Result<usize> {
    let orders = QueueSpec::new().max_deliveries(5).retry([Duration::from_secs(1)]);
    let topology = Topology::new().prefix(prefix).queue("orders", orders);
    let bus = polybus::connect_with(url, BusOptions::topology(topology)).await?;
    bus.declare().await?;

    for number in 1..=ORDERS {
        let order = OrderPlaced { number, cents: 1999 };
        bus.publish(Address::queue("orders"), Envelope::event(&order)?).await?;
    }

    let done = Arc::new(Semaphore::new(0));
    let all = done.clone();
    let shutdown = async move { _ = all.acquire_many(ORDERS).await };
    bus.worker(Source::queue("orders"))
        .concurrency(4)
        .with_graceful_shutdown(shutdown)
        .run(stateful(done.clone(), charge))
        .await?;

    bus.delete().await?;
    bus.close().await?;
    Ok(done.available_permits())
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("POLYBUS_URL").unwrap_or_else(|_| "memory://".into());
    println!("{} orders charged", run(&url, &format!("orders-{}", std::process::id())).await?);
    Ok(())
}

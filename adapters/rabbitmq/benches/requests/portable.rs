//! The side of polybus.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Address, Bus, BusOptions, Event, QueueSpec, Registry, Source, Topology, driver::Driver, memory::MemoryDriver,
};
use polybus_patterns::{Requests, requests::respond};
use polybus_rabbitmq::RabbitmqConnector;
use serde::{Deserialize, Serialize};

use crate::Caller;

#[derive(Serialize, Deserialize)]
struct Ask {
    n: u64,
}

impl Event for Ask {
    const TYPE: &'static str = "double.wanted";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct Double {
    n: u64,
}

impl Event for Double {
    const TYPE: &'static str = "double.made";
    const VERSION: u32 = 1;
}

pub(crate) struct PolybusCaller {
    requests: Requests,
    buses: [Bus; 2],
}

impl PolybusCaller {
    pub(crate) async fn in_memory() -> Self {
        let driver = Arc::new(MemoryDriver::new());
        Self::open(driver.clone(), driver, "memory").await
    }

    /// Caller and responder have a connection each.
    pub(crate) async fn on_rabbitmq(url: &str, queue: &str) -> Self {
        let registry = Registry::new().with(RabbitmqConnector);
        Self::open(registry.connect(url).await.unwrap(), registry.connect(url).await.unwrap(), queue).await
    }

    async fn open(caller: Arc<dyn Driver>, responder: Arc<dyn Driver>, queue: &str) -> Self {
        let (asks, replies) = (format!("{queue}-asks"), format!("{queue}-replies"));
        let topology = Topology::new()
            .queue("asks", QueueSpec::new().physical(&*asks))
            .queue("replies", QueueSpec::new().physical(&*replies));
        let bus = |driver| Bus::new(driver, BusOptions::topology(topology.clone())).unwrap();
        let (caller, responder) = (bus(caller), bus(responder));
        caller.declare().await.unwrap();
        let worker = responder.worker(Source::queue("asks")).concurrency(64);
        let handler = respond(&responder, (), async |(), _cx, ask: Ask| Ok(Double { n: ask.n * 2 }));
        tokio::spawn(worker.run(handler));
        let requests = Requests::open(&caller, Source::queue("replies")).await.unwrap();
        Self { requests, buses: [caller, responder] }
    }

    pub(crate) async fn close(&self) {
        self.requests.close().await;
        self.buses[0].delete().await.unwrap();
        for bus in &self.buses {
            bus.close().await.unwrap();
        }
    }
}

impl Caller for PolybusCaller {
    async fn call(&self, n: u64) -> u64 {
        let call = self.requests.call::<Double>(Address::queue("asks"), &Ask { n });
        call.timeout(Duration::from_secs(60)).await.unwrap().n
    }
}

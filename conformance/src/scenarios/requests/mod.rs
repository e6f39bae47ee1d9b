//! Request and reply, as polybus-patterns makes it of queues alone: calls, answers, and the requests of other programs.

mod calls;
mod others;

use std::time::Duration;

use polybus_core::{Address, Bus, Event, Handler, QueueSpec, Result, Source, Topology, worker::WorkerReport};
use polybus_patterns::Requests;
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{Cx, During, Outcome, Scenario};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [calls::all(), others::all()].concat()
}

#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    n: u64,
}

impl Event for Ask {
    const TYPE: &'static str = "square.wanted";
    const VERSION: u32 = 1;
}

#[derive(Debug, Serialize, Deserialize)]
struct Square {
    n: u64,
}

impl Event for Square {
    const TYPE: &'static str = "square.made";
    const VERSION: u32 = 1;
}

/// A caller with its reply queue, and the bus of the other side.
struct Desks {
    caller: Bus,
    responder: Bus,
    requests: Requests,
}

impl Desks {
    async fn open(cx: &Cx) -> Outcome<Self> {
        let retry = [Duration::from_secs(1)];
        let topology = Topology::new()
            .queue("squares", QueueSpec::new().retry(retry).max_deliveries(3))
            .queue("replies", QueueSpec::new())
            .queue("answers", QueueSpec::new());
        let caller = cx.bus(topology).await?;
        let responder = cx.second_bus(&caller).await?;
        let builder = Requests::builder(&caller, Source::queue("replies")).timeout(cx.patience());
        let requests = builder.patience(cx.patience()).open().await.during("opening the requests")?;
        Ok(Self { caller, responder, requests })
    }

    /// A worker on the requests, which ends when the sender is dropped.
    fn work(&self, handler: impl Handler) -> (oneshot::Sender<()>, JoinHandle<Result<WorkerReport>>) {
        let (stop, stopped) = oneshot::channel::<()>();
        let worker =
            self.responder.worker(Source::queue("squares")).with_graceful_shutdown(async { drop(stopped.await) });
        (stop, tokio::spawn(worker.run(handler)))
    }
}

fn squares() -> Address {
    Address::queue("squares")
}

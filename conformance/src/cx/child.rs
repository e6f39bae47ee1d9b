//! A consumer in a process of its own, which a scenario kills.

use std::process::Stdio;

use polybus_core::{Bus, BusOptions, Source, Topology, topology::DeclareMode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{ConnectOverrides, Cx, Failure, Outcome, Target};

/// The variable that tells a process to be such a consumer, and what it consumes.
const ORDER: &str = "POLYBUS_CONFORMANCE_CHILD";
/// The line by which the process says that it holds its deliveries.
const READY: &str = "holding";

/// A consumer in another process, which holds deliveries. It is killed when dropped.
pub struct ChildConsumer(tokio::process::Child);

impl ChildConsumer {
    pub(crate) async fn start(
        cx: &Cx,
        topology: &Topology,
        source: &Source,
        prefetch: usize,
        hold: usize,
    ) -> Outcome<Self> {
        let topology_json = serde_json::to_value(topology).map_err(|e| Failure::new(e.to_string()))?;
        let order = json!({ "target": cx.target().name, "space": cx.prefix(), "prefix": topology.prefix,
            "topology": topology_json, "source": source.to_string(), "prefetch": prefetch, "hold": hold });
        let mut child = tokio::process::Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(ORDER, order.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let out = child.stdout.take().ok_or_else(|| Failure::new("the other process has no output"))?;
        let mut lines = BufReader::new(out).lines();
        while let Some(line) = lines.next_line().await? {
            if line == READY {
                return Ok(Self(child));
            }
        }
        Err(Failure::new(format!("the other process ended: {}", child.wait().await?)))
    }

    /// Kills the process with SIGKILL and waits for its end.
    pub async fn kill(mut self) -> Outcome {
        self.0.kill().await?;
        Ok(())
    }
}

/// Runs this process as a [`ChildConsumer`] and never returns, where it was started as one. Else it does nothing.
///
/// [`main_for`](crate::main_for) and [`cli`](fn@crate::cli) call it. A program of your own calls it before anything
/// else with its targets, which must include the one whose scenario started the process.
pub fn child_main<'a>(targets: impl IntoIterator<Item = &'a Target>) {
    let Ok(order) = std::env::var(ORDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(hold(&order, &targets.into_iter().collect::<Vec<_>>())),
        Err(e) => Err(e.into()),
    };
    if let Err(e) = result {
        eprintln!("{e}");
    }
    std::process::exit(1);
}

async fn hold(order: &str, targets: &[&Target]) -> Outcome {
    let order: Value = serde_json::from_str(order).map_err(|e| Failure::new(e.to_string()))?;
    let text = |key: &str| order[key].as_str().unwrap_or_default().to_owned();
    let count = |key: &str| order[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let name = text("target");
    let target = targets.iter().find(|t| t.name == name);
    let target = target.ok_or_else(|| Failure::new(format!("no target {name}")))?;
    let mut topology: Topology =
        serde_json::from_value(order["topology"].clone()).map_err(|e| Failure::new(e.to_string()))?;
    topology.prefix = Some(text("prefix"));
    let overrides = ConnectOverrides { space: text("space"), ..ConnectOverrides::default() };
    let mut options = BusOptions::topology(topology);
    options.declare = DeclareMode::Off;
    let bus = Bus::new((target.connect)(overrides).await?, options)?;
    let mut sub = bus.subscribe(text("source").parse::<Source>()?).prefetch(count("prefetch")).open().await?;
    let mut held = Vec::new();
    while held.len() < count("hold") {
        match sub.next().await {
            Some(delivery) => held.push(delivery?),
            None => return Err(Failure::new("the subscription ended")),
        }
    }
    println!("{READY}");
    std::future::pending().await
}

//! What a driver does not declare is refused with `Unsupported` before any I/O.

use polybus_core::{Kind, QueueSpec, TopicSpec, Topology};

use crate::{Calls, Cx, Need, Outcome, Scenario, ensure_eq, expect_kind, scenario};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "negative/topics",
            "A topology with a topic is refused as Unsupported; the driver is not touched.",
            topics,
        )
        .needs(|_, c| Need::only_if(!c.topics)),
        scenario("negative/stats", "Stats are refused as Unsupported; the driver is not touched.", stats)
            .needs(|_, c| Need::only_if(!c.stats)),
    ]
}

async fn topics(cx: Cx) -> Outcome {
    let calls = Calls::new();
    let made = cx.setup(Topology::new().topic("t", TopicSpec::new())).counting(&calls).make().await?;
    expect_kind!(made, Kind::Unsupported);
    ensure_eq!(calls.total(), 0, "calls that reached the driver");
    Ok(())
}

async fn stats(cx: Cx) -> Outcome {
    let calls = Calls::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    let before = calls.total();
    expect_kind!(bus.stats(&polybus_core::Source::queue("q")).await, Kind::Unsupported);
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    Ok(())
}

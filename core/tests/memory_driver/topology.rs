use polybus_core::{
    ErrorKind, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology,
    driver::Driver,
    memory::MemoryDriver,
    topology::{DeclareMode, DeclarePlan, EntityDifference},
};

use crate::support::*;

fn shown(differences: &[EntityDifference]) -> Vec<String> {
    differences.iter().map(ToString::to_string).collect()
}

fn topology(ordered: bool, types: &[&str]) -> Topology {
    let subscription = SubscriptionSpec::new().types(types.iter().copied());
    Topology::new()
        .queue("q", QueueSpec::new().ordered(ordered))
        .topic("t", TopicSpec::new().ordered(ordered).subscription("s", subscription))
}

#[tokio::test]
async fn verify_creates_nothing_and_says_what_is_missing() {
    let driver = MemoryDriver::new();
    let plan = topology(false, &[]).plan();
    assert_eq!(driver.declare(&plan, DeclareMode::Off).await.unwrap(), Default::default());
    for _ in 0..2 {
        let report = driver.declare(&plan, DeclareMode::Verify).await.unwrap();
        assert!(report.created.is_empty());
        for name in ["queue:q", "topic:t", "subscription:t/s"] {
            assert!(
                shown(&report.differences).contains(&format!("{name}: exists should be true, found false")),
                "{report:?}"
            );
        }
    }
    let report = driver.declare(&plan, DeclareMode::Create).await.unwrap();
    assert_eq!((report.created.len(), report.differences.len()), (3, 0));
    for mode in [DeclareMode::Create, DeclareMode::Verify] {
        assert_eq!(driver.declare(&plan, mode).await.unwrap(), Default::default());
    }
}

#[tokio::test]
async fn a_changed_order_is_told_and_left() {
    let driver = MemoryDriver::new();
    driver.declare(&topology(false, &[]).plan(), DeclareMode::Create).await.unwrap();
    for mode in [DeclareMode::Create, DeclareMode::Verify] {
        let report = driver.declare(&topology(true, &[]).plan(), mode).await.unwrap();
        assert!(report.created.is_empty());
        let wanted =
            ["topic:t", "queue:q", "subscription:t/s"].map(|n| format!("{n}: ordered should be true, found false"));
        assert_eq!(shown(&report.differences), wanted);
    }
}

#[tokio::test]
async fn types_are_added_and_never_removed() {
    let driver = MemoryDriver::new();
    let declare = async |types: &[&str], mode| {
        let report = driver.declare(&topology(false, types).plan(), mode).await.unwrap();
        shown(&report.differences)
    };
    let (create, verify) = (DeclareMode::Create, DeclareMode::Verify);
    assert!(declare(&["a.*"], create).await.is_empty());
    assert_eq!(declare(&["b", "a.*"], verify).await, ["subscription:t/s: types should be a.*, b, found a.*"]);
    assert!(declare(&["b", "a.*"], create).await.is_empty());
    assert!(declare(&["a.*", "b"], verify).await.is_empty());
    assert_eq!(declare(&["c"], create).await, ["subscription:t/s: types should be c, found a.*, b, c"]);
    assert!(declare(&[], create).await.is_empty());
    assert_eq!(declare(&["c"], create).await, ["subscription:t/s: types should be c, found all"]);
}

#[tokio::test]
async fn a_removed_type_still_arrives_and_an_added_one_too() {
    let w = world().await;
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new().types(["b"]));
    let changed = Topology::new().topic("t", spec);
    w.driver.declare(&changed.plan(), DeclareMode::Create).await.unwrap();
    let sender = w.sender("topic:t").await;
    let all = ["a.x", "b", "c"].map(|t| message(t).edit(|p| p.event_type = t.into()).into());
    publish(&*sender, all.into()).await;
    assert_eq!(w.consume("subscription:t/a", 9).await.seen(9), ids(&[("a.x", 1), ("b", 1)]));
}

#[tokio::test]
async fn an_operators_settings_are_no_difference() {
    let driver = MemoryDriver::new();
    let plan = |n| Topology::new().queue("q", QueueSpec::new().max_deliveries(n).lock(secs(u64::from(n)))).plan();
    driver.declare(&plan(3), DeclareMode::Create).await.unwrap();
    assert_eq!(driver.declare(&plan(9), DeclareMode::Verify).await.unwrap(), Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_declare_at_once_and_one_creates() {
    let driver = std::sync::Arc::new(MemoryDriver::new());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let driver = driver.clone();
        tasks.spawn(async move { driver.declare(&topology(true, &["a"]).plan(), DeclareMode::Create).await.unwrap() });
    }
    let reports = tasks.join_all().await;
    assert_eq!(reports.iter().map(|r| r.created.len()).sum::<usize>(), 3);
    assert!(reports.iter().all(|r| r.differences.is_empty()));
}

#[tokio::test]
async fn delete_takes_everything_and_missing_ones_are_fine() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    w.driver.delete(&w.topology.plan()).await.unwrap();
    w.driver.delete(&w.topology.plan()).await.unwrap();
    for source in ["queue:q", "queue:o", "subscription:t/all", "subscription:t/a#dead-letters"] {
        let entity = w.topology.source(&source.parse::<Source>().unwrap());
        for kind in [
            w.driver.stats(&entity).await.unwrap_err().kind(),
            w.driver.purge(&entity).await.unwrap_err().kind(),
            w.driver.open_receiver(&entity).await.err().unwrap().kind(),
        ] {
            assert_eq!(kind, ErrorKind::NotFound, "{source}");
        }
    }
    let report = w.driver.declare(&w.topology.plan(), DeclareMode::Create).await.unwrap();
    assert_eq!(report.created.len(), 5);
    assert_eq!(w.stats("queue:q").await, [0, 0, 0, 0]);
}

#[tokio::test]
async fn a_subscription_without_its_topic_is_told() {
    let driver = MemoryDriver::new();
    let mut plan = DeclarePlan::new();
    plan.sources.push(topology(true, &[]).source(&Source::subscription("t", "s")));
    let report = driver.declare(&plan, DeclareMode::Create).await.unwrap();
    assert_eq!(
        shown(&report.differences),
        ["topic:t", "subscription:t/s"].map(|n| format!("{n}: exists should be true, found false"))
    );
}

#[tokio::test]
async fn options_for_memory_are_refused_and_others_ignored() {
    let driver = MemoryDriver::new();
    let with = |adapter: &str| {
        Topology::new().queue("q", QueueSpec::new().option(adapter, serde_json::json!({ "x": 1 }))).plan()
    };
    driver.check(&with("rabbitmq")).unwrap();
    assert_eq!(driver.check(&with("memory")).unwrap_err().kind(), ErrorKind::ConfigInvalid);
    let names = driver.physical_names(&topology(false, &[]).plan());
    assert_eq!(names.len(), 3);
}

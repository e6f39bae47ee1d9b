use super::*;

#[test]
fn names_are_one_whatever_their_case() {
    let broker = with_queue(QueueSettings::default());
    assert_eq!(condition(broker.create_queue("Q", QueueSettings::default())), Condition::AlreadyExists);
    assert_eq!(condition(broker.create_topic("Q", TopicSettings::default())), Condition::AlreadyExists);
    broker.create_topic("Topic", TopicSettings::default()).unwrap();
    broker.create_subscription("topic", "Sub", SubscriptionSettings::default(), None).unwrap();
    let again = broker.create_subscription("TOPIC", "SUB", SubscriptionSettings::default(), None);
    assert_eq!(condition(again), Condition::AlreadyExists);
    assert_eq!(broker.topic("TOPIC").unwrap().name, "Topic");
    let info = broker.subscription("TOPIC", "SUB").unwrap();
    assert_eq!((info.topic.as_str(), info.name.as_str()), ("Topic", "Sub"));
    assert_eq!(broker.source("topic/subscriptions/sub").unwrap().path(), "Topic/Subscriptions/Sub");
}

#[test]
fn names_that_are_none_are_refused() {
    let broker = broker();
    for name in ["", "/q", "q/", "a//b", "$cbs", "q/$management", "a b", "q?x", &"x".repeat(261)] {
        assert_eq!(condition(broker.create_queue(name, QueueSettings::default())), Condition::InvalidField, "{name}");
        assert_eq!(condition(broker.create_topic(name, TopicSettings::default())), Condition::InvalidField, "{name}");
    }
    broker.create_queue("a/b-c.d_e~9", QueueSettings::default()).unwrap();
    broker.create_topic("t", TopicSettings::default()).unwrap();
    for name in ["", "a/b", "a b", &"x".repeat(51)] {
        let refused = broker.create_subscription("t", name, SubscriptionSettings::default(), None);
        assert_eq!(condition(refused), Condition::InvalidField, "{name}");
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let broker = with_queue(QueueSettings::default());
    let default = QueueSettings::default;
    for settings in [
        QueueSettings { lock_duration_ms: 4_999, ..default() },
        QueueSettings { auto_delete_on_idle_ms: Some(299_999), ..default() },
        QueueSettings { lock_duration_ms: 300_001, ..default() },
        QueueSettings { max_delivery_count: 0, ..default() },
        QueueSettings { max_delivery_count: 1 << 31, ..default() },
        QueueSettings { default_time_to_live_ms: Some(0), ..default() },
        QueueSettings { duplicate_detection_history_ms: 0, ..default() },
        QueueSettings { forward_dead_lettered_to: Some("none".into()), ..default() },
    ] {
        assert_eq!(condition(broker.create_queue("r", settings.clone())), Condition::InvalidField, "{settings:?}");
        assert_eq!(condition(broker.update_queue("q", settings.clone())), Condition::InvalidField, "{settings:?}");
    }
    broker
        .create_queue(
            "r",
            QueueSettings { lock_duration_ms: 300_000, max_delivery_count: i32::MAX as u32, ..default() },
        )
        .unwrap();
}

#[test]
fn what_is_fixed_stays() {
    let broker = with_queue(QueueSettings::default());
    broker.create_topic("t", TopicSettings::default()).unwrap();
    broker.create_subscription("t", "s", SubscriptionSettings::default(), None).unwrap();
    for settings in [
        QueueSettings { requires_session: true, ..QueueSettings::default() },
        QueueSettings { requires_duplicate_detection: true, ..QueueSettings::default() },
        QueueSettings { enable_partitioning: true, ..QueueSettings::default() },
    ] {
        assert_eq!(condition(broker.update_queue("q", settings)), Condition::InvalidField);
    }
    let settings = TopicSettings { requires_duplicate_detection: true, ..TopicSettings::default() };
    assert_eq!(condition(broker.update_topic("t", settings)), Condition::InvalidField);
    let settings = SubscriptionSettings { requires_session: true, ..SubscriptionSettings::default() };
    assert_eq!(condition(broker.update_subscription("t", "s", settings)), Condition::InvalidField);
}

#[test]
fn changed_settings_hold_from_then_on() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a")]);
    move_clock(&broker, 7);
    broker.update_queue("q", QueueSettings { lock_duration_ms: 5_000, ..QueueSettings::default() }).unwrap();
    let got = lock(&broker, "q", 1);
    assert_eq!(got[0].locked_until, Some(START_MS + 5_007));
    settle(&broker, "q", &got[0], dead_letter("x")).unwrap();
    assert_eq!(lock(&broker, "q/$DeadLetterQueue", 1)[0].locked_until, Some(START_MS + 5_007));
    let info = broker.queue("q").unwrap();
    assert_eq!((info.times.created, info.times.updated, info.times.accessed), (START_MS, START_MS + 7, START_MS));
    assert_eq!(info.settings.lock_duration_ms, 5_000);
}

#[test]
fn missing_entities_are_named_as_the_service_names_them() {
    let broker = with_queue(QueueSettings::default());
    let missing = |result: Result<(), Refusal>| {
        let refusal = result.unwrap_err();
        assert_eq!(refusal.condition, Condition::NotFound);
        refusal.description
    };
    assert_eq!(missing(broker.source("amqp://host/None").map(drop)), "The messaging entity 'None' could not be found.");
    missing(broker.target("none").map(drop));
    missing(broker.source("none/$DeadLetterQueue").map(drop));
    missing(broker.source("q/Subscriptions/s").map(drop));
    missing(broker.topic("q").map(drop));
    missing(broker.queue("none").map(drop));
    missing(broker.delete("none"));
    missing(broker.update_queue("none", QueueSettings::default()).map(drop));
    missing(broker.create_subscription("none", "s", SubscriptionSettings::default(), None).map(drop));
    broker.create_topic("t", TopicSettings::default()).unwrap();
    missing(broker.queue("t").map(drop));
    assert_eq!(
        missing(broker.source("t/Subscriptions/x").map(drop)),
        "The messaging entity 't/Subscriptions/x' could not be found."
    );
    missing(broker.delete_subscription("t", "x"));
    missing(broker.rules("t", "x").map(drop));
}

#[test]
fn a_deleted_entity_refuses_what_holds_on_to_it() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("a"), message("b")]);
    let (target, source) = (broker.target("q").unwrap(), broker.source("q").unwrap());
    let mut receiver = source.receiver(ReceiveMode::PeekLock, None, Arc::new(Notify::new())).unwrap();
    let got = receiver.try_receive(1).unwrap();
    broker.delete("Q").unwrap();
    assert_eq!(condition(target.send(vec![message("c")])), Condition::NotFound);
    assert_eq!(condition(receiver.try_receive(1)), Condition::NotFound);
    assert_eq!(condition(source.settle(got[0].lock_token.unwrap(), Outcome::Complete)), Condition::NotFound);
    assert_eq!(condition(source.peek(0, 1, None)), Condition::NotFound);
    broker.create_queue("q", QueueSettings::default()).unwrap();
    assert!(drain(&broker, "q").is_empty(), "a new one of the same name is empty");
}

#[test]
fn a_deleted_topic_takes_its_subscriptions_along() {
    let broker = broker();
    broker.create_topic("t", TopicSettings::default()).unwrap();
    broker.create_subscription("t", "s", SubscriptionSettings::default(), None).unwrap();
    let (target, source) = (broker.target("t").unwrap(), broker.source("t/Subscriptions/s").unwrap());
    broker.delete("t").unwrap();
    assert_eq!(condition(target.send(vec![message("a")])), Condition::NotFound);
    assert_eq!(condition(source.peek(0, 1, None)), Condition::NotFound);
    assert_eq!(condition(broker.subscription("t", "s")), Condition::NotFound);
}

#[test]
fn lists_are_by_name() {
    let broker = broker();
    for name in ["b", "A", "c"] {
        broker.create_queue(name, QueueSettings::default()).unwrap();
        broker.create_topic(&format!("{name}-t"), TopicSettings::default()).unwrap();
        broker.create_subscription("a-t", name, SubscriptionSettings::default(), None).ok();
    }
    let queues: Vec<String> = broker.queues().into_iter().map(|queue| queue.name).collect();
    assert_eq!(queues, ["A", "b", "c"]);
    let topics: Vec<String> = broker.topics().into_iter().map(|topic| topic.name).collect();
    assert_eq!(topics, ["A-t", "b-t", "c-t"]);
    let subscriptions: Vec<String> = broker.subscriptions("a-t").unwrap().into_iter().map(|sub| sub.name).collect();
    assert_eq!(subscriptions, ["A", "c"]);
    assert_eq!(broker.topic("a-t").unwrap().subscriptions, 2);
}

#[test]
fn there_is_a_limit_to_everything() {
    let limits = NamespaceLimits { max_entities: 2, max_per_topic: 1, ..NamespaceLimits::default() };
    let broker = Broker::new(Clock::manual(START_MS), limits);
    broker.create_queue("q", QueueSettings::default()).unwrap();
    broker.create_topic("t", TopicSettings::default()).unwrap();
    assert_eq!(condition(broker.create_queue("r", QueueSettings::default())), Condition::QuotaExceeded);
    broker.create_subscription("t", "s", SubscriptionSettings::default(), None).unwrap();
    let second = broker.create_subscription("t", "s2", SubscriptionSettings::default(), None);
    assert_eq!(condition(second), Condition::QuotaExceeded);
}

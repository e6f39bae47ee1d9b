use super::*;

fn topic(subscriptions: &[&str]) -> Broker {
    let broker = broker();
    broker.create_topic("t", TopicSettings::default()).unwrap();
    for name in subscriptions {
        broker.create_subscription("t", name, SubscriptionSettings::default(), None).unwrap();
    }
    broker
}

fn sql(text: &str) -> RuleFilter {
    RuleFilter::Sql(SqlFilter::parse(text, Vec::new()).unwrap())
}

/// A topic whose subscription `s` has these rules and no other.
fn with_rules(rules: Vec<Rule>) -> Broker {
    let broker = topic(&["s"]);
    broker.remove_rule("t", "s", "$Default").unwrap();
    for rule in rules {
        broker.add_rule("t", "s", rule).unwrap();
    }
    broker
}

fn colored(id: &str, color: &str) -> Message {
    let mut message = message(id);
    message.application_properties.push(("color".into(), Value::string(color)));
    message
}

const SUB: &str = "t/Subscriptions/s";

#[test]
fn each_subscription_gets_its_own_copy() {
    let broker = topic(&["a", "b"]);
    send(&broker, "t", [message("1"), message("2")]);
    let got = lock(&broker, "T/subscriptions/A", 2);
    assert_eq!(ids(&got), ["1", "2"]);
    settle(&broker, "t/Subscriptions/a", &got[0], Outcome::Complete).unwrap();
    let stranger = settle(&broker, "t/Subscriptions/b", &got[1], Outcome::Complete);
    assert_eq!(condition(stranger), Condition::MessageLockLost);
    assert_eq!(drain(&broker, "t/Subscriptions/b"), ["1", "2"]);
    assert_eq!(broker.subscription("t", "a").unwrap().counts.active, 1);
}

#[test]
fn a_topic_without_subscriptions_takes_everything() {
    let broker = topic(&[]);
    send(&broker, "t", [message("1")]);
    broker.create_subscription("t", "late", SubscriptionSettings::default(), None).unwrap();
    assert!(drain(&broker, "t/Subscriptions/late").is_empty());
}

#[test]
fn filters_choose() {
    let correlation = CorrelationFilter {
        label: Some("important".into()),
        properties: vec![("color".into(), Value::string("green"))],
        ..CorrelationFilter::default()
    };
    let broker = with_rules(vec![
        Rule::new("sql", sql("color = 'red'")),
        Rule::new("correlation", RuleFilter::Correlation(correlation)),
        Rule::new("none", RuleFilter::False),
    ]);
    let mut important = colored("3", "green");
    important.properties.subject = Some("important".into());
    send(&broker, "t", [colored("1", "red"), colored("2", "green"), important, message("4")]);
    assert_eq!(drain(&broker, SUB), ["1", "3"]);
    broker.add_rule("t", "s", Rule::new("all", RuleFilter::True)).unwrap();
    send(&broker, "t", [colored("5", "red")]);
    assert_eq!(drain(&broker, SUB), ["5"], "two rules without action make one copy");
}

#[test]
fn a_correlation_compares_every_property_it_names() {
    let all = CorrelationFilter {
        correlation_id: Some("c".into()),
        message_id: Some("1".into()),
        to: Some("to".into()),
        reply_to: Some("rt".into()),
        label: Some("l".into()),
        session_id: Some("s".into()),
        reply_to_session_id: Some("rs".into()),
        content_type: Some("ct".into()),
        properties: vec![("n".into(), Value::Int(1))],
    };
    let mut full = message("1");
    full.properties.correlation_id = Some(Value::string("c"));
    full.properties.to = Some("to".into());
    full.properties.reply_to = Some("rt".into());
    full.properties.subject = Some("l".into());
    full.properties.group_id = Some("s".into());
    full.properties.reply_to_group_id = Some("rs".into());
    full.properties.content_type = Some("ct".into());
    full.application_properties.push(("n".into(), Value::Long(1)));
    let broker = with_rules(vec![Rule::new("r", RuleFilter::Correlation(all))]);
    type Change = fn(&mut Message);
    let changes: [Change; 9] = [
        |m| m.properties.correlation_id = Some(Value::string("C")),
        |m| m.properties.message_id = Some(Value::string("2")),
        |m| m.properties.to = None,
        |m| m.properties.reply_to = None,
        |m| m.properties.subject = Some("L".into()),
        |m| m.properties.group_id = None,
        |m| m.properties.reply_to_group_id = None,
        |m| m.properties.content_type = None,
        |m| m.application_properties.clear(),
    ];
    for change in changes {
        let mut other = full.clone();
        change(&mut other);
        send(&broker, "t", [other]);
    }
    assert!(drain(&broker, SUB).is_empty());
    send(&broker, "t", [full]);
    assert_eq!(drain(&broker, SUB), ["1"]);
}

#[test]
fn an_action_changes_its_own_copy() {
    let act = |text: &str| Some(SqlAction::parse(text, Vec::new()).unwrap());
    let broker = with_rules(vec![
        Rule { action: act("SET color = 'blue'; SET sys.Label = 'changed'"), ..Rule::new("a", RuleFilter::True) },
        Rule { action: act("REMOVE color"), ..Rule::new("b", sql("color = 'red'")) },
        Rule::new("c", RuleFilter::True),
    ]);
    send(&broker, "t", [colored("1", "red")]);
    let got = lock(&broker, SUB, 10);
    let mut colors: Vec<Option<&str>> = got.iter().map(|got| property(got, "color")).collect();
    colors.sort();
    assert_eq!(colors, [None, Some("blue"), Some("red")]);
}

#[test]
fn a_filter_that_fails_makes_a_dead_letter_where_that_is_set() {
    let broker = with_rules(vec![Rule::new("r", sql("color * 2 = 1"))]);
    send(&broker, "t", [colored("1", "red"), message("2")]);
    assert!(drain(&broker, SUB).is_empty());
    let letter = &lock(&broker, "t/Subscriptions/s/$DeadLetterQueue", 10)[0];
    assert_eq!(property(letter, "DeadLetterReason"), Some("FilterEvaluationException"));
    let settings = SubscriptionSettings {
        dead_lettering_on_filter_evaluation_exceptions: false,
        ..SubscriptionSettings::default()
    };
    broker.update_subscription("t", "s", settings).unwrap();
    send(&broker, "t", [colored("3", "red")]);
    assert_eq!(broker.subscription("t", "s").unwrap().counts.total(), 1);
}

#[test]
fn rules_are_made_changed_and_removed() {
    let broker = topic(&["s"]);
    broker.create_queue("q", QueueSettings::default()).unwrap();
    let source = broker.source(SUB).unwrap();
    let names = || broker.rules("t", "s").unwrap().iter().map(|rule| rule.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(), ["$Default"]);
    source.add_rule(Rule::new("Red", sql("color = 'red'"))).unwrap();
    assert_eq!(source.rules().unwrap()[1].created_at, START_MS);
    assert_eq!(condition(source.add_rule(Rule::new("red", RuleFilter::True))), Condition::AlreadyExists);
    assert_eq!(condition(source.add_rule(Rule::new("", RuleFilter::True))), Condition::InvalidField);
    source.remove_rule("$default").unwrap();
    assert_eq!(condition(source.remove_rule("$Default")), Condition::NotFound);
    broker.update_rule("t", "s", Rule::new("RED", RuleFilter::False)).unwrap();
    assert_eq!(names(), ["RED"]);
    assert_eq!(condition(broker.update_rule("t", "s", Rule::new("x", RuleFilter::True))), Condition::NotFound);
    assert_eq!(condition(broker.source("q").unwrap().rules()), Condition::NotAllowed);
    assert_eq!(condition(SqlFilter::parse("color =", Vec::new())), Condition::InvalidField);
    assert_eq!(condition(SqlAction::parse("color =", Vec::new())), Condition::InvalidField);
}

#[test]
fn scheduled_messages_wait_in_the_topic() {
    let broker = topic(&["s"]);
    let target = broker.target("t").unwrap();
    let numbers = target.schedule(vec![(message("1"), START_MS + 100), (message("2"), START_MS + 100)]).unwrap();
    assert_eq!(broker.topic("t").unwrap().counts.scheduled, 2);
    target.cancel_scheduled(&numbers[..1]).unwrap();
    move_clock(&broker, 100);
    assert_eq!(broker.topic("t").unwrap().counts.scheduled, 0);
    let got = lock(&broker, SUB, 10);
    assert_eq!((ids(&got), got[0].enqueued_at), (vec!["2".to_owned()], START_MS + 100));
}

#[test]
fn times_to_live_are_the_shortest_of_all() {
    let broker = topic(&["s"]);
    broker.update_topic("t", TopicSettings { default_time_to_live_ms: Some(100), ..TopicSettings::default() }).unwrap();
    let settings = SubscriptionSettings { default_time_to_live_ms: Some(50), ..SubscriptionSettings::default() };
    broker.create_subscription("t", "shorter", settings, None).unwrap();
    send(&broker, "t", [message("1")]);
    move_clock(&broker, 50);
    assert!(drain(&broker, "t/Subscriptions/shorter").is_empty());
    assert_eq!(broker.subscription("t", "s").unwrap().counts.active, 1);
    move_clock(&broker, 50);
    assert!(drain(&broker, SUB).is_empty());
}

#[test]
fn duplicates_are_dropped_for_all_subscriptions() {
    let broker = broker();
    broker.create_topic("t", TopicSettings { requires_duplicate_detection: true, ..TopicSettings::default() }).unwrap();
    broker.create_subscription("t", "s", SubscriptionSettings::default(), None).unwrap();
    send(&broker, "t", [message("1")]);
    send(&broker, "t", [message("1"), message("2")]);
    assert_eq!(drain(&broker, SUB), ["1", "2"]);
}

#[test]
fn a_topics_quota_is_what_its_subscriptions_store() {
    let broker = topic(&["a", "b"]);
    broker.update_topic("t", TopicSettings { max_size_in_megabytes: 1, ..TopicSettings::default() }).unwrap();
    let big = |id: &str| Message { encoded_size: 256 * 1024, ..message(id) };
    send(&broker, "t", [big("1"), big("2")]);
    assert_eq!(condition(broker.target("t").unwrap().send(vec![big("3")])), Condition::QuotaExceeded);
    broker.delete_subscription("t", "b").unwrap();
    send(&broker, "t", [big("3")]);
}

#[test]
fn messages_without_a_session_pass_a_session_subscription_by() {
    let broker = topic(&[]);
    let settings = SubscriptionSettings { requires_session: true, ..SubscriptionSettings::default() };
    broker.create_subscription("t", "s", settings, None).unwrap();
    send(&broker, "t", [message("1"), in_session("2", "a")]);
    assert_eq!(broker.subscription("t", "s").unwrap().counts.active, 1);
}

#[test]
fn a_topic_is_not_received_from() {
    let broker = topic(&["s"]);
    assert_eq!(condition(broker.source("t").map(drop)), Condition::NotAllowed);
    assert_eq!(condition(broker.target(SUB).map(drop)), Condition::NotAllowed);
}

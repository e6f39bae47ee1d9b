//! Disabled entities: <https://learn.microsoft.com/dotnet/api/microsoft.servicebus.messaging.entitystatus>.

use super::*;

fn disabled<T>(result: Result<T, Refusal>) {
    assert_eq!(condition(result), Condition::EntityDisabled);
}

fn set(broker: &Broker, status: EntityStatus) {
    broker.update_queue("q", QueueSettings { status, ..QueueSettings::default() }).unwrap();
}

#[test]
fn a_queue_does_what_its_status_says_and_comes_back() {
    for (status, sends, receives) in [
        (EntityStatus::Active, true, true),
        (EntityStatus::SendDisabled, false, true),
        (EntityStatus::ReceiveDisabled, true, false),
        (EntityStatus::Disabled, false, false),
    ] {
        let broker = with_queue(QueueSettings::default());
        set(&broker, status);
        let (target, source) = (broker.target("q").unwrap(), broker.source("q").unwrap());
        assert_eq!(target.check_sends().is_ok(), sends, "{status:?}");
        assert_eq!(target.send(vec![message("1")]).is_ok(), sends, "{status:?}");
        assert_eq!(target.schedule(vec![(message("1"), START_MS + 1)]).is_ok(), sends, "{status:?}");
        let receiver = source.receiver(ReceiveMode::PeekLock, None, Arc::new(Notify::new()));
        assert_eq!(receiver.is_ok(), receives, "{status:?}");
        assert!(source.peek(0, 1, None).is_ok());
        set(&broker, EntityStatus::Active);
        target.send(vec![message("2")]).unwrap();
    }
}

#[test]
fn what_was_locked_before_waits_until_receiving_is_enabled_again() {
    let broker = with_queue(QueueSettings::default());
    send(&broker, "q", [message("1"), message("2")]);
    let got = lock(&broker, "q", 2);
    set(&broker, EntityStatus::ReceiveDisabled);
    let source = broker.source("q").unwrap();
    disabled(settle(&broker, "q", &got[0], Outcome::Complete));
    disabled(source.renew_locks(&[got[0].lock_token.unwrap()]));
    disabled(source.receive_deferred(&[got[0].sequence_number], ReceiveMode::PeekLock, None));
    set(&broker, EntityStatus::Active);
    settle(&broker, "q", &got[0], Outcome::Complete).unwrap();
    move_clock(&broker, 60_000);
    assert_eq!(drain(&broker, "q"), ["2"]);
}

#[test]
fn a_subscription_is_as_disabled_as_its_topic() {
    let broker = broker();
    broker.create_topic("t", TopicSettings::default()).unwrap();
    broker.create_subscription("t", "s", SubscriptionSettings::default(), None).unwrap();
    send(&broker, "t", [message("1")]);
    broker.update_topic("t", TopicSettings { status: EntityStatus::Disabled, ..TopicSettings::default() }).unwrap();
    let source = broker.source("t/Subscriptions/s").unwrap();
    disabled(source.receiver(ReceiveMode::PeekLock, None, Arc::new(Notify::new())).map(drop));
    disabled(source.add_rule(Rule::new("r", RuleFilter::True)));
    disabled(source.remove_rule("$Default"));
    disabled(broker.target("t").unwrap().send(vec![message("2")]));
    // Management goes on.
    broker.create_subscription("t", "new", SubscriptionSettings::default(), None).unwrap();
    broker.update_topic("t", TopicSettings { status: EntityStatus::SendDisabled, ..TopicSettings::default() }).unwrap();
    disabled(broker.target("t").unwrap().send(vec![message("2")]));
    assert_eq!(drain(&broker, "t/Subscriptions/s"), ["1"]);
}

#[test]
fn a_disabled_subscription_still_gets_its_copies() {
    let broker = broker();
    broker.create_topic("t", TopicSettings::default()).unwrap();
    let settings = |status| SubscriptionSettings { status, ..SubscriptionSettings::default() };
    broker.create_subscription("t", "s", settings(EntityStatus::Disabled), None).unwrap();
    send(&broker, "t", [message("1")]);
    assert_eq!(broker.subscription("t", "s").unwrap().counts.active, 1);
    broker.update_subscription("t", "s", settings(EntityStatus::Active)).unwrap();
    assert_eq!(drain(&broker, "t/Subscriptions/s"), ["1"]);
}

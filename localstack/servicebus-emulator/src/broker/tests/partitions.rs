//! Partitioned entities: what they route by, and what they refuse to take together.

use super::*;

fn partitioned() -> QueueSettings {
    QueueSettings { enable_partitioning: true, ..QueueSettings::default() }
}

fn keyed(id: &str, key: &str) -> Message {
    let mut message = message(id);
    message.set_annotation("x-opt-partition-key", Value::string(key));
    message
}

fn send_all(broker: &Broker, messages: Vec<Message>) -> Result<(), Refusal> {
    broker.target("q").unwrap().send(messages)
}

fn partition(delivered: &DeliveredMessage) -> i64 {
    delivered.sequence_number >> 48
}

#[test]
fn a_key_leads_to_one_partition_and_no_key_to_all_of_them() {
    let broker = with_queue(partitioned());
    for at in 0..32 {
        send(&broker, "q", [message(&at.to_string())]);
        send(&broker, "q", [keyed("keyed", "a")]);
    }
    let all = lock(&broker, "q", 100);
    assert_eq!(all.len(), 64);
    let mut partitions: Vec<i64> = all.iter().map(partition).collect();
    partitions.sort_unstable();
    partitions.dedup();
    assert_eq!(partitions, (0..16).collect::<Vec<i64>>());
    let keyed: Vec<i64> = all.iter().filter(|one| id(one) == "keyed").map(partition).collect();
    assert!(keyed.windows(2).all(|pair| pair[0] == pair[1]), "{keyed:?}");
    let mut numbers: Vec<i64> = all.iter().map(|one| one.sequence_number & 0xffff_ffff_ffff).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=64).collect::<Vec<i64>>(), "each count is given once");
}

#[test]
fn each_partition_has_its_turn() {
    let broker = with_queue(partitioned());
    for key in ["a", "b", "c"] {
        for at in 0..3 {
            send(&broker, "q", [keyed(&format!("{key}{at}"), key)]);
        }
    }
    let all = lock(&broker, "q", 9);
    let order = |key: &str| -> Vec<String> { ids(&all).into_iter().filter(|id| id.starts_with(key)).collect() };
    assert_eq!(order("a"), ["a0", "a1", "a2"], "within a partition the order stays");
    let first: Vec<i64> = all[..3].iter().map(partition).collect();
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
}

#[test]
fn what_belongs_to_several_partitions_is_not_taken_together() {
    let broker = with_queue(partitioned());
    let refused = send_all(&broker, vec![keyed("1", "a"), keyed("2", "b")]).unwrap_err();
    assert_eq!(refused.condition, Condition::NotAllowed);
    assert!(refused.description.starts_with("Batching brokered messages with distinct SessionId or PartitionKey"));
    assert!(send_all(&broker, vec![keyed("1", "a"), message("2")]).is_err());
    assert_eq!(broker.queue("q").unwrap().counts.active, 0);
    send_all(&broker, vec![keyed("1", "a"), keyed("2", "a")]).unwrap();
    send_all(&broker, vec![message("3"), message("4")]).unwrap();
    let both = Message { annotations: keyed("5", "other").annotations, ..in_session("5", "s") };
    assert_eq!(condition(send_all(&broker, vec![both])), Condition::NotAllowed);
    let at = START_MS + 60_000;
    let target = broker.target("q").unwrap();
    assert_eq!(condition(target.schedule(vec![(keyed("6", "a"), at), (keyed("7", "b"), at)])), Condition::NotAllowed);
}

#[test]
fn a_batch_is_routed_by_its_envelope() {
    let broker = with_queue(partitioned());
    let target = broker.target("q").unwrap();
    let batch = |envelope: Message| target.send_batch(vec![in_session("1", "s"), in_session("2", "s")], &envelope);
    assert_eq!(condition(batch(Message::default())), Condition::NotAllowed);
    assert_eq!(condition(batch(in_session("", "t"))), Condition::NotAllowed);
    batch(in_session("", "s")).unwrap();
    batch(keyed("", "s")).unwrap();
    target.send_batch(vec![message("3"), message("4")], &Message::default()).unwrap();
    let plain = self::broker();
    plain.create_queue("q", QueueSettings::default()).unwrap();
    let mixed = vec![in_session("1", "s"), in_session("2", "t")];
    plain.target("q").unwrap().send_batch(mixed, &Message::default()).unwrap();
}

#[test]
fn with_duplicate_detection_an_id_is_a_key() {
    let broker = with_queue(QueueSettings { requires_duplicate_detection: true, ..partitioned() });
    let target = broker.target("q").unwrap();
    let text = |result: Result<(), Refusal>| result.unwrap_err().description;
    let batch = || vec![message("1"), message("2")];
    assert!(
        text(target.send_batch(batch(), &Message::default())).contains("must have either PartitionKey or MessageId")
    );
    assert!(text(target.send_batch(batch(), &message("1"))).contains("distinct SessionId, PartitionKey, or MessageId"));
    target.send_batch(vec![keyed("1", "a"), keyed("2", "a")], &keyed("1", "a")).unwrap();
    target.send(vec![message("1")]).unwrap();
    target.send(vec![message("1")]).unwrap();
    target.send(vec![keyed("1", "b")]).unwrap();
    target.send(vec![keyed("1", "b")]).unwrap();
    assert_eq!(broker.queue("q").unwrap().counts.active, 4, "an id counts within its key");
}

#[test]
fn locks_of_several_partitions_are_not_settled_or_renewed_together() {
    let broker = with_queue(partitioned());
    send(&broker, "q", [keyed("1", "a"), keyed("2", "a")]);
    send(&broker, "q", [keyed("3", "b")]);
    let source = broker.source("q").unwrap();
    let got = lock(&broker, "q", 3);
    let tokens = |wanted: &[&str]| -> Vec<uuid::Uuid> {
        got.iter().filter(|one| wanted.contains(&id(one).as_str())).map(|one| one.lock_token.unwrap()).collect()
    };
    let refused = source.settle_all(&tokens(&["1", "3"]), Outcome::Complete).unwrap_err();
    assert_eq!(refused.condition, Condition::NotAllowed);
    assert!(refused.description.starts_with("Batching lock tokens for different partitions is not supported"));
    assert_eq!(condition(source.renew_locks(&tokens(&["1", "3"]))), Condition::NotAllowed);
    assert_eq!(source.renew_locks(&tokens(&["1", "2"])).unwrap().len(), 2);
    source.settle_all(&tokens(&["1", "2"]), defer()).unwrap();
    source.settle_all(&tokens(&["3"]), defer()).unwrap();
    let numbers: Vec<i64> = got.iter().map(|one| one.sequence_number).collect();
    let refused = source.receive_deferred(&numbers, ReceiveMode::PeekLock, None).unwrap_err();
    assert!(refused.description.starts_with("ReceiveBatch of sequence numbers from different partitions"));
    for number in numbers {
        assert_eq!(source.receive_deferred(&[number], ReceiveMode::PeekLock, None).unwrap().len(), 1);
    }
}

#[test]
fn subscriptions_dead_letters_and_what_was_scheduled_keep_to_partitions() {
    let broker = broker();
    broker.create_topic("t", TopicSettings { enable_partitioning: true, ..TopicSettings::default() }).unwrap();
    broker.create_subscription("t", "s", SubscriptionSettings::default(), None).unwrap();
    let scheduled = vec![(keyed("1", "a"), START_MS + 1000)];
    let number = broker.target("t").unwrap().schedule(scheduled).unwrap()[0];
    send(&broker, "t", [keyed("2", "a")]);
    move_clock(&broker, 1000);
    let got = lock(&broker, "t/Subscriptions/s", 2);
    assert_eq!(ids(&got), ["2", "1"]);
    assert_eq!(got.iter().map(partition).collect::<Vec<i64>>(), [number >> 48; 2]);
    settle(&broker, "t/Subscriptions/s", &got[0], dead_letter("bad")).unwrap();
    assert_eq!(partition(&lock(&broker, "t/Subscriptions/s/$DeadLetterQueue", 1)[0]), number >> 48);
}

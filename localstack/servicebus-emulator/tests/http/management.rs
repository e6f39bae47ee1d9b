//! Entities by the Atom API. The official administration clients check the same from their side.

use polybus_servicebus_emulator::EmulatorOptions;
use polybus_servicebus_emulator::broker::{NamespaceLimits, QueueSettings, ReceiveMode, Tier};
use polybus_servicebus_emulator::message::Message;

use super::client::{Answer, ask, emulator, emulator_with};

const VERSION: &str = "api-version=2021-05";

fn entry(description: &str) -> String {
    format!(
        "<entry xmlns=\"http://www.w3.org/2005/Atom\"><content type=\"application/xml\">{description}</content></entry>"
    )
}

fn text<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let (_, rest) = answer.body.split_once(&format!("<{name}>")).expect(name);
    rest.split_once('<').expect("an end").0
}

#[tokio::test]
async fn a_queue_is_created_shown_changed_and_deleted() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    let path = format!("/orders?{VERSION}");
    let body = entry(
        "<QueueDescription><LockDuration>PT30S</LockDuration><RequiresSession>true</RequiresSession></QueueDescription>",
    );

    let created = ask(at, "PUT", &path, &[], &body).await;
    assert_eq!((created.status, text(&created, "LockDuration")), (201, "PT30S"));
    assert_eq!(created.header("content-type"), Some("application/atom+xml;type=entry;charset=utf-8"));
    assert!(created.body.contains("<id>http://localhost:5300/orders?api-version=2021-05</id>"), "{}", created.body);

    let again = ask(at, "PUT", &path, &[], &body).await;
    assert_eq!((again.status, text(&again, "Code")), (409, "409"));
    assert!(text(&again, "Detail").contains("orders"));

    // The session, which cannot change, need not be told again.
    let change = entry("<QueueDescription><MaxDeliveryCount>3</MaxDeliveryCount></QueueDescription>");
    let changed = ask(at, "PUT", &path, &[("If-Match", "*")], &change).await;
    assert_eq!((changed.status, text(&changed, "MaxDeliveryCount")), (200, "3"));
    assert_eq!((text(&changed, "RequiresSession"), text(&changed, "LockDuration")), ("true", "PT1M"));
    let forbidden = entry("<QueueDescription><RequiresSession>false</RequiresSession></QueueDescription>");
    assert_eq!(ask(at, "PUT", &path, &[("If-Match", "*")], &forbidden).await.status, 400);

    assert_eq!(ask(at, "GET", &path, &[], "").await.count("<entry"), 1);
    assert_eq!(ask(at, "DELETE", &path, &[], "").await.status, 200);
    assert_eq!(ask(at, "DELETE", &path, &[], "").await.status, 404);
    let gone = ask(at, "GET", &path, &[], "").await;
    assert_eq!((gone.status, gone.count("<feed"), gone.count("<entry")), (200, 1, 0));
    assert_eq!(ask(at, "PUT", &path, &[("If-Match", "*")], &change).await.status, 404);
}

#[tokio::test]
async fn counts_are_those_of_the_broker() {
    let emulator = emulator().await;
    let broker = emulator.broker();
    broker.create_queue("q", QueueSettings::default()).unwrap();
    let target = broker.target("q").unwrap();
    target.send(vec![Message::default(), Message::default(), Message::default()]).unwrap();
    target.schedule(vec![(Message::default(), emulator.clock().now_ms() + 1000)]).unwrap();
    let source = broker.source("q").unwrap();
    let wake = std::sync::Arc::new(tokio::sync::Notify::new());
    source.receiver(ReceiveMode::ReceiveAndDelete, None, wake).unwrap().try_receive(1).unwrap();

    let shown = ask(emulator.http_addr(), "GET", "/q", &[], "").await;
    assert_eq!((text(&shown, "MessageCount"), text(&shown, "d2p1:ActiveMessageCount")), ("3", "2"));
    assert_eq!(text(&shown, "d2p1:ScheduledMessageCount"), "1");
}

#[tokio::test]
async fn lists_come_in_pages() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    for n in 0..5 {
        emulator.broker().create_queue(&format!("q{n}"), QueueSettings::default()).unwrap();
    }
    let first = ask(at, "GET", &format!("/$Resources/queues?$skip=0&$top=2&{VERSION}"), &[], "").await;
    assert_eq!((first.count("<entry"), first.count("rel=\"next\"")), (2, 1));
    assert!(first.body.contains("$skip=2&amp;$top=2"), "{}", first.body);
    let last = ask(at, "GET", "/$resources/queues?%24skip=4&%24top=2", &[], "").await;
    assert_eq!((last.count("<entry"), last.count("rel=\"next\"")), (1, 0));
    let whole = ask(at, "GET", "/$Resources/queues?$skip=3&$top=2", &[], "").await;
    assert_eq!((whole.count("<entry"), whole.count("rel=\"next\"")), (2, 0));
    assert_eq!(ask(at, "GET", "/$Resources/queues?$skip=99", &[], "").await.count("<entry"), 0);
    assert_eq!(ask(at, "GET", "/$Resources/queues?$skip=x", &[], "").await.status, 400);
    assert_eq!(ask(at, "GET", "/$Resources/topics", &[], "").await.count("<entry"), 0);
}

#[tokio::test]
async fn subscriptions_begin_with_the_rule_they_are_given() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    assert_eq!(ask(at, "PUT", "/t", &[], &entry("<TopicDescription/>")).await.status, 201);
    assert_eq!(ask(at, "PUT", "/t/subscriptions/s", &[], &entry("<SubscriptionDescription/>")).await.status, 201);
    let default = ask(at, "GET", "/t/Subscriptions/s/Rules/$Default", &[], "").await;
    assert!(
        default.body.contains("<Filter i:type=\"TrueFilter\"><SqlExpression>1=1</SqlExpression>"),
        "{}",
        default.body
    );

    let own = entry(
        "<SubscriptionDescription><DefaultRuleDescription><Filter xmlns:p=\"i\" p:type=\"CorrelationFilter\"><Label>l</Label></Filter>\
        <Name>mine</Name></DefaultRuleDescription></SubscriptionDescription>",
    );
    assert_eq!(ask(at, "PUT", "/t/Subscriptions/own", &[], &own).await.status, 201);
    let rules = ask(at, "GET", "/t/Subscriptions/own/Rules", &[], "").await;
    assert_eq!((rules.count("<entry"), rules.count("<Label>l</Label>"), rules.count("<Name>mine</Name>")), (1, 1, 1));

    let rule = entry("<RuleDescription><Filter xmlns:p=\"i\" p:type=\"FalseFilter\"/></RuleDescription>");
    assert_eq!(ask(at, "PUT", "/t/Subscriptions/own/Rules/r", &[], &rule).await.status, 201);
    assert_eq!(ask(at, "PUT", "/t/Subscriptions/own/Rules/r", &[], &rule).await.status, 409);
    assert_eq!(ask(at, "PUT", "/t/Subscriptions/own/Rules/R", &[("If-Match", "*")], &rule).await.status, 200);
    assert_eq!(ask(at, "DELETE", "/t/Subscriptions/own/Rules/r", &[], "").await.status, 200);
    assert_eq!(ask(at, "GET", "/t/Subscriptions/own/Rules/r", &[], "").await.status, 404);
    assert_eq!(ask(at, "GET", "/t/Subscriptions", &[], "").await.count("<entry"), 2);
    for (method, path) in [
        ("GET", "/t/Subscriptions/none"),
        ("GET", "/none/Subscriptions"),
        ("GET", "/t/Subscriptions/none/Rules"),
        ("DELETE", "/t/Subscriptions/none"),
    ] {
        assert_eq!(ask(at, method, path, &[], "").await.status, 404, "{method} {path}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_a_400() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    for body in [
        "",
        "no xml",
        "<entry>",
        "<!DOCTYPE x [<!ENTITY a \"b\">]><entry><content>&a;</content></entry>",
        "<entry><content/></entry>",
        &entry("<RuleDescription/>"),
        &entry("<QueueDescription><LockDuration>soon</LockDuration></QueueDescription>"),
        &entry("<QueueDescription><LockDuration>PT1H</LockDuration></QueueDescription>"),
        &"<a>".repeat(10_000),
    ] {
        assert_eq!(ask(at, "PUT", "/q", &[], body).await.status, 400, "{body:.60}");
    }
    assert_eq!(ask(at, "PUT", "/a%20b", &[], &entry("<QueueDescription/>")).await.status, 400);
    assert_eq!(ask(at, "PUT", "/%ff", &[], &entry("<QueueDescription/>")).await.status, 400);
}

async fn put(at: std::net::SocketAddr, path: &str, kind: &str, inside: &str, changes: bool) -> Answer {
    let body = format!("<entry><content><{kind}>{inside}</{kind}></content></entry>");
    let headers: &[(&str, &str)] = if changes { &[("If-Match", "*")] } else { &[] };
    ask(at, "PUT", path, headers, &body).await
}

#[tokio::test]
async fn a_partitioned_entity_shows_the_quota_of_all_its_partitions() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    for (path, kind) in [("/q", "QueueDescription"), ("/t", "TopicDescription")] {
        let wanted = "<MaxSizeInMegabytes>2048</MaxSizeInMegabytes><EnablePartitioning>true</EnablePartitioning>";
        let shown = "<MaxSizeInMegabytes>32768</MaxSizeInMegabytes>";
        assert_eq!(put(at, path, kind, wanted, false).await.count(shown), 1, "already in the answer to the creation");
        assert_eq!(put(at, path, kind, shown, true).await.count(shown), 1, "sent back, it stays");
        assert_eq!(ask(at, "GET", path, &[], "").await.count(shown), 1);
    }
}

#[tokio::test]
async fn what_cannot_change_is_refused_in_the_services_words() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    let (queue, topic, subscription) = ("QueueDescription", "TopicDescription", "SubscriptionDescription");
    for (path, kind) in [("/q", queue), ("/t", topic), ("/t/subscriptions/s", subscription)] {
        assert_eq!(put(at, path, kind, "", false).await.status, 201);
    }
    let session = "<RequiresSession>true</RequiresSession>";
    let duplicates = "<RequiresDuplicateDetection>true</RequiresDuplicateDetection>";
    let partitioning = "<EnablePartitioning>true</EnablePartitioning>";
    for (path, kind, inside, says) in [
        ("/q", queue, session, "The value for the RequiresSession property of an existing Queue cannot be changed"),
        (
            "/q",
            queue,
            duplicates,
            "The value for the RequiresDuplicateDetection property of an existing Queue cannot be changed",
        ),
        (
            "/t",
            topic,
            duplicates,
            "The value for the RequiresDuplicateDetection property of an existing Topic cannot be changed",
        ),
        ("/q", queue, partitioning, "Partitioning cannot be changed for Queue. "),
        ("/t", topic, partitioning, "Partitioning cannot be changed for Topic. "),
        (
            "/t/subscriptions/s",
            subscription,
            session,
            "The value for the RequiresSession property of an existing Subscription cannot be changed",
        ),
    ] {
        let answer = put(at, path, kind, inside, true).await;
        assert_eq!((answer.status, answer.count(says)), (400, 1), "{}", answer.body);
    }
}

#[tokio::test]
async fn the_tier_decides_about_large_messages() {
    for (tier, name, status) in [(Tier::Standard, "Standard", 400), (Tier::Premium, "Premium", 201)] {
        let limits = NamespaceLimits { tier, ..NamespaceLimits::default() };
        let emulator = emulator_with(EmulatorOptions { limits, ..EmulatorOptions::default() }).await;
        let at = emulator.http_addr();
        let large = "<MaxMessageSizeInKilobytes>2048</MaxMessageSizeInKilobytes>";
        assert_eq!(put(at, "/q", "QueueDescription", large, false).await.status, status, "{name}");
        assert_eq!(put(at, "/t", "TopicDescription", large, false).await.status, status, "{name}");
        let info = ask(at, "GET", "/$namespaceinfo", &[], "").await;
        assert_eq!(info.count(&format!("<MessagingSKU>{name}</MessagingSKU>")), 1);
    }
}

#[tokio::test]
async fn newer_clients_are_told_how_many_filters_a_topic_has() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    put(at, "/t", "TopicDescription", "", false).await;
    put(at, "/t/subscriptions/s", "SubscriptionDescription", "", false).await;
    let filter = "<Filter i:type=\"CorrelationFilter\"><Label>l</Label></Filter>";
    put(at, "/t/subscriptions/s/rules/c", "RuleDescription", filter, false).await;
    let filter = "<Filter i:type=\"SqlFilter\"><SqlExpression>a = 1</SqlExpression></Filter>";
    put(at, "/t/subscriptions/s/rules/sql", "RuleDescription", filter, false).await;
    let counts = "<SqlFilterCount>2</SqlFilterCount><CorrelationFilterCount>1</CorrelationFilterCount>";
    assert_eq!(ask(at, "GET", "/t?api-version=2024-05", &[], "").await.count(counts), 1, "the true filter is SQL");
    assert_eq!(ask(at, "GET", "/$Resources/topics?api-version=2024-05", &[], "").await.count(counts), 1);
    assert_eq!(ask(at, "GET", "/t?api-version=2021-05", &[], "").await.count("FilterCount"), 0);
}

#[tokio::test]
async fn a_subscription_was_used_when_it_was_made() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    put(at, "/t", "TopicDescription", "", false).await;
    put(at, "/t/subscriptions/s", "SubscriptionDescription", "", false).await;
    assert_eq!(ask(at, "GET", "/t", &[], "").await.count("<AccessedAt>0001-01-01T00:00:00Z</AccessedAt>"), 1);
    let subscription = ask(at, "GET", "/t/subscriptions/s", &[], "").await;
    assert_eq!(subscription.count("<AccessedAt>2023-11-14T22:13:20Z</AccessedAt>"), 1, "{}", subscription.body);
}

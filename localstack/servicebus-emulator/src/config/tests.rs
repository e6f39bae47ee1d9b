use super::*;
use crate::broker::NamespaceLimits;
use crate::clock::Clock;

/// In the form of the file that comes with the official emulator, comments and all.
const OFFICIAL: &str = r#"
{
  "UserConfig": {
    "Namespaces": [
      {
        "Name": "sbemulatorns",
        "Queues": [
          {
            "Name": "queue.1",
            "Properties": {
              "DeadLetteringOnMessageExpiration": true,
              "DefaultMessageTimeToLive": "PT1H",
              "DuplicateDetectionHistoryTimeWindow": "PT20S",
              "ForwardDeadLetteredMessagesTo": "",
              "ForwardTo": "topic.1", // comes later
              "LockDuration": "PT1M",
              "MaxDeliveryCount": 3,
              "RequiresDuplicateDetection": true,
              "RequiresSession": false
            }
          },
          { "Name": "bare" },
        ],
        "Topics": [
          {
            "Name": "topic.1",
            "Properties": { "DefaultMessageTimeToLive": "PT2H", "RequiresDuplicateDetection": false },
            "Subscriptions": [
              {
                "Name": "subscription.1",
                "Properties": { "LockDuration": "PT30S", "MaxDeliveryCount": "4", "RequiresSession": "True" },
                "Rules": [
                  {
                    "Name": "app-prop-filter-1",
                    "Properties": {
                      "FilterType": "Correlation",
                      "CorrelationFilter": {
                        "ContentType": "application/json"
                        // "Label": "subject1",
                        /* "To": "xyz" */
                      }
                    }
                  },
                  {
                    "Name": "user-prop-filter-1",
                    "Properties": {
                      "FilterType": "Correlation",
                      "CorrelationFilter": { "Properties": { "prop1": "value1", "n": 3, "yes": true } }
                    }
                  }
                ]
              },
              { "Name": "all" },
              {
                "Name": "subscription.4",
                "Rules": [
                  {
                    "Name": "sql-filter-1",
                    "Properties": {
                      "FilterType": "Sql",
                      "SqlFilter": { "SqlExpression": "sys.MessageId = '123456' AND userProp1 = 'a//b,]'" },
                      "Action" : { "SqlExpression": "SET sys.To = 'Entity'" }
                    }
                  }
                ]
              }
            ]
          }
        ]
      }
    ],
    "Logging": { "Type": "File" }
  }
}"#;

fn created(text: &str) -> Broker {
    let broker = Broker::new(Clock::manual(0), NamespaceLimits::default());
    EmulatorConfig::parse(text).unwrap().create(&broker).unwrap();
    broker
}

#[test]
fn the_official_file_is_read() {
    let broker = created(OFFICIAL);
    let queue = broker.queue("queue.1").unwrap().settings;
    let expected = QueueSettings {
        dead_lettering_on_expiration: true,
        default_time_to_live_ms: Some(3_600_000),
        duplicate_detection_history_ms: 20_000,
        forward_to: Some("topic.1".into()),
        lock_duration_ms: 60_000,
        max_delivery_count: 3,
        requires_duplicate_detection: true,
        ..QueueSettings::default()
    };
    assert_eq!(queue, expected);
    assert_eq!(broker.queue("bare").unwrap().settings, QueueSettings::default());
    assert_eq!(broker.topic("topic.1").unwrap().settings.default_time_to_live_ms, Some(7_200_000));
    let subscription = broker.subscription("topic.1", "subscription.1").unwrap().settings;
    assert_eq!((subscription.lock_duration_ms, subscription.max_delivery_count), (30_000, 4));
    assert!(subscription.requires_session);
    let rules = |name| broker.rules("topic.1", name).unwrap();
    let content_type =
        CorrelationFilter { content_type: Some("application/json".into()), ..CorrelationFilter::default() };
    assert_eq!(rules("subscription.1")[0].filter, RuleFilter::Correlation(content_type));
    let RuleFilter::Correlation(correlation) = &rules("subscription.1")[1].filter else { panic!() };
    let mut properties = correlation.properties.clone();
    properties.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [("n", Value::Long(3)), ("prop1", Value::string("value1")), ("yes", Value::Bool(true))];
    assert_eq!(properties, expected.map(|(name, value)| (name.to_owned(), value)));
    assert_eq!(rules("all").len(), 1);
    assert_eq!(rules("all")[0].name, "$Default");
    let [rule] = &rules("subscription.4")[..] else { panic!("the rules of the file stand in place of $Default") };
    let RuleFilter::Sql(sql) = &rule.filter else { panic!() };
    assert_eq!(sql.text(), "sys.MessageId = '123456' AND userProp1 = 'a//b,]'");
    assert_eq!(rule.action.as_ref().unwrap().text(), "SET sys.To = 'Entity'");
}

#[test]
fn names_may_have_any_case() {
    let broker = created(
        r#"{"userconfig": {"namespaces": [{"queues": [{"name": "q", "properties": {"maxdeliverycount": 5}}]}]}}"#,
    );
    assert_eq!(broker.queue("q").unwrap().settings.max_delivery_count, 5);
}

fn why(inside: &str) -> String {
    let text = format!(r#"{{"UserConfig": {{"Namespaces": [{{{inside}}}]}}}}"#);
    EmulatorConfig::parse(&text).unwrap_err().to_string()
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let queue = |properties: &str| why(&format!(r#""Queues": [{{"Name": "q", "Properties": {{{properties}}}}}]"#));
    assert_eq!(
        queue(r#""LockDuration": "1 minute""#),
        r#"Queues[0] 'q': LockDuration is "1 minute", which is not an ISO 8601 duration such as PT1M"#
    );
    assert!(queue(r#""LockDuration": "P10675199DT2H48M5.4775807S""#).contains("a duration that ends"));
    assert!(queue(r#""MaxDeliveryCount": -1"#).contains("MaxDeliveryCount is -1"));
    assert!(queue(r#""RequiresSession": 1"#).contains("RequiresSession is 1"));
    assert!(queue(r#""ForwardTo": 1"#).contains("ForwardTo is 1"));
    assert!(queue(r#""Status": "Sleeping""#).contains("'Sleeping' is no Status"));
    assert!(why(r#""Queues": [{}]"#).contains("Queues[0] has no Name"));
    assert!(why(r#""Queues": {}"#).contains("Queues is no list"));
    assert!(why(r#""Queues": [3]"#).contains("Queues[0] is no object"));
    let rule = |properties: &str| {
        why(&format!(
            r#""Topics": [{{"Name": "t", "Subscriptions": [{{"Name": "s", "Rules": [{{"Name": "r", "Properties": {{{properties}}}}}]}}]}}]"#
        ))
    };
    assert!(
        rule(r#""FilterType": "Sql", "SqlFilter": {"SqlExpression": "a ="}"#)
            .contains("Rules[0] 'r': There was an error")
    );
    assert!(rule(r#""FilterType": "Sql", "SqlFilter": {}"#).contains("has no SqlExpression"));
    assert!(rule(r#""FilterType": "Sql", "CorrelationFilter": {}"#).contains("no filter of its FilterType 'sql'"));
    assert!(rule("").contains("no filter"));
    let nested = r#""FilterType": "Correlation", "CorrelationFilter": {"Properties": {"a": []}}"#;
    assert!(rule(nested).contains("a is []"));
    assert!(EmulatorConfig::parse("{}").unwrap_err().to_string().contains("no UserConfig"));
    assert!(EmulatorConfig::parse("{").unwrap_err().to_string().contains("line 1"));
    assert!(
        EmulatorConfig::parse("{\n/* a\nb */ x}").unwrap_err().to_string().contains("line 3"),
        "lines stay countable"
    );
}

#[test]
fn what_the_broker_refuses_is_an_error_too() {
    let text = r#"{"UserConfig": {"Namespaces": [{"Queues": [{"Name": "q"}, {"Name": "Q"}]}]}}"#;
    let broker = Broker::new(Clock::manual(0), NamespaceLimits::default());
    let error = EmulatorConfig::parse(text).unwrap().create(&broker).unwrap_err().to_string();
    assert!(error.contains("queue 'Q': The messaging entity 'Q' already exists"), "{error}");
}

#[test]
fn all_faults_are_told_at_once_each_with_its_place() {
    let text = r#"{"UserConfig": {"Namespaces": [{
        "Queues": [
            {"Name": "q", "Properties": {"LockDuration": "PT1S", "MaxDeliveryCount": 0, "RequiresSession": "maybe"}},
            {"Name": "$bad"}, {}],
        "Topics": [{"Name": "t", "Properties": {"DuplicateDetectionHistoryTimeWindow": "P8D"}, "Subscriptions": [
            {"Name": "s", "Properties": {"LockDuration": "PT6M"}, "Rules": [{"Name": "r", "Properties": {"FilterType": "Sql"}}]}]}]}]}}"#;
    let error = EmulatorConfig::parse(text).unwrap_err().to_string();
    let told: Vec<&str> = error.lines().map(str::trim).collect();
    let expected = [
        "8 faults",
        r#"Queues[0] 'q': RequiresSession is "maybe", which is not true or false"#,
        "Queues[0] 'q': LockDuration is 1000 ms; it must be from five seconds to five minutes.",
        "Queues[0] 'q': MaxDeliveryCount is 0; it must be from 1 to 2147483647.",
        "Queues[1] '$bad': '$bad' is no name of a queue or topic: letters, digits and . _ - / ~, at most 260.",
        "Queues[2] has no Name",
        "Topics[0] 't': DuplicateDetectionHistoryTimeWindow is 691200000 ms; it must be above zero and at most seven days.",
        "Topics[0] 't': Subscriptions[0] 's': LockDuration is 360000 ms; it must be from five seconds to five minutes.",
        "Topics[0] 't': Subscriptions[0] 's': Rules[0] 'r' has no filter of its FilterType 'sql'",
    ];
    assert_eq!(told, expected);
    let text = r#"{"UserConfig": {"Namespaces": [{"Queues": [{"Name": "q", "Properties": {"ForwardTo": "none"}}, {"Name": "Q"}]}]}}"#;
    let broker = Broker::new(Clock::manual(0), NamespaceLimits::default());
    let error = EmulatorConfig::parse(text).unwrap().create(&broker).unwrap_err().to_string();
    assert!(error.contains("queue 'q': The entity to forward to, 'none', does not exist."), "{error}");
    assert!(error.starts_with("2 faults") && error.contains("queue 'Q': "), "{error}");
}

#[test]
fn strings_are_left_alone() {
    for text in [r#"{"a": "//,]", "b": "\"/*"}"#, r#"["\\", "x,}"]"#] {
        assert_eq!(plain_json(text), text);
    }
    assert_eq!(plain_json("[1, 2 , ]"), "[1, 2   ]");
    assert_eq!(plain_json("[1,/*x*/]"), "[1      ]");
    assert_eq!(plain_json("\u{feff}{}"), "{}");
    assert_eq!(plain_json("\"open"), "\"open");
    assert_eq!(plain_json("[1, // é\n]"), "[1      \n]");
}

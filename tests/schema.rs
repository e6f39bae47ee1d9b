//! The JSON Schema at the root is the one the types make. `POLYBUS_WRITE_SCHEMA=1` writes it.
#![cfg(feature = "schema")]

use polybus::Config;

#[test]
fn the_checked_in_schema_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/polybus.schema.json");
    let wanted = format!("{:#}\n", Config::json_schema());
    if std::env::var_os("POLYBUS_WRITE_SCHEMA").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap();
    let hint = "POLYBUS_WRITE_SCHEMA=1 cargo test --features schema --test schema";
    assert!(found == wanted, "polybus.schema.json is out of date: run {hint}");
}

/// Every key that the file takes is in the schema, and nothing else is.
#[test]
fn the_schema_knows_what_serde_knows() {
    let schema = Config::json_schema();
    for (table, pointer) in [
        ("[bus]", "/$defs/BusConfig"),
        ("[queues.a]", "/$defs/QueueSpec"),
        ("[topics.a]", "/$defs/TopicSpec"),
        ("[topics.a.subscriptions.b]", "/$defs/SubscriptionSpec"),
        ("[monitor]", "/$defs/MonitorConfig"),
        ("[[monitor.rules]]", "/$defs/MonitorRuleConfig"),
        ("[[monitor.webhooks]]", "/$defs/WebhookConfig"),
    ] {
        let table_schema = schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer} in {schema:#}"));
        assert_eq!(table_schema["additionalProperties"], false, "{table}");
        let mut ours: Vec<String> = table_schema["properties"].as_object().unwrap().keys().cloned().collect();
        let e = Config::from_text_with("x.toml", &format!("{table}\nnone-such = 1"), |_| None).unwrap_err();
        let known = e.message().split_once("the known keys are ").unwrap().1;
        let mut known: Vec<&str> = known.split(", ").collect();
        ours.sort();
        known.sort();
        assert_eq!(ours, known, "{table}");
    }
}

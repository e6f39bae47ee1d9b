//! Mistakes that need no broker: each gets an error that says what to do.

use polybus::{Config, Envelope, Error, ErrorKind};

async fn refused(url: &str) -> Error {
    match polybus::connect(url).await {
        Ok(_) => panic!("{url} was taken"),
        Err(e) => e,
    }
}

#[tokio::test]
async fn unknown_scheme_lists_the_known_ones() {
    for scheme in ["kafka", "nats"] {
        let e = refused(&format!("{scheme}://u:s3cret@host")).await;
        assert_eq!(e.kind(), ErrorKind::ConfigInvalid);
        let text = e.to_string();
        assert!(text.contains(&format!("unknown scheme {scheme}://")) && text.contains("memory://"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[cfg(not(feature = "rabbitmq"))]
#[tokio::test]
async fn scheme_whose_feature_is_off_names_the_feature() {
    for scheme in ["amqp", "amqps"] {
        let e = refused(&format!("{scheme}://u:s3cret@host")).await;
        assert_eq!(e.kind(), ErrorKind::ConfigInvalid);
        let text = e.to_string();
        assert!(text.contains("polybus = { features = [\"rabbitmq\"] }") && !text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn malformed_urls_say_what_a_url_looks_like() {
    for url in ["", "localhost:5672", "localhost", "memory", "amqp:u:s3cret@host", "amqp://u:s3cret@host:port/"] {
        let e = refused(url).await;
        assert_eq!(e.kind(), ErrorKind::ConfigInvalid);
        let text = format!("{e} {e:?}");
        assert!(text.contains("expected scheme://") && !text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn configuration_without_a_broker_says_where_to_put_it() {
    let config = Config::from_text_with("shop.toml", "[queues.a]", |_| None).unwrap();
    let Err(e) = polybus::from_config(&config).await else { panic!("taken") };
    assert!(e.kind() == ErrorKind::ConfigInvalid && e.to_string().contains("set url in [bus]"), "{e}");
}

/// What only the adapter knows to be wrong is shown at its line all the same.
#[tokio::test]
async fn an_adapters_own_options_are_checked() {
    for (text, line, key) in [
        ("[queues.a]\n[queues.a.options.memory]\n\nsize = \"s3cret\"", 4, "queues.a.options.memory"),
        ("[topics.t]\noptions = { memory = { size = 1 } }", 2, "topics.t.options.memory"),
        (
            "[topics.t]\n[topics.t.subscriptions.s]\noptions.memory.size = 1",
            3,
            "topics.t.subscriptions.s.options.memory",
        ),
    ] {
        let text = format!("bus.url = \"memory://\"\n{text}");
        let config = Config::from_text_with("shop.toml", &text, |_| None).unwrap();
        let Err(e) = polybus::from_config(&config).await else { panic!("taken: {text}") };
        assert_eq!((e.kind(), e.context("key")), (ErrorKind::ConfigInvalid, Some(key)), "{e}");
        assert!(e.message().starts_with(&format!("shop.toml:{}: ", line + 1)), "{e}");
        assert!(e.message().contains("`size`") && !e.to_string().contains("s3cret"), "{e}");
    }
    let text = "bus.url = \"memory://\"\n[queues.a.options.another-broker]\nsize = 1";
    let config = Config::from_text_with("shop.toml", text, |_| None).unwrap();
    polybus::from_config(&config).await.unwrap();
}

#[tokio::test]
async fn configuration_changed_in_code_is_checked_again() {
    let mut config = Config::from_text_with("shop.toml", "[bus]\nurl = \"memory://\"", |_| None).unwrap();
    config.bus.prefix = Some("No_Good".into());
    let Err(e) = polybus::from_config(&config).await else { panic!("taken") };
    assert!(e.kind() == ErrorKind::ConfigInvalid && e.context("key") == Some("bus.prefix"), "{e}");
}

#[test]
fn header_keys_and_event_types() {
    let envelope = |key: &str| Envelope::new("a.b", "").header(key, "v");
    for key in ["", "a b", "é", "a:b", "cloudEvents:id", "x-death", "Polybus-Hop", &"k".repeat(65)] {
        let e = envelope(key).check().unwrap_err();
        assert!(e.kind() == ErrorKind::InvalidArgument && e.to_string().contains("header key"), "{e}");
    }
    let e = envelope("Tenant").header("tenant", "v").check().unwrap_err();
    assert!(e.to_string().contains("keys ignore case"), "{e}");
    for event_type in ["", "a..b", "a b", "order.*", &"x".repeat(129)] {
        let e = Envelope::new(event_type, "").check().unwrap_err();
        assert!(e.kind() == ErrorKind::InvalidArgument && e.to_string().contains("use 1 to 128 of"), "{e}");
    }
}

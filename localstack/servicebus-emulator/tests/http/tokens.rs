//! Who may.

use polybus_servicebus_emulator::EmulatorOptions;
use polybus_servicebus_emulator::auth::{AccessKey, AccessRight, JwtKey, Rights};
use polybus_servicebus_emulator::broker::{QueueSettings, TopicSettings};

use super::client::{START_MS, ask, emulator_with};

#[tokio::test]
async fn only_a_token_of_the_key_opens() {
    let key = AccessKey::new("Root", "s3cret");
    let emulator = emulator_with(EmulatorOptions { key: Some(key.clone()), ..EmulatorOptions::default() }).await;
    emulator.broker().create_queue("q", QueueSettings::default()).unwrap();
    let at = emulator.http_addr();
    let later = START_MS / 1000 + 60;
    let root = key.token("https://localhost:5300", later);
    let own = key.token("https://localhost:5300/q/messages?x=1", later);
    let wrong = AccessKey::new("Root", "other").token("https://localhost:5300", later);
    let over = key.token("https://localhost:5300", START_MS / 1000);
    for (status, token, method, path) in [
        (200, Some(&root), "GET", "/q?api-version=2021-05"),
        (201, Some(&root), "POST", "/q/messages"),
        (201, Some(&own), "POST", "/q/messages"),
        (201, Some(&own), "POST", "/q/messages/head?timeout=0"),
        (401, Some(&own), "GET", "/q?api-version=2021-05"),
        (401, Some(&own), "POST", "/other/messages"),
        (401, Some(&wrong), "GET", "/q"),
        (401, Some(&wrong), "POST", "/q/messages"),
        (401, Some(&over), "GET", "/$Resources/queues"),
        (401, None, "GET", "/q"),
        (401, None, "DELETE", "/q"),
        (401, None, "GET", "/none"),
        (200, None, "GET", "/health"),
    ] {
        let headers: Vec<(&str, &str)> = token.map(|token| ("Authorization", token.as_str())).into_iter().collect();
        let answer = ask(at, method, path, &headers, "").await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(!answer.body.contains("s3cret"));
        assert_eq!(answer.count("<Code>401</Code>"), usize::from(status == 401));
    }
}

#[tokio::test]
async fn rights_are_asked_for_in_the_services_words() {
    let key = |right| AccessKey::new(format!("{right:?}"), "s3cret").with_rights(Rights::NONE.with(right));
    let keys = [AccessRight::Listen, AccessRight::Send, AccessRight::Manage].map(key).to_vec();
    let emulator = emulator_with(EmulatorOptions { keys, ..EmulatorOptions::default() }).await;
    let broker = emulator.broker();
    broker.create_queue("q", QueueSettings::default()).unwrap();
    broker.create_topic("t", TopicSettings::default()).unwrap();
    let at = emulator.http_addr();
    let later = START_MS / 1000 + 60;
    for (right, status, method, path, says) in [
        (AccessRight::Send, 201, "POST", "/q/messages", ""),
        (AccessRight::Listen, 401, "POST", "/q/messages", "'Send' claim(s) are required"),
        (AccessRight::Listen, 404, "POST", "/t/subscriptions/none/messages/head?timeout=0", "could not be found"),
        (AccessRight::Listen, 201, "POST", "/q/messages/head?timeout=0", ""),
        (AccessRight::Send, 401, "DELETE", "/q/messages/head?timeout=0", "'Listen' claim(s) are required"),
        (AccessRight::Manage, 201, "POST", "/q/messages", ""),
        (AccessRight::Manage, 200, "GET", "/q", ""),
        (AccessRight::Listen, 401, "GET", "/q", ">Manage,EntityRead claims required for this operation"),
        (AccessRight::Listen, 200, "GET", "/none", ""),
        (AccessRight::Listen, 401, "GET", "/$Resources/queues", "Manage,EntityRead claims required for this operation"),
        (AccessRight::Listen, 401, "PUT", "/new", "Authorization failed for specified action: Manage,EntityWrite"),
        (AccessRight::Listen, 401, "DELETE", "/q", "Authorization failed for specified action: Manage,EntityDelete."),
        (
            AccessRight::Send,
            401,
            "GET",
            "/t/subscriptions/s",
            "SubCode=40100: Unauthorized : Unauthorized access for 'GetSubscription'",
        ),
        (
            AccessRight::Send,
            401,
            "GET",
            "/t/subscriptions",
            "Unauthorized access for 'EnumerateSubscriptions' operation",
        ),
        (AccessRight::Send, 401, "PUT", "/t/subscriptions/s", "Unauthorized access for 'CreateOrUpdateSubscription'"),
        (AccessRight::Send, 401, "DELETE", "/t/subscriptions/s", "Unauthorized access for 'DeleteSubscription'"),
    ] {
        let token = AccessKey::new(format!("{right:?}"), "s3cret").token("https://localhost", later);
        let answer = ask(at, method, path, &[("Authorization", &token)], "").await;
        assert_eq!(answer.status, status, "{right:?} {method} {path}: {}", answer.body);
        assert!(answer.body.contains(says), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_bearer_opens_everything_until_its_token_ends() {
    let (key, jwt) = (AccessKey::new("Root", "s3cret"), JwtKey::new("s3cret"));
    let options = EmulatorOptions { key: Some(key.clone()), jwt: Some(jwt.clone()), ..EmulatorOptions::default() };
    let emulator = emulator_with(options).await;
    emulator.broker().create_queue("q", QueueSettings::default()).unwrap();
    let later = START_MS / 1000 + 60;
    for (status, token) in [
        (201, format!("Bearer {}", jwt.token(later))),
        (401, format!("Bearer {}", jwt.token(START_MS / 1000))),
        (401, format!("Bearer {}", JwtKey::new("other").token(later))),
        (401, format!("Bearer {}", key.token("https://localhost/q", later))),
        // Go's administration client sends it without a word in front.
        (201, jwt.token(later)),
        (401, jwt.token(START_MS / 1000)),
        (201, key.token("https://localhost/q", later)),
    ] {
        let answer = ask(emulator.http_addr(), "POST", "/q/messages", &[("Authorization", &token)], "").await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
}

//! Who may.

use polybus_servicebus_emulator::Options;
use polybus_servicebus_emulator::broker::QueueSettings;
use polybus_servicebus_emulator::sas::AccessKey;

use super::client::{START_MS, ask, emulator_with};

#[tokio::test]
async fn only_a_token_of_the_key_opens() {
    let key = AccessKey::new("Root", "s3cret");
    let emulator = emulator_with(Options { key: Some(key.clone()), ..Options::default() }).await;
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

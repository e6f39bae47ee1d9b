//! Who may.

use polybus_servicebus_emulator::Options;
use polybus_servicebus_emulator::broker::QueueSettings;
use polybus_servicebus_emulator::jwt::JwtKey;
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

#[tokio::test]
async fn a_bearer_opens_everything_until_its_token_ends() {
    let (key, jwt) = (AccessKey::new("Root", "s3cret"), JwtKey::new("s3cret"));
    let options = Options { key: Some(key.clone()), jwt: Some(jwt.clone()), ..Options::default() };
    let emulator = emulator_with(options).await;
    emulator.broker().create_queue("q", QueueSettings::default()).unwrap();
    let later = START_MS / 1000 + 60;
    for (status, token) in [
        (201, format!("Bearer {}", jwt.token(later))),
        (401, format!("Bearer {}", jwt.token(START_MS / 1000))),
        (401, format!("Bearer {}", JwtKey::new("other").token(later))),
        (401, format!("Bearer {}", key.token("https://localhost/q", later))),
        (401, jwt.token(later)),
        (201, key.token("https://localhost/q", later)),
    ] {
        let answer = ask(emulator.http_addr(), "POST", "/q/messages", &[("Authorization", &token)], "").await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
}

//! Two processes that decide on the same state.

use std::sync::Arc;

use polybus_patterns::log::{EventLog, Expect};
use tokio::sync::Barrier;

use crate::support::*;

on_both![of_two_with_one_expectation_one_appends_and_one_is_told];

/// How often they do so. 10,000 with `POLYBUS_LOG_ROUNDS=10000`.
fn rounds() -> u64 {
    std::env::var("POLYBUS_LOG_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(300)
}

async fn of_two_with_one_expectation_one_appends_and_one_is_told<S: LogDatabase>(store: S) {
    let (rounds, together) = (rounds(), Arc::new(Barrier::new(2)));
    let process = |who: i64| {
        let (store, together) = (store.clone(), together.clone());
        tokio::spawn(async move {
            let mut appended = Vec::new();
            for round in 0..rounds {
                together.wait().await;
                let answer = append(&store, counted("s", [who]).expect(Expect::Version(round))).await;
                match answer {
                    Ok(answer) => appended.push((round, answer.version)),
                    answer => {
                        assert!(is_conflict(answer.inspect_err(|e| assert!(e.context("stream").is_some(), "{e}"))))
                    }
                }
            }
            appended
        })
    };
    let (one, other) = (process(1), process(2));
    let (one, other) = (one.await.unwrap(), other.await.unwrap());
    assert!(one.iter().chain(&other).all(|(round, version)| *version == round + 1));
    assert_eq!(one.len() + other.len(), rounds as usize, "one Ok in each round");
    let log = EventLog::new(&store);
    assert_eq!(log.stream("s").await.unwrap().unwrap().version, rounds as i64);
}

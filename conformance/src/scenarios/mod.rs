//! The scenarios, one file per group.

pub mod attempts;
mod attempts_limit;
mod awaited;
pub mod consume_hard;
pub mod data;
mod dead_letter_moves;
pub mod dead_letters;
pub mod dead_letters_hard;
mod delays;
pub mod endings;
pub mod filters;
mod foreign;
mod instructions;
mod lanes;
pub mod lifecycle;
mod lifecycle_bounds;
mod lifecycle_faults;
mod lock_told;
pub mod negative;
mod negative_limits;
pub mod order;
pub mod order_hard;
pub mod publish;
mod publish_batches;
pub mod publish_hard;
pub mod pubsub;
pub mod receive;
mod reconnects;
mod redrive;
mod redrive_hard;
pub mod retry_hard;
mod retry_topics;
pub mod settle;
mod settle_held;
pub mod sift;
pub mod strangers;
pub mod time;
mod tools;
pub mod topology;
mod topology_gone;
pub mod unwanted;
mod watched;
pub mod worker;
mod worker_ends;
mod working;

use crate::Scenario;

/// All scenarios.
pub fn all() -> Vec<Scenario> {
    [
        publish::all(),
        data::all(),
        receive::all(),
        settle::all(),
        lock_told::all(),
        attempts::all(),
        dead_letters::all(),
        pubsub::all(),
        order::all(),
        time::all(),
        lifecycle::all(),
        worker::all(),
        publish_hard::all(),
        order_hard::all(),
        retry_hard::all(),
        dead_letters_hard::all(),
        sift::all(),
        consume_hard::all(),
        topology::all(),
        filters::all(),
        unwanted::all(),
        endings::all(),
        negative::all(),
        negative_limits::all(),
        strangers::all(),
        instructions::all(),
        awaited::all(),
        reconnects::all(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_say_their_group() {
        let all = super::all();
        let names: BTreeSet<&str> = all.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), all.len());
        for s in all {
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '/');
            assert!(s.name.chars().all(legal) && s.name.matches('/').count() == 1, "{}", s.name);
            assert!(s.doc.ends_with('.') && !s.doc.contains('\n'), "{}: {}", s.name, s.doc);
        }
    }
}

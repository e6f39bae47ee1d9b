//! The scenarios: each is one promise of the contract. A group of them is a folder, and the first part of their names.

pub mod attempts;
pub mod consume;
pub mod data;
pub mod dead_letters;
pub mod filters;
pub mod lifecycle;
pub mod negative;
pub mod order;
pub mod publish;
pub mod pubsub;
pub mod redrive;
pub mod requests;
pub mod retry;
pub mod settle;
pub(crate) mod shared;
pub mod strangers;
pub mod time;
pub mod topology;
pub mod worker;

use crate::Scenario;

/// All scenarios, in the order in which an adapter makes them pass.
pub fn all() -> Vec<Scenario> {
    groups().into_iter().flat_map(|(_, scenarios)| scenarios).collect()
}

/// The groups by their folders' names.
fn groups() -> Vec<(&'static str, Vec<Scenario>)> {
    vec![
        ("publish", publish::all()),
        ("consume", consume::all()),
        ("settle", settle::all()),
        ("data", data::all()),
        ("attempts", attempts::all()),
        ("retry", retry::all()),
        ("dead_letters", dead_letters::all()),
        ("redrive", redrive::all()),
        ("pubsub", pubsub::all()),
        ("filters", filters::all()),
        ("order", order::all()),
        ("time", time::all()),
        ("topology", topology::all()),
        ("lifecycle", lifecycle::all()),
        ("worker", worker::all()),
        ("requests", requests::all()),
        ("negative", negative::all()),
        ("strangers", strangers::all()),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_say_their_group() {
        let all = super::all();
        let names: BTreeSet<&str> = all.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), all.len());
        for (group, scenarios) in super::groups() {
            for s in scenarios {
                let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '/');
                assert!(s.name.chars().all(legal) && s.name.matches('/').count() == 1, "{}", s.name);
                assert_eq!(s.group(), group, "the group of {}", s.name);
                assert!(s.doc.ends_with('.') && !s.doc.contains('\n'), "{}: {}", s.name, s.doc);
            }
        }
    }
}

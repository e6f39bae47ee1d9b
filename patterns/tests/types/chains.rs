//! Chains of upcasters, of any length and with any holes.

use std::collections::BTreeSet;

use polybus_core::{Envelope, Event};
use polybus_patterns::types::{DecodeFailure, Types};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

const NEWEST: u32 = 12;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Chained {
    steps: Vec<u32>,
}

impl Event for Chained {
    const TYPE: &'static str = "chained";
    const VERSION: u32 = NEWEST;
}

fn types(upcasters: impl IntoIterator<Item = u32>) -> Types {
    upcasters.into_iter().fold(Types::new().event::<Chained>(), |types, from| {
        types.upcast::<Chained>(from, move |mut json, _| {
            json["steps"].as_array_mut().ok_or("no steps")?.push(from.into());
            Ok(json)
        })
    })
}

fn message(version: u32) -> Envelope {
    Envelope::new("chained", json!({"steps": []}).to_string()).schema_version(version)
}

proptest! {
    #[test]
    fn each_step_is_made_once_and_in_order(
        version in 1..=NEWEST,
        order in Just((1..NEWEST).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let types = types(order);
        prop_assert!(types.check().is_ok());
        let read: Chained = types.decode(&message(version)).unwrap();
        prop_assert_eq!(read.steps, (version..NEWEST).collect::<Vec<_>>());
    }

    #[test]
    fn a_hole_is_found_at_the_start_and_ends_no_process(
        present in proptest::collection::btree_set(1..NEWEST, 0..NEWEST as usize),
        version in 0..=NEWEST + 2,
    ) {
        let types = types(present.clone());
        let holes: BTreeSet<u32> = (1..NEWEST).filter(|from| !present.contains(from)).collect();
        prop_assert_eq!(types.check().is_ok(), holes.is_empty());
        let first_hole = holes.iter().find(|hole| **hole >= version.max(1));
        match types.decode::<Chained>(&message(version)) {
            Ok(_) => prop_assert!(first_hole.is_none() && version <= NEWEST),
            Err(DecodeFailure::UnknownVersion { found, known, .. }) => prop_assert!(found > known && found == version),
            Err(DecodeFailure::UpcastFailed { from, to, .. }) => {
                prop_assert_eq!((Some(&from), to), (first_hole, from + 1));
            }
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn no_payload_ends_a_process(body: Vec<u8>, version: Option<u32>) {
        let message = Envelope::new("chained", body).edit(|fields| fields.schema_version = version);
        let _ = types(1..NEWEST).decode::<Chained>(&message);
    }
}

//! The names of samples: `<type>.v<version>.json`.

const ENDING: &str = ".json";

/// The name of the file.
pub(super) fn sample_name(event_type: &str, version: u32) -> String {
    format!("{event_type}.v{version}{ENDING}")
}

/// Type and version of a sample. Types may hold dots, and parts such as `v2`, so it is read from the end; and what is
/// not written as [`sample_name`] writes it is none, so that no version has two files.
pub(super) fn parse(name: &str) -> Option<(&str, u32)> {
    let (event_type, version) = name.strip_suffix(ENDING)?.rsplit_once(".v")?;
    let parsed: u32 = version.parse().ok().filter(|n| *n > 0)?;
    (!event_type.is_empty() && version == parsed.to_string()).then_some((event_type, parsed))
}

/// Whether a file is meant to be a sample: JSON, and not hidden.
pub(super) fn is_meant(name: &str) -> bool {
    name.ends_with(ENDING) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_from_the_end() {
        assert_eq!(parse("order.placed.v3.json"), Some(("order.placed", 3)));
        assert_eq!(parse("order.v2.v3.json"), Some(("order.v2", 3)));
        assert_eq!(parse("v2.v3.json"), Some(("v2", 3)));
        assert_eq!(parse("order.json.v1.json"), Some(("order.json", 1)));
        for none in [
            "order.json",
            ".v1.json",
            "v1.json",
            "order.v0.json",
            "order.v01.json",
            "order.v+1.json",
            "order.v.json",
            "order.v4294967296.json",
            "order.v1.JSON",
            "order.v1",
            "order.V1.json",
            "order.v1.json.orig",
            "",
        ] {
            assert_eq!(parse(none), None, "{none}");
        }
        assert!(is_meant("order.json") && !is_meant("README.md") && !is_meant(".order.v1.7.json"));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            event_type in "[A-Za-z0-9_-]{1,8}(\\.(v[0-9]{1,2}|json|[A-Za-z0-9_-]{1,8})){0,4}",
            version in 1..=u32::MAX,
        ) {
            let name = sample_name(&event_type, version);
            prop_assert_eq!(parse(&name), Some((&*event_type, version)));
        }

        #[test]
        fn no_name_is_read_that_is_not_written_so(name in "[a-c.v0-9]{0,12}(\\.json)?") {
            if let Some((event_type, version)) = parse(&name) {
                prop_assert_eq!(sample_name(event_type, version), name);
            }
        }
    }
}

//! Samples in a folder: what is written, what is never overwritten, and what CI finds.

use std::{fs, path::Path, sync::Barrier};

use polybus_core::{ErrorKind, Event};
use polybus_patterns::types::Types;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::events::{Paid, PlacedV1, PlacedV2, PlacedV3, cents, currency, types_v2, types_v3, v1, v2, v3};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let mut files: Vec<String> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    files
}

fn problems(types: &Types, folder: &Path) -> String {
    let error = types.check_samples(folder).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    error.message().to_owned()
}

#[test]
fn each_version_leaves_its_sample_and_all_are_read() {
    let folder = folder();
    let samples = folder.path().join("made").join("here");
    Types::new().event::<PlacedV1>().write_sample(&samples, &v1("o")).unwrap();
    types_v2().write_sample(&samples, &v2("o")).unwrap();
    types_v3().write_sample(&samples, &v3("o")).unwrap();
    types_v3().check_samples(&samples).unwrap();
    // Again: nothing changes, and nothing is left over.
    types_v3().write_sample(&samples, &v3("o")).unwrap();
    assert_eq!(files(&samples), ["order.placed.v1.json", "order.placed.v2.json", "order.placed.v3.json"]);
    let text = fs::read_to_string(samples.join("order.placed.v1.json")).unwrap();
    assert_eq!(text, "{\n  \"order\": \"o\",\n  \"euros\": 12\n}\n");
}

#[test]
fn a_sample_is_never_overwritten() {
    let folder = folder();
    types_v3().write_sample(&folder, &v3("o")).unwrap();
    let path = folder.path().join("order.placed.v3.json");
    let before = fs::read(&path).unwrap();
    let error = types_v3().write_sample(&folder, &v3("other")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let text = error.message();
    for part in ["order.placed.v3.json", "raise VERSION of PlacedV3", "from version 3", "delete the file, if that"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
    // The same value, however it is written.
    fs::write(&path, r#"{"currency":"EUR","cents":1200,"order":"o"}"#).unwrap();
    types_v3().write_sample(&folder, &v3("o")).unwrap();
    fs::write(&path, "half a fi").unwrap();
    assert!(types_v3().write_sample(&folder, &v3("o")).unwrap_err().message().contains("restore or delete"));
    assert_eq!(fs::read(&path).unwrap(), b"half a fi");
}

#[derive(Serialize, Deserialize)]
struct PaidWithDefault {
    order: String,
    #[serde(default)]
    method: String,
}

impl Event for PaidWithDefault {
    const TYPE: &'static str = "order.paid";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct PaidWithout {
    order: String,
    method: String,
}

impl Event for PaidWithout {
    const TYPE: &'static str = "order.paid";
    const VERSION: u32 = 1;
}

#[test]
fn a_field_with_a_default_needs_no_version_and_one_without_does() {
    let folder = folder();
    Types::new().event::<Paid>().write_sample(&folder, &Paid { order: "o".into() }).unwrap();
    let before = fs::read(folder.path().join("order.paid.v1.json")).unwrap();

    let types = Types::new().event::<PaidWithDefault>();
    types.write_sample(&folder, &PaidWithDefault { order: "o".into(), method: "cash".into() }).unwrap();
    types.check_samples(&folder).unwrap();

    let types = Types::new().event::<PaidWithout>();
    let written = types.write_sample(&folder, &PaidWithout { order: "o".into(), method: "cash".into() });
    let error = written.unwrap_err();
    let text = error.message();
    assert!(text.contains("missing field `method`") && text.contains("raise VERSION of PaidWithout"), "{text}");
    assert!(problems(&types, folder.path()).contains("order.paid.v1.json: payload is not"), "CI finds it as well");
    // The other way: a field that is gone.
    let error = Types::new().event::<Paid>().write_sample(&folder, &Paid { order: "p".into() }).unwrap_err();
    assert!(error.message().contains("raise VERSION"), "{error}");
    assert_eq!(fs::read(folder.path().join("order.paid.v1.json")).unwrap(), before);
}

#[test]
fn all_mistakes_of_a_folder_are_told_at_once() {
    let folder = folder();
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    put("order.placed.v2.json", r#"{"order":"o"}"#);
    put("order.placed.v4.json", "{}");
    put("order.paid.v1.json", "{");
    put("order.shipped.v1.json", "{}");
    put("order.placed.v01.json", "{}");
    put("order.placed.json", "{}");
    put("README.md", "no sample");
    put(".order.placed.v9.json", "somebody's half");
    fs::create_dir(folder.path().join("old.json")).unwrap();
    let types = types_v3().event::<Paid>().upcast::<PlacedV3>(7, currency);
    let text = problems(&types, folder.path());
    for part in [
        "9 mistakes",
        "order.placed: an upcaster from version 7",
        "order.placed.v2.json: \"order.placed\" could not be made version 3 from version 2",
        "order.placed.v4.json: schema version 4 of",
        "order.paid.v1.json: payload is not the JSON it should be: it ends too early at line 1",
        "order.shipped.v1.json: its type is not registered",
        "order.placed.v01.json: name it <type>.v<version>.json",
        "order.placed.json: name it",
        "order.placed: no sample of version 1: take it from an older commit",
        "order.placed: no sample of version 3: write it by write_sample",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("order.paid: no sample"), "one that cannot be read is told once: {text}");
}

/// Otherwise a wrong path would be a green test for ever.
#[test]
fn an_empty_folder_and_one_that_is_not_there_are_mistakes() {
    let folder = folder();
    let types = Types::new().event::<Paid>();
    assert!(problems(&types, folder.path()).contains("order.paid: no sample of version 1"));
    let text = problems(&types, &folder.path().join("away"));
    assert!(text.contains("away") && text.contains("cannot be read"), "{text}");
}

#[test]
fn retired_versions_need_no_sample_and_must_have_none() {
    let folder = folder();
    types_v2().write_sample(&folder, &v2("o")).unwrap();
    types_v3().write_sample(&folder, &v3("o")).unwrap();
    let types = Types::new().event::<PlacedV3>().upcast::<PlacedV3>(2, currency).oldest::<PlacedV3>(2);
    types.check_samples(&folder).unwrap();
    Types::new().event::<PlacedV1>().write_sample(&folder, &v1("o")).unwrap();
    assert!(problems(&types, folder.path()).contains("order.placed.v1.json: schema version 1"));
}

#[test]
fn samples_of_a_former_name_count_for_the_type() {
    #[derive(Serialize, Deserialize)]
    struct Created {
        order: String,
        cents: u64,
    }
    impl Event for Created {
        const TYPE: &'static str = "order.created";
        const VERSION: u32 = 2;
    }
    let folder = folder();
    Types::new().event::<PlacedV1>().write_sample(&folder, &v1("o")).unwrap();
    let types = Types::new().event::<Created>().upcast::<Created>(1, cents).alias::<Created>("order.placed");
    types.write_sample(&folder, &Created { order: "o".into(), cents: 1200 }).unwrap();
    types.check_samples(&folder).unwrap();
    assert_eq!(files(folder.path()), ["order.created.v2.json", "order.placed.v1.json"]);
}

#[test]
fn what_is_not_registered_has_no_sample() {
    let folder = folder();
    let error = types_v3().write_sample(&folder, &Paid { order: "o".into() }).unwrap_err();
    assert!(error.message().contains("add .event::<Paid>()"), "{error}");
    let error = types_v3().write_sample(&folder, &v2("o")).unwrap_err();
    assert!(error.message().contains("PlacedV2 is not registered"), "{error}");
    assert!(files(folder.path()).is_empty());
    assert_eq!(PlacedV2::VERSION, 2);
}

#[test]
fn an_event_that_cannot_be_read_back_has_no_sample() {
    #[derive(Serialize, Deserialize)]
    struct Lossy {
        #[serde(skip_serializing)]
        order: String,
    }
    impl Event for Lossy {
        const TYPE: &'static str = "lossy";
        const VERSION: u32 = 1;
    }
    let folder = folder();
    let lossy = Lossy { order: "o".into() };
    let error = Types::new().event::<Lossy>().write_sample(&folder, &lossy).unwrap_err();
    assert!(error.message().contains("cannot be read back"), "{error} of {}", lossy.order);
    assert!(files(folder.path()).is_empty());
}

#[test]
fn tests_beside_each_other_write_one_sample() {
    let folder = folder();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| types_v3().write_sample(&folder, &v3("o")).unwrap());
        }
    });
    assert_eq!(files(folder.path()), ["order.placed.v3.json"]);
}

#[test]
fn of_different_samples_at_once_one_is_written_and_the_others_are_told() {
    for _ in 0..20 {
        let (folder, together) = (folder(), Barrier::new(8));
        let write = |n: usize| {
            together.wait();
            types_v3().write_sample(&folder, &v3(&n.to_string())).is_ok()
        };
        let write = &write;
        let written: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || write(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(written.iter().filter(|ok| **ok).count(), 1, "{written:?}");
        let text = fs::read_to_string(folder.path().join("order.placed.v3.json")).unwrap();
        let winner = written.iter().position(|ok| *ok).unwrap();
        assert!(text.contains(&format!("\"order\": \"{winner}\"")), "{text}");
        assert_eq!(files(folder.path()).len(), 1);
    }
}

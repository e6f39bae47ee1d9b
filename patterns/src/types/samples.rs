//! Samples: a message of each version in a file, so that the tests of users prove that all of them are still read.

use std::{
    collections::BTreeSet,
    fmt::Display,
    fs,
    io::{self, Write},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use polybus_core::{
    Envelope, Error, Event, Result,
    driver::kit::names::check_event_type,
    message::{Codec, JsonCodec},
};
use serde_json::Value;

use super::{
    DecodeFailure, Types,
    entry::TypeEntry,
    refuse,
    registry::{Registry, missing, range, short},
    sample_name::{is_meant, parse, sample_name},
};

impl<C: Codec> Types<C> {
    /// Writes `<type>.v<VERSION>.json` into this folder, which is made if it is not there: the event as JSON, whatever
    /// the codec is. For tests: it does blocking I/O. Use made-up values that are the same each time.
    ///
    /// What is there stays: nothing is ever overwritten. A file that lacks some members of the event stays too, as long
    /// as it can still be read: they have a default, and need no new version.
    ///
    /// # Errors
    /// `InvalidArgument` if the event is not registered, or cannot be read back, or if the file has another payload
    /// than the event. The same kind if the file cannot be written.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let samples = folder.path().join("samples");
    /// // #[test]
    /// fn all_versions_are_read(types: &Types, samples: &std::path::Path) -> polybus_core::Result<()> {
    ///     types.write_sample(samples, &OrderPlaced { order: "o-7".into() })?;
    ///     types.check_samples(samples)
    /// }
    /// # all_versions_are_read(&Types::new().event::<OrderPlaced>(), &samples).unwrap();
    /// # assert!(samples.join("order.placed.v1.json").exists());
    /// ```
    pub fn write_sample<E: Event + 'static>(&self, folder: impl AsRef<Path>, event: &E) -> Result<()> {
        let type_name = short(std::any::type_name::<E>());
        if !self.registry.find(E::TYPE).is_some_and(|(_, entry)| entry.name == E::TYPE && entry.is_of::<E>()) {
            let text = format!("{type_name} is not registered as {:?}: add .event::<{type_name}>()", E::TYPE);
            return Err(Error::invalid(text));
        }
        // It becomes a file's name.
        check_event_type(E::TYPE)?;
        let path = folder.as_ref().join(sample_name(E::TYPE, E::VERSION));
        let refused = |text: &str| Error::invalid(format!("{}: {text}", path.display()));
        let new = serde_json::to_value(event).map_err(|_| refused("the event cannot be written as JSON"))?;
        let mut text =
            serde_json::to_string_pretty(event).map_err(|_| refused("the event cannot be written as JSON"))?;
        text.push('\n');
        JsonCodec::decode_value::<E>(new.clone())
            .map_err(|e| refused(&format!("the event cannot be read back: {}", e.message())))?;

        fs::create_dir_all(&folder).map_err(|e| failed("cannot be made", folder.as_ref(), e))?;
        if create(&path, text.as_bytes()).map_err(|e| failed("cannot be written", &path, e))? {
            return Ok(());
        }
        let old = fs::read(&path).map_err(|e| failed("cannot be read", &path, e))?;
        let mend = format!(
            "the payload has changed: raise VERSION of {type_name} and add an upcaster from version {}; or delete the \
             file, if that version was never published. Values that differ from run to run do not belong into a sample",
            E::VERSION
        );
        let old: Value = serde_json::from_slice(&old).map_err(|_| refused("it is no JSON: restore or delete it"))?;
        match extends(&new, &old) {
            true => JsonCodec::decode_value::<E>(old)
                .map(drop)
                .map_err(|e| refused(&format!("{} can no longer read it: {}; {mend}", type_name, e.message()))),
            false => Err(refused(&mend)),
        }
    }

    /// Reads all samples of a folder as their newest versions, through the upcasters, as JSON. For tests: it does
    /// blocking I/O. Files that do not end in `.json` are left alone.
    ///
    /// An upcaster that looks at the message's attributes finds those of a new message.
    ///
    /// # Errors
    /// `InvalidArgument`, naming all mistakes: those of [`check`](Self::check), samples that cannot be read, that are
    /// of an unknown type or version, or whose name is none, and versions from the [oldest](Self::oldest) to the newest
    /// that have no sample. The same kind if the folder cannot be read.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String, currency: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 2; }
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let samples = folder.path();
    /// let types = Types::new().event::<OrderPlaced>().upcast::<OrderPlaced>(1, |mut json, _| {
    ///     json["currency"] = "EUR".into();
    ///     Ok(json)
    /// });
    /// types.write_sample(samples, &OrderPlaced { order: "o-7".into(), currency: "EUR".into() })?;
    /// assert!(types.check_samples(samples).unwrap_err().to_string().contains("no sample of version 1"));
    ///
    /// std::fs::write(samples.join("order.placed.v1.json"), r#"{"order":"o-7"}"#).unwrap();
    /// types.check_samples(samples)?;
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn check_samples(&self, folder: impl AsRef<Path>) -> Result<()> {
        let (folder, types) = (folder.as_ref(), &*self.registry);
        let mut problems = types.problems();
        let mut found = BTreeSet::new();
        for file in fs::read_dir(folder).map_err(|e| failed("cannot be read", folder, e))? {
            let file = file.map_err(|e| failed("cannot be read", folder, e))?;
            let (name, path) = (file.file_name(), file.path());
            let name = name.to_string_lossy();
            // A link to a file is one.
            if !is_meant(&name) || path.is_dir() {
                continue;
            }
            let checked = match parse(&name).map(|(event_type, version)| (event_type, version, types.find(event_type)))
            {
                None => Err("name it <type>.v<version>.json, such as order.placed.v1.json".to_owned()),
                Some((_, _, None)) => Err("its type is not registered".to_owned()),
                Some((event_type, version, Some((index, entry)))) => {
                    // One that cannot be read is there all the same: it is told once.
                    found.insert((index, version));
                    check_sample(types, entry, Envelope::new(event_type, Vec::new()).schema_version(version), &path)
                }
            };
            problems.extend(checked.err().map(|problem| format!("{name}: {problem}")));
        }
        for (index, entry) in types.entries.iter().enumerate() {
            let Some(rust_type) = entry.rust_type else { continue };
            let versions: BTreeSet<u32> = found.iter().filter(|(of, _)| *of == index).map(|(_, n)| *n).collect();
            for (from, to) in missing(versions.into_iter(), entry.oldest.max(1), rust_type.version) {
                let how = match to == rust_type.version && from == to {
                    true => "write it by write_sample, and commit it",
                    false => "take it from an older commit, or retire old versions by oldest",
                };
                problems.push(format!("{}: no sample of version {}: {how}", entry.name, range(from, to)));
            }
        }
        problems.sort();
        refuse(&format!("samples in {}", folder.display()), problems)
    }
}

fn check_sample(types: &Registry, entry: &TypeEntry, message: Envelope, path: &Path) -> Result<(), String> {
    let data = fs::read(path).map_err(|e| format!("it cannot be read: {e}"))?;
    let message = message.edit(|fields| fields.data = data.into());
    let read = entry.rust_type.map_or(Ok(()), |rust_type| (rust_type.trial)(types, &message));
    read.map_err(|failure| match failure {
        // Without the id, which was made up here.
        DecodeFailure::Malformed(e) => e.message().to_owned(),
        other => other.to_string(),
    })
}

/// Whether the new value has all that the old one has, and perhaps further members.
fn extends(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(name, old)| new.get(name).is_some_and(|new| extends(new, old)))
        }
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| extends(new, old))
        }
        _ => new == old,
    }
}

/// Makes a file with all that belongs into it, unless there is one: then false. Tests run beside each other, so nobody
/// may see half a file, nor replace a whole one.
fn create(path: &Path, text: &[u8]) -> io::Result<bool> {
    create_by(|whole, path| fs::hard_link(whole, path), path, text)
}

fn create_by(link: impl FnOnce(&Path, &Path) -> io::Result<()>, path: &Path, text: &[u8]) -> io::Result<bool> {
    static FILES: AtomicU64 = AtomicU64::new(0);
    if path.exists() {
        return Ok(false);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = format!(".{name}.{}.{}", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let whole = path.with_file_name(unique);
    let created = fs::write(&whole, text).and_then(|()| match link(&whole, path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // Not every file system has links. There half a file may be seen, which is better than one replaced.
        Err(_) => create_in_place(path, text),
    });
    let _ = fs::remove_file(&whole);
    created
}

fn create_in_place(path: &Path, text: &[u8]) -> io::Result<bool> {
    let mut file = match fs::File::create_new(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        created => created?,
    };
    file.write_all(text).map(|()| true).inspect_err(|_| {
        // Half a file would be in the way of the next run.
        let _ = fs::remove_file(path);
    })
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    let hint: &dyn Display = &format_args!("{} {what}: {error}", path.display());
    Error::invalid(hint.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn without_links_a_file_that_came_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("order.placed.v1.json");
        let no_links = |_: &Path, _: &Path| Err(io::ErrorKind::Unsupported.into());
        let overtaken = |whole: &Path, path: &Path| fs::write(path, "another").and_then(|()| no_links(whole, path));
        assert!(!create_by(overtaken, &path, b"mine").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "another");
        fs::remove_file(&path).unwrap();
        assert!(create_by(no_links, &path, b"mine").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn a_value_extends_what_it_has_all_of() {
        let new = json!({"a": 1, "b": {"c": [1, {"d": 2, "e": 3}]}, "f": null});
        for old in [json!({}), json!({"a": 1}), json!({"b": {"c": [1, {"d": 2}]}}), json!({"f": null}), new.clone()] {
            assert!(extends(&new, &old), "{old}");
        }
        for old in [json!({"a": 2}), json!({"g": 1}), json!({"b": {"c": [1]}}), json!([]), json!({"b": {"c": [2, {}]}})]
        {
            assert!(!extends(&new, &old), "{old}");
        }
    }
}

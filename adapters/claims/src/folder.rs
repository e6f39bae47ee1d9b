//! What a sweep does to a local folder beyond its files.

use std::{fs, io, path::PathBuf};

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::claim::ClaimPrefix;

/// The names of days in a folder; none if it is not there.
pub(crate) async fn names(folder: PathBuf) -> Result<Vec<String>> {
    let read = move || -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // Whatever else lies here takes no memory.
            let entry = entry?;
            // A link may lead out of the folder.
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string().ok().filter(|name| ClaimPrefix::day(name).is_some()));
            }
        }
        Ok(names)
    };
    let read = tokio::task::spawn_blocking(read).await;
    let failed = |e: &dyn std::fmt::Display| {
        let text = format!("the folder of claims cannot be read: {e}");
        Error::new(ErrorKind::Unavailable, text).safe().with_operation("sweep")
    };
    read.map_err(|e| failed(&e))?.map_err(|e| failed(&e))
}

/// Takes away what killed processes left of a day, and the day's folder if nothing else is in it. Whatever fails is
/// tried again by the next sweep.
pub(crate) async fn tidy(day: PathBuf) {
    let tidied = tokio::task::spawn_blocking(move || {
        for entry in fs::read_dir(&day)?.flatten() {
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_file && entry.file_name().to_str().is_some_and(is_staged) {
                // One that cannot be deleted must not keep the others.
                let _ = fs::remove_file(entry.path());
            }
        }
        fs::remove_dir(&day)
    });
    let _ = tidied.await;
}

/// Whether a file is one that object_store writes before it gives it its name: `<uuid>#<n>`.
fn is_staged(name: &str) -> bool {
    let Some((uuid, number)) = name.split_once('#') else { return false };
    let is_uuid = uuid::Uuid::try_parse(uuid).is_ok_and(|parsed| parsed.hyphenated().to_string() == uuid);
    is_uuid && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_object_store_stages_is_taken_away() {
        assert!(is_staged("0197a1c2-7d3e-7000-8000-000000000001#12"));
        for other in [
            "0197a1c2-7d3e-7000-8000-000000000001",
            "0197a1c2-7d3e-7000-8000-000000000001#",
            "x#1",
            "a#b#1",
            "{0197a1c2-7d3e-7000-8000-000000000001}#1",
            "0197A1C2-7D3E-7000-8000-000000000001#1",
        ] {
            assert!(!is_staged(other), "{other}");
        }
    }
}

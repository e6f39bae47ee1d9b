//! The messages: a file of webhooks, one JSON object a line.

use std::{collections::BTreeMap, path::Path};

use polybus::Envelope;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Failure;

/// The id of the message whose payload is cut in half.
pub const POISON: &str = "poison";

#[derive(Deserialize)]
struct Line<'a> {
    event: String,
    action: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Payload {
    repository: Option<Repository>,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
}

/// Reads the file. Each payload becomes `github.<event>.<action>`, keyed by its repository, with a sequence number
/// within the key. Ids are line numbers, so that every run is the same. One payload that is cut in half is put in the
/// middle.
pub fn read(path: &Path) -> Result<Vec<Envelope>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let mut hooks = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |e| format!("{}:{}: {e}; expected {{\"event\", \"action\", \"payload\"}}", path.display(), i + 1);
        let line: Line<'_> = serde_json::from_str(line).map_err(wrong)?;
        let payload: Payload = serde_json::from_str(line.payload.get()).map_err(wrong)?;
        let action = line.action.map(|action| format!(".{action}")).unwrap_or_default();
        let key = payload.repository.map_or_else(|| "no-repository".to_owned(), |r| r.full_name);
        let data = line.payload.get().as_bytes().to_vec();
        hooks.push(Envelope::new(format!("github.{}{action}", line.event), data).id(format!("{}", i + 1)).key(key));
    }
    let middle = hooks.len() / 2;
    if let Some(victim) = hooks.get(middle).cloned() {
        let half = victim.data.slice(..victim.data.len() / 2);
        let poison = victim.edit(|p| (p.event_type, p.data) = ("github.issues.opened".into(), half));
        hooks.insert(middle, poison.id(POISON));
    }
    let mut last = BTreeMap::new();
    Ok(hooks.into_iter().map(|hook| number(hook, &mut last)).collect())
}

fn number(hook: Envelope, last: &mut BTreeMap<Box<str>, u64>) -> Envelope {
    let sequence = last.entry(hook.key.clone().unwrap_or_default()).or_default();
    *sequence += 1;
    let sequence = *sequence;
    hook.sequence(sequence)
}

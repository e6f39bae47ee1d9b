//! The file and the lines that a configuration came from, for errors that are found after it was read.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Address, Error, Source};

/// By key: its line and, of a string, its text as written and with its variables filled in.
pub(crate) type KeyLines = BTreeMap<String, (usize, Option<(String, String)>)>;

/// The file that a configuration came from, and the line of each key. Any two are equal, since it is no part of a
/// configuration's value.
#[derive(Clone, Default)]
pub(crate) struct ConfigOrigin(Option<Arc<(String, KeyLines)>>);

impl PartialEq for ConfigOrigin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl ConfigOrigin {
    pub(crate) fn new(file: &str, lines: KeyLines) -> Self {
        Self(Some(Arc::new((file.to_owned(), lines))))
    }

    /// Puts file and line before the message of an error whose context names a key, a source or an address.
    pub(crate) fn locate(&self, error: Error) -> Error {
        let Some((file, lines)) = self.0.as_deref() else { return error };
        let mut key = key_of(&error).unwrap_or_default();
        let unknown = error.message().split_once("unknown field `").and_then(|(_, rest)| rest.split_once('`'));
        if let Some((name, _)) = unknown {
            key = format!("{key}.{name}");
        }
        // The key itself, or else the nearest table or array around it.
        let mut near = key.as_str();
        loop {
            if let Some((line, _)) = lines.get(near) {
                let inside = lines.iter().filter(|(path, _)| path.starts_with(near));
                let message = inside.fold(error.message().to_owned(), |m, (_, (_, text))| hide(&m, text.as_ref()));
                return error.reworded(format!("{file}:{line}: {message}"));
            }
            match near.rfind(['.', '[']) {
                Some(end) => near = &near[..end],
                None => break,
            }
        }
        let message = format!("{file}: {}", error.message());
        error.reworded(message)
    }
}

/// The key that an error is about, by its context.
fn key_of(error: &Error) -> Option<String> {
    if let Some(key) = error.context("key") {
        return Some(key.to_owned());
    }
    if let Some(source) = error.context("source").and_then(|text| text.parse().ok()) {
        return Some(key_of_source(&source));
    }
    let address = error.context("address")?.parse().ok()?;
    Some(key_of_address(&address))
}

fn key_of_source(source: &Source) -> String {
    match source.live() {
        Source::Subscription { topic, name } => format!("topics.{topic}.subscriptions.{name}"),
        live => key_of_address(&live.address()),
    }
}

fn key_of_address(address: &Address) -> String {
    let kind = if address.is_topic() { "topics" } else { "queues" };
    format!("{kind}.{}", address.name())
}

/// Replaces the filled-in text of a string by the text as written, so that no value of the environment is shown.
pub(crate) fn hide(message: &str, text: Option<&(String, String)>) -> String {
    let Some((written, filled)) = text.filter(|(written, filled)| written != filled) else {
        return message.to_owned();
    };
    let message = message.replace(&format!("{filled:?}"), &format!("{written:?}"));
    let message = message.replace(&format!("`{filled}`"), &format!("`{written}`"));
    if filled.len() < 6 { message } else { message.replace(filled, written) }
}

//! A parsed TOML file that knows the position of each key, so that an error about a key names its line.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    Error, Result,
    config::{
        env_vars::interpolate,
        origin::{ConfigOrigin, hide},
    },
    runtime::edit_distance::edit_distance,
};

/// The position of a key and its value, in bytes of the text.
struct KeySpan {
    path: String,
    key: Range<usize>,
    value: Range<usize>,
    /// Of a string: its text as written, and with its variables filled in.
    text: Option<(String, String)>,
}

/// A parsed file.
pub(crate) struct TomlDocument<'t> {
    file: &'t str,
    text: &'t str,
    root: Spanned<DeTable<'t>>,
    spans: Vec<KeySpan>,
}

impl<'t> TomlDocument<'t> {
    /// Parses the text; `file` is the name that errors show.
    pub(crate) fn parse(file: &'t str, text: &'t str) -> Result<Self> {
        let root = DeTable::parse(text).map_err(|e| syntax_error(file, text, &e))?;
        let mut spans = Vec::new();
        let fill = &mut |_: &str, _: &str| Ok(None);
        let mut doc = Self { file, text, root, spans: Vec::new() };
        let walked = walk_table(doc.root.get_mut(), "", &mut spans, fill);
        doc.spans = spans;
        walked.map_err(|e| doc.error_at(e))?;
        Ok(doc)
    }

    /// Fills in the variables of all strings, except those of the keys in `except`.
    pub(crate) fn interpolate(&mut self, env: &dyn Fn(&str) -> Option<String>, except: &[&str]) -> Result<()> {
        let mut spans = Vec::new();
        let fill = &mut |path: &str, text: &str| match except.contains(&path) {
            true => Ok(None),
            false => interpolate(text, env),
        };
        let walked = walk_table(self.root.get_mut(), "", &mut spans, fill);
        self.spans = spans;
        walked.map_err(|e| self.error_at(e))
    }

    /// Reads the whole document into `T`. A `ConfigInvalid` error names file, line and key.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(toml::de::Deserializer::from(self.root.clone())).map_err(|e| {
            let span = e.span().unwrap_or(0..0);
            let key = self.key_at(&span).map(|k| self.element(k, e.message()));
            let message = reword(e.message(), key);
            let at = key.filter(|k| k.key != span).map_or(span.start, |k| k.value.start);
            let error = Error::config(format!("{}: {message}", self.line(at)));
            match key {
                Some(key) => error.with_context("key", &key.path),
                None => error,
            }
        })
    }

    /// The lines of all keys, for errors that are found after the document is read.
    pub(crate) fn origin(self) -> ConfigOrigin {
        let line = |span: KeySpan| (span.path, (line_of(self.text, span.key.start), span.text));
        ConfigOrigin::new(self.file, self.spans.into_iter().map(line).collect())
    }

    fn error_at(&self, (path, offset, message): (String, usize, String)) -> Error {
        Error::config(format!("{}: {message}", self.line(offset))).with_context("key", path)
    }

    fn line(&self, offset: usize) -> String {
        format!("{}:{}", self.file, line_of(self.text, offset))
    }

    /// The element of an array that an error means. Such errors have the span of the whole array and quote the element.
    fn element<'a>(&'a self, array: &'a KeySpan, message: &str) -> &'a KeySpan {
        let mut inside = self.spans.iter().filter(|k| k.path.starts_with(&format!("{}[", array.path)));
        let quoted = |k: &&KeySpan| k.text.as_ref().is_some_and(|(_, text)| message.contains(&format!("{text:?}")));
        inside.find(quoted).unwrap_or(array)
    }

    /// The key at a position: the one whose key or value this is, or else the innermost one around it.
    fn key_at(&self, position: &Range<usize>) -> Option<&KeySpan> {
        let exact = |k: &&KeySpan| k.key == *position || k.value == *position;
        let around = |r: &Range<usize>| r.start <= position.start && position.end <= r.end;
        self.spans.iter().rfind(exact).or_else(|| {
            let holding = self.spans.iter().filter(|k| around(&k.key) || around(&k.value));
            holding.min_by_key(|k| k.value.len())
        })
    }
}

/// An error about a key: its path, its position in the text, and the message.
type KeyError = (String, usize, String);
/// Returns the text of a string with its variables filled in, or `None` to leave it as it is. It gets path and text.
type FillIn<'a> = &'a mut dyn FnMut(&str, &str) -> Result<Option<String>, String>;

/// Adds the spans of everything in a table, and fills in the variables.
fn walk_table(table: &mut DeTable<'_>, base: &str, spans: &mut Vec<KeySpan>, fill: FillIn<'_>) -> Result<(), KeyError> {
    for (key, value) in table.iter_mut() {
        let name = key.get_ref();
        let path = if base.is_empty() { name.to_string() } else { format!("{base}.{name}") };
        walk(value, path, key.span(), spans, fill)?;
    }
    Ok(())
}

fn walk(
    value: &mut Spanned<DeValue<'_>>,
    path: String,
    key: Range<usize>,
    spans: &mut Vec<KeySpan>,
    fill: FillIn<'_>,
) -> Result<(), KeyError> {
    let at = value.span();
    let mut span = KeySpan { path, key, value: at.clone(), text: None };
    match value.get_mut() {
        DeValue::String(text) => {
            let written = text.to_string();
            match fill(&span.path, text) {
                Ok(None) => {}
                Ok(Some(filled)) => *text = filled.into(),
                Err(message) => return Err((span.path, at.start, message)),
            }
            span.text = Some((written, text.to_string()));
            spans.push(span);
        }
        DeValue::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                let at = item.span();
                walk(item, format!("{}[{i}]", span.path), at, spans, fill)?;
            }
            spans.push(span);
        }
        DeValue::Table(table) => {
            walk_table(table, &span.path, spans, fill)?;
            spans.push(span);
        }
        _ => spans.push(span),
    }
    Ok(())
}

/// The error of a document that is no TOML. The toml crate's own `Display` shows the source line, which may hold a
/// password, so only its message and its position are used.
fn syntax_error(file: &str, text: &str, error: &toml::de::Error) -> Error {
    let span = error.span().unwrap_or(0..0);
    let line = line_of(text, span.start);
    let written = text.lines().nth(line - 1).unwrap_or_default();
    // Only a table's header or what stands before `=` is shown: a line without a key may be the rest of a URL.
    let header = Some(written.trim()).filter(|line| line.starts_with('['));
    let key = header.or_else(|| Some(written.split_once('=')?.0.trim())).unwrap_or_default();
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-.[]\"".contains(c);
    let error = Error::config(format!("{file}:{line}: {}", error.message()));
    let headers = text.lines().take(line - 1).map(str::trim).filter(|l| l.starts_with('['));
    match headers.last() {
        _ if key.is_empty() || key.len() > 200 || !key.chars().all(bare) => error,
        Some(table) if !key.starts_with('[') => {
            let table = table.split('#').next().unwrap_or_default().trim().trim_matches(['[', ']']);
            error.with_context("key", format!("{table}.{key}"))
        }
        _ => error.with_context("key", key.trim_matches(['[', ']'])),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count() + 1
}

/// Serde's message, without values that came from the environment. One about an unknown key is reworded, with a guess
/// at which key was meant.
fn reword(message: &str, key: Option<&KeySpan>) -> String {
    let message = hide(message, key.and_then(|k| k.text.as_ref()));
    let last = key.and_then(|k| k.path.rsplit('.').next()).unwrap_or_default();
    let Some(rest) = message.strip_prefix("unknown field `") else {
        let form = match last.split('[').next() {
            Some("retry") => "; write an array of durations, such as [\"1s\", \"5s\"]",
            Some("types") => "; write an array of event types, such as [\"order.*\"]",
            _ => "",
        };
        return message + form;
    };
    let Some((name, known)) = rest.split_once('`') else { return message };
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let table = key.and_then(|k| k.path.rsplit_once('.')).map(|(table, _)| format!(" in [{table}]"));
    let meant = known.iter().map(|k| (edit_distance(name, k), k)).min().filter(|(d, _)| *d <= 2);
    let of_topic = name == "ordered" && key.is_some_and(|k| k.path.contains(".subscriptions."));
    let meant = match meant {
        _ if of_topic => "order is the topic's: set ordered there; ".to_owned(),
        Some((_, k)) => format!("did you mean {k}? "),
        None => String::new(),
    };
    let table = table.unwrap_or_default();
    format!("unknown key {name:?}{table}: {meant}the known keys are {}", known.join(", "))
}

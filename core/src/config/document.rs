//! A TOML file that remembers where each key stands, so that every mistake is shown at its line.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    config::{
        env_vars::interpolate,
        origin::{Origin, hide},
    },
    error::{Error, Result},
    runtime::edit_distance::edit_distance,
};

/// Where a key and its value stand.
struct Place {
    path: String,
    key: Range<usize>,
    value: Range<usize>,
    /// Of a string: as written, and with its variables filled in.
    text: Option<(String, String)>,
}

/// A parsed file.
pub(crate) struct Document<'t> {
    file: &'t str,
    text: &'t str,
    root: Spanned<DeTable<'t>>,
    places: Vec<Place>,
}

impl<'t> Document<'t> {
    /// Parses the text; `file` is the name that errors show.
    pub(crate) fn parse(file: &'t str, text: &'t str) -> Result<Self> {
        let root = DeTable::parse(text).map_err(|e| syntax_error(file, text, &e))?;
        let mut places = Vec::new();
        let fill = &mut |_: &str, _: &str| Ok(None);
        let mut doc = Self { file, text, root, places: Vec::new() };
        let walked = walk_table(doc.root.get_mut(), "", &mut places, fill);
        doc.places = places;
        walked.map_err(|at| doc.wrong_at(at))?;
        Ok(doc)
    }

    /// Fills the variables of all strings in, except in the keys of `not_in`.
    pub(crate) fn interpolate(&mut self, env: &dyn Fn(&str) -> Option<String>, not_in: &[&str]) -> Result<()> {
        let mut places = Vec::new();
        let fill = &mut |path: &str, text: &str| match not_in.contains(&path) {
            true => Ok(None),
            false => interpolate(text, env),
        };
        let walked = walk_table(self.root.get_mut(), "", &mut places, fill);
        self.places = places;
        walked.map_err(|at| self.wrong_at(at))
    }

    /// Reads the whole into `T`.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(toml::de::Deserializer::from(self.root.clone())).map_err(|e| {
            let span = e.span().unwrap_or(0..0);
            let place = self.place_of(&span).map(|p| self.element(p, e.message()));
            let message = plain(e.message(), place);
            let at = place.filter(|p| p.key != span).map_or(span.start, |p| p.value.start);
            let error = Error::config(format!("{}: {message}", self.line(at)));
            match place {
                Some(place) => error.with_context("key", &place.path),
                None => error,
            }
        })
    }

    /// Where each key stands, for errors that come later.
    pub(crate) fn origin(self) -> Origin {
        let at = |p: Place| (p.path, (line_of(self.text, p.key.start), p.text));
        Origin::new(self.file, self.places.into_iter().map(at).collect())
    }

    fn wrong_at(&self, (path, offset, message): (String, usize, String)) -> Error {
        Error::config(format!("{}: {message}", self.line(offset))).with_context("key", path)
    }

    fn line(&self, offset: usize) -> String {
        format!("{}:{}", self.file, line_of(self.text, offset))
    }

    /// Errors about an element carry the span of the whole array: the one they quote is meant.
    fn element<'a>(&'a self, array: &'a Place, message: &str) -> &'a Place {
        let mut inside = self.places.iter().filter(|p| p.path.starts_with(&format!("{}[", array.path)));
        let quoted = |p: &&Place| p.text.as_ref().is_some_and(|(_, text)| message.contains(&format!("{text:?}")));
        inside.find(quoted).unwrap_or(array)
    }

    fn place_of(&self, span: &Range<usize>) -> Option<&Place> {
        let exact = |p: &&Place| p.key == *span || p.value == *span;
        let around = |r: &Range<usize>| r.start <= span.start && span.end <= r.end;
        self.places.iter().rfind(exact).or_else(|| {
            let holding = self.places.iter().filter(|p| around(&p.key) || around(&p.value));
            holding.min_by_key(|p| p.value.len())
        })
    }
}

type Wrong = (String, usize, String);
type Fill<'a> = &'a mut dyn FnMut(&str, &str) -> Result<Option<String>, String>;

fn walk_table(table: &mut DeTable<'_>, under: &str, places: &mut Vec<Place>, fill: Fill<'_>) -> Result<(), Wrong> {
    for (key, value) in table.iter_mut() {
        let name = key.get_ref();
        let path = if under.is_empty() { name.to_string() } else { format!("{under}.{name}") };
        walk(value, path, key.span(), places, fill)?;
    }
    Ok(())
}

fn walk(
    value: &mut Spanned<DeValue<'_>>,
    path: String,
    key: Range<usize>,
    places: &mut Vec<Place>,
    fill: Fill<'_>,
) -> Result<(), Wrong> {
    let at = value.span();
    let mut place = Place { path, key, value: at.clone(), text: None };
    match value.get_mut() {
        DeValue::String(text) => {
            let written = text.to_string();
            match fill(&place.path, text) {
                Ok(None) => {}
                Ok(Some(filled)) => *text = filled.into(),
                Err(message) => return Err((place.path, at.start, message)),
            }
            place.text = Some((written, text.to_string()));
            places.push(place);
        }
        DeValue::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                let at = item.span();
                walk(item, format!("{}[{i}]", place.path), at, places, fill)?;
            }
            places.push(place);
        }
        DeValue::Table(table) => {
            walk_table(table, &place.path, places, fill)?;
            places.push(place);
        }
        _ => places.push(place),
    }
    Ok(())
}

/// The toml crate's own `Display` shows the source line, which may hold a password: only its message and place are used.
fn syntax_error(file: &str, text: &str, error: &toml::de::Error) -> Error {
    let span = error.span().unwrap_or(0..0);
    let line = line_of(text, span.start);
    let written = text.lines().nth(line - 1).unwrap_or_default();
    // A line without a key may be the rest of a URL.
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

/// Serde's words in ours, with a guess at what was meant, and without values that came from the environment.
fn plain(message: &str, place: Option<&Place>) -> String {
    let message = hide(message, place.and_then(|p| p.text.as_ref()));
    let Some(rest) = message.strip_prefix("unknown field `") else { return message };
    let Some((name, known)) = rest.split_once('`') else { return message };
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let table = place.and_then(|p| p.path.rsplit_once('.')).map(|(table, _)| format!(" in [{table}]"));
    let meant = known.iter().map(|k| (edit_distance(name, k), k)).min().filter(|(d, _)| *d <= 2);
    let meant = meant.map(|(_, k)| format!("did you mean {k}? ")).unwrap_or_default();
    let table = table.unwrap_or_default();
    format!("unknown key {name:?}{table}: {meant}the known keys are {}", known.join(", "))
}

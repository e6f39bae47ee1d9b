//! The event types by name, and what is wrong with them.

use std::{collections::HashMap, fmt::Display};

use polybus_core::{Envelope, Event, driver::kit::names::check_event_type, message::Codec};

use super::{
    entry::{RustType, TypeEntry, Upcaster},
    failure::{DecodeFailure, shown},
};

/// All types, in the order in which they were named. Building never fails: what is wrong is told by
/// [`problems`](Self::problems), all of it at once.
#[derive(Clone, Default)]
pub(super) struct Registry {
    pub(super) entries: Vec<TypeEntry>,
    /// Types and aliases.
    names: HashMap<Box<str>, usize>,
    problems: Vec<String>,
}

impl Registry {
    /// The entry of a name of the wire, an alias included.
    pub(super) fn find(&self, event_type: &str) -> Option<(usize, &TypeEntry)> {
        let index = *self.names.get(event_type)?;
        self.entries.get(index).map(|entry| (index, entry))
    }

    pub(super) fn decode<E: Event + 'static>(
        &self,
        codec: &impl Codec,
        message: &Envelope,
    ) -> Result<E, DecodeFailure> {
        match self.find(&message.event_type) {
            Some((_, entry)) if entry.is_of::<E>() => entry.decode(codec, message),
            Some((_, TypeEntry { rust_type: Some(_), .. })) => {
                Err(DecodeFailure::OtherType { event_type: message.event_type.clone(), expected: E::TYPE })
            }
            _ => Err(DecodeFailure::UnknownType { event_type: message.event_type.clone() }),
        }
    }

    /// The entry about which something is said. The first thing makes it, so the order in which things are said does
    /// not matter.
    fn entry<E: Event>(&mut self) -> &mut TypeEntry {
        let index = match self.names.get(E::TYPE) {
            Some(index) if self.entries[*index].name == E::TYPE => *index,
            other => {
                if let Some(index) = other {
                    let of = self.entries[*index].name;
                    self.problems.push(format!("{}: it is a type, and an alias of {of}: leave one out", E::TYPE));
                }
                self.entries.push(TypeEntry::new::<E>());
                self.names.insert(E::TYPE.into(), self.entries.len() - 1);
                self.entries.len() - 1
            }
        };
        &mut self.entries[index]
    }

    pub(super) fn event<E: Event + 'static>(&mut self) {
        let new = RustType::of::<E>();
        let entry = self.entry::<E>();
        match entry.rust_type {
            None => entry.rust_type = Some(new),
            Some(old) if old.id == new.id => {}
            Some(old) => {
                let text = format!(
                    "{}: registered as {} (version {}) and as {} (version {}): keep one",
                    E::TYPE,
                    old.name,
                    old.version,
                    new.name,
                    new.version
                );
                self.problems.push(text);
            }
        }
    }

    pub(super) fn upcast<E: Event>(&mut self, from: u32, upcaster: Upcaster) {
        if self.entry::<E>().upcasters.insert(from, upcaster).is_some() {
            self.problems.push(format!("{}: two upcasters from version {from}: keep one", E::TYPE));
        }
    }

    pub(super) fn oldest<E: Event>(&mut self, version: u32) {
        self.entry::<E>().oldest = version;
    }

    pub(super) fn alias<E: Event>(&mut self, name: &str) {
        self.entry::<E>();
        let index = self.names[E::TYPE];
        if let Err(e) = check_event_type(name) {
            self.problems.push(format!("{}: an alias that no message can have: {}", E::TYPE, e.message()));
        } else if let Some(old) = self.names.insert(name.into(), index)
            && old != index
        {
            // The first meaning stays.
            self.names.insert(name.into(), old);
            let of = self.entries[old].name;
            self.problems.push(match of == name {
                true => format!("{name}: it is a type, and an alias of {}: leave one out", E::TYPE),
                false => format!("{name}: it is an alias of {of} and of {}: leave one out", E::TYPE),
            });
        }
    }

    /// What is wrong, one line each.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        for entry in &self.entries {
            entry.problems(&mut problems);
        }
        problems
    }
}

impl TypeEntry {
    fn problems(&self, problems: &mut Vec<String>) {
        let mut add = |text: &dyn Display| problems.push(format!("{}: {text}", self.name));
        let Some(rust_type) = self.rust_type else {
            let short = short(self.meant);
            return add(&format_args!("upcasters or names of a type that is not registered: add .event::<{short}>()"));
        };
        let (short, newest) = (short(rust_type.name), rust_type.version);
        if check_event_type(self.name).is_err() {
            add(&format_args!("no message can have the type {} of {short}", shown(self.name)));
        }
        if newest == 0 {
            return add(&format_args!("{short} has the VERSION 0: versions begin with 1"));
        }
        if self.oldest == 0 || self.oldest > newest {
            return add(&format_args!("oldest is {}, and {short} has the versions 1 to {newest}", self.oldest));
        }
        for from in self.upcasters.keys().filter(|from| **from >= newest) {
            add(&format_args!("an upcaster from version {from}, and {short} has the VERSION {newest}: raise it"));
        }
        for from in self.upcasters.keys().filter(|from| **from < self.oldest) {
            add(&format_args!("an upcaster from version {from}, and the oldest is {}: remove it", self.oldest));
        }
        for (from, to) in missing(self.upcasters.keys().copied(), self.oldest, newest - 1) {
            add(&format_args!("no upcaster from version {}: add .upcast::<{short}>({from}, …)", range(from, to)));
        }
    }
}

/// A Rust type without the modules before it.
pub(super) fn short(type_name: &str) -> &str {
    let end = type_name.find('<').unwrap_or(type_name.len());
    &type_name[type_name[..end].rfind("::").map_or(0, |at| at + 2)..]
}

/// The runs of numbers from `first` to `last` that are not among these, which rise. A VERSION that was mistyped may
/// leave out billions.
pub(super) fn missing(present: impl Iterator<Item = u32>, first: u32, last: u32) -> Vec<(u32, u32)> {
    let (mut runs, mut next) = (Vec::new(), first);
    for number in present.filter(|number| (first..=last).contains(number)) {
        if number > next {
            runs.push((next, number - 1));
        }
        // Above the last of all numbers there is nothing to be missing.
        let Some(after) = number.checked_add(1) else { return runs };
        next = after;
    }
    if next <= last {
        runs.push((next, last));
    }
    runs
}

pub(super) fn range(from: u32, to: u32) -> String {
    if from == to { from.to_string() } else { format!("{from} to {to}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rust_types_are_named_without_their_modules() {
        assert_eq!(short("shop::events::OrderPlaced"), "OrderPlaced");
        assert_eq!(short("shop::Wrapped<shop::events::OrderPlaced>"), "Wrapped<shop::events::OrderPlaced>");
        assert_eq!(short("u8"), "u8");
    }

    #[test]
    fn the_last_of_all_numbers_may_be_there_or_missing() {
        assert_eq!(missing([u32::MAX].into_iter(), u32::MAX, u32::MAX), []);
        assert_eq!(missing([1].into_iter(), 1, u32::MAX), [(2, u32::MAX)]);
    }

    proptest! {
        #[test]
        fn what_is_missing_is_what_is_not_there(present: BTreeSet<u8>, first: u8, last: u8) {
            let (first, last) = (u32::from(first), u32::from(last));
            let runs = missing(present.iter().map(|number| u32::from(*number)), first, last);
            let told: Vec<u32> = runs.iter().flat_map(|(from, to)| *from..=*to).collect();
            let lacking: Vec<u32> = (first..=last).filter(|n| !present.iter().any(|p| u32::from(*p) == *n)).collect();
            prop_assert_eq!(told, lacking);
            // The runs are as long as they can be.
            prop_assert!(runs.windows(2).all(|two| two[0].1 + 1 < two[1].0));
        }
    }
}

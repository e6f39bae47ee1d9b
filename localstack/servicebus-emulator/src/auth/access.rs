//! Who may do what: keys with their rights, and what a token grants.
//!
//! The rights are those of <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-sas>.

use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;

use crate::refusal::{Condition, Refusal};
use crate::sas::AccessKey;

/// One right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Right {
    /// To receive, settle, peek, and to change a subscription's rules over AMQP.
    Listen,
    /// To send, schedule, and cancel what was scheduled.
    Send,
    /// To make, read, change and delete entities; it includes the other two.
    Manage,
}

/// A set of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    listen: bool,
    send: bool,
    manage: bool,
}

impl Rights {
    /// All of them.
    pub const ALL: Self = Self { listen: true, send: true, manage: true };
    /// None of them.
    pub const NONE: Self = Self { listen: false, send: false, manage: false };

    /// Whether this right is among them.
    pub fn allow(self, right: Right) -> bool {
        match right {
            Right::Listen => self.listen,
            Right::Send => self.send,
            Right::Manage => self.manage,
        }
    }

    /// These and one more.
    #[must_use]
    pub fn with(self, right: Right) -> Self {
        match right {
            Right::Listen => Self { listen: true, ..self },
            Right::Send => Self { send: true, ..self },
            Right::Manage => Self::ALL,
        }
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        rights.into_iter().fold(Self::NONE, Self::with)
    }
}

/// What a token that was taken grants, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What may be done.
    pub rights: Rights,
    /// The token's end, milliseconds since the epoch.
    pub until_ms: i64,
}

/// A clone is the same set of keys.
#[derive(Clone, Debug, Default)]
pub struct Keys(Arc<RwLock<Vec<AccessKey>>>);

impl Keys {
    /// Adds a key, in place of the ones of its name at the same entity.
    pub fn put(&self, key: AccessKey) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|known| !known.is_named_as(&key));
        keys.push(key);
    }

    /// Forgets the keys of a name at an entity, or with an empty one at the namespace.
    pub fn remove(&self, name: &str, entity: &str) {
        let gone = AccessKey::new(name, "").of_entity(entity);
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|known| !known.is_named_as(&gone));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// All of them.
    pub fn all(&self) -> Vec<AccessKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Keys as `az servicebus … authorization-rule keys list` shows them, with the rights of their rule and, where it is an entity's, the
/// entity. `Debug` leaves the keys out.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessRule {
    /// The rule's name, which tokens carry.
    key_name: String,
    primary_key: String,
    secondary_key: Option<String>,
    rights: Vec<Right>,
    /// A queue or a topic; without one the rule is the namespace's.
    #[serde(default)]
    entity: String,
}

impl std::fmt::Debug for AccessRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessRule")
            .field("key_name", &self.key_name)
            .field("rights", &self.rights)
            .field("entity", &self.entity)
            .finish_non_exhaustive()
    }
}

impl AccessRule {
    /// One rule, or a list of them, in JSON. The error shows no key.
    pub fn parse(json: &[u8]) -> Result<Vec<Self>, String> {
        let value: serde_json::Value = serde_json::from_slice(json)
            .map_err(|error| format!("no JSON (line {}, column {})", error.line(), error.column()))?;
        let items = match value {
            serde_json::Value::Array(items) => items,
            one => vec![one],
        };
        items.into_iter().enumerate().map(|(at, item)| Self::read(at, item)).collect()
    }

    fn read(at: usize, item: serde_json::Value) -> Result<Self, String> {
        const FIELDS: [&str; 5] = ["keyName", "primaryKey", "secondaryKey", "rights", "entity"];
        let expected = "expected an object with keyName, primaryKey, rights (a list of Listen, Send, Manage) and, if wanted, \
                        secondaryKey and entity";
        // The parser's own words could show a value, and so a key.
        let unknown =
            item.as_object().and_then(|fields| fields.keys().find(|name| !FIELDS.contains(&name.as_str())).cloned());
        match (unknown, serde_json::from_value::<Self>(item)) {
            (None, Ok(rule)) if rule.rights.is_empty() => Err(format!("rule {at} has no rights; {expected}")),
            (None, Ok(rule)) => Ok(rule),
            (Some(name), _) => Err(format!("rule {at} has a field '{name}'; {expected}")),
            (None, Err(_)) => Err(format!("rule {at} cannot be read; {expected}")),
        }
    }

    /// Takes its keys in, in place of those it had.
    pub fn put(self, keys: &Keys) {
        let rights: Rights = self.rights.into_iter().collect();
        let key = AccessKey::new(self.key_name, self.primary_key).with_rights(rights).of_entity(&self.entity);
        keys.put(match self.secondary_key {
            Some(second) => key.or_secondary(second),
            None => key,
        });
    }
}

/// The refusal of what needs a right that nobody granted, on the data plane.
pub(crate) fn claim_missing(right: Right, resource: &str) -> Refusal {
    Refusal::new(
        Condition::Unauthorized,
        format!(
            "Unauthorized access. '{right:?}' claim(s) are required to perform this operation. Resource: '{resource}'."
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manage_includes_the_others() {
        let manage: Rights = [Right::Manage].into_iter().collect();
        assert_eq!(manage, Rights::ALL);
        let send: Rights = [Right::Send].into_iter().collect();
        assert!(send.allow(Right::Send) && !send.allow(Right::Listen) && !send.allow(Right::Manage));
        assert_eq!([Right::Send, Right::Listen].into_iter().collect::<Rights>(), send.with(Right::Listen));
    }

    #[test]
    fn rules_are_read_and_their_mistakes_told_without_their_keys() {
        let keys = Keys::default();
        let rules = br#"[{"keyName":"a","primaryKey":"s3cret","secondaryKey":"s3cret2","rights":["Send"],"entity":"q"},
            {"keyName":"b","primaryKey":"s3cret","rights":["Manage"]}]"#;
        for rule in AccessRule::parse(rules).unwrap() {
            assert!(!format!("{rule:?}").contains("s3cret"));
            rule.put(&keys);
        }
        assert_eq!(keys.all().len(), 2);
        AccessRule::parse(br#"{"keyName":"a","primaryKey":"other","rights":["Send"],"entity":"Q"}"#)
            .unwrap()
            .remove(0)
            .put(&keys);
        assert_eq!(keys.all().len(), 2, "in place of the one of that name");
        keys.remove("a", "q");
        keys.remove("a", "");
        assert_eq!(keys.all().len(), 1);
        for wrong in [
            r#"{"keyName":"a","primaryKey":"s3cret","rights":["Peek"]}"#,
            r#"{"keyName":"a","primaryKey":"s3cret","rights":[]}"#,
            r#"{"keyName":"a","primaryKey":"s3cret"}"#,
            r#"{"keyName":"a","rights":["Send"],"entity":"s3cret"}"#,
            r#"{"keyName":"a","primaryKey":"s3cret","rights":["Send"],"typo":1}"#,
            r#"{"keyName":"a","primaryKey":["s3cret"],"rights":["Send"]}"#,
            r#"["s3cret"]"#,
            r#""s3cret"#,
        ] {
            let error = AccessRule::parse(wrong.as_bytes()).expect_err(wrong);
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}

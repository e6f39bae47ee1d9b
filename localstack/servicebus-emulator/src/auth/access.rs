//! Rights, the set of keys that have them, and the grant that a valid token yields.
//!
//! The rights are those of <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-sas>.

use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;

use super::AccessKey;
use crate::refusal::{Condition, Refusal};

/// One right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum AccessRight {
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
    pub fn allow(self, right: AccessRight) -> bool {
        match right {
            AccessRight::Listen => self.listen,
            AccessRight::Send => self.send,
            AccessRight::Manage => self.manage,
        }
    }

    /// These and one more.
    #[must_use]
    pub fn with(self, right: AccessRight) -> Self {
        match right {
            AccessRight::Listen => Self { listen: true, ..self },
            AccessRight::Send => Self { send: true, ..self },
            AccessRight::Manage => Self::ALL,
        }
    }
}

impl FromIterator<AccessRight> for Rights {
    fn from_iter<I: IntoIterator<Item = AccessRight>>(rights: I) -> Self {
        rights.into_iter().fold(Self::NONE, Self::with)
    }
}

/// The rights of a valid token, and when it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenGrant {
    /// The rights.
    pub rights: Rights,
    /// When the token expires, in milliseconds since the epoch.
    pub until_ms: i64,
}

/// The keys that clients may sign with. A clone refers to the same set.
#[derive(Clone, Debug, Default)]
pub struct KeySet(Arc<RwLock<Vec<AccessKey>>>);

impl KeySet {
    /// Adds a key. It replaces a key of the same name at the same entity.
    pub fn put(&self, key: AccessKey) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|known| !known.is_named_as(&key));
        keys.push(key);
    }

    /// Removes the key of a name at an entity, or at the namespace when `entity` is empty.
    pub fn remove(&self, name: &str, entity: &str) {
        let gone = AccessKey::new(name, "").of_entity(entity);
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|known| !known.is_named_as(&gone));
    }

    /// True when there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// All of them.
    pub fn all(&self) -> Vec<AccessKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The keys of one rule as `az servicebus … authorization-rule keys list` shows them, with the rule's rights and, for
/// the rule of an entity, the entity. `Debug` omits the keys.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessRule {
    /// The rule's name, which tokens carry.
    key_name: String,
    primary_key: String,
    secondary_key: Option<String>,
    rights: Vec<AccessRight>,
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
    /// Reads one rule, or a list of them, from JSON. The error never contains a key.
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
        // The parser's own message could contain a value and with it a key, so it is not passed on.
        let unknown =
            item.as_object().and_then(|fields| fields.keys().find(|name| !FIELDS.contains(&name.as_str())).cloned());
        match (unknown, serde_json::from_value::<Self>(item)) {
            (None, Ok(rule)) if rule.rights.is_empty() => Err(format!("rule {at} has no rights; {expected}")),
            (None, Ok(rule)) => Ok(rule),
            (Some(name), _) => Err(format!("rule {at} has a field '{name}'; {expected}")),
            (None, Err(_)) => Err(format!("rule {at} cannot be read; {expected}")),
        }
    }

    /// Puts the rule's keys into the set. They replace the keys that the rule had there.
    pub fn put(self, keys: &KeySet) {
        let rights: Rights = self.rights.into_iter().collect();
        let key = AccessKey::new(self.key_name, self.primary_key).with_rights(rights).of_entity(&self.entity);
        keys.put(match self.secondary_key {
            Some(second) => key.or_secondary(second),
            None => key,
        });
    }
}

/// The refusal of a data-plane operation for which the client lacks a right.
pub(crate) fn claim_missing(right: AccessRight, resource: &str) -> Refusal {
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
        let manage: Rights = [AccessRight::Manage].into_iter().collect();
        assert_eq!(manage, Rights::ALL);
        let send: Rights = [AccessRight::Send].into_iter().collect();
        assert!(send.allow(AccessRight::Send) && !send.allow(AccessRight::Listen) && !send.allow(AccessRight::Manage));
        assert_eq!(
            [AccessRight::Send, AccessRight::Listen].into_iter().collect::<Rights>(),
            send.with(AccessRight::Listen)
        );
    }

    #[test]
    fn rules_are_read_and_their_mistakes_told_without_their_keys() {
        let keys = KeySet::default();
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

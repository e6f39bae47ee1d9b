//! The authorization rules of an entity: kept as XML, and read for their keys.

use crate::auth::{AccessKey, AccessRight};
use crate::http::xml::{Xml, XmlElement};

/// The elements before and after `Rights`, in the order of the schema.
const BEFORE_RIGHTS: [&str; 2] = ["ClaimType", "ClaimValue"];
const AFTER_RIGHTS: [&str; 5] = ["CreatedTime", "ModifiedTime", "KeyName", "PrimaryKey", "SecondaryKey"];

/// The authorization rules of a description, as the XML inside `AuthorizationRules`.
pub(crate) fn read(description: &XmlElement) -> Option<String> {
    let rules = description.child("AuthorizationRules")?;
    let mut xml = Xml::default();
    for rule in rules.children.iter().filter(|child| child.name == "AuthorizationRule") {
        xml.element("AuthorizationRule", &[("i:type", "SharedAccessAuthorizationRule")], |xml| write(rule, xml));
    }
    Some(xml.into_string()).filter(|xml| !xml.is_empty())
}

fn write(rule: &XmlElement, xml: &mut Xml) {
    for name in BEFORE_RIGHTS {
        xml.optional(name, rule.text_of(name));
    }
    xml.element("Rights", &[], |xml| {
        let rights = rule.child("Rights").map(|rights| rights.children.as_slice()).unwrap_or_default();
        for right in rights.iter().filter(|right| right.name == "AccessRights") {
            xml.text("AccessRights", right.text.trim());
        }
    });
    for name in AFTER_RIGHTS {
        xml.optional(name, rule.text_of(name));
    }
}

/// The keys of an entity's rules, as [`read`] kept them.
pub(crate) fn keys(rules: &str, entity: &str) -> Vec<AccessKey> {
    let Ok(rules) = XmlElement::parse(format!("<AuthorizationRules>{rules}</AuthorizationRules>").as_bytes()) else {
        return Vec::new();
    };
    rules.children.iter().filter_map(|rule| key(rule, entity)).collect()
}

fn key(rule: &XmlElement, entity: &str) -> Option<AccessKey> {
    let rights = rule.child("Rights")?.children.iter().filter_map(|right| match right.text.trim() {
        "Listen" => Some(AccessRight::Listen),
        "Send" => Some(AccessRight::Send),
        "Manage" => Some(AccessRight::Manage),
        _ => None,
    });
    let key = AccessKey::new(rule.text_of("KeyName")?, rule.text_of("PrimaryKey")?);
    let key = key.with_rights(rights.collect()).of_entity(entity);
    Some(match rule.text_of("SecondaryKey") {
        Some(second) => key.or_secondary(second),
        None => key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_kept_in_the_order_of_the_schema() {
        let description = XmlElement::parse(
            b"<d><AuthorizationRules><AuthorizationRule><KeyName>k&amp;l</KeyName><Other/><ClaimType>c</ClaimType>\
            <Rights><AccessRights>Send</AccessRights><AccessRights>Listen</AccessRights></Rights></AuthorizationRule></AuthorizationRules></d>",
        )
        .unwrap();
        assert_eq!(
            read(&description).unwrap(),
            "<AuthorizationRule i:type=\"SharedAccessAuthorizationRule\"><ClaimType>c</ClaimType>\
            <Rights><AccessRights>Send</AccessRights><AccessRights>Listen</AccessRights></Rights><KeyName>k&amp;l</KeyName></AuthorizationRule>"
        );
    }

    #[test]
    fn none_is_none() {
        assert_eq!(read(&XmlElement::parse(b"<d/>").unwrap()), None);
        assert_eq!(read(&XmlElement::parse(b"<d><AuthorizationRules/></d>").unwrap()), None);
    }
}

//! XML: a small tree to read from, and a writer.
//!
//! Namespaces are ignored. That is safe because each name has one meaning in the schema, and necessary because the SDKs
//! use different prefixes.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::refusal::{Condition, Refusal};

/// The deepest nesting. The official schema needs eight levels.
const MAX_DEPTH: usize = 32;

/// A parsed element, with its local name.
#[derive(Debug, Default)]
pub(crate) struct XmlElement {
    pub(super) name: String,
    /// Without namespace declarations, by local name.
    attributes: Vec<(String, String)>,
    pub(super) children: Vec<XmlElement>,
    pub(super) text: String,
}

impl XmlElement {
    /// Reads a document; there is one root.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        // The first entry of the stack stands for the document.
        let mut open = vec![Self::default()];
        loop {
            match reader.read_event().map_err(|error| malformed(&error.to_string()))? {
                Event::Start(start) if open.len() > MAX_DEPTH => {
                    let name = String::from_utf8_lossy(start.name().into_inner()).into_owned();
                    return Err(malformed(&format!("'{name}' is nested too deeply")));
                }
                Event::Start(start) => open.push(Self::start(&start)?),
                Event::Empty(start) => last(&mut open)?.children.push(Self::start(&start)?),
                Event::End(_) => {
                    let done = open.pop().ok_or_else(|| malformed("an end without a start"))?;
                    last(&mut open)?.children.push(done);
                }
                Event::Text(text) => {
                    let text = text.xml_content().map_err(|error| malformed(&error.to_string()))?;
                    last(&mut open)?.text.push_str(&text);
                }
                Event::CData(data) => {
                    let text = data.xml_content().map_err(|error| malformed(&error.to_string()))?;
                    last(&mut open)?.text.push_str(&text);
                }
                Event::GeneralRef(reference) => {
                    let name = reference.decode().map_err(|error| malformed(&error.to_string()))?;
                    let resolved = quick_xml::escape::unescape(&format!("&{name};"))
                        .map_err(|error| malformed(&error.to_string()))?
                        .into_owned();
                    last(&mut open)?.text.push_str(&resolved);
                }
                Event::DocType(_) => return Err(malformed("a document type is not taken")),
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
                Event::Eof => break,
            }
        }
        let document = open.pop().filter(|_| open.is_empty()).ok_or_else(|| malformed("an element is left open"))?;
        let mut roots = document.children.into_iter();
        match (roots.next(), roots.next()) {
            (Some(root), None) => Ok(root),
            _ => Err(malformed("there is not one root element")),
        }
    }

    fn start(start: &BytesStart<'_>) -> Result<Self, Refusal> {
        let name = utf8(start.local_name().into_inner())?;
        let mut attributes = Vec::new();
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| malformed(&error.to_string()))?;
            if attribute.key.as_namespace_binding().is_none() {
                let value = attribute.unescape_value().map_err(|error| malformed(&error.to_string()))?;
                attributes.push((utf8(attribute.key.local_name().into_inner())?, value.into_owned()));
            }
        }
        Ok(Self { name, attributes, ..Self::default() })
    }

    /// The attribute of this local name.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first child of this name that is not marked as nil.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name && child.attribute("nil") != Some("true"))
    }

    /// The text of a child, unless there is none or it is empty.
    pub(super) fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.trim()).filter(|text| !text.is_empty())
    }
}

fn last(open: &mut [XmlElement]) -> Result<&mut XmlElement, Refusal> {
    open.last_mut().ok_or_else(|| malformed("an end without a start"))
}

fn utf8(bytes: &[u8]) -> Result<String, Refusal> {
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed("it is not UTF-8"))
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(Condition::InvalidField, format!("The request body is no XML that can be read: {why}."))
}

/// A document being written.
#[derive(Debug, Default)]
pub(super) struct Xml(String);

impl Xml {
    /// An element whose content `inside` writes.
    pub(super) fn element(&mut self, name: &str, attributes: &[(&str, &str)], inside: impl FnOnce(&mut Self)) {
        self.start(name, attributes);
        inside(self);
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// An element that holds text.
    pub(super) fn text(&mut self, name: &str, text: impl AsRef<str>) {
        self.element(name, &[], |xml| xml.push_text(text.as_ref()));
    }

    /// An element that holds text, unless there is none.
    pub(super) fn optional(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    /// An element that holds a number or a truth value.
    pub(super) fn value(&mut self, name: &str, value: impl ToString) {
        self.text(name, value.to_string());
    }

    /// An element without content.
    pub(super) fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.element(name, attributes, |_| {});
    }

    /// Text between elements.
    pub(super) fn push_text(&mut self, text: &str) {
        self.0.push_str(&escaped(text, |text| quick_xml::escape::partial_escape(text)));
    }

    /// Appends XML as it is.
    pub(super) fn push_raw(&mut self, xml: &str) {
        self.0.push_str(xml);
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    fn start(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.0.push('<');
        self.0.push_str(name);
        for (key, value) in attributes {
            self.0.push(' ');
            self.0.push_str(key);
            self.0.push_str("=\"");
            self.0.push_str(&escaped(value, |text| quick_xml::escape::escape(text)));
            self.0.push('"');
        }
        self.0.push('>');
    }
}

/// Escapes a text. Characters that XML 1.0 forbids become the replacement character. Quotes in text are not escaped,
/// because some SDKs show the document as it came.
fn escaped(text: &str, escape: fn(&str) -> Cow<'_, str>) -> Cow<'_, str> {
    let allowed = |c: char| c >= ' ' && c != '\u{fffe}' && c != '\u{ffff}' || matches!(c, '\t' | '\n' | '\r');
    if text.chars().all(allowed) {
        return escape(text);
    }
    let text: String = text.chars().map(|c| if allowed(c) { c } else { '\u{fffd}' }).collect();
    Cow::Owned(escape(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_comments_and_entities_do_not_matter() {
        let root = XmlElement::parse(
            b"<?xml version=\"1.0\"?><!-- c --><n:a xmlns:n=\"x\" n:type=\"t&amp;u\"><n:b>1 &lt; 2 &#65;<![CDATA[<&]]></n:b><c/></n:a>",
        )
        .unwrap();
        assert_eq!((root.name.as_str(), root.attribute("type"), root.children.len()), ("a", Some("t&u"), 2));
        assert_eq!(root.text_of("b"), Some("1 < 2 A<&"));
        assert_eq!((root.text_of("c"), root.child("d").is_none()), (None, true));
    }

    #[test]
    fn nil_is_absent() {
        let root = XmlElement::parse(b"<a xmlns:i=\"x\"><b i:nil=\"true\"/></a>").unwrap();
        assert!(root.child("b").is_none());
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let deep = format!("{}{}", "<a>".repeat(100), "</a>".repeat(100));
        let cases = [
            "",
            "text",
            "<a>",
            "<a></b>",
            "</a>",
            "<a/><b/>",
            "<a>&unknown;</a>",
            "<!DOCTYPE a><a/>",
            "<a b=c/>",
            &deep,
        ];
        for case in cases {
            let refusal = XmlElement::parse(case.as_bytes()).expect_err(case);
            assert_eq!(refusal.condition, Condition::InvalidField, "{case}");
        }
        assert!(XmlElement::parse(b"<a>\xff</a>").is_err());
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut xml = Xml::default();
        xml.element("a", &[("k", "\"<&'>")], |xml| {
            xml.text("b", "x < y && \"z\"");
            xml.optional("none", None);
            xml.value("n", 7);
        });
        let root = XmlElement::parse(xml.into_string().as_bytes()).unwrap();
        assert_eq!(root.attribute("k"), Some("\"<&'>"));
        assert_eq!((root.text_of("b"), root.text_of("n")), (Some("x < y && \"z\""), Some("7")));
        assert!(root.child("none").is_none());
    }

    #[test]
    fn characters_xml_cannot_hold_are_replaced() {
        let mut xml = Xml::default();
        xml.text("a", "x\u{1}\ty");
        assert_eq!(xml.into_string(), "<a>x\u{fffd}\ty</a>");
    }
}

//! The Atom management API: entries and feeds around the descriptions of entities.
//!
//! `management.rs` handles a request. `settings.rs` and `rules.rs` read descriptions from the request's XML,
//! `description.rs` and `rules.rs` write them. `key_values.rs` is the form of typed parameters in rules, and
//! `authorization_rules.rs` that of an entity's keys.

pub(crate) mod authorization_rules;
mod description;
mod key_values;
pub(super) mod management;
pub(super) mod rules;
pub(super) mod settings;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::iso8601::timestamp;
use super::xml::Xml;

const ATOM: &str = "http://www.w3.org/2005/Atom";
const IN_PATHS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'$');

/// The URL of the namespace as the client reached it.
#[derive(Debug)]
pub(super) struct NamespaceUrl {
    /// `https://localhost:5300`
    pub(super) address: String,
    /// `localhost`
    pub(super) namespace: String,
    /// The query of the request, for the ids.
    pub(super) query: String,
}

/// One entry of a feed.
pub(super) struct Entry {
    /// Below the namespace; the JavaScript SDK takes the names from it, so its `Subscriptions` and `Rules` begin in
    /// upper case.
    pub(super) path: String,
    pub(super) title: String,
    pub(super) created: i64,
    pub(super) updated: i64,
    /// The description's XML.
    pub(super) content: Xml,
}

impl NamespaceUrl {
    pub(super) fn new(tls: bool, host: &str, query: Option<&str>) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let name = host.split([':', '.']).next().filter(|name| !name.is_empty() && !name.starts_with('['));
        Self {
            address: format!("{scheme}://{host}"),
            namespace: name.unwrap_or("localhost").to_owned(),
            query: query.map(|query| format!("?{query}")).unwrap_or_default(),
        }
    }

    /// Where a path is, without a query.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{}", self.address, utf8_percent_encode(path, IN_PATHS))
    }

    fn id(&self, path: &str) -> String {
        format!("{}{}", self.url(path), self.query)
    }

    /// A document of one entry.
    pub(super) fn entry(&self, entry: Entry) -> String {
        let mut xml = Xml::default();
        self.write(&mut xml, entry, &[("xmlns", ATOM)]);
        xml.into_string()
    }

    fn write(&self, xml: &mut Xml, entry: Entry, attributes: &[(&str, &str)]) {
        let url = self.id(&entry.path);
        xml.element("entry", attributes, |xml| {
            xml.text("id", &url);
            xml.element("title", &[("type", "text")], |xml| xml.push_text(&entry.title));
            xml.text("published", timestamp(entry.created));
            xml.text("updated", timestamp(entry.updated));
            xml.element("author", &[], |xml| xml.text("name", &self.namespace));
            xml.empty("link", &[("rel", "self"), ("href", &url)]);
            xml.element("content", &[("type", "application/xml")], |xml| {
                xml.push_raw(&entry.content.into_string());
            });
        });
    }

    /// A document of many entries; `next` is the query of the page that follows.
    pub(super) fn feed(&self, path: &str, title: &str, entries: Vec<Entry>, next: Option<String>, now: i64) -> String {
        let mut xml = Xml::default();
        let url = self.id(path);
        xml.element("feed", &[("xmlns", ATOM)], |xml| {
            xml.element("title", &[("type", "text")], |xml| xml.push_text(title));
            xml.text("id", &url);
            xml.text("updated", timestamp(now));
            xml.empty("link", &[("rel", "self"), ("href", &url)]);
            if let Some(query) = next {
                xml.empty("link", &[("rel", "next"), ("href", &format!("{}?{query}", self.url(path)))]);
            }
            // An entry's id carries the API version only, not the query of its page.
            let base = Self {
                query: version(self.query.strip_prefix('?')).map(|version| format!("?{version}")).unwrap_or_default(),
                address: self.address.clone(),
                namespace: self.namespace.clone(),
            };
            for entry in entries {
                base.write(xml, entry, &[("xml:base", &url)]);
            }
        });
        xml.into_string()
    }
}

/// The `api-version` of a query, as a query of its own.
pub(super) fn version(query: Option<&str>) -> Option<String> {
    let version = super::path::parameter(query, "api-version")?;
    Some(format!("api-version={}", utf8_percent_encode(&version, IN_PATHS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::xml::XmlElement;

    fn entry(path: &str) -> Entry {
        let mut content = Xml::default();
        content.text("X", "a&b");
        Entry { path: path.to_owned(), title: "<t>".to_owned(), created: 1, updated: 2, content }
    }

    #[test]
    fn entries_are_called_by_their_url() {
        let base = NamespaceUrl::new(true, "localhost:5300", Some("api-version=2021-05"));
        let root = XmlElement::parse(base.entry(entry("t/ü/Subscriptions/s")).as_bytes()).unwrap();
        assert_eq!(root.text_of("id"), Some("https://localhost:5300/t/%C3%BC/Subscriptions/s?api-version=2021-05"));
        assert_eq!(root.text_of("title"), Some("<t>"));
        assert_eq!(root.child("content").and_then(|content| content.text_of("X")), Some("a&b"));
        assert_eq!(root.child("author").and_then(|author| author.text_of("name")), Some("localhost"));
    }

    #[test]
    fn a_feed_tells_where_it_goes_on() {
        let base = NamespaceUrl::new(false, "h", Some("$skip=0&$top=1&api-version=1"));
        let next = Some("$skip=1&$top=1".to_owned());
        let root =
            XmlElement::parse(base.feed("$Resources/queues", "Queues", vec![entry("q")], next, 3).as_bytes()).unwrap();
        let links: Vec<_> = root.children.iter().filter(|child| child.name == "link").collect();
        assert_eq!(links.len(), 2);
        assert_eq!(links[1].attribute("href"), Some("http://h/$Resources/queues?$skip=1&$top=1"));
        assert_eq!(root.child("entry").and_then(|entry| entry.text_of("id")), Some("http://h/q?api-version=1"));
    }
}

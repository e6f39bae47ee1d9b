//! The URL of a broker, parsed, without ever showing what is secret in it.

use std::collections::BTreeMap;

use url::Url;

use crate::{
    driver::{pasted_urls, redact},
    error::{Error, Result},
    runtime::edit_distance::edit_distance,
};

/// A parsed URL whose password never shows.
#[derive(Clone)]
pub struct ConnectUrl(Url);

impl ConnectUrl {
    /// Parses a URL. The error names what is wrong, never the text, which may hold a password.
    pub fn parse(url: &str) -> Result<Self> {
        let wrong = |why: &str| {
            let form = "scheme://[user:password@]host[:port][/path][?parameter=value]";
            let hint = "percent-encode / ? # @ % and : in user and password";
            Error::config(format!("malformed bus URL: {why}; expected {form} ({hint})"))
        };
        if let Some(hint) = pasted_urls::hint(url) {
            return Err(wrong(hint));
        }
        let url = Url::parse(url).map_err(|e| wrong(&e.to_string()))?;
        match redact::is_split(&url) {
            Some(why) => Err(wrong(why)),
            None => Ok(Self(url)),
        }
    }

    /// The scheme.
    pub fn scheme(&self) -> &str {
        self.0.scheme()
    }

    /// The whole URL, password included: for the client crate alone.
    pub fn secret(&self) -> &str {
        self.0.as_str()
    }

    /// Host, empty if there is none.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or("")
    }

    /// Port, where the URL names one.
    pub fn port(&self) -> Option<u16> {
        self.0.port()
    }

    pub(crate) fn parsed(&self) -> &Url {
        &self.0
    }

    /// Percent-encoded path as it stands, the leading slash included.
    pub fn path(&self) -> &str {
        self.0.path()
    }

    /// Percent-encoded user name, empty if there is none.
    pub fn username(&self) -> &str {
        self.0.username()
    }

    /// Percent-encoded password.
    pub fn password(&self) -> Option<&str> {
        self.0.password()
    }

    /// The parameters, decoded. A parameter that stands twice is `ConfigInvalid`.
    pub fn parameters(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for (i, (key, value)) in self.0.query_pairs().enumerate() {
            if all.insert(key.to_string(), value.to_string()).is_some() {
                return Err(Error::config(format!("bus URL: parameter {} stands there for the second time", i + 1)));
            }
        }
        Ok(all)
    }

    /// The error for a parameter that the connector does not know: where it stands, what was perhaps meant, and what `known` has (names
    /// with commas between). Not its name: in `amqp://bob:?password@host` that is the password.
    pub fn unknown_parameter(&self, name: &str, known: &str) -> Error {
        let at = self.0.query_pairs().position(|(key, _)| key == name).map_or(0, |at| at + 1);
        let near =
            known.split(',').map(|known| (edit_distance(&name.to_ascii_lowercase(), known.trim()), known.trim()));
        let near = near.min().filter(|(distance, _)| *distance <= 2);
        let meant = near.map(|(_, known)| format!(" (did you mean {known}?)")).unwrap_or_default();
        Error::config(format!(
            "bus URL: parameter {at} is unknown{meant}; known are {known}. If it is a part of a password: percent-encode / ? # @ % \
             and : there"
        ))
    }

    /// Whether it leads to a namespace of Azure Service Bus, where other brokers' adapters have nothing to say.
    pub fn is_azure_servicebus(&self) -> bool {
        pasted_urls::is_servicebus(self.host())
    }
}

/// Scheme, host and port; user, password, path and parameters are hidden.
impl std::fmt::Display for ConnectUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", redact::url(&self.0))
    }
}

impl std::fmt::Debug for ConnectUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn malformed_urls_are_refused_without_showing_them() {
        for url in
            ["", "s3cret", "s3cret@host", "amqp:u:s3cret@host", "amqp://u:s3cret@host:99999", "amqp://u:s3/cret@h"]
        {
            let e = ConnectUrl::parse(url).unwrap_err();
            let shown = format!("{e} {e:?}");
            assert!(e.kind() == ErrorKind::ConfigInvalid && shown.contains("expected scheme://"), "{shown}");
            assert!(!shown.contains("s3"), "{shown}");
        }
    }

    #[test]
    fn debug_and_display_hide_the_password() {
        let url = ConnectUrl::parse("amqps://u:s3cret@host:1/v?ca=s3cret").unwrap();
        let shown = format!("{url} {url:?}");
        assert!(!shown.contains("s3cret") && shown.contains("amqps://***@host:1/***?***"), "{shown}");
        assert_eq!(url.parameters().unwrap()["ca"], "s3cret");
    }

    #[test]
    fn parameters_may_not_stand_twice() {
        let e = ConnectUrl::parse("amqp://h?a=s3cret&a=2").unwrap().parameters().unwrap_err();
        assert!(
            e.to_string().contains("parameter 2 stands there for the second time") && !e.to_string().contains("s3cret"),
            "{e}"
        );
    }

    #[test]
    fn unknown_parameters_are_told_without_their_names() {
        let url = ConnectUrl::parse("amqp://h?a=1&Heartbeats=s3cret&s3cret").unwrap();
        let text = url.unknown_parameter("Heartbeats", "queue_type, heartbeat").to_string();
        assert!(
            text.contains("parameter 2 is unknown (did you mean heartbeat?); known are queue_type, heartbeat"),
            "{text}"
        );
        let text = url.unknown_parameter("s3cret", "queue_type, heartbeat").to_string();
        assert!(text.contains("parameter 3 is unknown;") && !text.contains("s3cret"), "{text}");
    }
}

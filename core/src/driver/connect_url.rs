//! The URL of a broker, parsed. What is secret in it is never shown.

use std::collections::BTreeMap;

use url::{ParseError, Url};

use crate::{
    Error, Result,
    driver::{pasted_urls, redact},
    runtime::edit_distance::edit_distance,
};

/// A parsed URL. `Display` and `Debug` show only scheme, host and port.
///
/// ```
/// let url = polybus_core::driver::ConnectUrl::parse("amqps://shop:s3cret@mq.example.com:5671/prod?heartbeat=10s")?;
/// assert_eq!((url.scheme(), url.host(), url.port()), ("amqps", "mq.example.com", Some(5671)));
/// assert_eq!(url.to_string(), "amqps://***@mq.example.com:5671/***?***");
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone)]
pub struct ConnectUrl(Url);

impl ConnectUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// `ConfigInvalid` says what is wrong. It never shows the text, which may hold a password.
    ///
    /// ```
    /// use polybus_core::driver::ConnectUrl;
    ///
    /// assert!(ConnectUrl::parse("amqp://localhost").is_ok());
    /// assert!(ConnectUrl::parse("localhost").is_err());
    /// ```
    pub fn parse(url: &str) -> Result<Self> {
        let wrong = |why: &str| {
            let form = "scheme://[user:password@]host[:port][/path][?parameter=value]";
            let hint = "percent-encode / ? # @ % and : in user and password";
            Error::config(format!("malformed bus URL: {why}; expected {form} ({hint})"))
        };
        if let Some(hint) = pasted_urls::hint(url) {
            return Err(wrong(hint));
        }
        let url = Url::parse(url).map_err(|e| match e {
            ParseError::RelativeUrlWithoutBase => wrong("a scheme is missing, such as memory:// or amqp://"),
            e => wrong(&e.to_string()),
        })?;
        match redact::is_split(&url) {
            Some(why) => Err(wrong(why)),
            None => Ok(Self(url)),
        }
    }

    /// The scheme.
    ///
    /// ```
    /// assert_eq!(polybus_core::driver::ConnectUrl::parse("amqp://localhost")?.scheme(), "amqp");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn scheme(&self) -> &str {
        self.0.scheme()
    }

    /// The whole URL, password included. Hand it to the client crate and to nothing else.
    ///
    /// ```
    /// let url = polybus_core::driver::ConnectUrl::parse("amqp://shop:s3cret@localhost/")?;
    /// assert_eq!(url.secret(), "amqp://shop:s3cret@localhost/");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn secret(&self) -> &str {
        self.0.as_str()
    }

    /// The host; empty if there is none.
    ///
    /// ```
    /// assert_eq!(polybus_core::driver::ConnectUrl::parse("memory://")?.host(), "");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or("")
    }

    /// The port; `None` if the URL names none.
    ///
    /// ```
    /// assert_eq!(polybus_core::driver::ConnectUrl::parse("amqp://localhost:5673")?.port(), Some(5673));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn port(&self) -> Option<u16> {
        self.0.port()
    }

    pub(crate) fn parsed(&self) -> &Url {
        &self.0
    }

    /// The path as it stands, percent-encoded, with its leading slash.
    ///
    /// ```
    /// assert_eq!(polybus_core::driver::ConnectUrl::parse("amqp://localhost/a%2Fb")?.path(), "/a%2Fb");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn path(&self) -> &str {
        self.0.path()
    }

    /// The user name, percent-encoded; empty if there is none.
    ///
    /// ```
    /// assert_eq!(polybus_core::driver::ConnectUrl::parse("amqp://shop:s3cret@localhost")?.username(), "shop");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn username(&self) -> &str {
        self.0.username()
    }

    /// The password, percent-encoded; `None` if there is none.
    ///
    /// ```
    /// assert_eq!(polybus_core::driver::ConnectUrl::parse("amqp://shop@localhost")?.password(), None);
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn password(&self) -> Option<&str> {
        self.0.password()
    }

    /// The parameters, decoded.
    ///
    /// # Errors
    /// `ConfigInvalid` for a parameter that stands there twice.
    ///
    /// ```
    /// let url = polybus_core::driver::ConnectUrl::parse("amqp://localhost?heartbeat=10s")?;
    /// assert_eq!(url.parameters()?["heartbeat"], "10s");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn parameters(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for (i, (key, value)) in self.0.query_pairs().enumerate() {
            if all.insert(key.to_string(), value.to_string()).is_some() {
                return Err(Error::config(format!("bus URL: parameter {} stands there for the second time", i + 1)));
            }
        }
        Ok(all)
    }

    /// The error for a parameter that the connector does not know. `known` are the names that it knows, with commas
    /// between.
    ///
    /// It says where the parameter stands and which one was perhaps meant. It does not show its name: in
    /// `amqp://bob:?password@host` that is the password.
    ///
    /// ```
    /// let url = polybus_core::driver::ConnectUrl::parse("amqp://localhost?heartbeats=10s")?;
    /// let error = url.unknown_parameter("heartbeats", "heartbeat, queue_type");
    /// assert!(error.to_string().contains("did you mean heartbeat?"));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
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

    /// Whether the host is a namespace of Azure Service Bus. Adapters of other brokers refuse it with a hint.
    ///
    /// ```
    /// let url = polybus_core::driver::ConnectUrl::parse("amqps://shop.servicebus.windows.net")?;
    /// assert!(url.is_azure_servicebus());
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn is_azure_servicebus(&self) -> bool {
        pasted_urls::is_servicebus(self.host())
    }
}

/// Shows scheme, host and port. User, password, path and parameters are hidden.
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
    use crate::ErrorKind;

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

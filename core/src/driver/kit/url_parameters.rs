//! Reading the parameters of a bus URL: the same words for sizes, durations and choices, and the same errors, in every
//! adapter.

use std::{ops::RangeInclusive, time::Duration};

use super::{duration, size};
use crate::{Error, Result, driver::ConnectUrl};

/// One parameter of a bus URL. Its errors name it and the form it must have; they never show its value, which may be a
/// secret.
#[derive(Clone)]
pub struct UrlParameter {
    backend: &'static str,
    name: String,
    value: String,
}

impl UrlParameter {
    /// The parameters of this URL, by their names. `backend` is named in their errors.
    ///
    /// # Errors
    /// `ConfigInvalid` for a parameter that stands there twice.
    ///
    /// ```
    /// use std::time::Duration;
    /// use polybus_core::driver::{ConnectUrl, kit::url_parameters::UrlParameter};
    ///
    /// # fn main() -> polybus_core::Result<()> {
    /// let url = ConnectUrl::parse("shelf://host?max_message_size=64KiB&timeout=5s&durable=on")?;
    /// let (mut size, mut timeout, mut durable) = (1 << 20, Duration::from_secs(10), false);
    /// for parameter in UrlParameter::all(&url, "shelf")? {
    ///     match parameter.name() {
    ///         "max_message_size" => size = parameter.size(1..=1 << 20, "1 to 1MiB, such as 64KiB")?,
    ///         "timeout" => {
    ///             let range = Duration::from_millis(1)..=Duration::from_secs(300);
    ///             timeout = parameter.duration(range, "a duration up to 5m")?;
    ///         }
    ///         "durable" => durable = parameter.flag()?,
    ///         other => return Err(url.unknown_parameter(other, "max_message_size, timeout, durable")),
    ///     }
    /// }
    /// assert_eq!((size, timeout, durable), (64 << 10, Duration::from_secs(5), true));
    /// # Ok(()) }
    /// ```
    pub fn all(url: &ConnectUrl, backend: &'static str) -> Result<Vec<Self>> {
        Ok(url.parameters()?.into_iter().map(|(name, value)| Self::new(backend, name, value)).collect())
    }

    /// A parameter that [`ConnectUrl::parameters`] has read.
    ///
    /// ```
    /// # use polybus_core::driver::kit::url_parameters::UrlParameter;
    /// assert_eq!(UrlParameter::new("shelf", "poll".into(), "5s".into()).value(), "5s");
    /// ```
    pub fn new(backend: &'static str, name: String, value: String) -> Self {
        Self { backend, name, value }
    }

    /// Its name.
    ///
    /// ```
    /// # use polybus_core::driver::{ConnectUrl, kit::url_parameters::UrlParameter};
    /// let url = ConnectUrl::parse("shelf://host?timeout=5s").unwrap();
    /// assert_eq!(UrlParameter::all(&url, "shelf").unwrap()[0].name(), "timeout");
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value, decoded.
    ///
    /// ```
    /// # use polybus_core::driver::{ConnectUrl, kit::url_parameters::UrlParameter};
    /// let url = ConnectUrl::parse("shelf://host?path=%2Fa").unwrap();
    /// assert_eq!(UrlParameter::all(&url, "shelf").unwrap()[0].value(), "/a");
    /// ```
    pub fn value(&self) -> &str {
        &self.value
    }

    /// A size in bytes such as `64KiB`; see [`size::parse`].
    ///
    /// # Errors
    /// [`must_be`](Self::must_be) what `expected` says, where it is no size or not in `range`.
    ///
    /// ```
    /// # use polybus_core::driver::{ConnectUrl, kit::url_parameters::UrlParameter};
    /// let url = ConnectUrl::parse("shelf://host?max=2MiB").unwrap();
    /// let error = UrlParameter::all(&url, "shelf").unwrap()[0].size(1..=1024, "1 to 1024 bytes").unwrap_err();
    /// assert!(error.to_string().contains("max must be 1 to 1024 bytes"));
    /// ```
    pub fn size(&self, range: RangeInclusive<usize>, expected: &str) -> Result<usize> {
        size::parse(&self.value).ok().filter(|size| range.contains(size)).ok_or_else(|| self.must_be(expected))
    }

    /// A duration such as `10s`; see [`duration::parse`].
    ///
    /// # Errors
    /// [`must_be`](Self::must_be) what `expected` says, where it is no duration or not in `range`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::{ConnectUrl, kit::url_parameters::UrlParameter};
    /// let url = ConnectUrl::parse("shelf://host?poll=5s").unwrap();
    /// let range = Duration::from_secs(1)..=Duration::from_secs(20);
    /// let poll = UrlParameter::all(&url, "shelf").unwrap()[0].duration(range, "1s to 20s").unwrap();
    /// assert_eq!(poll, Duration::from_secs(5));
    /// ```
    pub fn duration(&self, range: RangeInclusive<Duration>, expected: &str) -> Result<Duration> {
        duration::parse(&self.value).ok().filter(|d| range.contains(d)).ok_or_else(|| self.must_be(expected))
    }

    /// One of these words.
    ///
    /// # Errors
    /// [`must_be`](Self::must_be) one of the words.
    ///
    /// ```
    /// # use polybus_core::driver::{ConnectUrl, kit::url_parameters::UrlParameter};
    /// let url = ConnectUrl::parse("shelf://host?mode=fast").unwrap();
    /// let mode = &UrlParameter::all(&url, "shelf").unwrap()[0];
    /// assert_eq!(mode.one_of([("fast", 1), ("safe", 2)]).unwrap(), 1);
    /// assert!(mode.one_of([("a", 1), ("b", 2), ("c", 3)]).unwrap_err().to_string().contains("must be a, b or c"));
    /// ```
    pub fn one_of<T, const N: usize>(&self, choices: [(&str, T); N]) -> Result<T> {
        let words = choices.each_ref().map(|(word, _)| *word);
        let chosen = choices.into_iter().find(|(word, _)| *word == self.value).map(|(_, chosen)| chosen);
        chosen.ok_or_else(|| match words.split_last() {
            Some((last, others)) => self.must_be(&format!("{} or {last}", others.join(", "))),
            None => self.must_be("absent"),
        })
    }

    /// A switch: `true` or `on`, `false` or `off`.
    ///
    /// # Errors
    /// [`must_be`](Self::must_be) `true or false`.
    ///
    /// ```
    /// # use polybus_core::driver::{ConnectUrl, kit::url_parameters::UrlParameter};
    /// let url = ConnectUrl::parse("shelf://host?tls=off").unwrap();
    /// assert!(!UrlParameter::all(&url, "shelf").unwrap()[0].flag().unwrap());
    /// ```
    pub fn flag(&self) -> Result<bool> {
        match &*self.value {
            "true" | "on" => Ok(true),
            "false" | "off" => Ok(false),
            _ => Err(self.must_be("true or false")),
        }
    }

    /// The error that says what form it must have, and not what it has.
    ///
    /// ```
    /// # use polybus_core::driver::{ConnectUrl, kit::url_parameters::UrlParameter};
    /// let url = ConnectUrl::parse("shelf://host?account=s3cret").unwrap();
    /// let error = UrlParameter::all(&url, "shelf").unwrap()[0].must_be("12 digits");
    /// assert_eq!(error.to_string(), "ConfigInvalid: bus URL: account must be 12 digits (backend=shelf)");
    /// ```
    pub fn must_be(&self, expected: &str) -> Error {
        Error::config(format!("bus URL: {} must be {expected}", self.name)).with_backend(self.backend)
    }
}

//! Alerts sent to a URL, signed as [Standard Webhooks](https://www.standardwebhooks.com) says.
//!
//! `signature.rs` has the secrets and signs, `body.rs` is what is sent, and `request.rs` sends it.

mod body;
mod request;
mod signature;

use std::{fmt, time::Duration};

use bytes::Bytes;
use polybus_core::{Error, Result, driver::async_trait, time::OffsetDateTime};
use url::Url;

use self::{request::Endpoint, signature::SigningSecret};
use super::{Alert, AlertSink, SinkError};

/// How long a request may take, connecting included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends each alert to a URL: a POST of JSON, signed as [Standard Webhooks](https://www.standardwebhooks.com) says.
///
/// ```text
/// POST /alerts
/// Content-Type: application/json
/// Webhook-Id: 0192…                 the same at each try: receivers tell copies by it
/// Webhook-Timestamp: 1767225600     of this try
/// Webhook-Signature: v1,K5oZ…       base64 of HMAC-SHA256 over "id.timestamp.body"; one for each secret
///
/// {"type": "polybus.alert.firing", "timestamp": "2026-01-01T00:00:00Z", "data": {
///   "alert": "payments-backlog", "rule": "depth", "source": "queue:payments", "state": "firing", "reminder": false,
///   "value": 12000.0, "threshold": 10000.0, "cause": null, "since": "2025-12-31T23:59:00Z", "backend": "rabbitmq"}}
/// ```
///
/// It holds names, numbers and times, and nothing of any message, no URL and no secret. `value` and `threshold` are
/// `null` of an alert that something is unknown; there `cause` says why.
///
/// An answer of 2xx is success. 408, 425, 429, 5xx, a lost connection and no answer within 10 s are tried again, as any
/// sink is; `Retry-After` is kept, up to a minute. Any other answer is final. Redirects are not followed, since a body
/// that is signed for one receiver is not for another. Each request has a connection of its own; `http` and `https` are
/// spoken in version 1.1, without a proxy. User and password of the URL are sent as basic authentication.
///
/// No log, error or `Debug` shows more of the URL than its host and port: path and query are often secrets.
///
/// ```
/// # use polybus_core::Bus;
/// use polybus_patterns::monitor::{Monitor, Webhook};
///
/// # fn example(bus: Bus, secret: &str) -> polybus_core::Result<()> {
/// let monitor = Monitor::new(&bus).sink(Webhook::new("https://hooks.example.com/alerts", secret)?);
/// # Ok(()) }
/// ```
pub struct Webhook {
    name: String,
    endpoint: Endpoint,
    secrets: Vec<SigningSecret>,
    timeout: Duration,
}

impl Webhook {
    /// A webhook to this URL. The secret is 24 to 64 random bytes in base64, with or without `whsec_` before it:
    /// `openssl rand -base64 32` makes one. No I/O but reading this machine's certificate authorities.
    ///
    /// # Errors
    /// `ConfigInvalid` for a URL that is neither `http` nor `https`, and for a secret that is none. The error shows
    /// neither.
    ///
    /// ```
    /// use polybus_patterns::monitor::Webhook;
    ///
    /// let webhook = Webhook::new("https://hooks.example.com/t0ken", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
    /// assert_eq!(format!("{webhook:?}"), r#"Webhook { name: "webhook", to: "hooks.example.com:443" }"#);
    /// assert!(Webhook::new("https://hooks.example.com/", "hunter2").is_err());
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn new(url: &str, secret: &str) -> Result<Self> {
        // Errors of the url crate show nothing of the URL.
        let url = Url::parse(url).map_err(|e| Error::config(format!("the webhook's URL: {e}")))?;
        Ok(Self {
            name: "webhook".into(),
            endpoint: Endpoint::new(&url)?,
            secrets: vec![SigningSecret::parse(secret)?],
            timeout: REQUEST_TIMEOUT,
        })
    }

    /// The name in logs and metrics. Default `webhook`.
    ///
    /// ```
    /// # use polybus_patterns::monitor::Webhook;
    /// # fn example(webhook: Webhook) {
    /// let webhook = webhook.named("pager");
    /// # }
    /// ```
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Signs with one more secret, while receivers change from an old one to a new one. A receiver takes a request if
    /// any of the signatures is right.
    ///
    /// # Errors
    /// `ConfigInvalid` for a secret that is none.
    ///
    /// ```
    /// # use polybus_patterns::monitor::Webhook;
    /// # fn example(webhook: Webhook, old: &str) -> polybus_core::Result<()> {
    /// let webhook = webhook.also_signed_by(old)?;
    /// # Ok(()) }
    /// ```
    pub fn also_signed_by(mut self, secret: &str) -> Result<Self> {
        self.secrets.push(SigningSecret::parse(secret)?);
        Ok(self)
    }

    /// Trusts these certificate authorities alone, in PEM form, in place of this machine's.
    ///
    /// # Errors
    /// `ConfigInvalid` if there is no certificate in it.
    ///
    /// ```
    /// # use polybus_patterns::monitor::Webhook;
    /// # fn example(webhook: Webhook, pem: &[u8]) -> polybus_core::Result<()> {
    /// let webhook = webhook.certificate_authorities(pem)?;
    /// # Ok(()) }
    /// ```
    pub fn certificate_authorities(mut self, pem: &[u8]) -> Result<Self> {
        self.endpoint.trust(pem)?;
        Ok(self)
    }

    /// How long a request may take, connecting included. Default 10 s, and at most the 15 s of any sink. Where the host
    /// has several addresses, each has a share of it.
    ///
    /// ```
    /// # use polybus_patterns::monitor::Webhook;
    /// # use std::time::Duration;
    /// # fn example(webhook: Webhook) {
    /// let webhook = webhook.timeout(Duration::from_secs(3));
    /// # }
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }
}

#[async_trait]
impl AlertSink for Webhook {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<()> {
        self.endpoint.check()
    }

    async fn send(&self, alert: &Alert) -> Result<(), SinkError> {
        let body = Bytes::from(body::of(alert));
        let at = OffsetDateTime::now_utc().unix_timestamp();
        let signature = signature::header(&self.secrets, &alert.id, at, &body);
        let headers = [("webhook-id", alert.id.clone()), ("webhook-timestamp", at.to_string())];
        let headers = headers.into_iter().chain([("webhook-signature", signature)]);
        match tokio::time::timeout(self.timeout, self.endpoint.post(headers, body, self.timeout)).await {
            Ok(answered) => answered,
            Err(_) => Err(SinkError::again(format!("{} did not answer within {:?}", self.endpoint, self.timeout))),
        }
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("name", &self.name).field("to", &self.endpoint.to_string()).finish()
    }
}

//! Entra ID: tokens from whatever credential the application brings.

use std::{fmt, sync::Arc, time::Duration};

use azure_credentials::{credentials::TokenCredential, error::ErrorKind as AzureErrorKind};
use polybus_core::{
    Error, ErrorKind, Result,
    driver::{
        ConnectUrl, Connector, Driver, async_trait,
        kit::{duration, reconnect::SharedAttempt},
    },
};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::{
    SCHEMES, ServicebusConnector,
    auth::credential::{AccessToken, Credential, Secret},
    config::{Config, config_error},
    connect, error,
};

/// One for all namespaces: <https://learn.microsoft.com/azure/service-bus-messaging/authenticate-application>
const SCOPE: &str = "https://servicebus.azure.net/.default";

impl ServicebusConnector {
    /// Serves `servicebus://` with Entra ID in place of a key: any [`TokenCredential`], such as those of azure_identity. The URL
    /// names no key then. The credential needs the role *Azure Service Bus Data Owner*, or, with `declare = "off"`, the roles to
    /// send and to receive.
    ///
    /// Tokens are asked for when they are needed and before they run out, each within the URL's `connect_timeout`. A credential
    /// that fails is `Unauthenticated`, or `Unavailable` and `Timeout` where the way to Entra ID failed.
    #[must_use]
    pub fn with_credential(self, credential: Arc<dyn TokenCredential>) -> IdentityConnector {
        IdentityConnector { credential }
    }
}

/// Serves `servicebus://` with a credential of Entra ID: [`ServicebusConnector::with_credential`].
#[derive(Clone, Debug)]
pub struct IdentityConnector {
    credential: Arc<dyn TokenCredential>,
}

#[async_trait]
impl Connector for IdentityConnector {
    fn schemes(&self) -> &'static [&'static str] {
        SCHEMES
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        let mut config = Config::parse(url)?;
        if !matches!(config.credential, Credential::None) {
            return Err(config_error("a key or token, and a credential of Entra ID: one of them is enough"));
        }
        // Whoever hears such a token may do all that the identity may, in every namespace.
        let secret = config.tls && config.management.tls;
        if !secret && !config.emulator {
            return Err(config_error("a credential of Entra ID needs TLS"));
        }
        let identity = Identity::new(self.credential.clone(), config.connect_timeout);
        config.credential = Credential::Identity(Arc::new(identity));
        connect(config).await
    }
}

/// A credential and the token it gave last.
pub(crate) struct Identity {
    credential: Arc<dyn TokenCredential>,
    limit: Duration,
    kept: SharedAttempt<Kept>,
}

struct Kept {
    token: AccessToken,
    /// From then on a new one is asked for.
    due: Instant,
}

impl Identity {
    fn new(credential: Arc<dyn TokenCredential>, limit: Duration) -> Self {
        Self { credential, limit, kept: SharedAttempt::default() }
    }

    /// A token that is good for a while. Callers share one attempt to get it.
    pub(crate) async fn token(&self) -> Result<AccessToken> {
        let kept = self.kept.get(|kept| kept.due > Instant::now(), self.ask()).await?;
        Ok(kept.token.clone())
    }

    async fn ask(&self) -> Result<Arc<Kept>> {
        let asked = timeout(self.limit, self.credential.get_token(&[SCOPE], None)).await;
        let given = asked.map_err(|_| {
            let text = format!("the credential gave no token within {}", duration::format(self.limit));
            error::new(ErrorKind::Timeout, "authorize", text)
        })?;
        let given = given.map_err(|e| failed(&e))?;
        let left = Duration::try_from(given.expires_on - OffsetDateTime::now_utc()).unwrap_or_default();
        let text = Secret::new(given.token.secret());
        let token = AccessToken { text, expires: given.expires_on, bearer: true };
        Ok(Arc::new(Kept { token, due: Instant::now() + left * 3 / 4 }))
    }
}

/// Neither the credential nor a token is shown.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(***)")
    }
}

/// The credential's own words are kept: they say what to mend, and hold no token.
fn failed(e: &azure_credentials::Error) -> Error {
    let kind = if is_passing(e) { ErrorKind::Unavailable } else { ErrorKind::Unauthenticated };
    error::new(kind, "authorize", format!("the credential gave no token: {e}"))
}

/// Whether the way to Entra ID failed, and not the login. The cause stands below what credentials put around it.
fn is_passing(e: &azure_credentials::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(e) = cause {
        match e.downcast_ref::<azure_credentials::Error>().map(azure_credentials::Error::kind) {
            Some(AzureErrorKind::Io | AzureErrorKind::Connection) => return true,
            Some(AzureErrorKind::HttpResponse { status, .. }) => {
                return matches!(u16::from(*status), 408 | 429 | 500..);
            }
            _ => cause = e.source(),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use azure_credentials::{Error, http::StatusCode};

    use super::*;

    #[test]
    fn what_may_pass_is_told_from_a_refused_login() {
        let answered =
            |status| AzureErrorKind::HttpResponse { status, error_code: None, raw_response: None }.into_error();
        let around = |e| Error::with_error(AzureErrorKind::Credential, e, "authentication failed");
        for (e, kind) in [
            (around(answered(StatusCode::ServiceUnavailable)), ErrorKind::Unavailable),
            (around(answered(StatusCode::TooManyRequests)), ErrorKind::Unavailable),
            (around(AzureErrorKind::Io.into_error()), ErrorKind::Unavailable),
            (around(answered(StatusCode::BadRequest)), ErrorKind::Unauthenticated),
            (around(answered(StatusCode::Unauthorized)), ErrorKind::Unauthenticated),
            (Error::with_message(AzureErrorKind::Credential, "no such client"), ErrorKind::Unauthenticated),
        ] {
            assert_eq!(failed(&e).kind(), kind, "{e:?}");
        }
    }
}

//! Entra ID: tokens from a credential that the application brings.

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

/// The same scope for all namespaces:
/// <https://learn.microsoft.com/azure/service-bus-messaging/authenticate-application>
const SCOPE: &str = "https://servicebus.azure.net/.default";

impl ServicebusConnector {
    /// Serves `servicebus://` with Entra ID in place of a key: any [`TokenCredential`], such as those of
    /// azure_identity. The URL then names no key. The credential needs the role *Azure Service Bus Data Owner*, or,
    /// with `declare = "off"`, the roles to send and to receive.
    ///
    /// Tokens are requested when they are needed and before they expire, each within the URL's `connect_timeout`.
    ///
    /// # Errors
    ///
    /// Connecting and, later, any call is `Unauthenticated` if the credential refuses, and `Unavailable` or `Timeout`
    /// if Entra ID cannot be reached. A URL that names a key as well, or that is without TLS to a host that is no
    /// emulator, is `ConfigInvalid`.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use polybus_core::Registry;
    /// # use polybus_servicebus::{ServicebusConnector, azure_core::credentials::TokenCredential};
    /// fn registry(credential: Arc<dyn TokenCredential>) -> Registry {
    ///     Registry::new().with(ServicebusConnector.with_credential(credential))
    /// }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "identity")))]
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
        // Whoever reads such a token can do all that the identity may do, in every namespace.
        let secret = config.tls && config.management.tls;
        if !secret && !config.emulator {
            return Err(config_error("a credential of Entra ID needs TLS"));
        }
        let identity = EntraIdentity::new(self.credential.clone(), config.connect_timeout);
        config.credential = Credential::Identity(Arc::new(identity));
        connect(config).await
    }
}

/// A credential and the last token that it gave.
pub(crate) struct EntraIdentity {
    credential: Arc<dyn TokenCredential>,
    limit: Duration,
    cached: SharedAttempt<CachedToken>,
}

struct CachedToken {
    token: AccessToken,
    /// When a new one is requested.
    renew_at: Instant,
}

impl EntraIdentity {
    fn new(credential: Arc<dyn TokenCredential>, limit: Duration) -> Self {
        Self { credential, limit, cached: SharedAttempt::default() }
    }

    /// A token that is still good for a while. Concurrent callers share one attempt to get it.
    pub(crate) async fn token(&self) -> Result<AccessToken> {
        let cached = self.cached.get(|cached| cached.renew_at > Instant::now(), self.request_token()).await?;
        Ok(cached.token.clone())
    }

    async fn request_token(&self) -> Result<Arc<CachedToken>> {
        let asked = timeout(self.limit, self.credential.get_token(&[SCOPE], None)).await;
        let given = asked.map_err(|_| {
            let text = format!("the credential gave no token within {}", duration::format(self.limit));
            error::new(ErrorKind::Timeout, "authorize", text)
        })?;
        let given = given.map_err(|e| token_error(&e))?;
        let left = Duration::try_from(given.expires_on - OffsetDateTime::now_utc()).unwrap_or_default();
        let text = Secret::new(given.token.secret());
        let token = AccessToken { text, expires: given.expires_on, bearer: true };
        Ok(Arc::new(CachedToken { token, renew_at: Instant::now() + left * 3 / 4 }))
    }
}

/// Neither the credential nor a token is shown.
impl fmt::Debug for EntraIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntraIdentity(***)")
    }
}

/// The message of the credential is kept: it says what to mend, and holds no token.
fn token_error(e: &azure_credentials::Error) -> Error {
    let kind = if is_transient(e) { ErrorKind::Unavailable } else { ErrorKind::Unauthenticated };
    error::new(kind, "authorize", format!("the credential gave no token: {e}"))
}

/// Whether Entra ID could not be reached, as opposed to a refused login. Credentials wrap the cause in errors of their
/// own, so all sources are looked at.
fn is_transient(e: &azure_credentials::Error) -> bool {
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
            assert_eq!(token_error(&e).kind(), kind, "{e:?}");
        }
    }
}

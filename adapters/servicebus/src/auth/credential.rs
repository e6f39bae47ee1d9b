//! The credential that a bus has: a key, a token, or one of Entra ID.

use std::fmt;
#[cfg(feature = "identity")]
use std::sync::Arc;

use hyper::header::HeaderValue;
use polybus_core::{ErrorKind, Result};
use time::OffsetDateTime;

#[cfg(feature = "identity")]
use crate::auth::identity::EntraIdentity;
use crate::{auth::sas, error};

/// Text that is never shown, in `Debug` neither.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Credential {
    /// A key of the namespace or of one entity. Tokens are made from it.
    Key { name: String, key: Secret },
    /// A shared access signature made elsewhere, good until it expires.
    Token(Secret),
    /// Entra ID.
    #[cfg(feature = "identity")]
    Identity(Arc<EntraIdentity>),
    /// No credential: emulators need none.
    None,
}

/// A token and how long it is good for.
#[derive(Clone, Debug)]
pub(crate) struct AccessToken {
    pub(crate) text: Secret,
    pub(crate) expires: OffsetDateTime,
    /// Whether it is a token of Entra ID; otherwise it is a shared access signature.
    pub(crate) bearer: bool,
}

impl AccessToken {
    /// The token type as `$cbs` takes it.
    pub(crate) fn kind(&self) -> &'static str {
        if self.bearer { "jwt" } else { "servicebus.windows.net:sastoken" }
    }

    /// The value of the header `Authorization`.
    pub(crate) fn header(&self) -> Result<HeaderValue> {
        let text = self.text.reveal();
        let value =
            if self.bearer { HeaderValue::try_from(format!("Bearer {text}")) } else { HeaderValue::from_str(text) };
        let mut value = value
            .map_err(|_| error::new(ErrorKind::Unauthenticated, "authorize", "the token does not fit into a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Credential {
    /// A token for `resource`, a URI such as `sb://namespace/queue`; `None` if there is no credential.
    pub(crate) async fn token(&self, resource: &str) -> Result<Option<AccessToken>> {
        let now = OffsetDateTime::now_utc();
        Ok(match self {
            Self::Key { name, key } => Some(sas::token(resource, name, key, now)),
            Self::Token(text) => Some(sas::token_from_text(text, now)),
            #[cfg(feature = "identity")]
            Self::Identity(identity) => Some(identity.token().await?),
            Self::None => None,
        })
    }

    /// Whether new tokens can be made when one has expired.
    pub(crate) fn is_renewable(&self) -> bool {
        !matches!(self, Self::Token(_) | Self::None)
    }
}

//! How a bus proves who it is.

use std::fmt;
#[cfg(feature = "identity")]
use std::sync::Arc;

use hyper::header::HeaderValue;
use polybus_core::{ErrorKind, Result};
use time::OffsetDateTime;

#[cfg(feature = "identity")]
use crate::auth::identity::Identity;
use crate::{auth::sas, error};

/// Text that never shows.
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
    /// A key of the namespace or of one entity, from which tokens are made.
    Key { name: String, key: Secret },
    /// A shared access signature made elsewhere, good until it expires.
    Token(Secret),
    /// Entra ID.
    #[cfg(feature = "identity")]
    Identity(Arc<Identity>),
    /// Nothing: emulators let anybody in.
    None,
}

/// A token and how long it is good for.
#[derive(Clone, Debug)]
pub(crate) struct AccessToken {
    pub(crate) text: Secret,
    pub(crate) expires: OffsetDateTime,
    /// Of Entra ID; otherwise a shared access signature.
    pub(crate) bearer: bool,
}

impl AccessToken {
    /// What `$cbs` calls its type.
    pub(crate) fn kind(&self) -> &'static str {
        if self.bearer { "jwt" } else { "servicebus.windows.net:sastoken" }
    }

    /// For `Authorization`.
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
            Self::Token(text) => Some(sas::ready(text, now)),
            #[cfg(feature = "identity")]
            Self::Identity(identity) => Some(identity.token().await?),
            Self::None => None,
        })
    }

    /// Whether tokens can be made anew.
    pub(crate) fn renews(&self) -> bool {
        !matches!(self, Self::Token(_) | Self::None)
    }
}

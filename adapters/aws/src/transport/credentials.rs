//! Credentials that are cached until they expire, and fetched anew when AWS refuses them.
//!
//! The SDK's own cache keeps credentials until the time that they name. If a token is revoked, a role session ends
//! early or another program rewrites a file in `~/.aws`, it keeps wrong ones until then, and keys without an expiry for
//! good.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_config::ConfigLoader;
use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future},
};
use tokio::{sync::Mutex, time::Instant};

/// How long before their expiry credentials are fetched anew.
const EARLY: Duration = Duration::from_secs(300);
/// Credentials that hold for this much longer are used while no new ones can be fetched. Their provider is then asked
/// at `SPARE_INTERVAL` and for `SPARE_LIMIT` at most, since every call waits for its answer.
const SPARE: Duration = Duration::from_secs(30);
const SPARE_INTERVAL: Duration = Duration::from_secs(30);
const SPARE_LIMIT: Duration = Duration::from_secs(2);
/// The shortest time between two fetches while AWS goes on refusing what they bring.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest that a fetch may take. Roles ask STS; core's own limits bound that as well.
const LIMIT: Duration = Duration::from_secs(20);

/// Builds the chain of providers anew, which reads profiles from their files again.
type ProviderChain = dyn Fn() -> ConfigLoader + Send + Sync;

/// The cached credentials of the usual chain. Clones share the cache.
#[derive(Clone)]
pub(crate) struct RenewableCredentials(Arc<SharedCredentials>);

struct SharedCredentials {
    chain: Box<ProviderChain>,
    refused: AtomicBool,
    cache: Mutex<CredentialsCache>,
}

struct CredentialsCache {
    provider: SharedCredentialsProvider,
    credentials: Option<Credentials>,
    /// When the provider was asked last.
    asked: Option<Instant>,
}

impl std::fmt::Debug for RenewableCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RenewableCredentials")
    }
}

impl RenewableCredentials {
    pub(crate) fn new(
        provider: SharedCredentialsProvider,
        chain: impl Fn() -> ConfigLoader + Send + Sync + 'static,
    ) -> Self {
        let cache = Mutex::new(CredentialsCache { provider, credentials: None, asked: None });
        Self(Arc::new(SharedCredentials { chain: Box::new(chain), refused: AtomicBool::new(false), cache }))
    }

    /// Notes that AWS has refused them: the next call fetches others, once a second at most.
    pub(crate) fn note_refused(&self) {
        self.0.refused.store(true, Ordering::Release);
    }

    async fn get(&self) -> provider::Result {
        let mut cache = self.0.cache.lock().await;
        let rested = cache.asked.is_none_or(|at| at.elapsed() >= INTERVAL);
        let refused = rested && self.0.refused.swap(false, Ordering::AcqRel);
        let known = cache.credentials.clone();
        let spare = !refused && known.as_ref().is_some_and(|known| lasts(known, SPARE));
        let (interval, limit) = if spare { (SPARE_INTERVAL, SPARE_LIMIT) } else { (INTERVAL, LIMIT) };
        if let Some(known) = &known
            && !refused
            && (lasts(known, EARLY) || cache.asked.is_some_and(|at| at.elapsed() < interval))
        {
            return Ok(known.clone());
        }
        if refused && let Some(fresh) = Box::pin((self.0.chain)().load()).await.credentials_provider() {
            cache.provider = fresh;
        }
        cache.asked = Some(Instant::now());
        let got = match tokio::time::timeout(limit, cache.provider.provide_credentials()).await {
            Ok(got) => got,
            Err(_) => Err(CredentialsError::provider_timed_out(limit)),
        };
        match (got, known) {
            (Ok(got), _) => Ok(cache.credentials.insert(got).clone()),
            // The old ones still hold for a while, and the provider may be back by then.
            (Err(e), Some(known)) if !refused && lasts(&known, Duration::ZERO) => {
                tracing::warn!(error = %e, "new AWS credentials could not be got; the ones there are still hold");
                Ok(known)
            }
            (Err(e), _) => Err(e),
        }
    }
}

/// Whether the credentials do not expire within this span.
fn lasts(credentials: &Credentials, span: Duration) -> bool {
    credentials.expiry().is_none_or(|end| end > SystemTime::now() + span)
}

impl ProvideCredentials for RenewableCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.get())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Gives keys that are numbered; the first ones expire so many seconds from now.
    #[derive(Debug)]
    struct Numbered(AtomicUsize, Option<u64>);

    impl ProvideCredentials for Numbered {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let n = self.0.fetch_add(1, Ordering::Relaxed);
            let end = self.1.map(|secs| SystemTime::now() + Duration::from_secs(secs));
            future::ProvideCredentials::ready(match n {
                1 if end.is_some() => Err(CredentialsError::provider_error("away")),
                n => Ok(Credentials::new(format!("AKID{n}"), "none", None, end, "test")),
            })
        }
    }

    fn numbered(end: Option<u64>) -> RenewableCredentials {
        let provider = SharedCredentialsProvider::new(Numbered(AtomicUsize::new(0), end));
        let again = provider.clone();
        RenewableCredentials::new(provider, move || {
            let loader = aws_config::defaults(aws_config::BehaviorVersion::v2026_01_12());
            loader.region(aws_config::Region::new("eu-west-1")).credentials_provider(again.clone())
        })
    }

    async fn key(of: &RenewableCredentials) -> String {
        of.provide_credentials().await.unwrap().access_key_id().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_fetched_anew_once_a_second() {
        let all = numbered(None);
        assert_eq!((key(&all).await, key(&all).await), ("AKID0".to_owned(), "AKID0".to_owned()));
        for _ in 0..10 {
            all.note_refused();
            assert_eq!(key(&all).await, "AKID0", "within a second");
        }
        tokio::time::advance(INTERVAL).await;
        assert_eq!((key(&all).await, key(&all).await), ("AKID1".to_owned(), "AKID1".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_expire_soon_are_used_while_no_others_can_be_fetched() {
        // Good for a while yet, and for hardly any time.
        for (left, interval) in [(200, SPARE_INTERVAL), (20, INTERVAL)] {
            let all = numbered(Some(left));
            assert_eq!(key(&all).await, "AKID0");
            tokio::time::advance(interval).await;
            assert_eq!(key(&all).await, "AKID0", "the provider was away");
            tokio::time::advance(interval / 2).await;
            assert_eq!(key(&all).await, "AKID0", "asked again too soon");
            tokio::time::advance(interval / 2).await;
            assert_eq!(key(&all).await, "AKID2");
        }
    }
}

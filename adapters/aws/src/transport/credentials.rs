//! Credentials that are kept until they expire, and got anew when AWS refuses them.
//!
//! The SDK's own cache keeps credentials until the time that they name. A token that was revoked, a role session that ended early or a
//! file of `~/.aws` that another program has rewritten meanwhile stay wrong until then, and keys without a time stay wrong for good.

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

/// How long before their end credentials are got anew.
const EARLY: Duration = Duration::from_secs(300);
/// What is good for this much longer is used while nothing new is to be had: its source is asked seldom then, and not for long, since every
/// call waits for it.
const SPARE: Duration = Duration::from_secs(30);
const SPARE_PACE: Duration = Duration::from_secs(30);
const SPARE_LIMIT: Duration = Duration::from_secs(2);
/// How often they are at most, where AWS goes on refusing them.
const PACE: Duration = Duration::from_secs(1);
/// The longest that getting them may take. Roles ask STS, which core's own limits bound as well.
const LIMIT: Duration = Duration::from_secs(20);

/// Makes the chain of providers anew: profiles are read from their files again.
type Chain = dyn Fn() -> ConfigLoader + Send + Sync;

/// Cached credentials of the usual chain. Clones share the cache.
#[derive(Clone)]
pub(crate) struct Renewable(Arc<Inner>);

struct Inner {
    chain: Box<Chain>,
    refused: AtomicBool,
    cache: Mutex<Cache>,
}

struct Cache {
    provider: SharedCredentialsProvider,
    credentials: Option<Credentials>,
    /// When the provider was last asked.
    asked: Option<Instant>,
}

impl std::fmt::Debug for Renewable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Renewable")
    }
}

impl Renewable {
    pub(crate) fn new(
        provider: SharedCredentialsProvider,
        chain: impl Fn() -> ConfigLoader + Send + Sync + 'static,
    ) -> Self {
        let cache = Mutex::new(Cache { provider, credentials: None, asked: None });
        Self(Arc::new(Inner { chain: Box::new(chain), refused: AtomicBool::new(false), cache }))
    }

    /// AWS does not take them (any more): the next call gets others, once a second at most.
    pub(crate) fn refused(&self) {
        self.0.refused.store(true, Ordering::Release);
    }

    async fn get(&self) -> provider::Result {
        let mut cache = self.0.cache.lock().await;
        let rested = cache.asked.is_none_or(|at| at.elapsed() >= PACE);
        let refused = rested && self.0.refused.swap(false, Ordering::AcqRel);
        let known = cache.credentials.clone();
        let spare = !refused && known.as_ref().is_some_and(|known| lasts(known, SPARE));
        let (pace, limit) = if spare { (SPARE_PACE, SPARE_LIMIT) } else { (PACE, LIMIT) };
        if let Some(known) = &known
            && !refused
            && (lasts(known, EARLY) || cache.asked.is_some_and(|at| at.elapsed() < pace))
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
            // They still hold for a while: whoever gives others may be back by then.
            (Err(e), Some(known)) if !refused && lasts(&known, Duration::ZERO) => {
                tracing::warn!(error = %e, "new AWS credentials could not be got; the ones there are still hold");
                Ok(known)
            }
            (Err(e), _) => Err(e),
        }
    }
}

/// Whether these hold for this much longer.
fn lasts(credentials: &Credentials, span: Duration) -> bool {
    credentials.expiry().is_none_or(|end| end > SystemTime::now() + span)
}

impl ProvideCredentials for Renewable {
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

    fn numbered(end: Option<u64>) -> Renewable {
        let provider = SharedCredentialsProvider::new(Numbered(AtomicUsize::new(0), end));
        let again = provider.clone();
        Renewable::new(provider, move || {
            let loader = aws_config::defaults(aws_config::BehaviorVersion::v2026_01_12());
            loader.region(aws_config::Region::new("eu-west-1")).credentials_provider(again.clone())
        })
    }

    async fn key(of: &Renewable) -> String {
        of.provide_credentials().await.unwrap().access_key_id().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_got_anew_at_a_pace() {
        let all = numbered(None);
        assert_eq!((key(&all).await, key(&all).await), ("AKID0".to_owned(), "AKID0".to_owned()));
        for _ in 0..10 {
            all.refused();
            assert_eq!(key(&all).await, "AKID0", "within a second");
        }
        tokio::time::advance(PACE).await;
        assert_eq!((key(&all).await, key(&all).await), ("AKID1".to_owned(), "AKID1".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_soon_is_used_while_there_is_nothing_else() {
        // Good for a while yet, and for hardly any time.
        for (left, pace) in [(200, SPARE_PACE), (20, PACE)] {
            let all = numbered(Some(left));
            assert_eq!(key(&all).await, "AKID0");
            tokio::time::advance(pace).await;
            assert_eq!(key(&all).await, "AKID0", "the provider was away");
            tokio::time::advance(pace / 2).await;
            assert_eq!(key(&all).await, "AKID0", "asked again too soon");
            tokio::time::advance(pace / 2).await;
            assert_eq!(key(&all).await, "AKID2");
        }
    }
}

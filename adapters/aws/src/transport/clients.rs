//! The SDK's clients, and what is asked once: the account and the queues' URLs.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_config::{
    AppName, BehaviorVersion, Region, SdkConfig, identity::IdentityCache, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_sqs::config::{StalledStreamProtectionConfig, http::HttpResponse};
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use polybus_core::{Error, ErrorKind, Result};
use tokio::{
    sync::{Notify, OnceCell},
    time::Instant,
};

use crate::{
    config::Config,
    error::{self, CONNECT},
    message::limits::MAX_WAIT,
    topology::names,
    transport::{call_count::Calls, clock_skew::SkewAlone, credentials::Renewable},
};

/// Longer than a poll waits: `ReceiveMessage` is known to hang past its wait time.
const POLL_SLACK: Duration = Duration::from_secs(10);
/// The account of LocalStack and its like, which serve no STS where only SQS and SNS are started.
/// <https://docs.localstack.cloud/aws/capabilities/config/credentials/>
const EMULATED_ACCOUNT: &str = "000000000000";

/// How long a queue or topic that was made may be missing: SQS says a second at least, so this is ten times that.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
const SETTLES: Duration = Duration::from_secs(10);

pub(crate) struct Clients {
    pub(crate) config: Config,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) sns: aws_sdk_sns::Client,
    /// SQS again, with time-outs above those of a long poll.
    pub(crate) polling: aws_sdk_sqs::Client,
    pub(crate) region: String,
    pub(crate) calls: Calls,
    sdk: SdkConfig,
    credentials: Renewable,
    account: OnceCell<String>,
    urls: Mutex<HashMap<String, Arc<str>>>,
    /// Queues and topics that this process has made, and when.
    made: Mutex<HashMap<String, Instant>>,
    closed: AtomicBool,
    /// Long polls under way, and who waits for their end.
    polls: AtomicUsize,
    polled: Notify,
}

/// A long poll under way.
pub(crate) struct Polling(Arc<Clients>);

impl Drop for Polling {
    fn drop(&mut self) {
        if self.0.polls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.polled.notify_waiters();
        }
    }
}

impl Clients {
    /// Resolves region and credentials, and asks SQS once, so that what is wrong is told now.
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https();
        let timeouts = |attempt: Duration| {
            TimeoutConfig::builder()
                .connect_timeout(config.connect_timeout)
                .operation_attempt_timeout(attempt)
                .read_timeout(attempt)
                .build()
        };
        let chain = {
            let (config, timeouts) = (config.clone(), timeouts(config.timeout));
            move |region: Option<&str>| {
                let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
                    .http_client(http.clone())
                    // Core retries; see `SkewAlone`.
                    .retry_config(RetryConfig::disabled())
                    .timeout_config(timeouts.clone())
                    .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
                if let Ok(name) = AppName::new("polybus") {
                    loader = loader.app_name(name);
                }
                if let Some(region) = region {
                    loader = loader.region(Region::new(region.to_owned()));
                }
                if let Some(profile) = &config.profile {
                    loader = loader.profile_name(profile);
                }
                if let Some(endpoint) = &config.endpoint {
                    loader = loader.endpoint_url(endpoint);
                }
                loader
            }
        };
        let sdk = Box::pin(chain(config.region.as_deref()).load()).await;
        let Some(region) = sdk.region().map(|r| r.as_ref().to_owned()) else {
            let text = "no AWS region: add region= to the bus URL, or set AWS_REGION or the profile's region";
            return Err(error::new(ErrorKind::ConfigInvalid, CONNECT, text));
        };
        let Some(provider) = sdk.credentials_provider() else {
            return Err(error::new(ErrorKind::Unauthenticated, CONNECT, "no AWS credentials are configured"));
        };
        let known = region.clone();
        let credentials = Renewable::new(provider, move || chain(Some(&known)));
        let sdk = sdk
            .into_builder()
            .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
            .identity_cache(IdentityCache::no_cache())
            .build();
        let calls = Calls::default();
        let once_more = RetryConfig::standard().with_max_attempts(2).with_initial_backoff(Duration::from_millis(1));
        let sqs = aws_sdk_sqs::config::Builder::from(&sdk).interceptor(calls.clone());
        let sqs = sqs.retry_config(once_more.clone()).retry_classifier(SkewAlone);
        let sns = aws_sdk_sns::config::Builder::from(&sdk).interceptor(calls.clone());
        let sns = sns.retry_config(once_more).retry_classifier(SkewAlone);
        let polling = sqs.clone().timeout_config(timeouts(MAX_WAIT + POLL_SLACK));
        let clients = Self {
            sqs: aws_sdk_sqs::Client::from_conf(sqs.build()),
            sns: aws_sdk_sns::Client::from_conf(sns.build()),
            polling: aws_sdk_sqs::Client::from_conf(polling.build()),
            calls,
            config,
            region,
            sdk,
            credentials,
            account: OnceCell::new(),
            urls: Mutex::default(),
            made: Mutex::default(),
            closed: AtomicBool::new(false),
            polls: AtomicUsize::new(0),
            polled: Notify::new(),
        };
        clients.greet().await?;
        Ok(clients)
    }

    /// Host and port of a service, by its endpoint's first part (`sqs`, `sns`): the configured endpoint, or else the region's own.
    /// <https://docs.aws.amazon.com/general/latest/gr/sqs-service.html>
    pub(crate) fn server(&self, service: &str) -> Option<(String, u16)> {
        server(self.config.endpoint.as_deref(), service, &self.region)
    }

    /// A call that needs no right: whoever is refused it was known to SQS.
    async fn greet(&self) -> Result<()> {
        let got = self.credentials.provide_credentials().await;
        got.map_err(|e| self.located(error::of_credentials(&e, CONNECT)))?;
        match Box::pin(self.sqs.list_queues().max_results(1).send()).await {
            Ok(_) => Ok(()),
            Err(e) => match retryable(self.failed(e, CONNECT)) {
                e if e.kind() == ErrorKind::PermissionDenied => Ok(()),
                e => Err(e),
            },
        }
    }

    /// An error of a call, with the place that answered or did not.
    pub(crate) fn failed<E>(&self, e: SdkError<E, HttpResponse>, operation: &'static str) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        if error::is_refused(&e) {
            self.credentials.refused();
        }
        self.located(error::of(e, operation))
    }

    /// Adds the region, and the endpoint where it is not the region's own.
    pub(crate) fn located(&self, e: Error) -> Error {
        let e = e.with_context("region", &self.region);
        match &self.config.endpoint {
            Some(endpoint) => e.with_context("endpoint", endpoint),
            None => e,
        }
    }

    pub(crate) fn ensure_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(error::new(ErrorKind::Closed, "connect", "the connection was closed")),
            false => Ok(()),
        }
    }

    fn urls(&self) -> MutexGuard<'_, HashMap<String, Arc<str>>> {
        self.urls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue's URL, asked once; `NotFound` if there is no such queue.
    pub(crate) async fn url(&self, queue: &str, operation: &'static str) -> Result<Arc<str>> {
        // Known ones even after the close: what a late poll brings is to be given back.
        if let Some(url) = self.urls().get(queue) {
            return Ok(url.clone());
        }
        self.ensure_open()?;
        let asked = self.sqs.get_queue_url().queue_name(queue);
        let asked = asked.set_queue_owner_aws_account_id(self.config.account.clone());
        let answer = Box::pin(asked.send()).await;
        // Asking changes nothing.
        let answer = answer
            .map_err(|e| self.missing(queue, retryable(self.failed(e, operation)).with_context("queue", queue)))?;
        let url = answer.queue_url().unwrap_or_default();
        Ok(self.remember(queue, url))
    }

    pub(crate) fn remember(&self, queue: &str, url: &str) -> Arc<str> {
        let url: Arc<str> = url.into();
        self.urls().insert(queue.to_owned(), url.clone());
        url
    }

    pub(crate) fn forget(&self, queue: &str) {
        self.urls().remove(queue);
    }

    /// This process has made it just now.
    pub(crate) fn note_made(&self, name: &str) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Instant::now());
    }

    /// This process has deleted it.
    pub(crate) fn note_deleted(&self, name: &str) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// What was made a moment ago is not known to every host of AWS yet: that it is missing passes. For settlements too: another host may
    /// be asked than the one that handed the message out.
    pub(crate) fn missing(&self, name: &str, e: Error) -> Error {
        let at = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        if e.kind() != ErrorKind::NotFound || at.is_none_or(|at| at.elapsed() >= SETTLES) {
            return e;
        }
        let text = format!("{name:?} was made just now and is not seen everywhere yet");
        self.located(error::new(ErrorKind::Unavailable, e.operation(), text).safe().with_source(e))
    }

    /// The account whose topics are meant: the URL's, the credentials' own, or what STS says.
    pub(crate) async fn account(&self) -> Result<&str> {
        self.ensure_open()?;
        if let Some(account) = &self.config.account {
            return Ok(account);
        }
        let account = self.account.get_or_try_init(|| async {
            let got = self.credentials.provide_credentials().await;
            let got = got.map_err(|e| self.located(error::of_credentials(&e, "account")))?;
            if let Some(account) = got.account_id() {
                return Ok(account.as_str().to_owned());
            }
            let sts = aws_sdk_sts::Client::new(&self.sdk);
            match Box::pin(sts.get_caller_identity().send()).await {
                Ok(answer) => Ok(answer.account().unwrap_or_default().to_owned()),
                Err(e) => match retryable(self.failed(e, "account")) {
                    e if e.kind() == ErrorKind::Unsupported && self.config.endpoint.is_some() => {
                        Ok(EMULATED_ACCOUNT.to_owned())
                    }
                    e => Err(e),
                },
            }
        });
        account.await.map(String::as_str)
    }

    pub(crate) async fn topic_arn(&self, topic: &str) -> Result<String> {
        Ok(names::arn("sns", &self.region, self.account().await?, topic))
    }

    /// Counts a long poll until it is dropped.
    pub(crate) fn polling(self: &Arc<Self>) -> Polling {
        self.polls.fetch_add(1, Ordering::AcqRel);
        Polling(self.clone())
    }

    /// Refuses new work, and waits this long for long polls that a closed consumer has left: what they bring is given back.
    pub(crate) async fn close(&self, patience: Duration) {
        self.closed.store(true, Ordering::Release);
        let quiet = async {
            loop {
                let polled = self.polled.notified();
                tokio::pin!(polled);
                polled.as_mut().enable();
                if self.polls.load(Ordering::Acquire) == 0 {
                    return;
                }
                polled.await;
            }
        };
        if tokio::time::timeout(patience, quiet).await.is_err() {
            tracing::debug!("long polls go on after the close; what they bring is given back");
        }
    }
}

/// The error of a call that may be made again without harm, whatever became of it.
pub(crate) fn retryable(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled => e.safe(),
        _ => e,
    }
}

fn server(endpoint: Option<&str>, service: &str, region: &str) -> Option<(String, u16)> {
    let Some(endpoint) = endpoint else {
        let china = if region.starts_with("cn-") { ".cn" } else { "" };
        return Some((format!("{service}.{region}.amazonaws.com{china}"), 443));
    };
    let url = url::Url::parse(endpoint).ok()?;
    Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_the_endpoint_or_the_regions_own() {
        let shown = |endpoint, region| server(endpoint, "sqs", region).map(|(host, port)| format!("{host}:{port}"));
        assert_eq!(shown(None, "eu-west-1").as_deref(), Some("sqs.eu-west-1.amazonaws.com:443"));
        assert_eq!(shown(None, "cn-north-1").as_deref(), Some("sqs.cn-north-1.amazonaws.com.cn:443"));
        assert_eq!(shown(Some("http://127.0.0.1:4566"), "x").as_deref(), Some("127.0.0.1:4566"));
        assert_eq!(shown(Some("https://vpce.example"), "x").as_deref(), Some("vpce.example:443"));
    }
}

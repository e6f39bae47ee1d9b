//! The SDK's clients, and what is asked once and remembered: the account and the URLs of queues.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

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
    config::AwsConfig,
    error::{self, CONNECT},
    message::limits::MAX_WAIT,
    topology::names,
    transport::{call_count::CallCounter, clock_skew::ClockSkewRetry, credentials::RenewableCredentials},
};

/// How much longer than a long poll's wait its time-out is: `ReceiveMessage` is known to answer late.
const POLL_SLACK: Duration = Duration::from_secs(10);
/// The account of LocalStack and other emulators. They serve no STS where only SQS and SNS are started.
/// <https://docs.localstack.cloud/aws/capabilities/config/credentials/>
const EMULATED_ACCOUNT: &str = "000000000000";

/// How long "no such queue" counts as passing after this process has created the queue or topic. SQS asks to wait for a
/// second at least; this is ten times that.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
const CREATED_GRACE: Duration = Duration::from_secs(10);

pub(crate) struct AwsClients {
    pub(crate) config: AwsConfig,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) sns: aws_sdk_sns::Client,
    /// SQS with a time-out above the longest wait of a long poll.
    pub(crate) polling: aws_sdk_sqs::Client,
    pub(crate) region: String,
    pub(crate) calls: CallCounter,
    sdk: SdkConfig,
    credentials: RenewableCredentials,
    account: OnceCell<String>,
    urls: Mutex<HashMap<String, Arc<str>>>,
    /// The queues (by name) and topics (by ARN) that this process has created, and when.
    made: Mutex<HashMap<String, Instant>>,
    closed: AtomicBool,
    /// Long polls under way.
    polls: AtomicUsize,
    /// Notified when the last of them has ended.
    polls_ended: Notify,
}

/// Counts a long poll as under way until it is dropped.
pub(crate) struct PollGuard(Arc<AwsClients>);

impl Drop for PollGuard {
    fn drop(&mut self) {
        if self.0.polls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.polls_ended.notify_waiters();
        }
    }
}

impl AwsClients {
    /// Resolves region and credentials, and calls SQS once, so that wrong ones are an error of the connect.
    pub(crate) async fn connect(config: AwsConfig) -> Result<Self> {
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
                    // Core retries; see `ClockSkewRetry`.
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
        let credentials = RenewableCredentials::new(provider, move || chain(Some(&known)));
        let sdk = sdk
            .into_builder()
            .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
            .identity_cache(IdentityCache::no_cache())
            .build();
        let calls = CallCounter::default();
        let once_more = RetryConfig::standard().with_max_attempts(2).with_initial_backoff(Duration::from_millis(1));
        let sqs = aws_sdk_sqs::config::Builder::from(&sdk).interceptor(calls.clone());
        let sqs = sqs.retry_config(once_more.clone()).retry_classifier(ClockSkewRetry);
        let sns = aws_sdk_sns::config::Builder::from(&sdk).interceptor(calls.clone());
        let sns = sns.retry_config(once_more).retry_classifier(ClockSkewRetry);
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
            polls_ended: Notify::new(),
        };
        clients.authenticate().await?;
        Ok(clients)
    }

    /// Host and port of a service (`sqs`, `sns`): those of the configured endpoint, or else of the region's own.
    /// <https://docs.aws.amazon.com/general/latest/gr/sqs-service.html>
    pub(crate) fn server(&self, service: &str) -> Option<(String, u16)> {
        server(self.config.endpoint.as_deref(), service, &self.region)
    }

    /// Fails if SQS does not take the credentials. `PermissionDenied` for its call is a success: SQS knows who calls,
    /// and the call is not needed else.
    async fn authenticate(&self) -> Result<()> {
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

    /// The error of a call, with region and endpoint. Notes credentials that were refused.
    pub(crate) fn failed<E>(&self, e: SdkError<E, HttpResponse>, operation: &'static str) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        if error::is_refused(&e) {
            self.credentials.note_refused();
        }
        self.located(error::of(e, operation))
    }

    /// The error of a call about a queue, topic or subscription that may be repeated without harm.
    pub(crate) fn entity_error<E>(
        &self,
        e: SdkError<E, HttpResponse>,
        operation: &'static str,
        (entity, name): (&'static str, &str),
    ) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        retryable(self.failed(e, operation)).with_context(entity, name)
    }

    /// Adds the region, and the endpoint if one is configured.
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
        self.urls.lock()
    }

    /// The URL of a queue, asked once and remembered. `NotFound` if there is no such queue.
    pub(crate) async fn url(&self, queue: &str, operation: &'static str) -> Result<Arc<str>> {
        // Before `ensure_open`: messages that a late poll brings after the close must be given back.
        if let Some(url) = self.urls().get(queue) {
            return Ok(url.clone());
        }
        self.ensure_open()?;
        let asked = self.sqs.get_queue_url().queue_name(queue);
        let asked = asked.set_queue_owner_aws_account_id(self.config.account.clone());
        let answer = Box::pin(asked.send()).await;
        // Asking changes nothing, so any passing error is safe to retry.
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

    /// Notes that this process has created a queue (by name) or a topic (by ARN) just now.
    pub(crate) fn note_created(&self, name: &str) {
        self.made.lock().insert(name.to_owned(), Instant::now());
    }

    /// Notes that this process has deleted it.
    pub(crate) fn note_deleted(&self, name: &str) {
        self.made.lock().remove(name);
    }

    /// Turns `NotFound` for something that this process has created a moment ago into `Unavailable`, since not every
    /// host of AWS knows it yet. Settlements need that too: another host may answer them than the one that handed the
    /// message out.
    pub(crate) fn missing(&self, name: &str, e: Error) -> Error {
        let at = self.made.lock().get(name).copied();
        if e.kind() != ErrorKind::NotFound || at.is_none_or(|at| at.elapsed() >= CREATED_GRACE) {
            return e;
        }
        let text = format!("{name:?} was made just now and is not seen everywhere yet");
        self.located(error::new(ErrorKind::Unavailable, e.operation(), text).safe().with_source(e))
    }

    /// The account whose topics are used: the URL's, or the one that the credentials name, or the one that STS answers.
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

    /// Counts a long poll until the guard is dropped.
    pub(crate) fn polling(self: &Arc<Self>) -> PollGuard {
        self.polls.fetch_add(1, Ordering::AcqRel);
        PollGuard(self.clone())
    }

    /// Refuses new work, and waits for the last long polls of closed consumers, which give back the messages that they
    /// bring. Waits for `patience` at most.
    pub(crate) async fn close(&self, patience: Duration) {
        self.closed.store(true, Ordering::Release);
        let quiet = async {
            loop {
                let ended = self.polls_ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if self.polls.load(Ordering::Acquire) == 0 {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(patience, quiet).await.is_err() {
            tracing::debug!("long polls go on after the close; what they bring is given back");
        }
    }
}

/// The error of a call that may be repeated without harm, whether it was carried out or not: a passing one is `Safe`.
pub(crate) fn retryable(e: Error) -> Error {
    if e.is_transient() { e.safe() } else { e }
}

/// `None` instead of a `NotFound` error.
pub(crate) fn none_if_missing<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
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

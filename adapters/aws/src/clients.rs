//! The SDK's clients, and what is asked once: the account and the queues' URLs.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_config::{AppName, BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_sqs::config::{StalledStreamProtectionConfig, http::HttpResponse};
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use polybus_core::{Error, Kind, Result};
use tokio::sync::{Notify, OnceCell};

use crate::{calls::Calls, config::Config, error, limits::MAX_WAIT, names};

/// Longer than a poll waits: `ReceiveMessage` is known to hang past its wait time.
const POLL_SLACK: Duration = Duration::from_secs(10);
/// The account of LocalStack and its like, which serve no STS where only SQS and SNS are started.
/// <https://docs.localstack.cloud/aws/capabilities/config/credentials/>
const EMULATED_ACCOUNT: &str = "000000000000";

pub(crate) struct Clients {
    pub(crate) config: Config,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) sns: aws_sdk_sns::Client,
    /// SQS again, with time-outs above those of a long poll.
    pub(crate) polling: aws_sdk_sqs::Client,
    pub(crate) region: String,
    pub(crate) calls: Calls,
    sdk: SdkConfig,
    account: OnceCell<String>,
    urls: Mutex<HashMap<String, Arc<str>>>,
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
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http)
            // Core retries, and knows what may be sent twice.
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts(config.timeout))
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Ok(name) = AppName::new("polybus") {
            loader = loader.app_name(name);
        }
        if let Some(region) = &config.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &config.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(endpoint) = &config.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let sdk = Box::pin(loader.load()).await;
        let Some(region) = sdk.region().map(|r| r.as_ref().to_owned()) else {
            let text = "no AWS region: add region= to the bus URL, or set AWS_REGION or the profile's region";
            return Err(error::new(Kind::ConfigInvalid, "connect", text));
        };
        let calls = Calls::default();
        let sqs = aws_sdk_sqs::config::Builder::from(&sdk).interceptor(calls.clone());
        let sns = aws_sdk_sns::config::Builder::from(&sdk).interceptor(calls.clone());
        let polling = sqs.clone().timeout_config(timeouts(MAX_WAIT + POLL_SLACK));
        let clients = Self {
            sqs: aws_sdk_sqs::Client::from_conf(sqs.build()),
            sns: aws_sdk_sns::Client::from_conf(sns.build()),
            polling: aws_sdk_sqs::Client::from_conf(polling.build()),
            calls,
            config,
            region,
            sdk,
            account: OnceCell::new(),
            urls: Mutex::default(),
            closed: AtomicBool::new(false),
            polls: AtomicUsize::new(0),
            polled: Notify::new(),
        };
        clients.greet().await?;
        Ok(clients)
    }

    /// A call that needs no right: whoever is refused it was known to SQS.
    async fn greet(&self) -> Result<()> {
        match self.sdk.credentials_provider() {
            None => return Err(error::new(Kind::Unauthenticated, "connect", "no AWS credentials are configured")),
            Some(provider) => {
                let got = provider.provide_credentials().await;
                got.map_err(|e| self.located(error::of_credentials(&e, "connect")))?;
            }
        }
        match Box::pin(self.sqs.list_queues().max_results(1).send()).await {
            Ok(_) => Ok(()),
            Err(e) => match self.failed(e, "connect") {
                e if e.kind() == Kind::PermissionDenied => Ok(()),
                e => Err(e),
            },
        }
    }

    /// An error of a call, with the place that answered or did not.
    pub(crate) fn failed<E>(&self, e: SdkError<E, HttpResponse>, operation: &'static str) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.located(error::of(e, operation))
    }

    /// Adds the region, and the endpoint where it is not the region's own.
    pub(crate) fn located(&self, e: Error) -> Error {
        let e = e.with("region", &self.region);
        match &self.config.endpoint {
            Some(endpoint) => e.with("endpoint", endpoint),
            None => e,
        }
    }

    pub(crate) fn ensure_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(error::new(Kind::Closed, "connect", "the connection was closed")),
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
        let answer = answer.map_err(|e| retryable(self.failed(e, operation)).with("queue", queue))?;
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

    /// The account whose topics are meant: the URL's, the credentials' own, or what STS says.
    pub(crate) async fn account(&self) -> Result<&str> {
        self.ensure_open()?;
        if let Some(account) = &self.config.account {
            return Ok(account);
        }
        let account = self.account.get_or_try_init(|| async {
            if let Some(provider) = self.sdk.credentials_provider() {
                let got = provider.provide_credentials().await;
                let got = got.map_err(|e| self.located(error::of_credentials(&e, "account")))?;
                if let Some(account) = got.account_id() {
                    return Ok(account.as_str().to_owned());
                }
            }
            let sts = aws_sdk_sts::Client::new(&self.sdk);
            match Box::pin(sts.get_caller_identity().send()).await {
                Ok(answer) => Ok(answer.account().unwrap_or_default().to_owned()),
                Err(e) => match retryable(self.failed(e, "account")) {
                    e if e.kind() == Kind::Unsupported && self.config.endpoint.is_some() => {
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
        Kind::Unavailable | Kind::Timeout | Kind::Throttled => e.safe(),
        _ => e,
    }
}

//! Credentials of Entra ID: a test credential, against an emulator in this process that checks and ends its tokens.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, Error, ErrorKind, QueueSpec, Registry, Result, Source, Subscription,
    Topology, driver::async_trait,
};
use polybus_servicebus::{
    ServicebusConnector,
    azure_core::{
        self,
        credentials::{AccessToken, TokenCredential, TokenRequestOptions},
        error::ErrorKind as AzureErrorKind,
    },
};
use polybus_servicebus_emulator::{Emulator, EmulatorOptions as Emulated, auth::JwtKey};
use tokio::time::{sleep, timeout};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CredentialState {
    Gives,
    Fails,
    /// Entra ID cannot be reached.
    Unreachable,
    Hangs,
}

/// Gives tokens of a fixed lifetime, and counts them.
#[derive(Debug)]
struct TestCredential {
    key: JwtKey,
    life: Duration,
    state: Mutex<CredentialState>,
    asked: AtomicU64,
}

impl TestCredential {
    fn new(life: Duration) -> Arc<Self> {
        Arc::new(Self {
            key: JwtKey::new("s3cret"),
            life,
            state: Mutex::new(CredentialState::Gives),
            asked: AtomicU64::new(0),
        })
    }

    fn set_state(&self, state: CredentialState) {
        *self.state.lock().unwrap() = state;
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl TokenCredential for TestCredential {
    async fn get_token(&self, scopes: &[&str], _: Option<TokenRequestOptions<'_>>) -> azure_core::Result<AccessToken> {
        assert_eq!(scopes, ["https://servicebus.azure.net/.default"]);
        self.asked.fetch_add(1, Ordering::Relaxed);
        let state = *self.state.lock().unwrap();
        match state {
            CredentialState::Gives => {}
            CredentialState::Fails => {
                return Err(azure_core::Error::with_message(AzureErrorKind::Credential, "no such client"));
            }
            CredentialState::Unreachable => return Err(AzureErrorKind::Connection.into_error()),
            CredentialState::Hangs => std::future::pending().await,
        }
        let expires = (SystemTime::now() + self.life).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let expires = i64::try_from(expires).unwrap();
        let on = time::OffsetDateTime::from_unix_timestamp(expires).unwrap();
        Ok(AccessToken::new(self.key.token(expires), on))
    }
}

async fn emulator() -> Emulator {
    Emulator::start(Emulated { jwt: Some(JwtKey::new("s3cret")), ..Emulated::default() }).await.unwrap()
}

fn url(emulator: &Emulator) -> String {
    format!("servicebus://{}?emulator=true&management=http://{}", emulator.amqp_addr(), emulator.http_addr())
}

async fn connect(credential: &Arc<TestCredential>, url: &str, topology: Topology) -> Result<Bus> {
    let connector = ServicebusConnector.with_credential(credential.clone());
    let driver = Registry::new().with(ServicebusConnector).with(connector).connect(url).await?;
    Bus::new(driver, BusOptions::topology(topology))
}

async fn refused(credential: &Arc<TestCredential>, url: &str) -> Error {
    let e = connect(credential, url, Topology::new()).await.map(|_| ()).unwrap_err();
    assert!(!format!("{e:?}").contains("eyJ") && !format!("{e:?}").contains("s3cret"), "{e:?}");
    e
}

fn topology() -> Topology {
    Topology::new().queue("q", QueueSpec::new()).queue("s", QueueSpec::new().ordered(true))
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.unwrap().unwrap().unwrap()
}

async fn round(bus: &Bus, name: &str) {
    let mut sub = bus.subscribe(Source::queue(name)).open().await.unwrap();
    bus.publish(Address::queue(name), Envelope::new("a", "x").key("k")).await.unwrap();
    let d = next(&mut sub).await;
    d.retry_after(Duration::from_millis(100)).await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_does_for_messages_and_administration() {
    let emulator = emulator().await;
    let credential = TestCredential::new(Duration::from_secs(3600));
    let bus = connect(&credential, &url(&emulator), topology()).await.unwrap();
    bus.declare().await.unwrap();
    round(&bus, "q").await;
    round(&bus, "s").await;
    assert_eq!(bus.stats(Source::queue("q")).await.unwrap().ready, Some(0));
    assert_eq!(credential.asked(), 1);
    bus.close().await.unwrap();

    let websocket = format!("servicebus://{}?emulator=true&transport=websocket", emulator.http_addr());
    let bus = connect(&credential, &websocket, topology()).await.unwrap();
    round(&bus, "q").await;
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_too() {
    let emulator = emulator().await;
    let credential = TestCredential::new(Duration::from_secs(3600));
    let url = format!("servicebus://{}?emulator=true&transport=rest&poll=1s", emulator.http_addr());
    let bus = connect(&credential, &url, Topology::new().queue("q", QueueSpec::new())).await.unwrap();
    bus.declare().await.unwrap();
    round(&bus, "q").await;
    assert_eq!(credential.asked(), 1);
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_gives_no_token_is_told() {
    let emulator = emulator().await;
    let credential = TestCredential::new(Duration::from_secs(3600));
    credential.set_state(CredentialState::Fails);
    let e = refused(&credential, &url(&emulator)).await;
    assert!(e.kind() == ErrorKind::Unauthenticated && e.to_string().contains("no such client"), "{e}");
    credential.set_state(CredentialState::Unreachable);
    assert_eq!(refused(&credential, &url(&emulator)).await.kind(), ErrorKind::Unavailable);
    credential.set_state(CredentialState::Hangs);
    let patient = format!("{}&connect_timeout=10s", url(&emulator));
    let e = timeout(Duration::from_secs(120), refused(&credential, &patient)).await.expect("it is waited for");
    assert!(e.kind() == ErrorKind::Timeout && e.to_string().contains("within 10s"), "{e}");

    let stranger = Arc::new(TestCredential {
        key: JwtKey::new("other"),
        ..Arc::into_inner(TestCredential::new(Duration::from_secs(60))).unwrap()
    });
    let e = refused(&stranger, &url(&emulator)).await;
    assert!(e.kind() == ErrorKind::Unauthenticated && e.to_string().contains("the broker refuses"), "{e}");
    let late = TestCredential::new(Duration::ZERO);
    let e = refused(&late, &url(&emulator)).await;
    assert!(e.kind() == ErrorKind::Unauthenticated && e.to_string().contains("expired"), "{e}");
    emulator.stop().await;
}

#[tokio::test]
async fn a_credential_stands_alone_and_under_tls() {
    let credential = TestCredential::new(Duration::from_secs(60));
    for (url, word) in [
        ("servicebus://Root:s3cret@h", "one of them"),
        ("servicebus://h?sas_token=s3cret", "one of them"),
        ("servicebus://h?tls=false", "needs TLS"),
        ("servicebus://h?management=http://h", "needs TLS"),
    ] {
        let e = refused(&credential, url).await;
        assert!(e.kind() == ErrorKind::ConfigInvalid && e.to_string().contains(word), "{e}");
    }
    assert_eq!(credential.asked(), 0);
}

/// Publishes to `q` and consumes it until `end`. Every message must come, at most a moment apart, and the stream must
/// not end.
async fn flow(bus: &Bus, end: Instant) -> usize {
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(10).open().await.unwrap();
    let publishing = {
        let bus = bus.clone();
        async move {
            let mut n = 0;
            while Instant::now() < end {
                bus.publish(Address::queue("q"), Envelope::new("n", n.to_string())).await.unwrap();
                n += 1;
                sleep(Duration::from_millis(20)).await;
            }
            n
        }
    };
    let mut seen = BTreeSet::new();
    let mut sent = tokio::spawn(publishing);
    let mut wanted = usize::MAX;
    while seen.len() < wanted {
        tokio::select! {
            d = next(&mut sub) => {
                seen.insert(String::from_utf8(d.envelope().data.to_vec()).unwrap());
                assert_eq!(d.attempt(), 1);
                d.ack().await.unwrap();
            }
            all = &mut sent, if wanted == usize::MAX => wanted = all.unwrap(),
        }
    }
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_before_they_run_out() {
    let emulator = emulator().await;
    // A quarter of it is left when it is renewed.
    let credential = TestCredential::new(Duration::from_secs(24));
    let bus = connect(&credential, &url(&emulator), topology()).await.unwrap();
    bus.declare().await.unwrap();
    // A receiver of sessions that is idle must outlive its first token as well.
    let mut idle = bus.subscribe(Source::queue("s")).open().await.unwrap();
    let sent = flow(&bus, Instant::now() + Duration::from_secs(46)).await;
    assert!(sent > 0 && credential.asked() >= 3, "{sent} sent, {} tokens", credential.asked());
    bus.publish(Address::queue("s"), Envelope::new("a", "x").key("k")).await.unwrap();
    next(&mut idle).await.ack().await.unwrap();
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_fails_for_a_moment_costs_nothing() {
    let emulator = emulator().await;
    let credential = TestCredential::new(Duration::from_secs(32));
    let bus = connect(&credential, &url(&emulator), topology()).await.unwrap();
    bus.declare().await.unwrap();
    credential.set_state(CredentialState::Fails);
    let recovering = tokio::spawn({
        let credential = credential.clone();
        async move {
            // By then the second token was due and was asked for in vain.
            while credential.asked() < 2 {
                sleep(Duration::from_millis(10)).await;
            }
            credential.set_state(CredentialState::Gives);
        }
    });
    flow(&bus, Instant::now() + Duration::from_secs(38)).await;
    recovering.await.unwrap();
    assert!(credential.asked() >= 3);
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_entra_id_longer_than_a_token_is_waited_out() {
    let emulator = emulator().await;
    let credential = TestCredential::new(Duration::from_secs(12));
    let bus = connect(&credential, &url(&emulator), topology()).await.unwrap();
    bus.declare().await.unwrap();
    let mut subs = Vec::new();
    for name in ["q", "s"] {
        subs.push(bus.subscribe(Source::queue(name)).open().await.unwrap());
    }
    credential.set_state(CredentialState::Unreachable);
    let began = Instant::now();
    let back = tokio::spawn({
        let credential = credential.clone();
        async move {
            sleep(Duration::from_secs(18)).await;
            credential.set_state(CredentialState::Gives);
        }
    });
    while began.elapsed() < Duration::from_secs(15) {
        for sub in &mut subs {
            // Nothing comes, and it is not the end.
            assert!(timeout(Duration::from_millis(200), sub.next()).await.is_err());
        }
    }
    for (name, sub) in ["q", "s"].iter().zip(&mut subs) {
        bus.publish(Address::queue(*name), Envelope::new("a", "x").key("k")).await.unwrap();
        next(sub).await.ack().await.unwrap();
    }
    assert!(began.elapsed() >= Duration::from_secs(18));
    back.await.unwrap();
    bus.close().await.unwrap();
    emulator.stop().await;
}

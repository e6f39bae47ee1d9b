//! A proxy in front of LocalStack. It counts the requests, which is what AWS would bill, and imitates what only the
//! cloud does, by the rules of `cloud.rs`.
#![allow(dead_code)]

pub(crate) mod cloud;
pub(crate) mod http;

use std::{
    collections::BTreeMap,
    fmt,
    io::{ErrorKind, Result},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use cloud::{CloudRule, RequestAction};
use http::HttpMessage;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use url::Url;

/// The number of requests by operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallCounts(pub(crate) BTreeMap<String, u64>);

impl CallCounts {
    /// The number of all requests.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// The number of requests of one operation.
    pub(crate) fn of(&self, operation: &str) -> u64 {
        self.0.get(operation).copied().unwrap_or_default()
    }
}

impl fmt::Display for CallCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(operation, n)| format!("{operation} {n}")).collect();
        f.write_str(&each.join(", "))
    }
}

/// A proxy between a client and an endpoint of AWS. It ends when it is dropped.
pub(crate) struct CountingProxy {
    /// A bus URL whose endpoint is the proxy.
    pub(crate) url: String,
    shared: Arc<ProxyState>,
    accepting: JoinHandle<()>,
}

struct ProxyState {
    upstream: (String, u16),
    calls: Mutex<CallCounts>,
    rules: Mutex<Vec<CloudRule>>,
    /// How far the cloud's clock is ahead of this machine's, in seconds.
    ahead: AtomicI64,
}

impl CountingProxy {
    /// A proxy in front of the `endpoint=http://…` that this bus URL names.
    pub(crate) async fn before(bus_url: &str) -> Self {
        let mut url = Url::parse(bus_url).unwrap();
        let mut parameters: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
        let endpoint = Url::parse(parameters.get("endpoint").expect("endpoint=http://… in the bus URL")).unwrap();
        assert_eq!(endpoint.scheme(), "http", "requests are counted where they can be read");
        let upstream = (endpoint.host_str().unwrap().to_owned(), endpoint.port_or_known_default().unwrap());

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        parameters.insert("endpoint".to_owned(), format!("http://{}", listener.local_addr().unwrap()));
        url.query_pairs_mut().clear().extend_pairs(parameters);
        let shared =
            ProxyState { upstream, calls: Mutex::default(), rules: Mutex::default(), ahead: AtomicI64::new(0) };
        let shared = Arc::new(shared);
        let serving = shared.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, serving.clone()));
            }
        });
        Self { url: url.into(), shared, accepting }
    }

    /// Adds a rule. The first rule that answers `Some` for a request decides.
    pub(crate) fn add_rule(&self, rule: CloudRule) {
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// Removes all rules.
    pub(crate) fn clear_rules(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Sets the cloud's clock, by which signatures are checked and answers are dated, `ahead` seconds before this
    /// machine's.
    pub(crate) fn set_clock(&self, ahead: i64) {
        self.shared.ahead.store(ahead, Ordering::Relaxed);
    }

    /// The requests since the last call of this.
    pub(crate) fn take(&self) -> CallCounts {
        std::mem::take(&mut self.shared.calls.lock().unwrap())
    }
}

impl Drop for CountingProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(client: TcpStream, shared: Arc<ProxyState>) -> Result<()> {
    let server = TcpStream::connect(&shared.upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (requests, mut to_client) = client.into_split();
    let (answers, mut to_server) = server.into_split();
    let (mut requests, mut answers) = (BufReader::new(requests), BufReader::new(answers));
    while let Some(request) = HttpMessage::read(&mut requests).await? {
        *shared.calls.lock().unwrap().0.entry(request.operation()).or_default() += 1;
        let mut answer = match verdict(&shared, &request) {
            RequestAction::Answer(answer) => answer,
            RequestAction::Later(after, answer) => {
                tokio::spawn(afterwards(after, shared.upstream.clone(), request));
                answer
            }
            other => {
                request.write(&mut to_server).await?;
                let mut answer = tokio::select! {
                    answer = HttpMessage::read(&mut answers) => answer?.ok_or(ErrorKind::UnexpectedEof)?,
                    // A client that goes away ends its long poll.
                    more = requests.fill_buf() => match more?.is_empty() {
                        true => return Ok(()),
                        false => panic!("requests are not pipelined"),
                    },
                };
                if let RequestAction::Edit(change) = other {
                    answer.edit(change);
                }
                answer
            }
        };
        answer.set("date", &cloud::http_date(shared.ahead.load(Ordering::Relaxed)));
        answer.write(&mut to_client).await?;
    }
    Ok(())
}

fn verdict(shared: &ProxyState, request: &HttpMessage) -> RequestAction {
    let ahead = shared.ahead.load(Ordering::Relaxed);
    if let Some(refused) = cloud::signature(request, SystemTime::now(), ahead) {
        return refused;
    }
    let mut rules = shared.rules.lock().unwrap();
    rules.iter_mut().find_map(|rule| rule(request)).unwrap_or(RequestAction::Pass)
}

async fn afterwards(after: Duration, upstream: (String, u16), request: HttpMessage) -> Result<()> {
    tokio::time::sleep(after).await;
    let server = TcpStream::connect(upstream).await?;
    let (answers, mut to_server) = server.into_split();
    request.write(&mut to_server).await?;
    HttpMessage::read(&mut BufReader::new(answers)).await.map(|_| ())
}

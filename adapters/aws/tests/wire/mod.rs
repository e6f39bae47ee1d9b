//! A proxy that counts the requests on the wire: what AWS would bill, whatever the code believes that it sends.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Error, ErrorKind, Result},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use url::Url;

/// Requests by operation, without the ones before the last `take`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(pub(crate) BTreeMap<String, u64>);

impl Calls {
    /// All requests together.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(operation, n)| format!("{operation} {n}")).collect();
        f.write_str(&each.join(", "))
    }
}

/// Stands between a client and an endpoint of AWS, until it is dropped.
pub(crate) struct Wire {
    /// The bus URL that leads through here.
    pub(crate) url: String,
    calls: Arc<Mutex<Calls>>,
    accepting: JoinHandle<()>,
}

impl Wire {
    /// In front of the `endpoint=http://…` that this bus URL names.
    pub(crate) async fn before(bus_url: &str) -> Self {
        let mut url = Url::parse(bus_url).unwrap();
        let mut parameters: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
        let endpoint = Url::parse(parameters.get("endpoint").expect("endpoint=http://… in the bus URL")).unwrap();
        assert_eq!(endpoint.scheme(), "http", "requests are counted where they can be read");
        let upstream = (endpoint.host_str().unwrap().to_owned(), endpoint.port_or_known_default().unwrap());

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        parameters.insert("endpoint".to_owned(), format!("http://{}", listener.local_addr().unwrap()));
        url.query_pairs_mut().clear().extend_pairs(parameters);
        let calls = Arc::new(Mutex::new(Calls::default()));
        let counted = calls.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, upstream.clone(), counted.clone()));
            }
        });
        Self { url: url.into(), calls, accepting }
    }

    /// The requests since the last time.
    pub(crate) fn take(&self) -> Calls {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(client: TcpStream, upstream: (String, u16), calls: Arc<Mutex<Calls>>) -> Result<()> {
    let server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (requests, mut to_client) = client.into_split();
    let (mut answers, mut to_server) = server.into_split();
    let mut requests = BufReader::new(requests);
    tokio::select! {
        done = tokio::io::copy(&mut answers, &mut to_client) => done.map(|_| ()),
        done = async { while request(&mut requests, &mut to_server, &calls).await? {} Ok(()) } => done,
    }
}

/// Passes one HTTP/1.1 request on; false at the connection's end.
async fn request<R>(from: &mut BufReader<R>, to: &mut (impl AsyncWrite + Unpin), calls: &Mutex<Calls>) -> Result<bool>
where
    R: tokio::io::AsyncRead + Unpin,
{
    let (mut head, mut operation, mut length) = (String::new(), "another".to_owned(), None);
    loop {
        let start = head.len();
        if from.read_line(&mut head).await? == 0 {
            return if head.is_empty() { Ok(false) } else { Err(ErrorKind::UnexpectedEof.into()) };
        }
        let line = head[start..].trim_end();
        if line.is_empty() {
            break;
        }
        match line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim())) {
            // As SQS has it; SNS names it in the body.
            Some((name, target)) if name == "x-amz-target" => {
                operation = target.rsplit('.').next().unwrap_or(target).to_owned();
            }
            Some((name, n)) if name == "content-length" => length = n.parse().ok(),
            Some((name, _)) if name == "transfer-encoding" => return Err(Error::other("a body without a length")),
            _ => {}
        }
    }
    let mut body = vec![0; length.unwrap_or(0)];
    from.read_exact(&mut body).await?;
    if let Some(action) =
        std::str::from_utf8(&body).ok().and_then(|b| b.split('&').find_map(|p| p.strip_prefix("Action=")))
    {
        operation = action.to_owned();
    }
    *calls.lock().unwrap().0.entry(operation).or_default() += 1;
    to.write_all(head.as_bytes()).await?;
    to.write_all(&body).await?;
    Ok(true)
}

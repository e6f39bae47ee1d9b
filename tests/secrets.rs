//! No part of a URL that could be a secret is ever printed. A grammar makes malformed URLs with a secret planted in
//! every place, and each goes through every connector, through TOML and through POLYBUS_URL.
//!
//! The one place that is shown is a host, and a port, where nothing in the URL says that it is something else.

use std::{
    collections::BTreeSet,
    error::Error as _,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use polybus::{Config, Error, ErrorKind, driver::ConnectUrl};
use tracing_subscriber::fmt::MakeWriter;

const SECRET: &str = "Tr0ub4dor";
/// Nobody listens there.
const HOST: &str = "127.0.0.1:1";
const SCHEMES: [&str; 9] = ["memory", "amqp", "amqps", "aws", "servicebus", "sb", "rabbitmq", "kafka", "https"];
/// What passwords hold and URLs give a meaning to.
const MARKS: [&str; 15] = ["/", "?", "#", "@", ":", "%", "[", "]", "&", "=", "+", " ", ";", ",", "//"];
const PARAMETERS: [&str; 16] = [
    "queue_type",
    "max_message_size",
    "management",
    "heartbeat",
    "connect_timeout",
    "cert",
    "region",
    "endpoint",
    "account",
    "poll",
    "connection_string",
    "sas_token",
    "tls",
    "transport",
    "access_key",
    "cacertfile",
];

fn grammar() -> BTreeSet<String> {
    let mut urls = BTreeSet::new();
    for scheme in SCHEMES {
        for mark in MARKS {
            // A password that ought to have been percent-encoded, with the mark before, in and behind it; with a host
            // behind it and without.
            for password in [
                format!("{mark}{SECRET}"),
                format!("12{mark}{SECRET}"),
                format!("{SECRET}{mark}12"),
                format!("{SECRET}{mark}"),
            ] {
                urls.insert(format!("{scheme}://bob:{password}@{HOST}"));
                urls.insert(format!("{scheme}://bob:{password}@{HOST}/v?x=1"));
            }
            urls.insert(format!("{scheme}://{SECRET}{mark}x:y@{HOST}"));
            // Behind a second @ stands the host.
            if mark != "@" {
                urls.insert(format!("{scheme}://u:p@{HOST}{mark}{SECRET}"));
            }
        }
        for rest in [
            format!("{SECRET}:@{HOST}"),
            format!(":{SECRET}@{HOST}"),
            format!("{SECRET}@{HOST}"),
            format!("{HOST}/{SECRET}"),
            format!("{HOST}/a/{SECRET}/b"),
            format!("{HOST}/%zz{SECRET}"),
            format!("{HOST}/%ff{SECRET}"),
            format!("{HOST}/#{SECRET}"),
            format!("{HOST}?{SECRET}"),
            format!("{HOST}?{SECRET}=1"),
            format!("{HOST}?{SECRET}=1&{SECRET}=2"),
            format!("{HOST}?x={SECRET}"),
            format!("{HOST}?&&{SECRET}&"),
            format!("?{SECRET}"),
            format!("?a=1&{SECRET}=1"),
            format!("bob%3A{SECRET}%40host"),
            format!("host:99999{SECRET}"),
            format!("host:{SECRET}"),
            format!("h1,{SECRET}"),
            format!("[::1{SECRET}]"),
            format!("${{{SECRET}}}@{HOST}"),
            format!("u:a${{{SECRET}@{HOST}"),
        ] {
            urls.insert(format!("{scheme}://{rest}"));
        }
        for name in PARAMETERS {
            urls.insert(format!("{scheme}://u:p@{HOST}?{name}={SECRET}"));
            urls.insert(format!("{scheme}://?{name}=http://u:{SECRET}@h/{SECRET}?{SECRET}#{SECRET}"));
            urls.insert(format!("{scheme}://?{name}=Endpoint=sb://h;SharedAccessKey={SECRET};{SECRET}=1"));
            urls.insert(format!("{scheme}://?{name}=SharedAccessSignature sr={SECRET}&sig={SECRET}&{SECRET}"));
        }
        urls.insert(format!("{scheme}:bob:{SECRET}@{HOST}"));
        urls.insert(format!("{scheme}:/bob:{SECRET}@{HOST}"));
        urls.insert(format!("\"{scheme}://bob:{SECRET}@{HOST}\""));
        urls.insert(format!("{scheme}://bob:{SECRET}@"));
        urls.insert(format!("bus.url={scheme}://bob:{SECRET}@{HOST}"));
    }
    for text in [
        SECRET.to_owned(),
        format!("{SECRET}://host"),
        format!("bob:{SECRET}@{HOST}"),
        format!("://bob:{SECRET}@{HOST}"),
        format!("Endpoint=sb://shop.servicebus.windows.net/;SharedAccessKeyName=r;SharedAccessKey={SECRET}="),
        format!("SharedAccessKey={SECRET};Endpoint=sb://h"),
        format!("https://sqs.eu-west-1.amazonaws.com/123456789012/{SECRET}"),
        format!("arn:aws:sqs:eu-west-1:123456789012:{SECRET}"),
        format!("amqps://r:{SECRET}@shop.servicebus.windows.net"),
        format!("http://u:{SECRET}@h:15672/api"),
    ] {
        urls.insert(text);
    }
    urls
}

/// All that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Whatever an error says to anybody.
fn said(e: &Error) -> String {
    let mut said = format!("{e}\n{e:?}\n{e:#?}");
    let mut source = e.source();
    while let Some(inner) = source {
        said.push_str(&format!("\n{inner}\n{inner:?}"));
        source = inner.source();
    }
    said
}

fn hush(what: &str, url: &str, text: &str) {
    // Hosts and schemes are put into lower case.
    let found = text.to_ascii_lowercase().contains(&SECRET.to_ascii_lowercase());
    if found {
        SHOWN.lock().unwrap_or_else(|e| e.into_inner()).push(format!("{what} of {url} shows the secret:\n{text}"));
    }
}

/// All that was shown, so that one run tells everything.
static SHOWN: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn toml(url: &str) -> String {
    format!("[bus]\nurl = '''{url}'''\n")
}

#[tokio::test]
async fn no_planted_secret_is_printed() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(log.clone());
    subscriber.try_init().unwrap();
    let urls = grammar();
    assert!(urls.len() >= 200, "{}", urls.len());
    let mut refused = 0;
    for url in &urls {
        if let Ok(parsed) = ConnectUrl::parse(url) {
            hush("ConnectUrl", url, &format!("{parsed} {parsed:?}"));
        }
        // One attempt; where the URL can be taken it is one at a port that refuses.
        let connected = tokio::time::timeout(Duration::from_secs(5), polybus::registry().connect(url)).await;
        if let Ok(Err(e)) = &connected {
            refused += usize::from(e.kind() == ErrorKind::ConfigInvalid);
            hush("the error", url, &said(e));
        }
        drop(connected);
        hush("the log", url, &log.take());
        for config in [
            Config::from_text_with("shop.toml", &toml(url), |_| None),
            Config::from_text_with("shop.toml", &format!("[bus]\nurl = {url}\n"), |_| None),
            Config::from_text_with("shop.toml", &format!("[bus]\nurl = \"{url}\n"), |_| None),
            Config::from_text_with("shop.toml", &format!("[bus]\nurl = \"${{URL}}\"\n{url}"), |_| Some(url.clone())),
            Config::from_text_with("shop.toml", "[bus]\nurl = \"${URL}\"", |name| (name == "URL").then(|| url.clone())),
            Config::from_text_with("shop.toml", "", |name| (name == "POLYBUS_URL").then(|| url.clone())),
        ] {
            match config {
                Err(e) => hush("the configuration's error", url, &said(&e)),
                Ok(config) => {
                    hush("Config", url, &format!("{config:?} {config:#?}"));
                    let registry = polybus::registry();
                    let connected = registry.connect(config.url().unwrap());
                    if let Ok(Err(e)) = tokio::time::timeout(Duration::from_secs(5), connected).await {
                        hush("the located error", url, &said(&config.locate(e)));
                    }
                }
            }
        }
        hush("the log", url, &log.take());
    }
    let shown = std::mem::take(&mut *SHOWN.lock().unwrap());
    assert!(
        shown.is_empty(),
        "{} places, such as:\n{}",
        shown.len(),
        shown[..shown.len().min(80)]
            .iter()
            .map(|s| s.chars().take(300).collect::<String>())
            .collect::<Vec<_>>()
            .join("\n")
    );
    // Those that are left are URLs after all.
    assert!(refused * 2 > urls.len(), "{refused} of {} refused", urls.len());
}

/// What vendors' consoles and other clients' documentation show, and what to write instead.
#[tokio::test]
async fn what_others_show_is_answered_by_what_to_write() {
    let mut cases = vec![
        (
            "Endpoint=sb://shop.servicebus.windows.net/;SharedAccessKeyName=r;SharedAccessKey=k",
            "servicebus://?connection_string=",
        ),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/orders", "aws://?region="),
        ("arn:aws:sns:eu-west-1:123456789012:orders", "aws://?region="),
        ("sb://shop.servicebus.windows.net/", "servicebus://KEY-NAME:KEY@"),
        ("rabbitmq://guest:guest@localhost", "amqp://USER:PASSWORD@"),
        ("http://localhost:15672", "management=http"),
        ("'amqp://localhost'", "quotes"),
    ];
    if cfg!(feature = "rabbitmq") {
        cases.extend([
            ("amqps://r:k@shop.servicebus.windows.net", "servicebus://KEY-NAME:KEY@"),
            ("amqp://h?connection_attempts=3&heartbeat=600", "publish_timeout"),
            ("amqp://h?channel_max=10", "leave channel_max"),
            ("amqp://h1:5672,h2:5672", "expected scheme://"),
            ("amqp://h1,h2", "one host is expected"),
        ]);
    }
    for (url, word) in cases {
        let e = polybus::registry().connect(url).await.map(|_| ()).unwrap_err();
        assert!(e.kind() == ErrorKind::ConfigInvalid && e.to_string().contains(word), "{url}: {e}");
    }
}

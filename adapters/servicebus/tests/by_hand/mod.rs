//! Creating entities as another tool would: by the administration API, over plain HTTP without a token, as the emulator
//! takes it.

use std::{fmt::Write, time::Duration};

use polybus_conformance::{Drift, RawEntities};
use polybus_core::{
    Address, Bus, Error, ErrorKind, Result, Source,
    driver::{async_trait, kit::names::fit},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SPACE: &str = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect";
const LONGEST_SUBSCRIPTION: usize = 50;

pub(super) struct ByHand {
    /// `host:port`.
    pub(super) endpoint: String,
    /// Over HTTPS the dead letters of a source are in a queue beside it, and there are no sessions.
    pub(super) rest: bool,
}

impl ByHand {
    /// Creates an entity from elements, in the order that the service reads them in.
    async fn create(&self, path: &str, kind: &str, elements: &[(&str, Option<String>)]) -> Result<()> {
        let mut inner = String::new();
        for (name, value) in elements {
            if let Some(value) = value {
                let _ = write!(inner, "<{name}>{value}</{name}>");
            }
        }
        let entry = format!(
            "<entry xmlns=\"http://www.w3.org/2005/Atom\"><content type=\"application/xml\">\
             <{kind} xmlns=\"{SPACE}\">{inner}</{kind}></content></entry>"
        );
        let head = format!("PUT /{path}?api-version=2021-05 HTTP/1.1\r\nContent-Length: {}\r\n", entry.len());
        ask(&self.endpoint, head, entry.as_bytes()).await
    }

    /// Creates a queue, or a subscription, which has no duplicate detection of its own.
    async fn source(&self, path: &str, drift: Option<Drift>, is_queue: bool) -> Result<()> {
        let when = |holds: bool| holds.then(|| "true".to_owned());
        let kind = if is_queue { "QueueDescription" } else { "SubscriptionDescription" };
        let elements = [
            ("LockDuration", if let Some(Drift::Lock(lock)) = drift { Some(duration(lock)) } else { None }),
            ("RequiresDuplicateDetection", when(is_queue && drift == Some(Drift::DuplicateDetection))),
            ("RequiresSession", when(drift == Some(Drift::Sessions))),
            (
                "DefaultMessageTimeToLive",
                if let Some(Drift::TimeToLive(ttl)) = drift { Some(duration(ttl)) } else { None },
            ),
            (
                "MaxDeliveryCount",
                if let Some(Drift::DeliveryLimit(limit)) = drift { Some(limit.to_string()) } else { None },
            ),
        ];
        self.create(path, kind, &elements).await
    }
}

#[async_trait]
impl RawEntities for ByHand {
    fn knows(&self, drift: Drift) -> bool {
        match drift {
            Drift::DuplicateDetection | Drift::Lock(_) | Drift::DeliveryLimit(_) | Drift::TimeToLive(_) => true,
            Drift::Sessions => !self.rest,
            _ => false,
        }
    }

    async fn declare(&self, bus: &Bus, drift: Drift) -> Result<()> {
        let topology = bus.topology();
        for name in topology.queues.keys() {
            let path = topology.address(&Address::queue(&**name)).physical;
            self.source(&path, Some(drift), true).await?;
            if self.rest {
                let others = Some(drift).filter(|drift| *drift == Drift::DuplicateDetection);
                self.source(&format!("{path}.dlq"), others, true).await?;
            }
        }
        for (name, spec) in &topology.topics {
            let path = topology.address(&Address::topic(&**name)).physical;
            let deduplicates = (drift == Drift::DuplicateDetection).then(|| "true".to_owned());
            self.create(&path, "TopicDescription", &[("RequiresDuplicateDetection", deduplicates)]).await?;
            for subscription in spec.subscriptions.keys() {
                let own = topology.source(&Source::subscription(&**name, &**subscription)).physical;
                let own = fit(&own, LONGEST_SUBSCRIPTION);
                self.source(&format!("{path}/Subscriptions/{own}"), Some(drift), false).await?;
                if self.rest {
                    self.source(&format!("{path}.sub.{own}.dlq"), None, true).await?;
                }
            }
        }
        Ok(())
    }
}

/// ISO 8601.
fn duration(duration: Duration) -> String {
    format!("PT{}S", duration.as_secs_f64())
}

/// Sends one request whose head lacks host and connection. An error unless the answer is 201.
pub(super) async fn ask(endpoint: &str, head: String, body: &[u8]) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(ErrorKind::Unexpected, e.to_string());
    let head = format!("{head}Host: {endpoint}\r\nConnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(endpoint).await.map_err(|e| failed(&e))?;
    stream.write_all(head.as_bytes()).await.map_err(|e| failed(&e))?;
    stream.write_all(body).await.map_err(|e| failed(&e))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|e| failed(&e))?;
    match answer.split(' ').nth(1) {
        Some("201") => Ok(()),
        _ => Err(failed(&answer.lines().next().unwrap_or("no answer"))),
    }
}

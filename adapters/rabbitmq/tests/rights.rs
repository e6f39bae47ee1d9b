//! The errors of a user who lacks a right, on a broker with such users. `localstack/ctl` makes them.
#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use polybus_core::{Address, Bus, BusOptions, Envelope, ErrorKind, QueueSpec, Registry, Source, Topology};
use polybus_rabbitmq::RabbitmqConnector;

const PASSWORD: &str = "s3cret";

fn ctl(words: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../localstack/ctl");
    let output = Command::new(script).arg("rabbitmq").args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A user of the local broker, gone when the test ends.
struct User(String);

impl User {
    fn new(run: &str, configure: &str, write: &str, read: &str) -> Self {
        let name = format!("{run}-{}", uuid::Uuid::now_v7().simple());
        ctl(&["add_user", &name, PASSWORD]);
        let user = Self(name);
        ctl(&["set_permissions", "-p", "/", &user.0, configure, write, read]);
        user
    }

    async fn bus(&self, url: &str, queue: &str) -> Bus {
        let (_, host) = url.split_once('@').unwrap();
        // Without the management parameter, whose calls would need rights of their own.
        let host = host.split('?').next().unwrap();
        open(&format!("amqp://{}:{PASSWORD}@{host}", self.0), queue).await
    }
}

impl Drop for User {
    fn drop(&mut self) {
        ctl(&["delete_user", &self.0]);
    }
}

async fn open(url: &str, queue: &str) -> Bus {
    let driver = Registry::new().with(RabbitmqConnector).connect(url).await.unwrap();
    Bus::new(driver, BusOptions::topology(Topology::new().queue("q", QueueSpec::new().physical(queue)))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_right_is_permission_denied_and_loses_nothing() {
    if std::env::var_os("POLYBUS_LOCALSTACK").is_none() {
        eprintln!("SKIPPED: POLYBUS_LOCALSTACK is not set, so no users can be made");
        return;
    }
    let url = std::env::var("POLYBUS_RABBITMQ_URL").unwrap();
    let name = format!("rights-{}", uuid::Uuid::now_v7().simple());
    let (q, source) = (Address::queue("q"), Source::queue("q"));
    let reader = User::new("reader", "^$", "^$", ".*");
    let writer = User::new("writer", "^$", ".*", "^$");

    let reading = reader.bus(&url, &name).await;
    let e = reading.declare().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{e}");
    assert!(e.to_string().contains(&reader.0) && !format!("{e:?}").contains(PASSWORD), "{e:?}");

    let owner = open(&url, &name).await;
    owner.declare().await.unwrap();
    let report = reading.declare().await.unwrap();
    assert!(report.created.is_empty() && report.differences.is_empty() && !report.unchecked.is_empty(), "{report:?}");
    let sent = Envelope::new("order.placed", "1");
    let writing = writer.bus(&url, &name).await;
    writing.publish(&q, sent.clone()).await.unwrap();
    let e = writing.subscribe(source.clone()).open().await.map(|_| ()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{e}");

    let e = reading.publish(&q, Envelope::new("order.placed", "2")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{e}");
    let mut sub = reading.subscribe(source.clone()).prefetch(1).open().await.unwrap();
    let delivery = sub.next().await.unwrap().unwrap();
    let e = delivery.dead_letter("poison", "cannot be handled").await.unwrap_err();
    let (e, delivery) = e.into_parts();
    assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{e}");
    delivery.unwrap().release().await.unwrap();
    sub.close().await.unwrap();

    let mut sub = owner.subscribe(source).prefetch(1).open().await.unwrap();
    let delivery = sub.next().await.unwrap().unwrap();
    assert_eq!(delivery.envelope().id, sent.id, "what could not be moved is still there");
    delivery.ack().await.unwrap();
    assert_eq!(owner.stats(Source::queue("q")).await.unwrap().ready, Some(0), "what was refused is not stored");
    sub.close().await.unwrap();
    owner.delete().await.unwrap();
    for bus in [owner, reading, writing] {
        bus.close().await.unwrap();
    }
}

//! A login that is refused after an earlier one was accepted, since the password changes for a while.
//! `POLYBUS_REFUSED` is that time in seconds, 5 by default.
#![allow(clippy::unwrap_used)]

mod broker;

use std::{path::PathBuf, process::Command, time::Duration};

use broker::url;
use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, ErrorKind, QueueSpec, Registry, Source, Subscription, Topology,
};
use polybus_rabbitmq::RabbitmqConnector;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(180);

/// rabbitmqctl on the local stack's broker.
async fn ctl(arguments: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "localstack", "ctl"].iter().collect();
    let arguments: Vec<String> = ["rabbitmq"].into_iter().chain(arguments.split(' ')).map(Into::into).collect();
    let run = tokio::task::spawn_blocking(move || Command::new(path).args(arguments).output().unwrap());
    let done = run.await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(PATIENCE, sub.next()).await.expect("the consumer goes on").expect("it has not ended").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changes_for_a_while_is_waited_out() {
    let Some(url) = url("rabbitmq") else { return };
    if std::env::var_os("POLYBUS_LOCALSTACK").is_none() {
        eprintln!("SKIPPED: POLYBUS_LOCALSTACK is not set");
        return;
    }
    let refused = std::env::var("POLYBUS_REFUSED").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    let name = format!("login-{}", uuid::Uuid::now_v7().simple());
    ctl(&format!("add_user {name} first")).await;
    ctl(&format!("set_permissions {name} ^{name} .* .*")).await;
    let theirs = url.replace("guest:guest@127", &format!("{name}:first@127"));
    let driver = Registry::new().with(RabbitmqConnector).connect(&theirs).await.unwrap();
    let mut options = BusOptions::topology(Topology::new().queue("q", QueueSpec::new().physical(&name)));
    options.publish_timeout = PATIENCE;
    let bus = Bus::new(driver, options).unwrap();
    bus.declare().await.unwrap();
    let q = Address::queue("q");
    bus.publish(&q, Envelope::new("n.n", "before")).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    next(&mut sub).await.ack().await.unwrap();

    ctl(&format!("change_password {name} second")).await;
    let wrong = Registry::new().with(RabbitmqConnector).connect(&theirs).await.map(|_| ()).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Unauthenticated, "a first login that is refused says so: {wrong}");
    ctl(&format!("close_all_user_connections {name} test")).await;
    let publishing = tokio::spawn(bus.publish(&q, Envelope::new("n.n", "after")));
    let receiving = tokio::spawn(async move { (next(&mut sub).await, sub) });
    tokio::time::sleep(Duration::from_secs(refused)).await;
    assert!(!publishing.is_finished() && !receiving.is_finished());
    ctl(&format!("change_password {name} first")).await;
    timeout(PATIENCE, publishing).await.unwrap().unwrap().unwrap();
    let (after, mut sub) = timeout(PATIENCE, receiving).await.unwrap().unwrap();
    assert_eq!(&after.envelope().data[..], b"after");
    after.ack().await.unwrap();
    sub.close().await.unwrap();
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
    ctl(&format!("delete_user {name}")).await;
}

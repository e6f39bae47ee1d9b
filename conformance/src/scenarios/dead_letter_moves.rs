//! Moves whose connection is lost: to the dead letters, to a later time, and back from the dead letters.

use std::time::Duration;

use polybus_core::{Delivery, Envelope, ErrorKind, QueueSpec, SettleError, Subscription, Topology};
use tokio::time::timeout;

use super::{dead_letters::bury, redrive::redrive_rest, tools::shorter_lock};
use crate::{Cx, During, Fixture, Need, Outcome, Proxy, Scenario, ensure, fail, message, messages, number, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "dead_letters_hard/move-cut",
            "A connection lost at any point of a dead_letter: the message is a dead letter or comes again; Ok is the former.",
            move_cut,
        )
        .needs(|t, c| Need::dead_letters(c).and(Need::proxy(t)))
        .timeout(Duration::from_secs(120)),
        scenario(
            "dead_letters_hard/redrive-cut",
            "Redrives whose connections are lost lose nothing: in the end all is back in the source.",
            redrive_cut,
        )
        .needs(|t, c| Need::redrive(c).and(Need::proxy(t)))
        .timeout(Duration::from_secs(120)),
    ]
}

/// Bytes after which to cut: at once, within the copy, around its confirm, after the settlement.
const CUTS: [u32; 7] = [0, 20, 100, 250, 400, 600, 1200];

/// A cut of all connections, or only of the one that gets to the end of these bytes. A driver that publishes on another
/// connection than it consumes from must notice both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    bytes: u32,
    all: bool,
}

impl Cut {
    pub(super) fn every() -> impl Iterator<Item = Self> {
        [true, false].into_iter().flat_map(|all| CUTS.into_iter().map(move |bytes| Self { bytes, all }))
    }

    pub(super) fn arm(self, proxy: &Proxy) {
        if self.all {
            proxy.cut_after(self.bytes);
        } else {
            proxy.cut_one_after(self.bytes);
        }
    }
}

/// A queue through the proxy, and the same one past it. The lock is short, where there is one.
pub(super) async fn through(cx: &Cx, proxy: &Proxy) -> Outcome<(Fixture, Fixture)> {
    let mut spec = QueueSpec::new().max_deliveries(50);
    if cx.capabilities().locks {
        spec = spec.lock(shorter_lock(cx));
    }
    let topology = Topology::new().queue("q", spec);
    let safe = Fixture::queue(cx.bus(topology.clone()).await?);
    let cut = Fixture::queue(cx.setup(topology).through(proxy).undeclared().open().await?);
    Ok((cut, safe))
}

/// The next of either, or nothing within the patience.
async fn either(cx: &Cx, one: &mut Subscription, two: &mut Subscription) -> Outcome<Option<(bool, Delivery)>> {
    let next = async {
        tokio::select! { d = one.next() => (true, d), d = two.next() => (false, d) }
    };
    match timeout(cx.patience(), next).await {
        Err(_) => Ok(None),
        Ok((first, Some(Ok(delivery)))) => Ok(Some((first, delivery))),
        Ok((_, end)) => fail!("a subscription ended: {end:?}"),
    }
}

/// Connection errors are what a move may answer.
pub(super) fn check_cut(result: Result<(), SettleError>) -> Outcome<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.error().kind(), ErrorKind::LockLost | ErrorKind::Unavailable | ErrorKind::Timeout) => {
            Ok(false)
        }
        Err(e) => fail!("a lost connection was answered as {e:?}"),
    }
}

async fn move_cut(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let (cut, safe) = through(&cx, &proxy).await?;
    let mut live = cut.subscribe(5).await?;
    let mut dead = safe.subscribe_dead(5).await?;
    for (n, cut_at) in Cut::every().enumerate() {
        safe.publish(message(n)).await?;
        let delivery = loop {
            let delivery = cx.recv(&mut live).await.during(format!("message {n}"))?;
            if number(delivery.envelope())? == n {
                break delivery;
            }
            // A copy was kept for an earlier one, and its message came again.
            delivery.ack().await?;
        };
        cut_at.arm(&proxy);
        let moved = check_cut(delivery.dead_letter("cut", format!("{cut_at:?}")).await)?;
        proxy.cut();
        loop {
            let what = format!("after {cut_at:?} (moved: {moved})");
            let Some((is_live, delivery)) = either(&cx, &mut live, &mut dead).await.during(&what)? else {
                fail!("message {n} is lost {what}");
            };
            let same = number(delivery.envelope())? == n;
            delivery.ack().await.or_else(lock_lost)?;
            if same && (!is_live || !moved) {
                break;
            }
        }
    }
    Ok(())
}

/// The connection was cut once more under it: it comes again.
fn lock_lost(e: SettleError) -> Result<(), SettleError> {
    if e.error().kind() == ErrorKind::LockLost { Ok(()) } else { Err(e) }
}

async fn redrive_cut(cx: Cx) -> Outcome {
    const N: usize = 60;
    let proxy = cx.proxy().await?;
    let (cut, safe) = through(&cx, &proxy).await?;
    bury(&cx, &safe, messages(0..N)).await?;
    for cut_at in Cut::every() {
        let mut armed = false;
        let arm = |_: &Envelope| {
            if !std::mem::replace(&mut armed, true) {
                cut_at.arm(&proxy);
            }
            true
        };
        // It may fail or not: what counts is that nothing is lost.
        let errors = match cut.bus.redrive(&cut.source, arm, 4).await {
            Ok(sifted) => sifted.failed.into_iter().map(|(_, e)| e).chain(sifted.error).collect(),
            Err(e) => vec![e],
        };
        for e in errors {
            ensure!(
                matches!(e.kind(), ErrorKind::LockLost | ErrorKind::Unavailable | ErrorKind::Timeout),
                "a lost connection was answered as {e:?}"
            );
        }
        proxy.cut();
    }
    // A move that was cut may have left its copy: some may come twice.
    redrive_rest(&cx, &safe, N).await?;
    Ok(())
}

//! Connections that are cut after a number of bytes.

use polybus_core::{Delivery, ErrorKind, QueueSpec, SettleError, Subscription, Topology};
use tokio::time::timeout;

use super::timing::shorter_lock;
use crate::{Cx, Fixture, Outcome, Proxy, fail};

/// The numbers of bytes after which to cut: at once, within the copy, around its confirm, after the settlement.
const CUTS: [u32; 7] = [0, 20, 100, 250, 400, 600, 1200];

/// After how many bytes to cut, and whether to cut all connections or only the one that sends the last of these bytes.
///
/// A driver that publishes over another connection than it consumes from must survive both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CutPoint {
    bytes: u32,
    all: bool,
}

impl CutPoint {
    pub(crate) fn every() -> impl Iterator<Item = Self> {
        [true, false].into_iter().flat_map(|all| CUTS.into_iter().map(move |bytes| Self { bytes, all }))
    }

    pub(crate) fn arm(self, proxy: &Proxy) {
        if self.all {
            proxy.cut_after(self.bytes);
        } else {
            proxy.cut_one_after(self.bytes);
        }
    }
}

/// A queue once through the proxy and once past it. Its lock is short, where it has one.
pub(crate) async fn queue_through(cx: &Cx, proxy: &Proxy) -> Outcome<(Fixture, Fixture)> {
    let mut spec = QueueSpec::new().max_deliveries(50);
    if cx.capabilities().locks {
        spec = spec.lock(shorter_lock(cx));
    }
    let topology = Topology::new().queue("q", spec);
    let safe = Fixture::queue(cx.bus(topology.clone()).await?);
    let cut = Fixture::queue(cx.setup(topology).through(proxy).undeclared().open().await?);
    Ok((cut, safe))
}

/// The next delivery of either subscription, and whether it is the first one's. `None`: nothing came with patience.
pub(crate) async fn next_of_either(
    cx: &Cx,
    one: &mut Subscription,
    two: &mut Subscription,
) -> Outcome<Option<(bool, Delivery)>> {
    let next = async {
        tokio::select! { d = one.next() => (true, d), d = two.next() => (false, d) }
    };
    match timeout(cx.patience(), next).await {
        Err(_) => Ok(None),
        Ok((first, Some(Ok(delivery)))) => Ok(Some((first, delivery))),
        Ok((_, end)) => fail!("a subscription ended: {end:?}"),
    }
}

/// Whether a move over a cut connection was Ok. Fails if it ended with another error than those of lost connections.
pub(crate) fn check_cut(result: Result<(), SettleError>) -> Outcome<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.error().kind(), ErrorKind::LockLost | ErrorKind::Unavailable | ErrorKind::Timeout) => {
            Ok(false)
        }
        Err(e) => fail!("a lost connection was answered as {e:?}"),
    }
}

/// Accepts LockLost: the connection was lost once more, and the message comes again.
pub(crate) fn allow_lock_lost(e: SettleError) -> Result<(), SettleError> {
    if e.error().kind() == ErrorKind::LockLost { Ok(()) } else { Err(e) }
}

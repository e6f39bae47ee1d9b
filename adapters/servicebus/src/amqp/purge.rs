//! Deleting what is ready: receive and delete until the broker says that there is no more.

use std::time::Duration;

use fe2o3_amqp::Receiver;
use polybus_core::{Kind, Result};

use crate::{
    amqp::{
        connection::{Wires, uncut},
        link::{self, Attached, Drained, Take},
    },
    config::CALL,
    error,
};

/// Messages asked for at once.
const MANY: u32 = 1_000;
/// How long the broker looks for another session with messages.
const WAIT: Duration = Duration::from_secs(1);

/// Deletes the ready messages of `path`, tells how many.
pub(crate) async fn purge(wires: &Wires, path: &str, sessions: bool) -> Result<u64> {
    let wire = wires.get().await?;
    let attaching = || async {
        match sessions {
            true => link::session_receiver(&wire, path, Take::Delete, WAIT, std::future::pending()).await,
            false => link::receiver(&wire, path, Take::Delete).await,
        }
    };
    let mut purged = 0;
    loop {
        let attached = match wire.attach(path, attaching).await {
            Ok(attached) => attached,
            Err(e) if sessions && e.kind() == Kind::Timeout => return Ok(purged),
            Err(e) => return Err(e),
        };
        let came = uncut(take(attached)).await?;
        purged += came;
        // Fewer than were asked for are not the end: a broker may answer a drain before it has looked everywhere.
        if !sessions && came == 0 {
            return Ok(purged);
        }
    }
}

/// Takes as many as may be asked for at once. A link does so once: the answer to its drain may still be on its way, and would end
/// what is asked for next.
async fn take(mut attached: Attached<Receiver>) -> Result<u64> {
    let (mut came, mut failure) = (0, None);
    let credited = attached.link.set_credit(MANY).await;
    let drained = link::drain(&mut attached, CALL, |delivery| {
        match delivery {
            Ok(_) => came += 1,
            Err(e) => failure = Some(error::of_recv(&e, "purge")),
        }
        failure.is_none() && came < u64::from(MANY)
    })
    .await;
    link::close_receiver(attached).await;
    let failure = failure.or_else(|| credited.err().map(|e| error::lost("purge", &e.to_string())));
    // How many were deleted is not known then.
    let failure = failure.or_else(|| (drained == Drained::Late).then(|| error::timeout("purge", CALL).may_duplicate()));
    failure.map_or(Ok(came), Err)
}

//! Deleting what is ready: receive and delete until the broker says that there is no more.

use std::time::Duration;

use fe2o3_amqp::{Receiver, link::RecvError};
use polybus_core::{ErrorKind, Result};

use crate::{
    amqp::{
        connection::{Wires, uncut},
        link::{self, Attached, Drained, Patience, Take},
    },
    config::CALL,
    error,
};

/// Messages asked for at once.
const MANY: u32 = 1_000;
/// So many links that bring fewer than that end a purge.
const LITTLE: usize = 16;
/// How long the broker looks for another session with messages.
const WAIT: Duration = Duration::from_secs(1);

/// Deletes the ready messages of `path`, tells how many. `most` ends it, and a number of links that bring little: what is published
/// meanwhile must not keep this going for ever. An error tells how many were deleted by the links before it (`deleted_at_least`).
pub(crate) async fn purge(wires: &Wires, path: &str, sessions: bool, most: u64) -> Result<u64> {
    let wire = wires.get().await?;
    let attaching = || async {
        match sessions {
            true => link::session_receiver(&wire, path, Take::Delete, WAIT, std::future::pending()).await,
            false => link::receiver(&wire, path, Take::Delete).await,
        }
    };
    let (mut purged, mut little, mut nothing) = (0, 0, 0);
    while purged < most {
        let attached = match wire.attach(path, attaching).await {
            Ok(attached) => attached,
            Err(e) if sessions && e.kind() == ErrorKind::Timeout => break,
            Err(e) => return Err(e),
        };
        let came = uncut(take(attached)).await.map_err(|e| e.with_context("deleted_at_least", purged))?;
        purged += came;
        little += usize::from(came < u64::from(MANY));
        nothing = if came == 0 { nothing + 1 } else { 0 };
        // Fewer than were asked for are not the end: a broker may answer a drain before it has looked everywhere.
        if !sessions && (nothing == 2 || little == LITTLE) {
            break;
        }
    }
    Ok(purged)
}

/// Takes as many as may be asked for at once. A link does so once: the answer to its drain may still be on its way, and would end
/// what is asked for next.
async fn take(mut attached: Attached<Receiver>) -> Result<u64> {
    let (mut came, mut failure) = (0, None);
    let credited = attached.link.set_credit(MANY).await;
    let drained = link::drain(&mut attached, Patience::Silence(CALL), |delivery| {
        match delivery {
            // One that cannot be read is deleted as well.
            Ok(_) | Err(RecvError::MessageDecode(_)) => came += 1,
            Err(e) => failure = Some(error::of_recv(&e, "purge")),
        }
        failure.is_none() && came < u64::from(MANY)
    })
    .await;
    link::close_receiver(attached).await;
    let failure = failure.or_else(|| credited.err().map(|e| error::lost("purge", &e.to_string())));
    // How many of this link's were deleted is not known then.
    let failure = failure.or_else(|| (drained == Drained::Late).then(|| error::timeout("purge", CALL).may_duplicate()));
    failure.map_or(Ok(came), Err)
}

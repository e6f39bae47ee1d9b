//! Deleting what is ready: receive and delete until the broker says that there is no more.

use std::{sync::Arc, time::Duration};

use fe2o3_amqp::Receiver;
use polybus_core::{Kind, Result};

use crate::{
    connection::{Wire, Wires},
    error,
    link::{self, Attached, Take},
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
        let came = take(&wire, attached).await?;
        purged += came;
        if !sessions && came < u64::from(MANY) {
            return Ok(purged);
        }
    }
}

/// Takes as many as may be asked for at once. A link does so once: the answer to its drain may still be on its way, and would end
/// what is asked for next.
async fn take(wire: &Arc<Wire>, mut attached: Attached<Receiver>) -> Result<u64> {
    let (mut came, mut failure) = (0, None);
    let credited = attached.link.set_credit(MANY).await;
    link::drain(wire, &mut attached.link, |delivery| {
        match delivery {
            Ok(_) => came += 1,
            Err(e) => failure = Some(error::of_recv(&e, "purge")),
        }
        failure.is_none() && came < u64::from(MANY)
    })
    .await;
    link::close_receiver(attached).await;
    let failure = failure.or_else(|| credited.err().map(|e| error::lost("purge", &e.to_string())));
    failure.map_or(Ok(came), Err)
}

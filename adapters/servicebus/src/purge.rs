//! Deleting what is ready: receive and delete until the broker says that there is no more.

use std::time::Duration;

use fe2o3_amqp::{
    Receiver,
    types::{messaging::Body, primitives::Value},
};
use polybus_core::{Kind, Result};
use tokio::time::timeout;

use crate::{
    config::CALL,
    connection::Wires,
    error,
    link::{self, Attached, NextSession, Take},
};

/// Messages asked for at once.
const MANY: u32 = 1_000;
/// How long the broker looks for another session with messages.
const WAIT: Duration = Duration::from_secs(1);
/// How often it is looked whether the broker has said that nothing more comes.
const LOOK: Duration = Duration::from_millis(10);

/// Deletes the ready messages of `path`, tells how many.
pub(crate) async fn purge(wires: &Wires, path: &str, sessions: bool) -> Result<u64> {
    let wire = wires.get().await?;
    wire.authorize(path).await?;
    let next = NextSession { within: WAIT };
    let mut purged = 0;
    loop {
        let attached = match link::receiver(&wire, path, Take::Delete, sessions.then_some(&next)).await {
            Ok(attached) => attached,
            Err(e) if sessions && e.kind() == Kind::Timeout => return Ok(purged),
            Err(e) => return Err(e),
        };
        purged += empty(attached).await?;
        if !sessions {
            return Ok(purged);
        }
    }
}

async fn empty(mut attached: Attached<Receiver>) -> Result<u64> {
    let mut all = 0;
    loop {
        let some = timeout(CALL, some(&mut attached.link)).await.unwrap_or_else(|_| Err(error::timeout("purge", CALL)));
        match some {
            Ok(count) if count == u64::from(MANY) => all += count,
            last => {
                link::close_receiver(attached).await;
                return last.map(|count| all + count);
            }
        }
    }
}

async fn some(link: &mut Receiver) -> Result<u64> {
    let lost = |e: &dyn std::fmt::Display| error::lost("purge", &e.to_string());
    link.set_credit(MANY).await.map_err(|e| lost(&e))?;
    link.drain().await.map_err(|e| lost(&e))?;
    let mut count = 0;
    loop {
        match timeout(LOOK, link.recv::<Body<Value>>()).await {
            Ok(Ok(_)) => count += 1,
            Ok(Err(e)) => return Err(error::of_recv(&e, "purge")),
            // All credit is used, or was taken back.
            Err(_) if link.credit() == 0 => return Ok(count),
            Err(_) => {}
        }
    }
}

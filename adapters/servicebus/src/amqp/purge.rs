//! Purging: receive-and-delete until the broker says that there is nothing more.

use std::time::Duration;

use fe2o3_amqp::link::RecvError;
use polybus_core::{ErrorKind, Result};

use crate::{
    amqp::{
        connection::in_task,
        link::{self, DrainLimit, DrainOutcome, ReceiveMode, ReceiverLink},
    },
    config::CALL_TIMEOUT,
    error,
    transport::namespace::Namespace,
};

const MODE: ReceiveMode = ReceiveMode::ReceiveAndDelete;
/// The credit of one link.
const MESSAGES_PER_LINK: u32 = 1_000;
/// A purge ends after so many links that brought fewer messages than their credit.
const MAX_SHORT_LINKS: usize = 16;
/// How long the broker looks for another session that has messages.
const SESSION_WAIT: Duration = Duration::from_secs(1);

/// Deletes the ready messages of `path`, and returns how many. It ends after `most`, or after some links that brought
/// little: messages that are published meanwhile must not keep it going for ever. An error tells in its context
/// `deleted_at_least` how many were deleted by the links before it.
pub(crate) async fn purge(namespace: &Namespace, path: &str, sessions: bool, most: u64) -> Result<u64> {
    let connection = namespace.connection().await?;
    let attaching = || async {
        match sessions {
            true => link::attach_session_receiver(&connection, path, MODE, SESSION_WAIT, std::future::pending()).await,
            false => link::attach_receiver(&connection, path, MODE).await,
        }
    };
    let (mut purged, mut short_links, mut empty_links) = (0, 0, 0);
    while purged < most {
        let attached = match connection.attach(path, attaching).await {
            Ok(attached) => attached,
            Err(e) if sessions && e.kind() == ErrorKind::Timeout => break,
            Err(e) => return Err(e),
        };
        let deleted = in_task(delete_once(attached)).await.map_err(|e| e.with_context("deleted_at_least", purged))?;
        purged += deleted;
        short_links += usize::from(deleted < u64::from(MESSAGES_PER_LINK));
        empty_links = if deleted == 0 { empty_links + 1 } else { 0 };
        // A link that brought less than its credit is not the end: a broker may answer a drain before it has looked
        // everywhere.
        if !sessions && (empty_links == 2 || short_links == MAX_SHORT_LINKS) {
            break;
        }
    }
    Ok(purged)
}

/// Deletes what one link brings for its credit. A link is given credit once only: the answer to its drain may still be
/// on its way, and would withdraw a second credit.
async fn delete_once(mut attached: ReceiverLink) -> Result<u64> {
    let (mut deleted, mut failure) = (0, None);
    let credited = attached.link.set_credit(MESSAGES_PER_LINK).await;
    let drained = link::drain(&mut attached, DrainLimit::Silence(CALL_TIMEOUT), |delivery| {
        match delivery {
            // A message that cannot be read was deleted as well.
            Ok(_) | Err(RecvError::MessageDecode(_)) => deleted += 1,
            Err(e) => failure = Some(error::of_recv(&e, "purge")),
        }
        failure.is_none() && deleted < u64::from(MESSAGES_PER_LINK)
    })
    .await;
    link::close_receiver(attached).await;
    let failure = failure.or_else(|| credited.err().map(|e| error::lost("purge", &e.to_string())));
    // It is not known then how many messages of this link were deleted.
    let failure = failure
        .or_else(|| (drained == DrainOutcome::TimedOut).then(|| error::timeout("purge", CALL_TIMEOUT).may_duplicate()));
    failure.map_or(Ok(deleted), Err)
}

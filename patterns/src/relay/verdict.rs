//! What the broker's answer means for the row. One table.

use polybus_core::{Envelope, ErrorKind, Receipt, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The broker has the message: the row is deleted.
    Published,
    /// An earlier message of the key failed, so this one was not sent: the row stays, and its answer says nothing.
    NotTried,
    /// The address cannot take messages now: all its rows wait.
    AddressWaits,
    /// The address cannot take messages before a person has mended something: all its rows wait, and an error is logged.
    AddressBroken,
    /// The message can never be sent as it is.
    Park,
    /// Nobody knows. It is parked after several attempts, if other rows of the address pass meanwhile.
    Uncertain,
    /// The bus was closed: the relay ends.
    Closed,
}

/// Judges an answer. `ordered` says that the relay's topology knows the address as ordered.
pub(super) fn verdict(answer: &Result<Receipt>, message: &Envelope, ordered: bool) -> Verdict {
    let error = match answer {
        Ok(_) => return Verdict::Published,
        Err(error) if error.context("after_failed").is_some() => return Verdict::NotTried,
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled => Verdict::AddressWaits,
        ErrorKind::Closed => Verdict::Closed,
        ErrorKind::PayloadTooLarge | ErrorKind::Malformed => Verdict::Park,
        // About this message, if the envelope itself is wrong. Else it is about the address: a relay that was deployed
        // with another topology must not park a million rows.
        ErrorKind::InvalidArgument if message.check().is_err() || (ordered && message.key.is_none()) => Verdict::Park,
        ErrorKind::Unexpected => Verdict::Uncertain,
        _ => Verdict::AddressBroken,
    }
}

#[cfg(test)]
mod tests {
    use polybus_core::Error;

    use super::*;

    #[test]
    fn every_kind_has_its_verdict() {
        let good = Envelope::new("order.placed", "{}").source("/shop");
        let bad = Envelope::new("order placed", "{}").source("/shop");
        let of = |kind, message: &Envelope, ordered| verdict(&Err(Error::new(kind, "x")), message, ordered);
        use ErrorKind::*;
        for (kind, expected) in [
            (NotFound, Verdict::AddressBroken),
            (AlreadyExists, Verdict::AddressBroken),
            (Conflict, Verdict::AddressBroken),
            (PermissionDenied, Verdict::AddressBroken),
            (Unauthenticated, Verdict::AddressBroken),
            (InvalidArgument, Verdict::AddressBroken),
            (ConfigInvalid, Verdict::AddressBroken),
            (PayloadTooLarge, Verdict::Park),
            (Unsupported, Verdict::AddressBroken),
            (Throttled, Verdict::AddressWaits),
            (Timeout, Verdict::AddressWaits),
            (Unavailable, Verdict::AddressWaits),
            (LockLost, Verdict::AddressBroken),
            (Malformed, Verdict::Park),
            (Closed, Verdict::Closed),
            (Unexpected, Verdict::Uncertain),
        ] {
            assert_eq!(of(kind, &good, false), expected, "{kind}");
        }
        assert_eq!(of(InvalidArgument, &bad, false), Verdict::Park);
        assert_eq!(of(InvalidArgument, &good, true), Verdict::Park, "an ordered address, and no key");
        assert_eq!(verdict(&Ok(Receipt::default()), &good, false), Verdict::Published);
        let follower = Error::new(Unavailable, "not sent").with_context("after_failed", "7");
        assert_eq!(verdict(&Err(follower), &good, true), Verdict::NotTried);
    }
}

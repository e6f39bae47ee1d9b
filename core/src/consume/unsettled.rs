//! A message that is not settled yet, and the guard that frees what it holds exactly once: its place in the prefetch
//! window, its lock and its key.

use std::sync::Arc;

use crate::{
    Envelope,
    consume::{consumer::Consumer, lock_renewal::LockId},
    driver::{DeadLetter, DriverToken, ReceivedMessage},
};

/// What core knows of one unsettled message.
pub(crate) struct UnsettledMessage {
    pub(crate) token: DriverToken,
    pub(crate) envelope: Envelope,
    pub(crate) attempt: u32,
    handling: HandlingState,
    pub(crate) lock: Option<LockId>,
    /// Few messages have any of these fields. They are boxed to keep a message small, since it is moved several times.
    rare: Option<Box<RareFields>>,
}

/// What this process has done with a message at this attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HandlingState {
    /// It was not handed out: it waits in the buffer, or core settles it by itself.
    NotHandled,
    HandedOut,
    /// It was handed out and comes again, which [`Consumer::record_handled`] has counted.
    Counted,
}

/// The fields that only dead letters, undecodable messages and foreign messages have.
#[derive(Default)]
pub(crate) struct RareFields {
    pub(crate) malformed: Option<Box<str>>,
    pub(crate) dead_letter: Option<Box<DeadLetter>>,
    pub(crate) known_by: Option<Box<str>>,
    /// The mark that the message came with. An earlier redrive set it.
    pub(crate) mark: Option<Box<str>>,
    /// Settling this message makes a copy; the copy carries this mark.
    pub(crate) copy_mark: Option<Arc<str>>,
    pub(crate) native: Option<DriverToken>,
    pub(crate) group: Option<Box<str>>,
    pub(crate) max_deliveries: Option<u32>,
}

impl UnsettledMessage {
    pub(crate) fn new(received: ReceivedMessage, lock: Option<LockId>) -> Self {
        let ReceivedMessage { token, envelope, attempt, malformed, dead_letter, known_by, mark, native, group, .. } =
            received;
        let max_deliveries = received.max_deliveries;
        let unreadable_or_dead = malformed.is_some() || dead_letter.is_some();
        let is_foreign = native.is_some() || group.is_some() || max_deliveries.is_some();
        let has = unreadable_or_dead || known_by.is_some() || mark.is_some() || is_foreign;
        let rare = has.then(|| {
            let copy_mark = None;
            Box::new(RareFields { malformed, dead_letter, known_by, mark, copy_mark, native, group, max_deliveries })
        });
        Self { token, envelope, attempt, handling: HandlingState::NotHandled, lock, rare }
    }

    /// Counts the handling of this attempt. True if it was not counted before: a message may be settled several times
    /// until the broker accepts it, and was handled once all the same. False for one that was not handed out.
    pub(crate) fn count_handling(&mut self) -> bool {
        let counts = self.handling == HandlingState::HandedOut;
        if counts {
            self.handling = HandlingState::Counted;
        }
        counts
    }

    pub(crate) fn was_handed_out(&self) -> bool {
        self.handling != HandlingState::NotHandled
    }

    /// Whether the message was handed out, and that is not counted.
    pub(crate) fn has_uncounted_handling(&self) -> bool {
        self.handling == HandlingState::HandedOut
    }

    /// The message goes back into the buffer: its next attempt begins.
    pub(crate) fn begin_next_attempt(&mut self) {
        self.attempt += 1;
        self.handling = HandlingState::NotHandled;
    }

    pub(crate) fn rare(&self) -> Option<&RareFields> {
        self.rare.as_deref()
    }

    /// The name of the lane that orders the message: the broker's group, else its key. Messages with neither share one
    /// lane.
    pub(crate) fn lane(&self) -> &str {
        let group = self.rare().and_then(|rare| rare.group.as_deref());
        group.or(self.envelope.key.as_deref()).unwrap_or("")
    }

    /// Why the message could not be decoded; `None` for one that could.
    pub(crate) fn malformed(&self) -> Option<&str> {
        self.rare()?.malformed.as_deref()
    }
}

/// An unsettled message that has left the buffer, with its consumer. Dropping it frees what the message holds and wakes
/// the stream.
pub(crate) struct UnsettledDelivery {
    pub(crate) consumer: Arc<Consumer>,
    message: Option<UnsettledMessage>,
}

impl UnsettledDelivery {
    pub(crate) fn new(consumer: Arc<Consumer>, message: UnsettledMessage) -> Self {
        consumer.add_handed_out();
        Self { consumer, message: Some(message) }
    }

    pub(crate) fn message(&self) -> &UnsettledMessage {
        match &self.message {
            Some(message) => message,
            None => unreachable!("the message is only taken by value"),
        }
    }

    /// The application gets the message.
    pub(crate) fn set_handed_out(&mut self) {
        if let Some(message) = &mut self.message {
            message.handling = HandlingState::HandedOut;
        }
    }

    /// Counts the handling of a message that comes again; see [`UnsettledMessage::count_handling`].
    pub(crate) fn record_handled(&mut self) {
        if let Some(message) = &mut self.message
            && message.count_handling()
        {
            self.consumer.record_handled(message);
        }
    }

    /// Sets the mark for the copy. Settling the message makes that copy.
    pub(crate) fn set_copy_mark(&mut self, mark: Arc<str>) {
        if let Some(message) = &mut self.message {
            message.rare.get_or_insert_default().copy_mark = Some(mark);
        }
    }

    /// Frees what a settled message held. It wakes nobody: see [`Consumer::free_without_waking`].
    pub(crate) fn free_without_waking(mut self) {
        if let Some(message) = self.message.take() {
            self.consumer.remove_handed_out();
            self.consumer.free_without_waking(message);
        }
    }

    /// Takes the message, which stays unsettled and keeps what it holds.
    pub(crate) fn into_message(mut self) -> UnsettledMessage {
        match self.message.take() {
            Some(message) => {
                self.consumer.remove_handed_out();
                message
            }
            None => unreachable!("the message is only taken by value"),
        }
    }

    /// Whether the consumer still holds the message, as far as is known without I/O.
    pub(crate) fn is_held(&self) -> bool {
        self.consumer.holds(self.message())
    }
}

impl Drop for UnsettledDelivery {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.consumer.remove_handed_out();
            self.consumer.free_and_wake(message);
        }
    }
}

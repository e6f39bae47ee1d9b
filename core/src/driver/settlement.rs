//! What a driver is asked to do with a delivery.

use std::{any::Any, sync::Arc, time::Duration};

use time::OffsetDateTime;

use crate::{
    driver::DriverToken,
    error::Result,
    message::{DeadLetter, Envelope},
    topology::Source,
};

/// One settlement for a driver to carry out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SettleRequest {
    /// The delivery.
    pub token: DriverToken,
    /// Its message: a retry or a dead letter is a copy on some brokers.
    pub envelope: Envelope,
    /// The attempt it was handed out as.
    pub attempt: u32,
    /// What to do.
    pub how: Settlement,
    /// Of a dead letter: when it was given up.
    pub time: OffsetDateTime,
    /// Of a redrive: the mark that the copy carries, so that this redrive knows it if it meets it again.
    pub mark: Option<Arc<str>>,
}

impl SettleRequest {
    /// One settlement.
    pub fn new(token: DriverToken, envelope: Envelope, attempt: u32, how: Settlement) -> Self {
        Self { token, envelope, attempt, how, time: OffsetDateTime::UNIX_EPOCH, mark: None }
    }

    /// The same settlement of another driver's token, for drivers that wrap one.
    pub fn with_token(&self, token: DriverToken) -> Self {
        Self { token, ..self.clone() }
    }

    /// The driver's own values of a whole batch, in order; `Unexpected` if one is of another type.
    pub fn tokens<T: Any>(batch: &[Self]) -> Result<Vec<&T>> {
        batch.iter().map(|settle| settle.token.get()).collect()
    }

    /// What a dead letter's copy tells, given up by `from`; `None` for other settlements.
    pub fn dead_letter(&self, from: &Source) -> Option<Box<DeadLetter>> {
        let Settlement::DeadLetter { reason, detail } = &self.how else { return None };
        Some(Box::new(DeadLetter {
            reason: Some(reason.clone()),
            detail: Some(detail.clone()).filter(|d| !d.is_empty()),
            attempt: Some(self.attempt),
            origin: Some(from.to_string().into()),
            time: Some(self.time),
            redriven: 0,
        }))
    }
}

/// What can be done with a delivery.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Settlement {
    /// Done: the message is gone.
    Ack,
    /// Available again at once, with the attempt counted. It is ready then, for [`SourceStats`](crate::topology::SourceStats), not in flight.
    Release,
    /// Was never handed out: available again at once, the attempt not counted where the broker can.
    GiveBack,
    /// Not before this much time, then with attempt + 1; late by at most 10 %; to this source alone.
    RetryAfter(Duration),
    /// Into the source's dead letters, envelope unchanged, with attempt, origin and time.
    DeadLetter {
        /// Why, in one word.
        reason: Box<str>,
        /// Details for a person.
        detail: Box<str>,
    },
    /// On dead letters only: back to the live source alone; same id and headers, counters and reasons stripped. The copy carries
    /// [`SettleRequest::mark`] where one is set.
    Redrive,
    /// As [`Redrive`](Self::Redrive), but this message goes back in place of the original, encoded anew.
    RedriveAs(Box<Envelope>),
    /// On dead letters only: to the end of the dead letters, nothing changed but the mark it carries from then on. Core asks for it only
    /// where [`Capabilities::kept_letters_block`] says that a letter which is held hides those behind it.
    SetAside,
}

impl Settlement {
    /// Whether a copy may be made, so that it takes a round trip.
    pub fn copies(&self) -> bool {
        matches!(
            self,
            Self::RetryAfter(_) | Self::DeadLetter { .. } | Self::Redrive | Self::RedriveAs(_) | Self::SetAside
        )
    }
}

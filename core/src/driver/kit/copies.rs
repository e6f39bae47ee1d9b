//! What a copy of a message carries. Retries, dead letters and redrives of all brokers use the rules of this file.

use crate::{
    Source,
    driver::{DeadLetter, SettleRequest, Settlement},
    message::cloudevents::CopyState,
};

impl CopyState {
    /// The state for the copy that `settle` makes. `self` is the state of the original, `from` the source it was
    /// consumed from.
    ///
    /// | settlement | hop | attempts | dead letter | mark | redriven |
    /// |---|---|---|---|---|---|
    /// | `RetryAfter`, and `Release` where it is a copy | + 1 | as handed out | none | kept | kept |
    /// | `DeadLetter` | + 1 | none | of this settlement | kept | kept |
    /// | `Redrive`, `RedriveAs` | + 1 | none | none | of this redrive | + 1 |
    /// | `SetAside` | + 1 | none | kept | of this redrive | kept |
    ///
    /// A broker that moves a message by itself makes no copy: the message keeps the state that it carried.
    ///
    /// Where the broker may deduplicate, the copy's native id is [`copy_id`](super::names::copy_id), which names the
    /// place of the original. It must not be the message's own id, since a broker that remembers that id drops the copy
    /// and answers Ok. Nor may it be made of the message's source and id alone, since two messages may have the same.
    ///
    /// ```
    /// use std::time::Duration;
    /// use polybus_core::{
    ///     Envelope, Source,
    ///     driver::{DriverToken, SettleRequest, Settlement},
    ///     message::cloudevents::CopyState,
    /// };
    ///
    /// let how = Settlement::RetryAfter(Duration::from_secs(30));
    /// let request = SettleRequest::new(DriverToken::new(()), Envelope::new("order.placed", "{}"), 3, how);
    /// let copy = CopyState::new(1, 0).copied(&request, &Source::queue("orders"));
    /// assert_eq!((copy.hop, copy.attempts), (2, 3));
    /// ```
    pub fn copied(&self, settle: &SettleRequest, from: &Source) -> Self {
        let hop = self.hop.saturating_add(1);
        let mark = || settle.mark.as_deref().map(Into::into).or_else(|| self.mark.clone());
        let (mut carried, redriven) = (Self::new(hop, 0), self.redriven);
        (carried.mark, carried.redriven) = (self.mark.clone(), redriven);
        match settle.how {
            Settlement::DeadLetter { .. } => carried.dead_letter = settle.dead_letter(from),
            Settlement::Redrive | Settlement::RedriveAs(_) => {
                (carried.mark, carried.redriven) = (mark(), redriven.saturating_add(1));
            }
            Settlement::SetAside => (carried.mark, carried.dead_letter) = (mark(), self.dead_letter.clone()),
            _ => carried.attempts = settle.attempt,
        }
        carried
    }

    /// Writes into `letter` how often the message was redriven before.
    ///
    /// ```
    /// use polybus_core::{driver::DeadLetter, message::cloudevents::CopyState};
    ///
    /// let mut state = CopyState::default();
    /// state.redriven = 2;
    /// let mut letter = DeadLetter::default();
    /// state.tell_redriven(&mut letter);
    /// assert_eq!(letter.redriven, 2);
    /// ```
    pub fn tell_redriven(&self, letter: &mut DeadLetter) {
        letter.redriven = self.redriven;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Envelope, driver::DriverToken};

    #[test]
    fn the_table() {
        let q = Source::queue("q");
        let letter = DeadLetter { reason: Some("first".into()), ..DeadLetter::default() };
        let mut original = CopyState::new(4, 9);
        (original.mark, original.redriven) = (Some("old".into()), 2);
        original.dead_letter = Some(Box::new(letter));
        let copy = |how: Settlement| {
            let mut settle = SettleRequest::new(DriverToken::new(()), Envelope::bare("a", ""), 3, how);
            settle.mark = Some("new".into());
            original.copied(&settle, &q)
        };
        let told = |c: &CopyState| {
            let reason = c.dead_letter.as_ref().and_then(|d| d.reason.clone());
            (c.hop, c.attempts, reason.as_deref().map(str::to_owned), c.mark.as_deref().map(str::to_owned), c.redriven)
        };
        let (old, new) = (|| Some("old".to_owned()), || Some("new".to_owned()));
        let second = Settlement::DeadLetter { reason: "second".into(), detail: "".into() };
        assert_eq!(told(&copy(Settlement::RetryAfter(std::time::Duration::ZERO))), (5, 3, None, old(), 2));
        assert_eq!(told(&copy(Settlement::Release)), (5, 3, None, old(), 2));
        assert_eq!(told(&copy(second)), (5, 0, Some("second".into()), old(), 2));
        assert_eq!(told(&copy(Settlement::Redrive)), (5, 0, None, new(), 3));
        assert_eq!(told(&copy(Settlement::RedriveAs(Box::new(Envelope::bare("b", ""))))), (5, 0, None, new(), 3));
        assert_eq!(told(&copy(Settlement::SetAside)), (5, 0, Some("first".into()), new(), 2));
    }
}

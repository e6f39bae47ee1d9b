//! Going through dead letters: a verdict for each, and moving them back to where they came from.

mod guards;
mod horizon;
mod kept;
mod letter;
mod moves;
mod pass;
mod sift;
mod sifted;

pub use self::{
    letter::{RedriveLetter, RedriveVerdict},
    sift::{RedriveGuard, RedriveOptions},
    sifted::{RedriveEnd, RedriveReport},
};
use crate::{
    bus::Bus,
    error::{Error, ErrorKind, Result},
    message::Envelope,
    topology::{Source, SourceStats},
};

impl Bus {
    /// Goes once through the dead letters of `source` and does with each what `decide` says: see [`RedriveVerdict`].
    ///
    /// **What it goes through.** Everything that was there when it began, whatever ids, sources and clocks say, and each letter once. A
    /// letter is known by what the broker knows it by ([`ReceivedMessage::known_by`](crate::driver::ReceivedMessage::known_by)), and by the mark that this pass
    /// leaves on what it moves: one that dies again meanwhile comes back with the mark and is left alone. What arrives later is not
    /// looked at where the broker's counts are exact; where they are approximate, some of it may be.
    ///
    /// **What is moved.** [`RedriveVerdict::Redrive`] sends a letter back to the live source, and to it alone: same id and headers, counters and reasons
    /// stripped. The letter is copied, confirmed, then settled: after a crash one may be there twice, none is lost. Order is not kept. Refused,
    /// counted by cause and left where they are: letters that have `expired`, that no filter of the subscription wants (`unwanted-type`), that
    /// cannot be read (`unreadable`), and those whose copy the broker does not take (`too-large`). [`RedriveOptions::expired`] and [`RedriveOptions::unwanted`] move
    /// the first two all the same.
    ///
    /// **What is left.** Letters that are kept or refused are held until the end and given back then, in an order that the broker may or
    /// may not keep; while they are held, no other consumer of these dead letters sees them. So [`RedriveOptions::hold`] bounds how many there may
    /// be. On ordered sources whose broker hides a key's later letters behind a held one
    /// ([`Capabilities::kept_letters_block`](crate::driver::Capabilities::kept_letters_block)), they are moved to the end of the dead letters
    /// instead, in the order of their key.
    ///
    /// **Errors.** One letter's trouble ends nothing: it stands in [`RedriveReport::failed`], and the letter stays. After three failures in a row that are
    /// the broker's, the pass ends with [`RedriveEnd::Error`]. `Err` is answered only before anything was looked at: `InvalidArgument` for dead
    /// letters of dead letters, `Unsupported` where the broker cannot redrive, `NotFound` for a source that is not there.
    ///
    /// **Cancellation.** Dropping the future gives back what was not moved; moves that were started are finished.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{*, memory, redrive::{RedriveOptions, RedriveVerdict}};
    /// # let driver = std::sync::Arc::new(memory::MemoryDriver::new());
    /// # let bus = Bus::new(driver, BusOptions::topology(Topology::new().queue("payments", QueueSpec::new())))?;
    /// # bus.declare().await?;
    /// # let payments = Source::queue("payments");
    /// let sifted = bus
    ///     .redrive_each(&payments, RedriveOptions::new().rate(50), |letter| match letter.reason() {
    ///         Some("duplicate") => RedriveVerdict::Drop,
    ///         Some("max-deliveries-exceeded") => RedriveVerdict::Redrive,
    ///         _ => RedriveVerdict::Keep,
    ///     })
    ///     .await?;
    /// println!("{sifted}");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn redrive_each(
        &self,
        source: impl Into<Source>,
        how: RedriveOptions,
        decide: impl FnMut(&RedriveLetter) -> RedriveVerdict + Send,
    ) -> Result<RedriveReport> {
        self.redrive_from(&source.into(), how, decide).await.map_err(|e| self.connection().located(e, "redrive"))
    }

    /// Moves dead letters of `source` that `filter` wants back to it: the simple face of [`redrive_each`](Self::redrive_each), whose promises hold here.
    ///
    /// Moves `limit` at most, `usize::MAX` for all. Those that `filter` does not want are kept. The answer tells how many were moved, kept
    /// and refused (by cause), which failed, and what ended it. Letters past their `expires_at` are refused, since no consumer would see them.
    pub async fn redrive(
        &self,
        source: impl Into<Source>,
        mut filter: impl FnMut(&Envelope) -> bool + Send,
        limit: usize,
    ) -> Result<RedriveReport> {
        let decide = |letter: &RedriveLetter| {
            if filter(letter.envelope()) { RedriveVerdict::Redrive } else { RedriveVerdict::Keep }
        };
        self.redrive_each(source, RedriveOptions::new().most(limit), decide).await
    }

    async fn redrive_from(
        &self,
        source: &Source,
        how: RedriveOptions,
        decide: impl FnMut(&RedriveLetter) -> RedriveVerdict + Send,
    ) -> Result<RedriveReport> {
        if source.is_dead_letters() {
            return Err(
                Error::invalid("redrive takes the live source, not its dead letters").with_context("source", source)
            );
        }
        let can = self.capabilities();
        if !can.redrive {
            return Err(
                Error::unsupported("this broker's dead letters cannot be moved back").with_context("source", source)
            );
        }
        self.connection().ensure_open("redrive")?;
        if how.most == 0 || how.read == 0 {
            return Ok(RedriveReport::nothing(if how.most == 0 { RedriveEnd::Most } else { RedriveEnd::Read }));
        }
        let stats = match self.stats(source).await {
            Ok(stats) => stats,
            // Who may send and receive, as a redrive does, may not be allowed to count.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::Unsupported | ErrorKind::PermissionDenied | ErrorKind::Unauthenticated
                ) =>
            {
                SourceStats::default()
            }
            Err(e) => return Err(e),
        };
        pass::Pass::open(self, source, how, decide, &stats).await?.run().await
    }
}

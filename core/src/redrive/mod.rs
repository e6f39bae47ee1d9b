//! Going through dead letters: a verdict for each, and moving them back to where they came from.
//!
//! [`Bus::redrive_each`](crate::bus::Bus::redrive_each) opens a pass (`pass.rs`). It consumes the dead letters like any
//! other source, and asks the application for a [`RedriveVerdict`] on each [`RedriveLetter`].
//!
//! | the letter | goes to |
//! |---|---|
//! | is moved or dropped | `actions`, until the broker has answered its settlement |
//! | is to be moved, and would go back in vain | `refusal_rules` say so; it stays |
//! | stays | `held_letters`, until the pass ends and gives it back |
//!
//! `end_detector` says when everything was read that was there at the start. The [`RedriveReport`] counts it all.

mod actions;
mod end_detector;
mod held_letters;
mod letter_verdict;
mod options;
mod pass;
mod refusal_rules;
mod report;

pub use self::{
    letter_verdict::{RedriveLetter, RedriveVerdict},
    options::{RedriveGuard, RedriveOptions},
    report::{RedriveEnd, RedriveReport},
};
use crate::{Bus, Envelope, Error, ErrorKind, Result, Source, topology::SourceStats};

impl Bus {
    /// Goes once through the dead letters of `source`, and does with each what `decide` says: see [`RedriveVerdict`].
    ///
    /// **Which letters.** Everything that was there at the start, each letter once, whatever ids, sources and clocks
    /// say. A letter is known by [`ReceivedMessage::known_by`](crate::driver::ReceivedMessage::known_by), and by the
    /// mark that this redrive leaves on what it moves: a letter that dies again meanwhile comes back with the mark, and
    /// is left alone. What arrives later is not read where the broker's counts are exact; where they are approximate,
    /// some of it may be.
    ///
    /// **What moving does.** [`RedriveVerdict::Redrive`] sends a letter back to the live source, and to it alone. Id
    /// and headers stay, counters and reasons are stripped. The letter is copied, the copy confirmed, and only then the
    /// letter settled: after a crash one may be there twice, and none is lost. Order is not kept.
    ///
    /// **What is refused.** Some letters are counted by cause and stay where they are: those past their expiry
    /// (`expired`), those that no filter of the subscription wants (`unwanted-type`), those that cannot be read
    /// (`unreadable`), and those whose copy the broker does not take (`too-large`). [`RedriveOptions::expired`] and
    /// [`RedriveOptions::unwanted`] move the first two all the same.
    ///
    /// **What stays.** Letters that are kept or refused are held until the end and then given back, in an order that
    /// the broker may or may not keep. While they are held, no other consumer of these dead letters sees them, so
    /// [`RedriveOptions::hold`] bounds how many there may be. On ordered sources whose broker hides a key's later
    /// letters behind a held one
    /// ([`Capabilities::kept_letters_block`](crate::driver::Capabilities::kept_letters_block)), they are moved to the
    /// end of the dead letters instead, in the order of their key.
    ///
    /// # Errors
    /// One letter's trouble ends nothing: it stands in [`RedriveReport::failed`], and the letter stays. After three
    /// failures in a row that are the broker's own, the redrive ends with [`RedriveEnd::Error`]. `Err` is answered only
    /// before anything was read: `InvalidArgument` for dead letters of dead letters, `Unsupported` where the broker
    /// cannot redrive, `NotFound` for a source that is not there.
    ///
    /// # Cancel safety
    /// Dropping the future gives back what was not moved; moves that were started are finished.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{*, memory, redrive::{RedriveOptions, RedriveVerdict}};
    /// # let driver = std::sync::Arc::new(memory::MemoryDriver::new());
    /// # let bus = Bus::new(driver, BusOptions::topology(Topology::new().queue("payments", QueueSpec::new())))?;
    /// # bus.declare().await?;
    /// # let payments = Source::queue("payments");
    /// let report = bus
    ///     .redrive_each(&payments, RedriveOptions::new().rate(50), |letter| match letter.reason() {
    ///         Some("duplicate") => RedriveVerdict::Drop,
    ///         Some("max-deliveries-exceeded") => RedriveVerdict::Redrive,
    ///         _ => RedriveVerdict::Keep,
    ///     })
    ///     .await?;
    /// println!("{report}");
    /// # Ok(()) }
    /// ```
    pub async fn redrive_each(
        &self,
        source: impl Into<Source>,
        options: RedriveOptions,
        decide: impl FnMut(&RedriveLetter) -> RedriveVerdict + Send,
    ) -> Result<RedriveReport> {
        self.redrive_from(&source.into(), options, decide).await.map_err(|e| self.connection().located(e, "redrive"))
    }

    /// Moves those dead letters of `source` that `filter` wants back to it, `limit` of them at most; `usize::MAX` for
    /// all.
    ///
    /// This is [`redrive_each`](Self::redrive_each) with two verdicts, and its promises hold here. Letters that
    /// `filter` does not want are kept. Letters past their `expires_at` are refused, since no consumer would see them.
    ///
    /// # Errors
    /// Those of [`redrive_each`](Self::redrive_each).
    ///
    /// # Cancel safety
    /// That of [`redrive_each`](Self::redrive_each).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let payments = Source::queue("payments");
    /// # bus.publish(payments.address(), Envelope::new("payment.made", "{}")).await?;
    /// let mut subscription = bus.subscribe(&payments).open().await?;
    /// if let Some(delivery) = subscription.next().await {
    ///     delivery?.dead_letter("bank-away", "no answer for a day").await?;
    /// }
    /// let report = bus.redrive(&payments, |message| &*message.event_type == "payment.made", 100).await?;
    /// assert_eq!(report.moved, 1);
    /// # Ok(()) }
    /// ```
    #[doc(alias("replay", "move dead letters"))]
    pub async fn redrive(
        &self,
        source: impl Into<Source>,
        mut filter: impl FnMut(&Envelope) -> bool + Send,
        limit: usize,
    ) -> Result<RedriveReport> {
        let decide = |letter: &RedriveLetter| {
            if filter(letter.envelope()) { RedriveVerdict::Redrive } else { RedriveVerdict::Keep }
        };
        self.redrive_each(source, RedriveOptions::new().limit(limit), decide).await
    }

    async fn redrive_from(
        &self,
        source: &Source,
        options: RedriveOptions,
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
        if options.limit == 0 || options.read_limit == 0 {
            return Ok(RedriveReport::nothing(if options.limit == 0 {
                RedriveEnd::Limit
            } else {
                RedriveEnd::ReadLimit
            }));
        }
        let stats = match self.stats(source).await {
            Ok(stats) => stats,
            // Credentials that may send and receive, which is all that a redrive needs, may lack the right to count.
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
        pass::RedrivePass::open(self, source, options, decide, &stats).await?.run().await
    }
}

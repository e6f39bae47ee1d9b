//! One pass over the dead letters of a source: reads each once, asks for its verdict, and carries that out.

use std::collections::HashSet;

use tokio::time::{Instant, sleep_until};

use super::{
    RedriveEnd, RedriveLetter, RedriveOptions, RedriveReport, RedriveVerdict,
    actions::{FinishedAction, LetterAction, RateLimit, RunningActions, UNDER_WAY},
    end_detector::EndDetector,
    held_letters::{HeldLetters, HoldReason, PassMark},
    refusal_rules::{self, RefusalRules, ReplacementRefusal},
};
use crate::{Bus, Error, ErrorKind, Result, Source, Subscription, driver::Settlement, topology::SourceStats};

/// The prefetch of the first consumer. Each further one has twice as much.
const WINDOW: usize = 128;
/// This many failures in a row that are the broker's own end the pass.
const FAILURES: u32 = 3;
/// This many lost locks in a row, without a move in between, end the pass too.
const LOSSES: u32 = 1_000;

/// The state of one pass.
///
/// A letter that is read goes one of two ways. It is acted upon: then it is in `actions` until the broker has answered.
/// Or it stays: then it is in `held` until the pass ends, since a letter that is given back earlier would be handed out
/// again.
pub(super) struct RedrivePass<'a, D> {
    bus: &'a Bus,
    source: &'a Source,
    options: RedriveOptions,
    decide: D,
    rules: RefusalRules,
    end: EndDetector,
    mark: PassMark,
    rate: RateLimit,
    subscription: Subscription,
    window: usize,
    /// Consumers whose whole window is letters that stay. They are stopped, and open until the pass ends so that the
    /// letters stay held.
    full_subscriptions: Vec<Subscription>,
    held: HeldLetters,
    actions: RunningActions,
    /// A held letter hides the later ones of its key at this broker. Letters that stay are therefore set aside, not
    /// held.
    sets_aside: bool,
    /// The letters that were read, by [`RedriveLetter::known_by`].
    seen: HashSet<Box<str>>,
    failures: u32,
    losses: u32,
    /// The failures in a row to set a letter aside that are the broker's own. They are counted apart: a broker may let
    /// one kind of action pass and refuse the other.
    set_aside_failures: u32,
    /// Why a letter was not set aside. It is held, and hides the later ones of its key.
    not_set_aside: Option<Error>,
    /// While receiving fails: when the pass stops waiting for the broker.
    trouble_ends: Option<Instant>,
    report: RedriveReport,
    ended: Option<RedriveEnd>,
}

impl<'a, D: FnMut(&RedriveLetter) -> RedriveVerdict + Send> RedrivePass<'a, D> {
    pub(super) async fn open(
        bus: &'a Bus,
        source: &'a Source,
        options: RedriveOptions,
        decide: D,
        stats: &SourceStats,
    ) -> Result<Self> {
        let live = bus.connection().topology.source(source);
        let end = EndDetector::new(stats);
        let depth = end.exactly().map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let pace = options.rate.map_or(usize::MAX, |rate| rate.get() as usize);
        let window = WINDOW.min(options.limit).min(options.read_limit).min(options.hold).min(depth).min(pace).max(1);
        Ok(Self {
            bus,
            source,
            sets_aside: live.settings.ordered && bus.capabilities().kept_letters_block,
            rules: RefusalRules::new(live, &options),
            end,
            mark: PassMark::new(),
            rate: RateLimit::new(options.rate),
            subscription: bus.subscribe(source.dead_letters()).prefetch(window).open().await?,
            window,
            full_subscriptions: Vec::new(),
            held: HeldLetters::default(),
            actions: RunningActions::default(),
            seen: HashSet::new(),
            failures: 0,
            losses: 0,
            set_aside_failures: 0,
            not_set_aside: None,
            trouble_ends: None,
            report: RedriveReport::nothing(RedriveEnd::Empty),
            ended: None,
            options,
            decide,
        })
    }

    pub(super) async fn run(mut self) -> Result<RedriveReport> {
        let ended = loop {
            while let Some(done) = self.actions.try_next() {
                self.record(done);
            }
            if let Some(ended) = self.has_ended().await {
                break ended;
            }
            if self.held.of_current() >= self.window
                && let Some(ended) = self.widen().await
            {
                break ended;
            }
            let room = self.actions.len() < UNDER_WAY && self.acted_upon() < self.options.limit;
            let asked = Instant::now();
            let silent = asked + self.end.wait_for_next(self.report.read);
            tokio::select! {
                biased;
                Some(done) = self.actions.next(), if !self.actions.is_empty() => self.record(done),
                letter = self.subscription.next(), if room => match letter {
                    Some(Ok(letter)) => {
                        self.trouble_ends = None;
                        self.end.letter_came_after(asked.elapsed());
                        self.judge(RedriveLetter(letter)).await;
                    }
                    Some(Err(e)) => self.end_with_error(e),
                    None if self.end.has_all(self.report.read) => break RedriveEnd::Empty,
                    None => break RedriveEnd::Silence,
                },
                // An action that is under way may still fail and leave room for another letter.
                () = sleep_until(silent), if self.actions.is_empty() => if let Some(ended) = self.after_silence().await {
                    break ended;
                },
            }
        };
        while let Some(done) = self.actions.next().await {
            self.record(done);
        }
        if ended == RedriveEnd::Silence
            && let Some(e) = self.not_set_aside.take()
        {
            // Nothing more came because letters hide the rest that this pass had to hold.
            self.end_with_error(e);
        }
        self.report.ended = if self.report.error.is_some() { RedriveEnd::Error } else { ended };
        self.uncount_lost();
        self.report.left = self.end.left(self.report.read);
        self.report_progress();
        let Self { held, full_subscriptions, subscription, report, .. } = self;
        held.give_back().await;
        for mut subscription in full_subscriptions.into_iter().chain([subscription]) {
            if let Err(e) = subscription.close().await {
                tracing::debug!(source = %subscription.source(), error = %e, "closing a redrive's consumer failed");
            }
        }
        Ok(report)
    }

    /// How many were acted upon, or will be if all goes well.
    fn acted_upon(&self) -> usize {
        let done = self.report.moved + self.report.dropped;
        usize::try_from(done).unwrap_or(usize::MAX).saturating_add(self.actions.acting())
    }

    async fn has_ended(&mut self) -> Option<RedriveEnd> {
        let read = self.report.read;
        if self.ended.is_some() {
            return self.ended;
        }
        if self.acted_upon() >= self.options.limit {
            // An action that fails leaves its place to another letter, so the end waits for all of them.
            return self.actions.is_empty().then_some(RedriveEnd::Limit);
        }
        if read >= self.options.read_limit as u64 {
            return Some(RedriveEnd::ReadLimit);
        }
        if let Some(ended) = self.end.all_read(read) {
            // A letter whose action turns out to be lost comes again.
            return self.actions.is_empty().then_some(ended);
        }
        if self.end.wants_count(read) {
            let there = self.count_remaining().await;
            return self.end.recounted(read, there);
        }
        None
    }

    /// Decides what it means that nothing came for a while: the end of the pass, or trouble at the broker. Trouble is
    /// waited out for as long as a publish would be.
    async fn after_silence(&mut self) -> Option<RedriveEnd> {
        let trouble = self.subscription.receive_error();
        if let Some(e) = trouble {
            let until = *self.trouble_ends.get_or_insert_with(|| self.bus.connection().deadline(Instant::now()));
            if Instant::now() >= until {
                self.end_with_error(e);
            }
            return None;
        }
        self.trouble_ends = None;
        let read = self.report.read;
        let there = match self.end.doubts_silence(read) {
            true => self.count_remaining().await,
            false => None,
        };
        self.end.after_silence(read, there)
    }

    /// The broker's count of dead letters, less those that this pass holds or acts upon.
    async fn count_remaining(&self) -> Option<u64> {
        let stats = self.bus.stats(self.source).await.unwrap_or_default();
        let in_hand = (self.held.len() + self.actions.len()) as u64;
        stats.dead_lettered.map(|n| n.saturating_sub(in_hand))
    }

    /// Goes on with another consumer and a larger window, since letters that stay fill this one's.
    async fn widen(&mut self) -> Option<RedriveEnd> {
        let window = self.window.saturating_mul(2).min(self.options.hold.saturating_sub(self.held.len()));
        if window == 0 {
            // Letters that were set aside come again after all others were read, and are held then.
            return Some(if self.end.has_all(self.report.read) { RedriveEnd::Empty } else { RedriveEnd::Full });
        }
        let next = match self.subscription.stop().await {
            Ok(()) => self.bus.subscribe(self.source.dead_letters()).prefetch(window).open().await,
            Err(e) => Err(e),
        };
        match next {
            Ok(next) => {
                self.full_subscriptions.push(std::mem::replace(&mut self.subscription, next));
                self.window = window;
                self.held.consumer_changed();
                None
            }
            Err(e) => {
                self.end_with_error(e);
                Some(RedriveEnd::Error)
            }
        }
    }

    /// Asks for the verdict on a letter that was received and acts on it. A letter that this pass has seen is only
    /// held.
    async fn judge(&mut self, letter: RedriveLetter) {
        self.uncount_lost();
        if self.mark.has_moved(letter.0.mark()) {
            self.report.returned += 1;
            self.hold(letter, HoldReason::SeenBefore);
            return self.report_progress();
        }
        let known = letter.known_by().is_some_and(|by| self.seen.contains(by));
        if known || self.mark.has_set_aside(letter.0.mark()) {
            return self.hold(letter, HoldReason::SeenBefore);
        }
        if let Some(by) = letter.known_by() {
            self.seen.insert(by.into());
        }
        self.report.read += 1;
        match (self.decide)(&letter) {
            RedriveVerdict::Keep => self.leave(letter, HoldReason::Kept),
            RedriveVerdict::Stop => {
                self.ended = Some(RedriveEnd::Stopped);
                self.report.kept += 1;
                self.hold(letter, HoldReason::Kept);
            }
            RedriveVerdict::Drop => self.start_when_due(letter, LetterAction::Drop, Settlement::Ack).await,
            RedriveVerdict::Redrive => match self.rules.refusal_of(self.bus, &letter) {
                Some(cause) => self.leave(letter, HoldReason::Refused(cause)),
                None => self.start_when_due(letter, LetterAction::Move, Settlement::Redrive).await,
            },
            RedriveVerdict::RedriveAs(message) => match self.rules.replacement(self.bus, &letter, message) {
                Ok(message) => {
                    self.start_when_due(letter, LetterAction::Move, Settlement::RedriveAs(Box::new(message))).await
                }
                Err(ReplacementRefusal::Cause(cause)) => self.leave(letter, HoldReason::Refused(cause)),
                Err(ReplacementRefusal::Invalid(e)) => {
                    let e = self.bus.connection().located(e, "redrive");
                    self.report.failed.push((letter.envelope().id.clone(), e));
                    self.leave(letter, HoldReason::Failed);
                }
            },
        }
        self.report_progress();
    }

    /// Starts an action once the rate allows it, and records those that finish meanwhile.
    async fn start_when_due(&mut self, letter: RedriveLetter, action: LetterAction, how: Settlement) {
        while let Some(at) = self.rate.not_before() {
            tokio::select! {
                biased;
                Some(done) = self.actions.next(), if !self.actions.is_empty() => self.record(done),
                () = sleep_until(at) => break,
            }
        }
        self.rate.count_start();
        self.start(letter, action, how);
    }

    fn start(&mut self, letter: RedriveLetter, action: LetterAction, how: Settlement) {
        let letter = RedriveLetter(letter.0.with_copy_mark(self.mark.for_settlement(&how)));
        self.actions.start(letter, action, how);
    }

    /// Counts a letter that stays, and sets it aside or holds it.
    fn leave(&mut self, letter: RedriveLetter, reason: HoldReason) {
        match reason {
            HoldReason::Kept => self.report.kept += 1,
            HoldReason::Refused(cause) => *self.report.refused.entry(cause).or_default() += 1,
            HoldReason::Failed | HoldReason::SeenBefore => {}
        }
        if self.sets_aside {
            self.start(letter, LetterAction::SetAside(reason), Settlement::SetAside);
        } else {
            self.hold(letter, reason);
        }
    }

    fn hold(&mut self, letter: RedriveLetter, reason: HoldReason) {
        self.held.hold(letter, reason, &self.subscription);
    }

    /// Counts a finished action.
    fn record(&mut self, done: Result<FinishedAction, Error>) {
        let FinishedAction { action, id, known_by, result } = match done {
            Ok(done) => done,
            Err(e) => return self.end_with_error(e),
        };
        match (action, result) {
            (LetterAction::Move, Ok(())) => self.report.moved += 1,
            (LetterAction::Drop, Ok(())) => self.report.dropped += 1,
            (LetterAction::SetAside(_), Ok(())) => {
                self.set_aside_failures = 0;
                return;
            }
            (action, Err(e)) => {
                let (e, letter) = e.into_parts();
                return self.record_failure(action, id, known_by, e, letter.map(RedriveLetter));
            }
        }
        (self.failures, self.losses) = (0, 0);
        self.report_progress();
    }

    fn record_failure(
        &mut self,
        action: LetterAction,
        id: Box<str>,
        known_by: Option<Box<str>>,
        e: Error,
        letter: Option<RedriveLetter>,
    ) {
        if e.kind() == ErrorKind::LockLost && !e.is_copy_kept() {
            return self.record_loss(action, &id, known_by, e);
        }
        match (action, refusal_rules::refusal_cause(&e)) {
            (LetterAction::SetAside(reason), _) => self.record_not_set_aside(reason, id, e, letter),
            (LetterAction::Move, Some(cause)) => match letter {
                Some(letter) => self.leave(letter, HoldReason::Refused(cause)),
                None => *self.report.refused.entry(cause).or_default() += 1,
            },
            _ => {
                self.failures = if refusal_rules::is_broker_failure(&e) { self.failures + 1 } else { 0 };
                if self.failures >= FAILURES {
                    self.end_with_error(e.clone());
                }
                let what = if action == LetterAction::Drop { "dropped" } else { "moved" };
                tracing::warn!(source = %self.source, id, error = %e, "a dead letter could not be {what}");
                self.report.failed.push((id, e));
                if let Some(letter) = letter {
                    self.leave(letter, HoldReason::Failed);
                }
            }
        }
        self.report_progress();
    }

    /// The lock was lost before anything was done. The letter comes again and is judged as if it were new.
    fn record_loss(&mut self, action: LetterAction, id: &str, known_by: Option<Box<str>>, e: Error) {
        let forgotten = match action {
            LetterAction::Move | LetterAction::Drop => true,
            LetterAction::SetAside(reason) => self.uncount(reason, id),
        };
        if forgotten {
            known_by.map(|by| self.seen.remove(&by));
            self.report.read -= 1;
        }
        self.losses += 1;
        if self.losses >= LOSSES {
            self.end_with_error(e);
        }
        self.report_progress();
    }

    /// The letter stays where it is, and hides the later ones of its key while it is held.
    fn record_not_set_aside(&mut self, reason: HoldReason, id: Box<str>, e: Error, letter: Option<RedriveLetter>) {
        self.not_set_aside.get_or_insert_with(|| e.clone());
        let mut holds_as = reason;
        if e.kind() == ErrorKind::Unsupported {
            // No fault of the letter, and no other letter is set aside from now on.
            self.sets_aside = false;
        } else {
            self.set_aside_failures =
                if refusal_rules::is_broker_failure(&e) { self.set_aside_failures + 1 } else { 0 };
            if self.set_aside_failures >= FAILURES {
                self.end_with_error(e.clone());
            }
            tracing::warn!(source = %self.source, id, error = %e, "a dead letter could not be set aside");
            // It counts as failed, and no longer by why it stays. One that failed before has its error already.
            if matches!(reason, HoldReason::Kept | HoldReason::Refused(_)) && self.uncount(reason, &id) {
                self.report.failed.push((id, e));
                holds_as = HoldReason::Failed;
            }
        }
        if let Some(letter) = letter {
            self.hold(letter, holds_as);
        }
    }

    /// Takes a letter out of the count of those that stay for this reason. False if it must stay counted: it was not
    /// counted for this reason, or it was moved as well, so that judging it anew would move it twice.
    fn uncount(&mut self, reason: HoldReason, id: &str) -> bool {
        match reason {
            HoldReason::Kept => self.report.kept -= 1,
            HoldReason::Refused(cause) => {
                if let Some(n) = self.report.refused.get_mut(cause) {
                    *n -= 1;
                }
                self.report.refused.retain(|_, n| *n > 0);
            }
            HoldReason::Failed => {
                let failed = &mut self.report.failed;
                match failed.iter().rposition(|(of, e)| **of == *id && !e.is_copy_kept()) {
                    Some(at) => drop(failed.remove(at)),
                    None => return false,
                }
            }
            HoldReason::SeenBefore => return false,
        }
        true
    }

    /// Ends the pass with this error. The first one counts.
    fn end_with_error(&mut self, e: Error) {
        self.ended = Some(RedriveEnd::Error);
        self.report.error.get_or_insert(e);
    }

    /// Takes held letters whose locks were lost out of the counts: they come again and are counted then.
    fn uncount_lost(&mut self) {
        for (reason, id) in self.held.drop_lost(&self.subscription) {
            if self.uncount(reason, &id) {
                self.report.read -= 1;
            }
        }
    }

    fn report_progress(&self) {
        if let Some(callback) = &self.options.progress {
            callback(&self.report);
        }
    }
}

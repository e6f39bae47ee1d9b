//! One pass over the dead letters.

use std::collections::HashSet;

use tokio::time::{Instant, sleep_until};

use super::{
    RedriveEnd, RedriveLetter, RedriveOptions, RedriveReport, RedriveVerdict,
    guards::{self, Guards, Refused},
    horizon::Horizon,
    kept::{Kept, Mark, Why},
    moves::{Act, Done, Moves, Pace, UNDER_WAY},
};
use crate::{
    bus::Bus,
    consume::Subscription,
    driver::Settlement,
    error::{Error, ErrorKind, Result},
    topology::{Source, SourceStats},
};

/// Dead letters held at once, at first.
const WINDOW: usize = 128;
/// So many failures in a row that are the broker's end the pass.
const FAILURES: u32 = 3;
/// So many letters lost in a row, before any was moved, end it too.
const LOSSES: u32 = 1_000;

pub(super) struct Pass<'a, D> {
    bus: &'a Bus,
    source: &'a Source,
    how: RedriveOptions,
    decide: D,
    guards: Guards,
    horizon: Horizon,
    mark: Mark,
    pace: Pace,
    letters: Subscription,
    window: usize,
    /// Consumers whose window is full of what stays; they hold it until the end.
    full: Vec<Subscription>,
    kept: Kept,
    moves: Moves,
    /// Held letters hide others, so those that stay are set aside.
    aside: bool,
    /// What the broker knows those by that were looked at.
    seen: HashSet<Box<str>>,
    failures: u32,
    losses: u32,
    /// Until when the broker's trouble is waited out.
    troubled: Option<Instant>,
    sifted: RedriveReport,
    over: Option<RedriveEnd>,
}

impl<'a, D: FnMut(&RedriveLetter) -> RedriveVerdict + Send> Pass<'a, D> {
    pub(super) async fn open(
        bus: &'a Bus,
        source: &'a Source,
        how: RedriveOptions,
        decide: D,
        stats: &SourceStats,
    ) -> Result<Self> {
        let live = bus.connection().topology.source(source);
        let horizon = Horizon::new(stats);
        let depth = horizon.exactly().map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let pace = how.rate.map_or(usize::MAX, |rate| rate.get() as usize);
        let window = WINDOW.min(how.most).min(how.read).min(how.hold).min(depth).min(pace).max(1);
        Ok(Self {
            bus,
            source,
            aside: live.settings.ordered && bus.capabilities().kept_letters_block,
            guards: Guards::new(live, &how),
            horizon,
            mark: Mark::new(),
            pace: Pace::new(how.rate),
            letters: bus.subscribe(source.dead_letters()).prefetch(window).open().await?,
            window,
            full: Vec::new(),
            kept: Kept::default(),
            moves: Moves::default(),
            seen: HashSet::new(),
            failures: 0,
            losses: 0,
            troubled: None,
            sifted: RedriveReport::nothing(RedriveEnd::Empty),
            over: None,
            how,
            decide,
        })
    }

    pub(super) async fn run(mut self) -> Result<RedriveReport> {
        let ended = loop {
            while let Some(done) = self.moves.ready() {
                self.note(done);
            }
            if let Some(ended) = self.has_ended().await {
                break ended;
            }
            if self.kept.here() >= self.window
                && let Some(ended) = self.widen().await
            {
                break ended;
            }
            let room = self.moves.len() < UNDER_WAY && self.acted() < self.how.most;
            let asked = Instant::now();
            let silent = asked + self.horizon.quiet(self.sifted.read);
            tokio::select! {
                biased;
                Some(done) = self.moves.next(), if !self.moves.is_empty() => self.note(done),
                letter = self.letters.next(), if room => match letter {
                    Some(Ok(letter)) => {
                        self.troubled = None;
                        self.horizon.waited(asked.elapsed());
                        self.judge(RedriveLetter(letter)).await;
                    }
                    Some(Err(e)) => self.fail(e),
                    None if self.horizon.has_all(self.sifted.read) => break RedriveEnd::Empty,
                    None => break RedriveEnd::Silence,
                },
                // What is under way may still make room.
                () = sleep_until(silent), if self.moves.is_empty() => if let Some(ended) = self.silence().await {
                    break ended;
                },
            }
        };
        while let Some(done) = self.moves.next().await {
            self.note(done);
        }
        self.sifted.ended = if self.sifted.error.is_some() { RedriveEnd::Error } else { ended };
        self.uncount_lost();
        self.sifted.left = self.horizon.left(self.sifted.read);
        self.tell();
        let Self { kept, full, letters, sifted, .. } = self;
        kept.give_back().await;
        for mut letters in full.into_iter().chain([letters]) {
            if let Err(e) = letters.close().await {
                tracing::debug!(source = %letters.source(), error = %e, "closing a redrive's consumer failed");
            }
        }
        Ok(sifted)
    }

    /// How many were acted upon, or will be if all goes well.
    fn acted(&self) -> usize {
        let done = self.sifted.moved + self.sifted.dropped;
        usize::try_from(done).unwrap_or(usize::MAX).saturating_add(self.moves.acting())
    }

    async fn has_ended(&mut self) -> Option<RedriveEnd> {
        let read = self.sifted.read;
        if self.over.is_some() {
            return self.over;
        }
        if self.acted() >= self.how.most {
            // One that fails leaves its place to another.
            return self.moves.is_empty().then_some(RedriveEnd::Most);
        }
        if read >= self.how.read as u64 {
            return Some(RedriveEnd::Read);
        }
        if let Some(ended) = self.horizon.passed(read) {
            // Those that turn out to be lost come again.
            return self.moves.is_empty().then_some(ended);
        }
        if self.horizon.wants_count(read) {
            let there = self.count().await;
            return self.horizon.recount(read, there);
        }
        None
    }

    /// Nothing came for a while: whether that is the end, or the broker is in trouble, which is waited out like everywhere else.
    async fn silence(&mut self) -> Option<RedriveEnd> {
        let trouble = self.letters.trouble();
        if let Some(e) = trouble {
            let until = *self.troubled.get_or_insert_with(|| self.bus.connection().deadline(Instant::now()));
            if Instant::now() >= until {
                self.fail(e);
            }
            return None;
        }
        self.troubled = None;
        let read = self.sifted.read;
        let there = match self.horizon.doubts(read) {
            true => self.count().await,
            false => None,
        };
        self.horizon.silence(read, there)
    }

    /// How many the broker counts now, beside those in hand.
    async fn count(&self) -> Option<u64> {
        let stats = self.bus.stats(self.source).await.unwrap_or_default();
        let in_hand = (self.kept.len() + self.moves.len()) as u64;
        stats.dead_lettered.map(|n| n.saturating_sub(in_hand))
    }

    /// A window that is full of what stays: another consumer goes on, with a larger one.
    async fn widen(&mut self) -> Option<RedriveEnd> {
        let window = self.window.saturating_mul(2).min(self.how.hold.saturating_sub(self.kept.len()));
        if window == 0 {
            // What is set aside comes again once all was looked at.
            return Some(if self.horizon.has_all(self.sifted.read) { RedriveEnd::Empty } else { RedriveEnd::Full });
        }
        let next = match self.letters.stop().await {
            Ok(()) => self.bus.subscribe(self.source.dead_letters()).prefetch(window).open().await,
            Err(e) => Err(e),
        };
        match next {
            Ok(next) => {
                self.full.push(std::mem::replace(&mut self.letters, next));
                self.window = window;
                self.kept.moved_on();
                None
            }
            Err(e) => {
                self.fail(e);
                Some(RedriveEnd::Error)
            }
        }
    }

    async fn judge(&mut self, letter: RedriveLetter) {
        self.uncount_lost();
        if self.mark.has_moved(letter.0.mark()) {
            self.sifted.returned += 1;
            self.hold(letter, Why::Again);
            return self.tell();
        }
        let known = letter.known_by().is_some_and(|by| self.seen.contains(by));
        if known || self.mark.has_set_aside(letter.0.mark()) {
            return self.hold(letter, Why::Again);
        }
        if let Some(by) = letter.known_by() {
            self.seen.insert(by.into());
        }
        self.sifted.read += 1;
        match (self.decide)(&letter) {
            RedriveVerdict::Keep => self.stays(letter, Why::Kept),
            RedriveVerdict::Stop => {
                self.over = Some(RedriveEnd::Stopped);
                self.sifted.kept += 1;
                self.hold(letter, Why::Kept);
            }
            RedriveVerdict::Drop => self.act(letter, Act::Drop, Settlement::Ack).await,
            RedriveVerdict::Redrive => match self.guards.refuses(self.bus, &letter) {
                Some(cause) => self.stays(letter, Why::Refused(cause)),
                None => self.act(letter, Act::Move, Settlement::Redrive).await,
            },
            RedriveVerdict::RedriveAs(message) => match self.guards.replacement(self.bus, &letter, message) {
                Ok(message) => self.act(letter, Act::Move, Settlement::RedriveAs(Box::new(message))).await,
                Err(Refused::For(cause)) => self.stays(letter, Why::Refused(cause)),
                Err(Refused::With(e)) => {
                    let e = self.bus.connection().located(e, "redrive");
                    self.sifted.failed.push((letter.envelope().id.clone(), e));
                    self.stays(letter, Why::Failed);
                }
            },
        }
        self.tell();
    }

    /// Starts an action, at its pace.
    async fn act(&mut self, letter: RedriveLetter, act: Act, how: Settlement) {
        while let Some(at) = self.pace.wait() {
            tokio::select! {
                biased;
                Some(done) = self.moves.next(), if !self.moves.is_empty() => self.note(done),
                () = sleep_until(at) => break,
            }
        }
        self.pace.started();
        self.start(letter, act, how);
    }

    fn start(&mut self, letter: RedriveLetter, act: Act, how: Settlement) {
        let letter = RedriveLetter(letter.0.stamped(self.mark.of(&how)));
        self.moves.start(letter, act, how);
    }

    /// A letter that is not moved, for this reason.
    fn stays(&mut self, letter: RedriveLetter, why: Why) {
        match why {
            Why::Kept => self.sifted.kept += 1,
            Why::Refused(cause) => *self.sifted.refused.entry(cause).or_default() += 1,
            Why::Failed | Why::Again => {}
        }
        if self.aside {
            self.start(letter, Act::Aside(why), Settlement::SetAside);
        } else {
            self.hold(letter, why);
        }
    }

    fn hold(&mut self, letter: RedriveLetter, why: Why) {
        self.kept.hold(letter, why, &self.letters);
    }

    /// Takes down what came of an action.
    fn note(&mut self, done: Result<Done, Error>) {
        let Done { act, id, known_by, result } = match done {
            Ok(done) => done,
            Err(e) => return self.fail(e),
        };
        match (act, result) {
            (Act::Move, Ok(())) => self.sifted.moved += 1,
            (Act::Drop, Ok(())) => self.sifted.dropped += 1,
            (Act::Aside(_), Ok(())) => return,
            (act, Err(e)) => {
                let (e, letter) = e.into_parts();
                return self.failed(act, id, known_by, e, letter.map(RedriveLetter));
            }
        }
        (self.failures, self.losses) = (0, 0);
        self.tell();
    }

    fn failed(&mut self, act: Act, id: Box<str>, known_by: Option<Box<str>>, e: Error, letter: Option<RedriveLetter>) {
        let lost = e.kind() == ErrorKind::LockLost && e.context("copy").is_none();
        match (act, guards::told_by(&e)) {
            // It stays in any case.
            (Act::Aside(why), _) => {
                if e.kind() == ErrorKind::Unsupported {
                    self.aside = false;
                }
                if let Some(letter) = letter {
                    self.hold(letter, why);
                }
                return;
            }
            // Nothing was done: it comes again, and is judged anew.
            _ if lost => {
                known_by.map(|by| self.seen.remove(&by));
                self.sifted.read -= 1;
                self.losses += 1;
                if self.losses >= LOSSES {
                    self.fail(e);
                }
                return self.tell();
            }
            (Act::Move, Some(cause)) => match letter {
                Some(letter) => self.stays(letter, Why::Refused(cause)),
                None => *self.sifted.refused.entry(cause).or_default() += 1,
            },
            _ => {
                self.failures = if guards::is_the_brokers(&e) { self.failures + 1 } else { 0 };
                if self.failures >= FAILURES {
                    self.fail(e.clone());
                }
                tracing::warn!(source = %self.source, id, error = %e, "a dead letter could not be moved");
                self.sifted.failed.push((id, e));
                if let Some(letter) = letter {
                    self.stays(letter, Why::Failed);
                }
            }
        }
        self.tell();
    }

    /// Ends the pass.
    fn fail(&mut self, e: Error) {
        self.over = Some(RedriveEnd::Error);
        self.sifted.error.get_or_insert(e);
    }

    /// What was held and is lost comes again, and is then counted as what it is.
    fn uncount_lost(&mut self) {
        for why in self.kept.sweep(&self.letters) {
            match why {
                Why::Kept => self.sifted.kept -= 1,
                Why::Refused(cause) => {
                    if let Some(n) = self.sifted.refused.get_mut(cause) {
                        *n -= 1;
                    }
                    self.sifted.refused.retain(|_, n| *n > 0);
                }
                Why::Failed | Why::Again => continue,
            }
            self.sifted.read -= 1;
        }
    }

    fn tell(&self) {
        if let Some(told) = &self.how.progress {
            told(&self.sifted);
        }
    }
}

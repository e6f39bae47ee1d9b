//! For adapters: what has been fetched and `receive` has not returned yet. Core renews locks from receipt on; until then
//! the driver does, here.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    driver::catch_panic::{caught, caught_call},
    driver::kit::lease::{LockLease, within},
    error::{Error, ErrorKind, Result},
};

/// Messages `M` in the order in which they came, each with the `L` that its lock is renewed by.
///
/// What waits is renewed at half its lock by [`keep`], in a task that the driver spawns when [`put`](Self::put) says so. What was lost
/// meanwhile is never handed out: the broker has it, and it would be handled twice. Shared by the tasks that fetch and the receiver; nothing here
/// waits or does I/O but the task, which ends when nothing waits or the inbox is gone.
pub struct ReceiveBuffer<M, L> {
    renews: bool,
    key: fn(&M) -> Option<&str>,
    state: Mutex<State<M, L>>,
    changed: Notify,
    /// Something is due sooner than it was.
    sooner: Arc<Notify>,
}

struct State<M, L> {
    lock: Duration,
    /// Taken off a lock where it is told.
    margin: Duration,
    waiting: VecDeque<Waiting<M, L>>,
    /// How many there were in all, and how many of them are no longer here.
    came: u64,
    gone: u64,
    /// Whether a task renews what waits.
    keeping: bool,
    closed: bool,
    end: Option<Error>,
}

struct Waiting<M, L> {
    number: u64,
    message: M,
    by: L,
    lease: LockLease,
    /// A renewal is under way.
    calling: bool,
    /// The last one had no answer: it goes alone, since it may be the one that takes the others along.
    alone: bool,
    lost: bool,
}

/// What was taken, in order.
#[non_exhaustive]
pub struct Taken<M> {
    /// Each with the time from which its lock counts.
    pub messages: Vec<(M, Instant)>,
    /// Those whose locks ran out or could not be renewed: not to be handed out, and no longer to be settled.
    pub lost: Vec<M>,
    /// Why nothing more comes, told once, when no message is left.
    pub end: Option<Error>,
}

impl<M, L: Clone> ReceiveBuffer<M, L> {
    /// For messages locked for `lock`. One that nothing renewed for `lock` less `margin` is lost; see
    /// [`lock_margin`](crate::driver::lock_margin). `renews` is [`Entity::renew_locks`](crate::topology::Entity::renew_locks).
    pub fn new(lock: Duration, margin: Duration, renews: bool) -> Self {
        let waiting = VecDeque::new();
        let state = State { lock, margin, waiting, came: 0, gone: 0, keeping: false, closed: false, end: None };
        Self { renews, key: |_| None, state: Mutex::new(state), changed: Notify::new(), sooner: Arc::default() }
    }

    /// For ordered sources whose broker gives out a lost message before those behind it of its key: what waits behind it is lost with it, or
    /// it would overtake it.
    pub fn keyed(self, key: fn(&M) -> Option<&str>) -> Self {
        Self { key, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State<M, L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message whose lock counts from then. True if [`keep`] must be spawned now; the message again if the inbox is closed.
    pub fn put(&self, message: M, by: L, from: Instant) -> Result<bool, M> {
        let mut state = self.state();
        if state.closed {
            return Err(message);
        }
        state.came += 1;
        let number = state.came;
        // Who takes waits only for the first.
        let first = state.waiting.is_empty();
        let lease = LockLease::new(state.lock, from);
        state.waiting.push_back(Waiting { number, message, by, lease, calling: false, alone: false, lost: false });
        let start = self.renews && !std::mem::replace(&mut state.keeping, true);
        drop(state);
        if first {
            self.changed.notify_waiters();
        }
        Ok(start)
    }

    /// Locks turn out to be this short. What waits counts by that from now on; call it before the next `put`.
    pub fn shorten(&self, lock: Duration, margin: Duration) {
        let mut state = self.state();
        (state.lock, state.margin) = (lock, margin);
        state.waiting.iter_mut().for_each(|waiting| waiting.lease = LockLease::new(lock, waiting.lease.from()));
        drop(state);
        self.sooner.notify_one();
    }

    /// Nothing more comes. The first reason counts.
    pub fn end(&self, why: Error) {
        self.state().end.get_or_insert(why);
        self.changed.notify_waiters();
    }

    /// Takes up to `max` messages, and what was lost before and between them.
    pub fn take(&self, max: usize) -> Taken<M> {
        let mut state = self.state();
        let mut taken = self.drain(&mut state, max);
        if state.waiting.is_empty() {
            taken.end = state.end.take();
        }
        taken
    }

    fn drain(&self, state: &mut State<M, L>, max: usize) -> Taken<M> {
        let messages = Vec::with_capacity(max.min(state.waiting.len()));
        let mut taken = Taken { messages, lost: Vec::new(), end: None };
        let now = Instant::now();
        while taken.messages.len() < max
            && let Some(first) = state.waiting.pop_front()
        {
            state.gone += 1;
            let from = first.lease.from();
            let ran_out = from + state.lock - state.margin <= now;
            if ran_out && !first.lost {
                lose(state.waiting.iter_mut(), self.key, (self.key)(&first.message));
            }
            match ran_out || first.lost {
                true => taken.lost.push(first.message),
                false => taken.messages.push((first.message, from)),
            }
        }
        taken
    }

    /// What waits of this key is lost: one that came before it was, after it was received.
    pub fn lose(&self, key: &str) {
        lose(self.state().waiting.iter_mut(), self.key, Some(key));
    }

    /// Done when something has come where nothing waited, or the end, after this was enabled.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// How many messages wait, lost ones included.
    pub fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// Whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages were taken or lost so far.
    pub fn gone(&self) -> u64 {
        self.state().gone
    }

    /// What comes from now on is not taken, and nothing is renewed any more; tells what is here. Idempotent.
    pub fn close(&self) -> Taken<M> {
        let mut state = self.state();
        state.closed = true;
        self.drain(&mut state, usize::MAX)
    }

    /// What to renew now, and when to look again. Without calls under way and with nothing that waits, it is the end.
    fn look(&self, calls: bool) -> Look<L> {
        let mut state = self.state();
        let lock = state.lock;
        let State { waiting, keeping, .. } = &mut *state;
        let now = Instant::now();
        let mut look = Look { due: Vec::new(), next: None, ends: false };
        let mut together = Vec::new();
        // Those that would be due soon go along.
        let soon = now + lock / 8;
        let held = || |w: &&mut Waiting<M, L>| !w.lost && !w.calling;
        let first = waiting.iter().filter(|w| !w.lost && !w.calling).map(|w| w.lease.due()).min();
        if first.is_some_and(|first| first <= now) {
            for w in waiting.iter_mut().filter(held()).filter(|w| w.lease.due() <= soon) {
                // One that was not answered keeps its pause.
                if w.alone && w.lease.due() > now {
                    continue;
                }
                w.calling = true;
                match w.alone {
                    true => look.due.push(vec![(w.number, w.by.clone())]),
                    false => together.push((w.number, w.by.clone())),
                }
            }
        }
        if !together.is_empty() {
            look.due.insert(0, together);
        }
        look.next = waiting.iter_mut().filter(held()).map(|w| w.lease.due()).min();
        look.ends = !calls && look.due.is_empty() && look.next.is_none();
        *keeping = !look.ends;
        look
    }

    fn renewed(&self, number: u64, renewed: Result<Instant>) {
        let mut state = self.state();
        // Taken meanwhile: what core was told of its lock is less than there is.
        let Some(at) = state.waiting.iter().position(|waiting| waiting.number == number) else { return };
        let waiting = &mut state.waiting[at];
        waiting.calling = false;
        waiting.alone = renewed.as_ref().is_err_and(|e| e.kind() == ErrorKind::Timeout);
        match renewed {
            Ok(from) => waiting.lease.renewed(from),
            Err(e) if e.kind() == ErrorKind::LockLost || waiting.lease.is_over() => {
                tracing::debug!(error = %e, "a message that nobody has received went back to the broker");
                waiting.lost = true;
                let key = (self.key)(&waiting.message).map(str::to_owned);
                lose(state.waiting.iter_mut().skip(at), self.key, key.as_deref());
            }
            Err(e) => {
                tracing::debug!(error = %e, "the lock of a message that nobody has received was not renewed; trying again");
                waiting.lease.failed();
            }
        }
    }
}

/// These are lost, as far as they are of this key.
fn lose<'a, M: 'a, L: 'a>(
    these: impl Iterator<Item = &'a mut Waiting<M, L>>,
    key_of: fn(&M) -> Option<&str>,
    key: Option<&str>,
) {
    if key.is_some() {
        these.filter(|waiting| key_of(&waiting.message) == key).for_each(|waiting| waiting.lost = true);
    }
}

struct Look<L> {
    /// What goes into one call each.
    due: Vec<Vec<(u64, L)>>,
    next: Option<Instant>,
    ends: bool,
}

/// What became of the messages of one call.
type Answer = (Vec<u64>, Vec<Result<Instant>>);

async fn call<F>(lock: Duration, numbers: Vec<u64>, renewing: Result<F>) -> Answer
where
    F: Future<Output = Vec<Result<Instant>>>,
{
    let answers = match renewing {
        Ok(renewing) => within(lock, caught(renewing)).await,
        Err(panicked) => Err(panicked),
    };
    let mut answers = answers.unwrap_or_else(|e| e.for_each_of(numbers.len()));
    answers.resize_with(numbers.len(), || Err(Error::new(ErrorKind::Unexpected, "the driver gave no answer")));
    (numbers, answers)
}

/// Waits until one of the calls is answered; for ever if there is none.
async fn any<C: Future<Output = Answer>>(calls: &mut Vec<Pin<Box<C>>>) -> Answer {
    poll_fn(|cx| {
        for at in 0..calls.len() {
            if let Poll::Ready(answer) = calls[at].as_mut().poll(cx) {
                drop(calls.swap_remove(at));
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    })
    .await
}

/// Renews what waits until nothing does or the inbox is gone: a task of its own.
///
/// `renew` gets all that are due at once, makes one attempt, and answers with one result for each: from when its lock counts now, which
/// is when the request went out. It has an eighth of the lock, then it is dropped, and each of its messages goes into a call of its own the next
/// time, so that one that is never answered loses no other. Several calls may be under way at once: who is due meanwhile does not wait.
/// `LockLost` loses the message; after another error it is tried again while there is time.
pub async fn keep<M, L: Clone, F>(inbox: Weak<ReceiveBuffer<M, L>>, renew: impl Fn(Vec<L>) -> F)
where
    F: Future<Output = Vec<Result<Instant>>>,
{
    let mut calls = Vec::new();
    loop {
        let Some(strong) = inbox.upgrade() else { return };
        let (look, lock, sooner) = (strong.look(!calls.is_empty()), strong.state().lock, strong.sooner.clone());
        drop(strong);
        if look.ends {
            return;
        }
        for due in look.due {
            let (numbers, locks): (Vec<u64>, Vec<L>) = due.into_iter().unzip();
            let renewing = caught_call(|| renew(locks));
            calls.push(Box::pin(call(lock, numbers, renewing)));
        }
        let (numbers, answers) = match look.next {
            None => any(&mut calls).await,
            Some(next) => tokio::select! {
                answer = any(&mut calls) => answer,
                () = sleep_until(next) => continue,
                // A lock that turned out shorter is due sooner.
                () = sooner.notified() => continue,
            },
        };
        let Some(strong) = inbox.upgrade() else { return };
        for (number, answer) in numbers.into_iter().zip(answers) {
            strong.renewed(number, answer);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LOCK: Duration = Duration::from_secs(16);

    type Named = ReceiveBuffer<&'static str, ()>;

    /// An inbox whose locks are renewed as `answer` says, the number of renewals, and what puts messages in.
    fn inbox(answer: fn(usize) -> Result<()>) -> (Arc<Named>, Arc<AtomicUsize>, impl Fn(&'static str)) {
        let (inbox, calls) = (Arc::new(Named::new(LOCK, LOCK / 16, true)), Arc::new(AtomicUsize::new(0)));
        let put = {
            let (inbox, calls) = (inbox.clone(), calls.clone());
            move |message| {
                if inbox.put(message, (), Instant::now()).unwrap() {
                    let calls = calls.clone();
                    tokio::spawn(keep(Arc::downgrade(&inbox), move |locks| {
                        let answered = answer(calls.fetch_add(1, Ordering::SeqCst));
                        async move { locks.iter().map(|()| answered.clone().map(|()| Instant::now())).collect() }
                    }));
                }
            }
        };
        (inbox, calls, put)
    }

    fn named(taken: &Taken<&'static str>) -> Vec<&'static str> {
        taken.messages.iter().map(|(message, _)| *message).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_renewed_and_what_comes_later_with_it() {
        let (inbox, calls, put) = inbox(|_| Ok(()));
        put("a");
        tokio::time::sleep(LOCK / 16).await;
        put("b");
        tokio::time::sleep(LOCK * 3).await;
        assert_eq!(calls.load(Ordering::SeqCst), 6, "both at once, at half their time");
        let taken = inbox.take(9);
        assert_eq!((named(&taken), taken.lost), (vec!["a", "b"], vec![]));
        assert!(taken.messages.iter().all(|(_, from)| from.elapsed() <= LOCK / 2));
        tokio::time::sleep(LOCK * 3).await;
        assert_eq!(calls.load(Ordering::SeqCst), 6, "nothing waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn locks_that_turn_out_to_be_shorter_are_renewed_in_time() {
        let (inbox, calls, put) = inbox(|_| Ok(()));
        put("a");
        tokio::time::sleep(LOCK / 16).await;
        inbox.shorten(LOCK / 4, LOCK / 16);
        tokio::time::sleep(LOCK).await;
        assert!((8..=9).contains(&calls.load(Ordering::SeqCst)), "{calls:?}");
        assert_eq!(named(&inbox.take(9)), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_failed_is_tried_again() {
        let busy = |n| if n % 4 == 3 { Ok(()) } else { Err(Error::new(ErrorKind::Throttled, "busy")) };
        let (inbox, _, put) = inbox(busy);
        put("a");
        tokio::time::sleep(LOCK * 3).await;
        assert_eq!(named(&inbox.take(9)), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_lost_is_not_handed_out() {
        let (inbox, calls, put) = inbox(|_| Err(Error::new(ErrorKind::LockLost, "gone")));
        put("a");
        tokio::time::sleep(LOCK * 5 / 8).await;
        put("b");
        inbox.end(Error::new(ErrorKind::Unavailable, "detached"));
        let taken = inbox.take(1);
        assert_eq!((named(&taken), &*taken.lost, inbox.gone()), (vec!["b"], &["a"][..], 2));
        assert_eq!((taken.end.map(|e| e.kind()), calls.load(Ordering::SeqCst)), (Some(ErrorKind::Unavailable), 1));
        assert!(inbox.take(1).end.is_none(), "told twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_panics_or_says_too_little_is_tried_again() {
        let (inbox, calls) = (Arc::new(Named::new(LOCK, LOCK / 16, true)), Arc::new(AtomicUsize::new(0)));
        inbox.put("a", (), Instant::now()).unwrap();
        inbox.put("b", (), Instant::now()).unwrap();
        let counted = calls.clone();
        let renew = move |_| {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(n != 0, "a driver's bug");
                vec![Ok(Instant::now()); n]
            }
        };
        let keeping = tokio::spawn(keep(Arc::downgrade(&inbox), renew));
        tokio::time::sleep(LOCK).await;
        assert_eq!(named(&inbox.take(9)), ["a", "b"]);
        assert!((3..=5).contains(&calls.load(Ordering::SeqCst)), "{calls:?}");
        keeping.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_ran_out_is_told_apart_at_the_close_and_nothing_is_renewed_where_that_is_not_wanted() {
        let inbox = Named::new(LOCK, LOCK / 16, false);
        assert!(!inbox.put("a", (), Instant::now()).unwrap(), "a task that renews");
        tokio::time::sleep(LOCK / 2).await;
        inbox.put("b", (), Instant::now()).unwrap();
        tokio::time::sleep(LOCK / 2).await;
        let closed = inbox.close();
        assert_eq!((named(&closed), closed.lost), (vec!["b"], vec!["a"]));
        assert!(inbox.is_empty() && inbox.close().lost.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_takes_those_behind_it_of_its_key_along_and_no_others() {
        let inbox = ReceiveBuffer::new(LOCK, LOCK / 16, true).keyed(|message: &&'static str| message.get(..1));
        let inbox = Arc::new(inbox);
        let put = |message| inbox.put(message, message, Instant::now()).unwrap();
        assert!(put("a1"));
        for message in ["a2", "b1", "c", "a3", "b2"] {
            assert!(!put(message), "a second task");
        }
        tokio::spawn(keep(Arc::downgrade(&inbox), |messages| async move {
            let lost = |message| matches!(message, "a2" | "c");
            let gone = |_| Error::new(ErrorKind::LockLost, "gone");
            messages.into_iter().map(|m| (!lost(m)).then(Instant::now).ok_or(m).map_err(gone)).collect()
        }));
        tokio::time::sleep(LOCK * 5 / 8).await;
        // The broker has given them out again.
        assert!(!put("a2") && !put("a3"));
        let taken = inbox.take(4);
        assert_eq!((named(&taken), taken.lost), (vec!["a1", "b1", "b2", "a2"], vec!["a2", "c", "a3"]));
        // One that was handed out is lost.
        put("d");
        inbox.lose("a");
        let taken = inbox.take(9);
        assert_eq!((named(&taken), taken.lost), (vec!["d"], vec!["a3"]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_ran_out_takes_those_behind_it_of_its_key_along() {
        let inbox = ReceiveBuffer::new(LOCK, LOCK / 16, false).keyed(|message: &&'static str| message.get(..1));
        inbox.put("a1", (), Instant::now()).unwrap();
        tokio::time::sleep(LOCK / 2).await;
        inbox.put("b", (), Instant::now()).unwrap();
        inbox.put("a2", (), Instant::now()).unwrap();
        tokio::time::sleep(LOCK / 2).await;
        let taken = inbox.take(9);
        assert_eq!((named(&taken), taken.lost), (vec!["b"], vec!["a1", "a2"]));
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_out_no_more_than_was_asked_for_and_takes_nothing_once_closed() {
        let (inbox, _, put) = inbox(|_| Ok(()));
        ["a", "b", "c"].into_iter().for_each(&put);
        inbox.end(Error::new(ErrorKind::Unavailable, "detached"));
        let taken = inbox.take(2);
        assert!(named(&taken) == ["a", "b"] && taken.end.is_none(), "the end comes after the messages");
        assert_eq!((inbox.gone(), named(&inbox.close()), inbox.gone()), (2, vec!["c"], 3));
        assert_eq!(inbox.put("d", (), Instant::now()), Err("d"));
    }
}

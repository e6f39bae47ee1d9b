//! The queue for the one writer of a SQLite file.
//!
//! SQLite's own waiting is a poll that is not fair and ends after the busy timeout. Within a process, whoever wants to
//! write waits here instead, in the order of asking, and without a limit. Other processes do not know this queue.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{Arc, LazyLock, Weak},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// One for each database of the process.
static QUEUES: LazyLock<Mutex<HashMap<String, Weak<WriteQueue>>>> = LazyLock::new(Mutex::default);

/// Lets one writer in at a time: first those that are urgent, else in the order of asking.
#[derive(Debug, Default)]
pub(super) struct WriteQueue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    taken: bool,
    /// The holder's transaction has begun: writing works.
    writing: bool,
    /// The run of the inbox' handler that holds the turn.
    run: Option<u64>,
    urgent: VecDeque<oneshot::Sender<WritePermit>>,
    others: VecDeque<oneshot::Sender<WritePermit>>,
}

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Leases and heartbeats: others do their work if these come late.
    Urgent,
    /// Everybody else.
    Normal,
}

/// The right to write, until it is dropped.
#[derive(Debug)]
pub(super) struct WritePermit(Option<Arc<WriteQueue>>);

impl WriteQueue {
    /// The queue of a database file; `identity` tells databases in memory apart.
    pub(super) fn of(file: &Path, identity: usize) -> Arc<Self> {
        let key = match std::fs::canonicalize(file) {
            Ok(path) => path.to_string_lossy().into_owned(),
            // With a name of its own it is shared by all pools that use the name.
            Err(_) if file != Path::new(":memory:") => format!("memory {}", file.display()),
            Err(_) => format!("memory {identity:x}"),
        };
        let mut queues = QUEUES.lock();
        if let Some(queue) = queues.get(&key).and_then(Weak::upgrade) {
            return queue;
        }
        queues.retain(|_, queue| queue.strong_count() > 0);
        let queue = Arc::new(Self::default());
        queues.insert(key, Arc::downgrade(&queue));
        queue
    }

    /// Waits for the turn.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue, also if the turn has just come.
    pub(super) async fn turn(self: &Arc<Self>, turn: Turn) -> WritePermit {
        let receiver = {
            let mut waiting = self.0.lock();
            if !waiting.taken {
                waiting.taken = true;
                return WritePermit(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            match turn {
                Turn::Urgent => waiting.urgent.push_back(sender),
                Turn::Normal => waiting.others.push_back(sender),
            }
            receiver
        };
        match receiver.await {
            Ok(permit) => permit,
            // The sender is in the queue, and `self` holds the queue: it cannot be dropped unused.
            Err(_) => unreachable!("a waiting writer is in the queue"),
        }
    }

    /// The turn, if nobody has it.
    pub(super) fn try_turn(self: &Arc<Self>) -> Option<WritePermit> {
        let mut waiting = self.0.lock();
        if waiting.taken {
            return None;
        }
        waiting.taken = true;
        Some(WritePermit(Some(self.clone())))
    }

    /// Whether the holder of the turn is in its transaction, and not waiting for another process.
    pub(super) fn is_writing(&self) -> bool {
        self.0.lock().writing
    }

    /// Whether this run of the inbox' handler holds the turn itself, and so would wait for ever.
    pub(super) fn is_held_by(&self, run: Option<u64>) -> bool {
        run.is_some() && self.0.lock().run == run
    }

    fn hand_on(self: Arc<Self>) {
        loop {
            let next = {
                let mut waiting = self.0.lock();
                let next = waiting.urgent.pop_front().or_else(|| waiting.others.pop_front());
                (waiting.taken, waiting.writing, waiting.run) = (next.is_some(), false, None);
                next
            };
            let Some(next) = next else { return };
            match next.send(WritePermit(Some(self.clone()))) {
                Ok(()) => return,
                // This one waits no longer. Its permit must not hand on by itself: the loop does.
                Err(mut unused) => drop(unused.0.take()),
            }
        }
    }
}

impl WritePermit {
    /// Whose it is, from now on.
    pub(super) fn of_run(&self, run: Option<u64>) {
        if let Some(queue) = &self.0 {
            queue.0.lock().run = run;
        }
    }

    /// Its transaction has begun.
    pub(super) fn writing(&self) {
        if let Some(queue) = &self.0 {
            queue.0.lock().writing = true;
        }
    }
}

impl Drop for WritePermit {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.hand_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue() -> Arc<WriteQueue> {
        Arc::default()
    }

    /// Asks for a turn and reports when it has it, in the order of the calls.
    async fn ask(queue: &Arc<WriteQueue>, turn: Turn, name: usize, order: &Arc<Mutex<Vec<usize>>>) {
        let (queue, order) = (queue.clone(), order.clone());
        tokio::spawn(async move {
            let _permit = queue.turn(turn).await;
            order.lock().push(name);
            tokio::task::yield_now().await;
        });
        tokio::task::yield_now().await;
    }

    async fn settled(order: &Arc<Mutex<Vec<usize>>>, len: usize) -> Vec<usize> {
        while order.lock().len() < len {
            tokio::task::yield_now().await;
        }
        order.lock().clone()
    }

    #[tokio::test]
    async fn turns_come_in_order_and_urgent_ones_first() {
        let (queue, order) = (queue(), Arc::default());
        let permit = queue.turn(Turn::Normal).await;
        for name in 1..=3 {
            ask(&queue, Turn::Normal, name, &order).await;
        }
        for name in 11..=12 {
            ask(&queue, Turn::Urgent, name, &order).await;
        }
        assert!(queue.try_turn().is_none());
        drop(permit);
        assert_eq!(settled(&order, 5).await, [11, 12, 1, 2, 3]);
        tokio::task::yield_now().await;
        assert!(queue.try_turn().is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_is_dropped_is_skipped() {
        let (queue, order) = (queue(), Arc::default());
        let permit = queue.turn(Turn::Normal).await;
        let mut dropped = Box::pin(queue.turn(Turn::Normal));
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut dropped).await.is_err());
        ask(&queue, Turn::Normal, 1, &order).await;
        drop(dropped);
        drop(permit);
        assert_eq!(settled(&order, 1).await, [1]);
    }

    #[tokio::test]
    async fn a_permit_that_was_handed_to_a_dropped_waiter_goes_on() {
        let (queue, order) = (queue(), Arc::default());
        let permit = queue.turn(Turn::Normal).await;
        let mut dropped = Box::pin(queue.turn(Turn::Normal));
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut dropped).await.is_err());
        ask(&queue, Turn::Normal, 1, &order).await;
        // It is handed over here, and the future is dropped without having been polled again.
        drop(permit);
        drop(dropped);
        assert_eq!(settled(&order, 1).await, [1]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_turn_is_lost_among_many_that_are_dropped() {
        let queue = queue();
        let inside = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let mut tasks = Vec::new();
        for n in 0..200_u64 {
            let (queue, inside) = (queue.clone(), inside.clone());
            tasks.push(tokio::spawn(async move {
                let turn = if n % 5 == 0 { Turn::Urgent } else { Turn::Normal };
                let work = async {
                    let _permit = queue.turn(turn).await;
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                };
                if n % 3 == 0 {
                    let _ = tokio::time::timeout(Duration::from_micros(n * 7), queue.turn(turn)).await;
                } else {
                    work.await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert!(queue.try_turn().is_some());
    }

    #[test]
    fn a_file_has_one_queue_whatever_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.db");
        std::fs::write(&file, "").unwrap();
        let (one, other) = (WriteQueue::of(&file, 1), WriteQueue::of(&folder.path().join(".").join("a.db"), 2));
        assert!(Arc::ptr_eq(&one, &other));
        let (one, other) = (WriteQueue::of(Path::new(":memory:"), 1), WriteQueue::of(Path::new(":memory:"), 2));
        assert!(!Arc::ptr_eq(&one, &other));
    }
}

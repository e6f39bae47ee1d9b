//! From the commit of one job to its handler, with nothing else to do.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use polybus_patterns::{
    jobs::{JobWorker, Jobs},
    store::JobStore,
};

use crate::SendInvoice;

/// The median of 50. The worker has nothing to do in between, for longer than its polling interval.
pub(crate) async fn of_one_job<S: JobStore>(store: &S, wake: bool) -> Duration {
    let (handled, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let worker = JobWorker::new(store).queue("default", 10).listen(false).on(
        handled,
        async |handled, _cx, _job: SendInvoice| {
            handled.send(Instant::now())?;
            Ok(())
        },
    );
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(worker.run(async move { drop(stopped.await) }));
    let (jobs, took) = (Jobs::new(store), Arc::new(Mutex::new(Vec::new())));
    for n in 0..60 {
        let mut tx = store.begin().await.unwrap();
        jobs.enqueue(&mut tx, SendInvoice::number(n)).await.unwrap();
        S::commit(tx).await.unwrap();
        let committed = Instant::now();
        if wake {
            jobs.wake();
        }
        let at = begun.recv().await.unwrap();
        took.lock().unwrap().push(at.saturating_duration_since(committed));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    drop(stop);
    running.await.unwrap().unwrap();
    let mut took = took.lock().unwrap().split_off(10);
    took.sort();
    took[took.len() / 2]
}

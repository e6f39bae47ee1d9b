//! Redrives beside consumers that work against them, and over connections that are lost.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use polybus_core::{
    Envelope, ErrorKind, QueueSpec,
    redrive::{RedriveOptions, RedriveVerdict},
};
use tokio::time::timeout;

use super::{adds_up, redrive_rest};
use crate::{
    Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, fail, message, messages, number, numbers, scenario,
    scenarios::shared::{CutPoint, dead_letter_all, dead_letter_next, queue_through},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "redrive/poison-returns",
            "A redrive ends though a consumer dead-letters everything again at once; nothing is lost.",
            poison_returns,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/while-consuming",
            "A redrive runs while its source is consumed: each message is handled once.",
            redrive_while_consuming,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/cut",
            "Redrives whose connections are lost lose nothing: in the end all is back in the source.",
            redrive_cut,
        )
        .needs(|t, c| Need::redrive(c).and(Need::proxy(t)))
        .timeout(Duration::from_secs(120)),
        scenario(
            "redrive/new-letters-meanwhile",
            "A worker that dead-letters all it gets, while new letters come: the pass ends, and has moved all that was there.",
            poison,
        )
        .needs(|_, c| Need::redrive(c))
        .timeout(Duration::from_secs(120)),
    ]
}

async fn redrive_cut(cx: Cx) -> Outcome {
    const N: usize = 60;
    let proxy = cx.proxy().await?;
    let (cut, safe) = queue_through(&cx, &proxy).await?;
    dead_letter_all(&cx, &safe, messages(0..N)).await?;
    for cut_at in CutPoint::every() {
        let mut armed = false;
        let arm = |_: &Envelope| {
            if !std::mem::replace(&mut armed, true) {
                cut_at.arm(&proxy);
            }
            true
        };
        // The redrive may fail: what is checked is that nothing is lost.
        let errors = match cut.bus.redrive(&cut.source, arm, 4).await {
            Ok(report) => report.failed.into_iter().map(|(_, e)| e).chain(report.error).collect(),
            Err(e) => vec![e],
        };
        for e in errors {
            ensure!(
                matches!(e.kind(), ErrorKind::LockLost | ErrorKind::Unavailable | ErrorKind::Timeout),
                "a lost connection was answered as {e:?}"
            );
        }
        proxy.cut();
    }
    // A move that was cut may have left a copy, so some messages may come twice.
    redrive_rest(&cx, &safe, N).await?;
    Ok(())
}

async fn poison_returns(cx: Cx) -> Outcome {
    const N: usize = 8;
    let q = cx.queue(QueueSpec::new()).await?;
    dead_letter_all(&cx, &q, messages(0..N)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut sub = q.subscribe(2).await?;
    let consumer = tokio::spawn({
        let stop = stop.clone();
        async move {
            while !stop.load(Ordering::SeqCst) {
                match timeout(Duration::from_millis(100), sub.next()).await {
                    Ok(Some(delivery)) => delivery?.dead_letter("poison", "").await?,
                    Ok(None) => break,
                    Err(_) => {}
                }
            }
            sub.close().await?;
            Outcome::Ok(())
        }
    });
    let redriven = timeout(cx.patience(), q.bus.redrive(&q.source, |_| true, usize::MAX)).await;
    let Ok(moved) = redriven else { fail!("the redrive does not end while poison returns") };
    let moved = moved.during("redrive")?.moved;
    ensure!((1..=N as u64).contains(&moved), "moved {moved} of {N}");
    // Once the consumer has had them all, all are in the dead letters.
    let mut dead = q.subscribe_dead(N).await?;
    let mut seen = BTreeSet::new();
    let mut poison = 0;
    for letter in cx.collect(&mut dead, N).await.during("dead letters in the end")? {
        ensure!(seen.insert(number(letter.envelope())?), "twice in the dead letters: {letter:?}");
        poison += u64::from(letter.dead_letter_info().and_then(|d| d.reason.as_deref()) == Some("poison"));
        letter.ack().await?;
    }
    ensure_eq!(poison, moved, "of those that were moved, how many came back");
    stop.store(true, Ordering::SeqCst);
    consumer.await?.during("the consumer")?;
    cx.expect_none(&mut dead).await?;
    let mut sub = q.subscribe(1).await?;
    cx.expect_none(&mut sub).await
}

async fn redrive_while_consuming(cx: Cx) -> Outcome {
    const N: usize = 60;
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..N)).await?;
    let mut sub = q.subscribe(10).await?;
    dead_letter_next(&cx, &mut sub, N / 2).await?;
    // Half of the messages are in the source, and half are redriven while it is consumed.
    let (moved, drained) = tokio::join!(q.bus.redrive(&q.source, |_| true, usize::MAX), cx.drain(&mut sub, N));
    ensure_eq!(moved.during("redrive")?.moved, N as u64 / 2, "how many were moved");
    let mut got = numbers(&drained?)?;
    got.sort_unstable();
    ensure_eq!(got, (0..N).collect::<Vec<_>>(), "all messages");
    cx.expect_none(&mut sub).await
}

async fn poison(cx: Cx) -> Outcome {
    const N: usize = 12;
    let q = cx.queue(QueueSpec::new()).await?;
    dead_letter_all(&cx, &q, messages(0..N)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut sub = q.subscribe(4).await?;
    let worker = tokio::spawn({
        let stop = stop.clone();
        async move {
            while !stop.load(Ordering::SeqCst) {
                match timeout(Duration::from_millis(100), sub.next()).await {
                    Ok(Some(delivery)) => delivery?.dead_letter("poison", "").await?,
                    Ok(None) => break,
                    Err(_) => {}
                }
            }
            sub.close().await?;
            Outcome::Ok(())
        }
    });
    let newer = tokio::spawn({
        let (q, stop) = (q.clone(), stop.clone());
        async move {
            let mut n = 1_000;
            while !stop.load(Ordering::SeqCst) {
                q.publish(message(n)).await?;
                n += 1;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            Outcome::Ok(())
        }
    });
    let mut moved = vec![0; N];
    let mut twice = 0;
    let decide = |letter: &polybus_core::redrive::RedriveLetter| {
        match number(letter.envelope()) {
            Ok(n) if n < N => moved[n] += 1,
            _ => {}
        }
        twice += u64::from(letter.dead_letter_info().is_some_and(|d| d.redriven > 0));
        RedriveVerdict::Redrive
    };
    let within = cx.patience().max(Duration::from_secs(60));
    let report = timeout(within, q.bus.redrive_each(&q.source, RedriveOptions::new(), decide)).await;
    stop.store(true, Ordering::SeqCst);
    worker.await?.during("the worker")?;
    newer.await?.during("what publishes")?;
    let Ok(report) = report else { fail!("the pass does not end") };
    let report = report.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!(moved, vec![1; N], "how often each was looked at: {report}");
    ensure_eq!(twice, 0, "of those it had moved, how many it was asked about again");
    ensure!(report.moved >= N as u64, "moved {report}");
    Ok(())
}

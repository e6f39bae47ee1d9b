//! Redrive: dead letters go back to the source they came from, each by the verdict of the caller.

mod interference;
mod moves;
mod odd_letters;
mod verdicts;

use std::collections::BTreeSet;

use polybus_core::redrive::RedriveReport;
use tokio::time::{Instant, timeout};

use crate::{Cx, During, Fixture, Outcome, Scenario, ensure, ensure_eq, fail, number, numbers};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [moves::all(), verdicts::all(), interference::all(), odd_letters::all()].concat()
}

/// Redrives until `n` different messages are back, and returns the numbers of all that came, sorted.
///
/// It takes several redrives: an interrupted one gives back what it held only after a while.
async fn redrive_rest(cx: &Cx, q: &Fixture, n: usize) -> Outcome<Vec<usize>> {
    let deadline = Instant::now() + cx.patience() * 2;
    let mut sub = q.subscribe(n).await?;
    let (mut back, mut different) = (Vec::new(), BTreeSet::new());
    while different.len() < n {
        ensure!(Instant::now() < deadline, "only {} of {n} are back", different.len());
        let _ = q.bus.redrive(&q.source, |_| true, usize::MAX).await.during("redrive of the rest")?;
        while let Ok(next) = timeout(cx.quiet(), sub.next()).await {
            let Some(delivery) = next else { fail!("the subscription ended") };
            let delivery = delivery?;
            back.push(number(delivery.envelope())?);
            different.insert(number(delivery.envelope())?);
            delivery.ack().await?;
            if different.len() == n {
                break;
            }
        }
    }
    while let Ok(Some(delivery)) = timeout(cx.quiet(), sub.next()).await {
        let delivery = delivery?;
        back.push(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    sub.close().await?;
    back.sort_unstable();
    Ok(back)
}

/// Fails unless the report counts each dead letter that was read once.
fn adds_up(report: &RedriveReport) -> Outcome {
    let sum = report.kept + report.moved + report.dropped + report.refusals() + report.failed.len() as u64;
    ensure_eq!(report.read, sum, "what is told beside how many were looked at: {report}");
    Ok(())
}

/// Acks what is in the source and in its dead letters, and returns the numbers of both, sorted.
async fn take_live_and_dead(cx: &Cx, q: &Fixture, live: usize, dead: usize) -> Outcome<(Vec<usize>, Vec<usize>)> {
    let mut found = (Vec::new(), Vec::new());
    for (source, n, found) in [(q.source.clone(), live, &mut found.0), (q.source.dead_letters(), dead, &mut found.1)] {
        let mut sub = q.bus.subscribe(source.clone()).prefetch(n.max(1)).open().await?;
        *found = numbers(&cx.drain(&mut sub, n).await.during(source.to_string())?)?;
        found.sort_unstable();
        cx.expect_none(&mut sub).await.during(source.to_string())?;
        sub.close().await?;
    }
    Ok(found)
}

//! Moves to the dead letters whose connection is lost.

use std::time::Duration;

use crate::{
    Cx, During, Need, Outcome, Scenario, fail, message, number, scenario,
    scenarios::shared::{CutPoint, allow_lock_lost, check_cut, next_of_either, queue_through},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "dead_letters/move-cut",
            "A connection lost at any point of a dead_letter: the message is a dead letter or comes again; Ok is the former.",
            move_cut,
        )
        .needs(|t, c| Need::dead_letters(c).and(Need::proxy(t)))
        .timeout(Duration::from_secs(120)),
    ]
}

async fn move_cut(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let (cut, safe) = queue_through(&cx, &proxy).await?;
    let mut live = cut.subscribe(5).await?;
    let mut dead = safe.subscribe_dead(5).await?;
    for (n, cut_at) in CutPoint::every().enumerate() {
        safe.publish(message(n)).await?;
        let delivery = loop {
            let delivery = cx.recv(&mut live).await.during(format!("message {n}"))?;
            if number(delivery.envelope())? == n {
                break delivery;
            }
            // The copy of an earlier, cut move exists already, and its message came again.
            delivery.ack().await?;
        };
        cut_at.arm(&proxy);
        let moved = check_cut(delivery.dead_letter("cut", format!("{cut_at:?}")).await)?;
        proxy.cut();
        loop {
            let what = format!("after {cut_at:?} (moved: {moved})");
            let Some((is_live, delivery)) = next_of_either(&cx, &mut live, &mut dead).await.during(&what)? else {
                fail!("message {n} is lost {what}");
            };
            let same = number(delivery.envelope())? == n;
            delivery.ack().await.or_else(allow_lock_lost)?;
            if same && (!is_live || !moved) {
                break;
            }
        }
    }
    Ok(())
}

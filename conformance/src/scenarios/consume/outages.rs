//! Consumers whose connection is cut, or whose broker cannot be reached.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use polybus_core::{Delivery, ErrorKind, QueueSpec, Subscription};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Cx, During, Failure, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message, messages,
    number, numbers, scenario,
    scenarios::shared::{expect_same, take_rest, take_rest_with},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "consume/cut-while-holding",
            "After a cut the stream goes on; what was in hand is LockLost, comes again, and is acked.",
            cut_while_holding,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "consume/cuts-leak-nothing",
            "After five cuts a consumer has its full prefetch and no more: no window and no consumer leaked.",
            cuts_leak_nothing,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "consume/idle-through-an-outage",
            "A consumer that waits through an outage gets what is published after it.",
            idle_through_an_outage,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "consume/closed-in-an-outage",
            "A subscription and a bus can be closed during an outage, in time; what they held goes to others.",
            closed_in_an_outage,
        )
        .needs(|t, _| Need::proxy(t)),
    ]
}

/// A queue, once through the direct bus and once through a bus behind the proxy.
async fn queue_behind_proxy(cx: &Cx) -> Outcome<(Fixture, Fixture, crate::Proxy)> {
    let direct = cx.queue(QueueSpec::new().max_deliveries(50)).await?;
    let proxy = cx.proxy().await?;
    let bus = cx.setup(direct.bus.topology().clone()).undeclared().through(&proxy).open().await?;
    let far = direct.on(bus);
    Ok((direct, far, proxy))
}

/// Acks deliveries until each of `wanted` is acked. Other messages must not come.
async fn ack_all(cx: &Cx, sub: &mut Subscription, wanted: &BTreeSet<usize>) -> Outcome {
    ack_all_or_again(cx, sub, wanted, 0..0).await
}

/// Like [`ack_all`], and messages of `again`, which were acked before, may come too.
async fn ack_all_or_again(cx: &Cx, sub: &mut Subscription, wanted: &BTreeSet<usize>, again: Range<usize>) -> Outcome {
    let mut acked = BTreeSet::new();
    let deadline = Instant::now() + cx.patience() * 3;
    while acked != *wanted {
        ensure!(Instant::now() < deadline, "only {} of {} were acked", acked.len(), wanted.len());
        let delivery = cx.recv(sub).await.during(format!("{} of {} acked", acked.len(), wanted.len()))?;
        let n = number(delivery.envelope())?;
        ensure!(wanted.contains(&n) || again.contains(&n), "message {n} is not among those that may come");
        match delivery.ack().await {
            Ok(()) if again.contains(&n) => {}
            Ok(()) => drop(acked.insert(n)),
            Err(e) if e.error().kind() == ErrorKind::LockLost => {}
            Err(e) => return Err(Failure::from(e).during("ack")),
        }
    }
    Ok(())
}

/// Waits until the client has noticed the cut. Where settlements are not confirmed, an ack before that may seem Ok.
async fn wait_until_noticed(cx: &Cx, held: &Delivery) -> Outcome {
    let deadline = cx.deadline();
    while !cx.capabilities().confirmed_settlement && held.is_held() {
        ensure!(Instant::now() < deadline, "the client does not notice that its connection was cut");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn cut_while_holding(cx: Cx) -> Outcome {
    let (direct, q, proxy) = queue_behind_proxy(&cx).await?;
    let mut sent = messages(0..20);
    direct.publish_all(sent.clone()).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.collect(&mut sub, 5).await?;
    proxy.cut();
    if cx.target().lock_outlives.is_some() {
        for delivery in held {
            delivery.ack().await.during("ack of what outlives the cut")?;
        }
        let mut got = numbers(&take_rest(&cx, &mut sub, 15).await?)?;
        got.sort_unstable();
        ensure_eq!(got.len(), 15, "messages that came after the acks: {got:?}");
        let mut sub = direct.subscribe(5).await?;
        return cx.expect_none(&mut sub).await;
    }
    wait_until_noticed(&cx, &held[0]).await?;
    // The client notices the cut at the first call, and then hands out nothing more from its buffer.
    let again = cx.recv(&mut sub).await.during("the stream after the cut")?;
    ensure!(again.is_held(), "a delivery of the lost connection was handed out");
    for delivery in held {
        expect_kind!(delivery.ack().await, ErrorKind::LockLost, "ack of what the cut took away");
    }
    sent.retain(|e| e.id != again.envelope().id);
    again.ack().await.during("ack on the new connection")?;
    let got = take_rest_with(&cx, &mut sub, &sent).await?;
    let numbers: BTreeSet<usize> = numbers(&got)?.into_iter().collect();
    ensure_eq!(numbers.len(), 19, "messages that came after the first ack");
    let mut sub = direct.subscribe(5).await?;
    cx.expect_none(&mut sub).await
}

async fn cuts_leak_nothing(cx: Cx) -> Outcome {
    let (direct, q, proxy) = queue_behind_proxy(&cx).await?;
    let mut sub = q.subscribe(5).await?;
    for round in 0..5 {
        direct.publish_all(messages(round * 10..round * 10 + 3)).await?;
        let held = cx.collect(&mut sub, 2).await.during(format!("round {round}"))?;
        proxy.cut();
        let mut left: BTreeSet<usize> = (round * 10..round * 10 + 3).collect();
        if cx.target().lock_outlives.is_some() {
            for delivery in held {
                left.remove(&number(delivery.envelope())?);
                delivery.ack().await.during(format!("round {round}: ack after the cut"))?;
            }
        } else {
            wait_until_noticed(&cx, &held[0]).await?;
            for delivery in held {
                expect_kind!(delivery.ack().await, ErrorKind::LockLost, "round {round}: ack after the cut");
            }
        }
        // Where acks are not confirmed, the cut may have lost acks of the round before.
        if !cx.capabilities().confirmed_settlement {
            let unanswered = round.saturating_sub(1) * 10..round * 10;
            ack_all_or_again(&cx, &mut sub, &left, unanswered).await.during(format!("round {round}"))?;
        } else {
            ack_all(&cx, &mut sub, &left).await.during(format!("round {round}"))?;
        }
    }
    direct.publish_all(messages(100..130)).await?;
    let held = cx.collect(&mut sub, 5).await.during("a full window after five cuts")?;
    cx.expect_none(&mut sub).await.during("more than the prefetch after five cuts")?;
    let mut other = direct.subscribe(50).await?;
    let mut got = numbers(&cx.drain(&mut other, 25).await.during("what no leaked consumer may keep")?)?;
    for delivery in held {
        got.push(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    got.sort_unstable();
    ensure_eq!(got, (100..130).collect::<Vec<_>>(), "what came");
    Ok(())
}

async fn idle_through_an_outage(cx: Cx) -> Outcome {
    let (direct, q, proxy) = queue_behind_proxy(&cx).await?;
    let mut sub = q.subscribe(5).await?;
    let waits = tokio::spawn({
        let cx = cx.clone();
        async move {
            let delivery = cx.recv_within(&mut sub, cx.patience() * 3).await?;
            let n = number(delivery.envelope())?;
            delivery.ack().await.during("ack after the outage")?;
            Ok::<_, Failure>((sub, n))
        }
    });
    sleep(Duration::from_millis(200)).await;
    proxy.refuse(true).await;
    proxy.cut();
    sleep(Duration::from_secs(1)).await;
    ensure!(!waits.is_finished(), "the stream ended in the outage");
    direct.publish(message(7)).await?;
    proxy.refuse(false).await;
    let (mut sub, n) = waits.await??;
    ensure_eq!(n, 7, "what came after the outage");
    cx.expect_none(&mut sub).await
}

async fn closed_in_an_outage(cx: Cx) -> Outcome {
    let (direct, q, proxy) = queue_behind_proxy(&cx).await?;
    let sent = messages(0..10);
    direct.publish_all(sent.clone()).await?;
    let (mut one, mut two) = (q.subscribe(3).await?, q.subscribe(3).await?);
    let held = (cx.recv(&mut one).await?, cx.recv(&mut two).await?);
    proxy.refuse(true).await;
    proxy.cut();
    // It may end with an error, since the broker cannot be told: only its end is checked.
    if timeout(cx.patience(), one.close()).await.is_err() {
        fail!("closing a subscription hangs in an outage");
    }
    if timeout(cx.patience(), q.bus.close()).await.is_err() {
        fail!("closing the bus hangs in an outage");
    }
    for delivery in [held.0, held.1] {
        expect_kind!(delivery.ack().await, ErrorKind::LockLost);
    }
    cx.expect_end(&mut two, ErrorKind::Closed).await?;
    let mut sub = direct.subscribe(20).await?;
    expect_same(&sent, &cx.drain(&mut sub, 10).await?, "what others get")?;
    Ok(())
}

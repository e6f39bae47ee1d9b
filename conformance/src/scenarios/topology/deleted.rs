//! Entities that are deleted while they are used.

use polybus_core::{Address, ErrorKind, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology};

use crate::{
    Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages, numbers, scenario,
    scenarios::shared::{keyed, publish_until},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "topology/deleted-while-consuming",
            "A queue deleted under a consumer: NotFound once, then the end; it is not made again.",
            deleted_queue,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "topology/deleted-while-holding",
            "Settling a message of a deleted queue is an error, not an Ok and not a hang.",
            deleted_while_holding,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "topology/deleted-subscription",
            "A subscription deleted under a consumer with its topic: NotFound once; a consumer of another topic goes on.",
            deleted_subscription,
        )
        .needs(|_, c| Need::declare(c).and(Need::topics(c))),
        scenario(
            "topology/deleted-dead-letters",
            "A consumer of dead letters whose queue is deleted ends with NotFound.",
            deleted_dead_letters,
        )
        .needs(|_, c| Need::declare(c).and(Need::dead_letters(c))),
        scenario(
            "topology/deleted-ordered",
            "An ordered queue deleted under a consumer with a held head: NotFound once, then the end.",
            deleted_ordered,
        )
        .needs(|_, c| Need::declare(c).and(Need::ordered(c))),
        scenario(
            "topology/deleted-and-back",
            "A queue deleted and declared anew: publishers of before go on, and a new consumer gets it all.",
            deleted_and_back,
        )
        .needs(|_, c| Need::declare(c)),
    ]
}

async fn deleted_queue(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let other = cx.second_bus(&f.bus).await?;
    let mut sub = f.subscribe(5).await?;
    f.publish(message(1)).await?;
    cx.drain(&mut sub, 1).await?;
    other.delete().await.during("delete")?;
    cx.expect_end(&mut sub, ErrorKind::NotFound).await?;
    // A reconnect restores consumers, but never entities.
    let missing = f.bus.verify().await?;
    ensure!(missing.differences.iter().any(|d| d.setting == "exists"), "it was made again: {missing:?}");
    expect_kind!(f.bus.publish(&f.address, message(2)).await, ErrorKind::NotFound, "publish afterwards");
    Ok(())
}

async fn deleted_while_holding(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let other = cx.second_bus(&f.bus).await?;
    f.publish_all(messages(0..3)).await?;
    // The prefetch has room for one more: a consumer with a full window learns of the deletion only after a settlement.
    let mut sub = f.subscribe(4).await?;
    let held = cx.collect(&mut sub, 3).await?;
    other.delete().await.during("delete")?;
    cx.expect_end(&mut sub, ErrorKind::NotFound).await?;
    for d in held {
        let result = tokio::time::timeout(cx.patience(), d.ack()).await;
        let Ok(result) = result else { crate::fail!("the ack hangs") };
        expect_kind!(result, ErrorKind::LockLost, "ack of a message whose queue is gone");
    }
    Ok(())
}

async fn deleted_subscription(cx: Cx) -> Outcome {
    let sub = SubscriptionSpec::new;
    let both = cx.topic(TopicSpec::new().subscription("a", sub()).subscription("b", sub())).await?;
    // Deleting a topology deletes its topics with all their subscriptions, so the sibling is a subscription of another
    // topic on the same connection.
    let sibling = cx.bus(Topology::new().topic("u", TopicSpec::new().subscription("a", sub()))).await?;
    let mut gone = both.subscribe(5).await?;
    let mut stays = sibling.subscribe(Source::subscription("u", "a")).open().await?;
    cx.second_bus(&both.bus).await?.delete().await.during("delete")?;
    cx.expect_end(&mut gone, ErrorKind::NotFound).await?;
    sibling.publish(Address::topic("u"), message(1)).await?;
    ensure_eq!(numbers(&cx.drain(&mut stays, 1).await?)?, vec![1], "the other topic");
    Ok(())
}

async fn deleted_dead_letters(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let mut dead = f.subscribe_dead(5).await?;
    f.publish(message(1)).await?;
    let (_sub, d) = f.one(&cx).await?;
    d.dead_letter("poison", "").await?;
    cx.drain(&mut dead, 1).await?;
    cx.second_bus(&f.bus).await?.delete().await.during("delete")?;
    cx.expect_end(&mut dead, ErrorKind::NotFound).await
}

async fn deleted_ordered(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new().ordered(true)).await?;
    f.publish_all((0..5).map(|n| keyed("a", n))).await?;
    let mut sub = f.subscribe(5).await?;
    let held = cx.recv(&mut sub).await?;
    cx.second_bus(&f.bus).await?.delete().await.during("delete")?;
    cx.expect_end(&mut sub, ErrorKind::NotFound).await?;
    expect_kind!(held.ack().await, ErrorKind::LockLost, "ack of the head");
    Ok(())
}

async fn deleted_and_back(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let other = cx.setup(f.bus.topology().clone()).make().await??;
    let publisher = f.bus.publisher(&f.address).await?;
    publisher.publish(message(1)).await?;
    other.delete().await.during("delete")?;
    expect_kind!(publisher.publish(message(2)).await, ErrorKind::NotFound, "publish to what is gone");
    other.declare().await.during("declare anew")?;
    // The first publish may still fail because of the old queue, on a connection that learned of the deletion late.
    publish_until(&cx, &f, &message(3), None).await?;
    let mut sub = f.subscribe(5).await?;
    let got = numbers(&cx.drain(&mut sub, 1).await?)?;
    ensure_eq!(got, vec![3], "in the new queue");
    cx.expect_none(&mut sub).await
}

//! One conversation through calls, answers and events.

use polybus_core::{Address, Envelope, Source, telemetry::Current};
use polybus_patterns::{
    Requests,
    requests::{Reply, respond},
};

use crate::{Ask, Desk, Square, squares};

#[tokio::test(start_paused = true)]
async fn one_correlation_id_goes_from_the_first_publish_to_the_last_effect() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let (_stop, _worker) = desk.work(respond(&desk.bus, desk.bus.clone(), async |bus, _cx, ask: Ask| {
        bus.publish(Address::queue("other"), Envelope::new("square.counted", "{}")).await?;
        Ok(Square { n: ask.n })
    }));
    let call = async {
        requests.call::<Square>(squares(), &Ask { n: 1 }).await.unwrap();
        desk.bus.publish(Address::queue("other"), Envelope::new("page.shown", "{}")).await.unwrap();
    };
    Current::correlated("page-7").scope(call).await;
    let request = desk.memory.published(&squares()).pop().unwrap();
    let reply = desk.memory.published(&Address::queue("replies")).pop().unwrap();
    let events = desk.memory.published(&Address::queue("other"));
    for message in [&request, &reply, &events[0], &events[1]] {
        assert_eq!(message.correlation_id.as_deref(), Some("page-7"), "{}", message.event_type);
    }
    assert_eq!((&reply.causation_id, &events[0].causation_id), (&Some(request.id.clone()), &Some(request.id.clone())));
    assert_eq!((&request.causation_id, &events[1].causation_id), (&None, &None));
}

#[tokio::test(start_paused = true)]
async fn a_responder_may_call_on() {
    let desk = Desk::new().await;
    let front = desk.requests().await;
    let back = Requests::open(&desk.bus, Source::queue("other")).await.unwrap();
    let (_stop, _worker) = desk.work(respond(&desk.bus, back, async |back: Requests, _cx, ask: Ask| match ask.n {
        0 => Ok(Square { n: 1 }),
        n => {
            let below: Square = back.call(squares(), &Ask { n: n - 1 }).await?;
            Ok(Square { n: below.n * n })
        }
    }));
    let factorial: Square = front.call(squares(), &Ask { n: 5 }).await.unwrap();
    assert_eq!(factorial.n, 120);
    let asked = desk.memory.published(&squares());
    assert_eq!(asked.len(), 6);
    assert!(asked.iter().all(|ask| ask.correlation_id.as_ref() == Some(&asked[0].id)));
    for pair in asked.windows(2) {
        assert_eq!(pair[1].causation_id.as_ref(), Some(&pair[0].id));
    }
}

#[tokio::test]
async fn a_reply_can_be_kept_and_sent_later() {
    let desk = Desk::new().await;
    let expires = desk.bus.now() + std::time::Duration::from_secs(60);
    let request = Envelope::event(&Ask { n: 1 }).unwrap().id("7").reply_to("other").expires_at(expires);
    let reply = Reply::to(&request, &Square { n: 1 }).unwrap().unwrap();
    assert_eq!(reply.address_in(desk.bus.topology()).unwrap(), Address::queue("other"));
    // It outlives the call, so that one that is late is counted.
    let outlives = expires + std::time::Duration::from_secs(60);
    assert_eq!((reply.envelope().causation_id.as_deref(), reply.envelope().expires_at), (Some("7"), Some(outlives)));
    reply.publish(&desk.bus).await.unwrap();
    assert_eq!(desk.memory.published(&Address::queue("other")).len(), 1);
    let session = Envelope::bare(Envelope::FOREIGN_TYPE, "1").id("7").edit(|fields| {
        fields.headers.push("native.reply-to", "other");
        fields.headers.push("native.reply-to-session-id", "s");
    });
    let reply = Reply::to(&session, &Square { n: 1 }).unwrap().unwrap();
    assert_eq!(reply.address_in(desk.bus.topology()).unwrap_err().kind(), polybus_core::ErrorKind::Unsupported);
}

#[tokio::test]
async fn an_answer_made_of_its_request_asks_for_none() {
    let request = Envelope::event(&Ask { n: 1 }).unwrap().id("7").reply_to("other");
    let reply = Reply::with(&request, request.clone().header("seen", "yes")).unwrap();
    assert_eq!((reply.envelope().native_reply(), reply.envelope().headers.get("seen")), (None, Some("yes")));
    // One that asks somebody else keeps that.
    let reply = Reply::with(&request, request.clone().reply_to("elsewhere")).unwrap();
    assert_eq!(reply.envelope().native_reply(), Some(("elsewhere", "7")));
}

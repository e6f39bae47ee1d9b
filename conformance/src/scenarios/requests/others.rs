//! Requests of other programs, and other programs that answer.

use std::future::IntoFuture;

use polybus_core::{Address, Source};
use polybus_patterns::requests::respond;

use super::{Ask, Desks, Square, squares};
use crate::{
    Cx, During, Failure, Need, Outcome, RawMessage, Scenario, ensure_eq, scenario, scenarios::shared::wait_until,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "requests/of-others",
            "A request with a native reply address gets its answer there, under its own correlation id.",
            of_others,
        )
        .needs(|t, _| Need::carries(t, &a_request())),
        scenario(
            "requests/to-others",
            "A program that sends back the native correlation id answers a call.",
            to_others,
        )
        .needs(|t, _| Need::carries(t, &RawMessage::body("{}").correlation_id("rpc-7"))),
        scenario(
            "requests/no-reply",
            "A message on a reply queue that answers nothing is kept as a dead letter.",
            no_reply,
        )
        .needs(|_, c| Need::dead_letters(c)),
    ]
}

fn a_request() -> RawMessage {
    RawMessage::body(r#"{"n":21}"#).message_id("m-1").correlation_id("rpc-7").reply_to("answers")
}

async fn of_others(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let (_stop, _worker) =
        desks.work(respond(&desks.responder, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n * 2 })));
    let answers = desks.caller.topology().address(&Address::queue("answers")).physical;
    cx.inject(&desks.caller, &squares(), a_request().reply_to(&answers)).await?;
    let mut replies = desks.caller.subscribe(Source::queue("answers")).open().await?;
    let reply = cx.drain(&mut replies, 1).await.during("the answer")?.remove(0);
    ensure_eq!(reply.correlation_id.as_deref(), Some("rpc-7"), "the correlation id of the answer");
    ensure_eq!(&*reply.data, br#"{"n":42}"#, "the body of the answer");
    ensure_eq!(reply.content_type.as_deref(), Some("application/json"), "its content type");
    ensure_eq!(reply.headers.get("native.content-encoding"), None, "its content encoding");
    Ok(())
}

async fn to_others(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let mut asked = desks.responder.subscribe(Source::queue("squares")).open().await?;
    let call = tokio::spawn(desks.requests.call::<Square>(squares(), &Ask { n: 7 }).into_future());
    let request = cx.drain(&mut asked, 1).await.during("the request")?.remove(0);
    let Some((queue, correlation)) = request.native_reply() else {
        return Err(Failure::new("the request names no reply queue"));
    };
    let replies = Address::queue("replies");
    ensure_eq!(queue, &*desks.caller.topology().address(&replies).physical, "the reply queue");
    ensure_eq!(request.headers.get("native.reply-to"), None, "what polybus writes natively is no header");
    cx.inject(&desks.caller, &replies, RawMessage::body(r#"{"n":49}"#).correlation_id(correlation)).await?;
    let square = call.await.map_err(|_| Failure::new("the call panicked"))?;
    ensure_eq!(square.map_err(|e| Failure::new(e.to_string()))?.n, 49, "the answer");
    Ok(())
}

async fn no_reply(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    desks.responder.publish(Address::queue("replies"), crate::message(7)).await?;
    wait_until(&cx, "the message to be seen", || desks.requests.stats().not_replies >= 1).await?;
    let mut dead = desks.caller.subscribe(Source::queue("replies").dead_letters()).open().await?;
    let letter = cx.recv(&mut dead).await.during("the dead letter")?;
    ensure_eq!(crate::number(letter.envelope())?, 7, "the message");
    let reason = letter.dead_letter_info().and_then(|info| info.reason.clone());
    ensure_eq!(reason.as_deref(), Some("not-a-reply"), "the reason");
    letter.ack().await?;
    Ok(())
}

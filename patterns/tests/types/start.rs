//! What a worker refuses to start with: all of it at once, and before anything is consumed.

use std::time::Duration;

use polybus_core::{Envelope, ErrorKind, Event, QueueSpec};
use polybus_patterns::types::{Router, Types, Unknown};
use serde::{Deserialize, Serialize};

use crate::events::{Paid, PlacedV1, PlacedV2, PlacedV3, bus, cents, currency, orders, publish, start, types_v3, v1};

fn mistakes(types: &Types) -> String {
    let error = types.check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    error.message().to_owned()
}

fn told(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn holes_are_named_with_what_mends_them() {
    told(&mistakes(&Types::new().event::<PlacedV3>()), &["no upcaster from version 1 to 2: add .upcast::<PlacedV3>(1"]);
    let hole = Types::new().event::<PlacedV3>().upcast::<PlacedV3>(1, cents);
    told(&mistakes(&hole), &["no upcaster from version 2: add .upcast::<PlacedV3>(2"]);
}

#[test]
fn upcasters_that_lead_nowhere_are_mistakes() {
    told(&mistakes(&types_v3().upcast::<PlacedV3>(3, currency)), &["an upcaster from version 3", "VERSION 3"]);
    told(&mistakes(&types_v3().upcast::<PlacedV3>(9, currency)), &["an upcaster from version 9"]);
    told(&mistakes(&types_v3().upcast::<PlacedV3>(0, currency)), &["an upcaster from version 0"]);
    told(&mistakes(&types_v3().upcast::<PlacedV3>(2, currency)), &["two upcasters from version 2"]);
    told(&mistakes(&types_v3().upcast::<Paid>(1, currency)), &["order.paid", "not registered: add .event::<Paid>()"]);
    told(&mistakes(&types_v3().oldest::<PlacedV3>(2)), &["an upcaster from version 1, and the oldest is 2"]);
    told(&mistakes(&types_v3().oldest::<PlacedV3>(4)), &["oldest is 4", "versions 1 to 3"]);
    told(&mistakes(&types_v3().oldest::<PlacedV3>(0)), &["oldest is 0"]);
}

#[test]
fn types_and_names_that_stand_twice_are_mistakes() {
    let twice = Types::new().event::<PlacedV1>().event::<PlacedV2>();
    told(&mistakes(&twice), &["order.placed: registered as", "PlacedV1 (version 1)", "PlacedV2 (version 2)"]);
    Types::new().event::<Paid>().event::<Paid>().check().unwrap();

    let both = || Types::new().event::<Paid>().event::<PlacedV1>();
    told(&mistakes(&both().alias::<Paid>("order.placed")), &["order.placed: it is a type, and an alias of order.paid"]);
    let before = Types::new().event::<Paid>().alias::<Paid>("order.placed").event::<PlacedV1>();
    told(&mistakes(&before), &["order.placed: it is a type, and an alias of order.paid"]);
    let two = both().alias::<Paid>("order").alias::<PlacedV1>("order");
    told(&mistakes(&two), &["order: it is an alias of order.paid and of order.placed"]);
    told(&mistakes(&both().foreign_as::<Paid>().foreign_as::<PlacedV1>()), &["polybus.foreign: it is an alias of"]);
    told(&mistakes(&both().alias::<Paid>("no type")), &["an alias that no message can have"]);
    told(&mistakes(&Types::new().alias::<Paid>("order.payed")), &["not registered: add .event::<Paid>()"]);
    both().alias::<Paid>("order.payed").alias::<Paid>("order.payed").check().unwrap();
}

#[derive(Serialize, Deserialize)]
struct Never;

impl Event for Never {
    const TYPE: &'static str = "never a type";
    const VERSION: u32 = 0;
}

#[derive(Serialize, Deserialize)]
struct Mistyped;

impl Event for Mistyped {
    const TYPE: &'static str = "mistyped";
    const VERSION: u32 = u32::MAX;
}

#[test]
fn versions_and_types_that_cannot_be_are_mistakes() {
    told(&mistakes(&Types::new().event::<Never>()), &["no message can have the type", "VERSION 0"]);
    told(&mistakes(&Types::new().event::<Mistyped>()), &["no upcaster from version 1 to 4294967294"]);
}

fn wrong() -> Router<()> {
    Types::new()
        .event::<PlacedV3>()
        .upcast::<PlacedV3>(1, cents)
        .router(())
        .on(async |(), _cx, _: PlacedV3| Ok(()))
        .on(async |(), _cx, _: PlacedV3| Ok(()))
        .on(async |(), _cx, _: PlacedV1| Ok(()))
        .on_message(async |(), _cx, _: Paid, _msg| Ok(()))
        .otherwise(async |(), _cx, _msg| Ok(()))
        .otherwise(async |(), _cx, _msg| Ok(()))
}

#[tokio::test(start_paused = true)]
async fn a_worker_tells_all_mistakes_at_once_and_consumes_nothing() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    publish(&bus, Envelope::event(&v1("o")).unwrap()).await;
    let error = start(&bus, wrong()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let parts = [
        "5 mistakes",
        "no upcaster from version 2",
        "order.placed: two handlers",
        "a handler of types::events::PlacedV1, and the type is registered as types::events::PlacedV3",
        "order.paid: a handler of a type that is not registered: add .event::<Paid>()",
        "two handlers for everything else",
    ];
    told(error.message(), &parts);
    let stats = bus.stats(orders()).await.unwrap();
    assert_eq!((stats.ready, stats.in_flight, stats.dead_lettered), (Some(1), Some(0), Some(0)));
}

/// All attempts would be gone before anybody could upgrade the program.
#[test]
fn trying_again_without_a_delay_is_a_mistake() {
    let zero = || Unknown::RetryAfter(Duration::ZERO);
    told(&mistakes(&types_v3().unknown_type(zero())), &["unknown_type: RetryAfter without a delay"]);
    let types = types_v3().unknown_version(zero());
    told(&mistakes(&types), &["unknown_version: RetryAfter without a delay"]);
    let router = types.router(()).on(async |(), _cx, _: PlacedV3| Ok(()));
    told(router.check().unwrap_err().message(), &["unknown_version: RetryAfter without a delay"]);
    types_v3().unknown_version(Unknown::RetryAfter(Duration::from_millis(1))).check().unwrap();
}

#[test]
fn a_router_without_handlers_is_a_mistake() {
    told(types_v3().router(()).check().unwrap_err().message(), &["no handler"]);
    types_v3().router(()).otherwise(async |(), _cx, _msg| Ok(())).check().unwrap();
    types_v3().router(()).on(async |(), _cx, _: PlacedV3| Ok(())).check().unwrap();
}

/// The name that messages had before is no type of its own.
#[test]
fn a_handler_of_an_alias_is_a_mistake() {
    #[derive(Serialize, Deserialize)]
    struct Payed;
    impl Event for Payed {
        const TYPE: &'static str = "order.payed";
        const VERSION: u32 = 1;
    }
    let types = Types::new().event::<Paid>().alias::<Paid>("order.payed");
    let router = types.router(()).on(async |(), _cx, _: Payed| Ok(()));
    told(router.check().unwrap_err().message(), &["order.payed: a handler of a type that is not registered"]);
}

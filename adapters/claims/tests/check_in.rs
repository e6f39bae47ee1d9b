//! What is uploaded, and what is refused before that.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use polybus_claims::Claims;
use polybus_core::{Bus, BusOptions, Envelope, ErrorKind, RetrySafety, Topology, memory::MemoryDriver};
use polybus_patterns::claim::ClaimCheck;
use support::*;

#[tokio::test]
async fn only_payloads_above_the_threshold_are_uploaded() {
    let (claims, store) = claims();
    for size in [0, 1, 100] {
        let message = Envelope::new("a.b", payload(size, 1));
        assert_eq!(claims.check_in(message.clone()).await.unwrap(), message, "{size}");
    }
    assert_eq!(claims.clone().threshold(0).check_in(Envelope::new("a.b", "")).await.unwrap().extensions.len(), 0);
    assert_eq!(store.requests(), 0);
    let message = claims.check_in(Envelope::new("a.b", payload(101, 1)).content_type("image/png")).await.unwrap();
    assert!(message.data.is_empty());
    assert_eq!(
        (message.content_type.as_deref(), message.extensions.get("claimsize")),
        (Some("image/png"), Some("101"))
    );
    assert_eq!(store.names().await, [reference(&message)]);
}

#[tokio::test]
async fn the_room_of_a_row_counts_as_well() {
    let (claims, store) = claims();
    let message = Envelope::new("a.b", payload(100, 1));
    assert_eq!(claims.check_in_within(message.clone(), Duration::ZERO, 100).await.unwrap(), message);
    assert!(claims.check_in_within(message, Duration::ZERO, 99).await.unwrap().data.is_empty());
    assert_eq!(store.names().await.len(), 1);
}

#[tokio::test]
async fn the_threshold_of_a_bus_leaves_room_for_base64_and_metadata() {
    for limit in [1000_usize, 65_536, 262_144, 1 << 20, 128 << 20] {
        let driver = Arc::new(MemoryDriver::new().max_message_size(limit));
        let bus = Bus::new(driver, BusOptions::topology(Topology::new())).unwrap();
        let shown = format!("{:?}", claims().0.threshold_of(&bus));
        let threshold = shown.split("threshold: ").nth(1).unwrap().split(',').next().unwrap();
        let threshold: usize = threshold.parse().unwrap();
        let left = if limit > 128 << 10 { 32 << 10 } else { limit / 4 };
        assert!(threshold.div_ceil(3) * 4 + left <= limit && threshold >= limit / 4, "{threshold} of {limit}");
    }
}

#[tokio::test]
async fn a_payload_above_the_maximum_is_not_uploaded() {
    let (claims, store) = claims();
    let claims = claims.max_size(1000);
    claims.check_in(Envelope::new("a.b", payload(1000, 1))).await.unwrap();
    assert_eq!(store.requests(), 1);
    let refused = claims.check_in(Envelope::new("a.b", payload(1001, 1)).id("7")).await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("id")), (ErrorKind::PayloadTooLarge, Some("7")));
    assert_eq!(store.requests(), 1);
}

#[tokio::test]
async fn what_is_checked_in_is_not_checked_in_twice() {
    let (claims, store) = claims();
    let once = claims.check_in(large()).await.unwrap();
    assert_eq!(claims.clone().threshold(0).check_in(once.clone()).await.unwrap(), once);
    assert_eq!(store.names().await.len(), 1);
    // The attribute on a message with a payload is somebody else's idea.
    let both = once.edit(|fields| fields.data = payload(500, 1));
    assert_eq!(claims.check_in(both).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn what_cannot_be_published_is_not_uploaded() {
    let (claims, store) = claims();
    let wrong = large().edit(|fields| fields.event_type = "no type".into());
    assert_eq!(claims.check_in(wrong).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    // 64 extensions are allowed, and the claim's are three of them.
    let crowded = (0..62).fold(large(), |message, n| message.edit(|f| f.extensions.push(format!("x{n}"), "1")));
    assert_eq!(claims.check_in(crowded).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(store.requests(), 0);
}

#[tokio::test]
async fn the_name_has_the_day_on_which_the_message_is_due() {
    let (claims, store) = claims();
    let claims = claims.clock(Arc::new(MovedClock::at("2026-02-27T23:59:59+00:00"))).retention(10 * DAY);
    let day = |message: &Envelope| reference(message)["claims/".len()..][..10].to_owned();
    assert_eq!(day(&claims.check_in(large()).await.unwrap()), "2026-02-27");
    assert_eq!(day(&claims.check_in_for(large(), Duration::from_secs(1)).await.unwrap()), "2026-02-28");
    assert_eq!(day(&claims.check_in_for(large(), 10 * DAY).await.unwrap()), "2026-03-09");
    let before = store.requests();
    let above = 10 * DAY + Duration::from_nanos(1);
    for claims in [claims.clone(), claims.clone().max_delay(20 * DAY)] {
        let refused = claims.check_in_for(large(), above).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    let undelayed = claims.clone().max_delay(Duration::ZERO);
    assert!(undelayed.check_in_for(large(), Duration::from_secs(1)).await.is_err());
    assert!(claims.clone().retention(Duration::MAX).check_in_for(large(), Duration::MAX).await.is_err());
    assert_eq!(store.requests(), before, "nothing was uploaded");
    // A small message keeps its payload for any time.
    claims.check_in_for(Envelope::new("a.b", "small"), 100 * DAY).await.unwrap();
}

#[tokio::test]
async fn days_are_those_of_utc() {
    let (claims, _) = claims();
    let claims = claims.clock(Arc::new(MovedClock::at("2026-03-01T01:00:00+02:00")));
    assert!(reference(&claims.check_in(large()).await.unwrap()).starts_with("claims/2026-02-28/"));
}

#[tokio::test]
async fn a_claim_is_not_delayed_beyond_the_day_that_it_was_checked_in_for() {
    let (claims, _) = claims();
    let claims = claims.clock(Arc::new(MovedClock::at("2026-02-27T12:00:00+00:00")));
    let now = claims.check_in(large()).await.unwrap();
    claims.check_in_for(now.clone(), Duration::from_secs(3600)).await.unwrap();
    let refused = claims.check_in_for(now, 2 * DAY).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    let later = claims.check_in_for(large(), 2 * DAY).await.unwrap();
    claims.check_in_for(later, 2 * DAY).await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_away_is_said_without_its_secrets() {
    let (claims, store) = claims();
    store.set(Fault::Fail);
    let failed = claims.check_in(large()).await.unwrap_err();
    assert_eq!((failed.kind(), failed.retry()), (ErrorKind::Unavailable, RetrySafety::Safe));
    let shown = format!("{failed} {failed:?} {claims:?}");
    assert!(!shown.contains("SECRET") && shown.contains("https://account.example/x"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_not_waited_for_for_ever() {
    let (claims, store) = claims();
    store.set(Fault::Hang);
    let began = tokio::time::Instant::now();
    let failed = claims.timeout(Duration::from_secs(5)).check_in(large()).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!((failed.kind(), failed.retry()), (ErrorKind::Timeout, RetrySafety::Safe));
}

const PARTED: usize = (33 << 20) + 5;

#[tokio::test]
async fn large_payloads_go_in_parts() {
    let (claims, store) = claims();
    for (size, parts) in [(16 << 20, 0), ((16 << 20) + 1, 3), (PARTED, 5)] {
        store.parts.store(0, SeqCst);
        let message = Envelope::new("a.b", payload(size, 3));
        let redeemed = claims.redeem(claims.check_in(message.clone()).await.unwrap()).await.unwrap();
        assert!(redeemed == message, "{size}");
        assert_eq!(store.parts.load(SeqCst), parts, "{size}");
    }
    assert_eq!(store.aborted.load(SeqCst), 0);
}

#[tokio::test]
async fn an_upload_that_fails_is_taken_away() {
    for (n, fault) in [Fault::PartFails, Fault::CompleteFails].into_iter().enumerate() {
        let (claims, store) = claims();
        store.set(fault);
        let failed = claims.check_in(Envelope::new("a.b", payload(PARTED, 3))).await.unwrap_err();
        assert_eq!((failed.kind(), failed.retry()), (ErrorKind::Unavailable, RetrySafety::Safe), "{n}");
        assert_eq!((store.aborted.load(SeqCst), store.names().await.len()), (1, 0), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_hangs_is_taken_away() {
    let (claims, store) = claims();
    store.set(Fault::PartHangs);
    let failed = claims.check_in(Envelope::new("a.b", payload(PARTED, 3))).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Timeout);
    assert_eq!((store.aborted.load(SeqCst), store.names().await.len()), (1, 0));
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_taken_away() {
    let (claims, store) = claims();
    store.set(Fault::PartHangs);
    let message = Envelope::new("a.b", payload(PARTED, 3));
    let upload = tokio::spawn(async move { claims.check_in(message).await });
    until(|| store.parts.load(SeqCst) >= 2).await;
    upload.abort();
    until(|| store.aborted.load(SeqCst) == 1).await;
    assert!(store.names().await.is_empty());
}

async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let refused = Claims::folder(file.join("claims"), "claims").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConfigInvalid, "{refused}");
    assert_eq!(Claims::folder(folder.path(), "../x").unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_payload_that_is_checked_in_before_midnight_may_be_published_after_it() {
    let (claims, _) = claims();
    let clock = MovedClock::at("2026-02-26T22:59:59+00:00");
    let claims = claims.clock(Arc::new(clock.clone()));
    let hour = Duration::from_secs(3600);
    let sent = claims.check_in_for(large(), hour).await.unwrap();
    clock.set("2026-02-26T23:00:01+00:00");
    claims.check_in_for(sent.clone(), hour).await.unwrap();
    clock.set("2026-02-28T00:00:00+00:00");
    let refused = claims.check_in_for(sent, hour).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn attributes_that_would_be_lost_are_refused() {
    let (claims, store) = claims();
    for name in ["claimsize", "claimsha256"] {
        let own = large().edit(|fields| fields.extensions.push(name, "mine"));
        let refused = claims.check_in(own).await.unwrap_err();
        assert_eq!((refused.kind(), store.requests()), (ErrorKind::InvalidArgument, 0), "{refused}");
    }
}

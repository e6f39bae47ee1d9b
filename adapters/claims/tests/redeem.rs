//! What is handed on, and what is not.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use polybus_claims::{ClaimError, Claims};
use polybus_core::{Envelope, ErrorKind};
use support::*;

fn folder() -> (tempfile::TempDir, Claims) {
    let folder = tempfile::tempdir().unwrap();
    let claims = Claims::folder(folder.path(), "shop/claims").unwrap().threshold(100);
    (folder, claims)
}

#[tokio::test]
async fn a_message_comes_back_as_it_was() {
    let (_folder, in_folder) = folder();
    for claims in [claims().0, in_folder] {
        for message in [
            large(),
            large().key("k").sequence(7).correlation_id("c").edit(|f| f.extensions.push("tier", "gold")),
            Envelope::new("a.b", payload(5_000_000, 1)),
            Envelope::new("a.b", payload(101, 1)).edit(|fields| fields.content_type = None),
        ] {
            let sent = claims.check_in(message.clone()).await.unwrap();
            assert!(claims.redeem(sent.clone()).await.unwrap() == message);
            // And again: a copy on another subscription, a retry, a redrive.
            assert!(claims.redeem(sent).await.unwrap() == message);
        }
    }
}

#[tokio::test]
async fn a_message_with_its_payload_is_left_alone() {
    let (claims, store) = claims();
    for message in
        [Envelope::new("a.b", "small"), Envelope::new("a.b", ""), Envelope::bare(Envelope::FOREIGN_TYPE, "x")]
    {
        assert_eq!(claims.redeem(message.clone()).await.unwrap(), message);
    }
    assert_eq!(store.requests(), 0);
}

#[tokio::test]
async fn a_payload_that_was_altered_by_one_byte_is_not_handed_on() {
    let (claims, store) = claims();
    let sent = claims.check_in(large()).await.unwrap();
    let good = large().data.clone();
    for at in [0, 5000, 9999] {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        store.write(&reference(&sent), bad).await;
        assert!(matches!(claims.redeem(sent.clone()).await, Err(ClaimError::Altered { .. })), "byte {at}");
    }
    store.write(&reference(&sent), good.clone()).await;
    claims.redeem(sent.clone()).await.unwrap();
    let chunks = store.chunks.load(SeqCst);
    for other in [good.slice(1..), [&good[..], b"x"].concat().into(), bytes::Bytes::new()] {
        store.write(&reference(&sent), other).await;
        assert!(matches!(claims.redeem(sent.clone()).await, Err(ClaimError::Altered { .. })));
    }
    assert_eq!(store.chunks.load(SeqCst), chunks, "of another size, nothing is read");
}

#[tokio::test]
async fn an_altered_file_is_noticed() {
    let (folder, claims) = folder();
    let sent = claims.check_in(large()).await.unwrap();
    let file = folder.path().join(reference(&sent));
    let mut data = std::fs::read(&file).unwrap();
    data[77] ^= 128;
    std::fs::write(&file, &data).unwrap();
    assert!(matches!(claims.redeem(sent.clone()).await, Err(ClaimError::Altered { .. })));
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(claims.redeem(sent.clone()).await, Err(ClaimError::Missing { .. })));
    std::fs::create_dir(&file).unwrap();
    assert!(claims.redeem(sent).await.is_err());
}

#[tokio::test]
async fn nothing_outside_the_prefix_is_asked_for() {
    let (claims, store) = claims();
    let sent = claims.check_in(large()).await.unwrap();
    let own = reference(&sent);
    let uuid = &own[own.len() - 36..];
    // All of them are there.
    for outside in [
        format!("other/2026-01-01/{uuid}"),
        format!("claims2/2026-01-01/{uuid}"),
        "claims/secret".into(),
        "secret".into(),
        format!("claims/{uuid}"),
        format!("claims/2026-01-01/deeper/{uuid}"),
    ] {
        store.write(&outside, large().data.clone()).await;
    }
    let before = store.requests();
    for outside in [
        format!("other/2026-01-01/{uuid}"),
        format!("claims2/2026-01-01/{uuid}"),
        "claims/secret".into(),
        "secret".into(),
        format!("claims/{uuid}"),
        format!("claims/2026-01-01/deeper/{uuid}"),
        "claims/2026-01-01/../../secret".into(),
        format!("claims/2026-01-01/../../other/2026-01-01/{uuid}"),
        format!("../claims/2026-01-01/{uuid}"),
        format!("/{own}"),
        format!("{own}/"),
        format!("file:///{own}"),
        own.to_uppercase(),
        own.replace('/', "%2F"),
        String::new(),
    ] {
        let message = sent.clone().edit(|fields| {
            fields.extensions.remove("claimref");
            fields.extensions.push("claimref", outside.clone());
        });
        assert!(matches!(claims.redeem(message).await, Err(ClaimError::Outside { .. })), "{outside}");
    }
    assert_eq!(store.requests(), before, "the store was asked");
}

#[tokio::test]
async fn claims_of_another_producer_are_redeemed_where_that_is_wanted() {
    let (claims, store) = claims();
    let other = Claims::new(store, "billing/claims").unwrap().threshold(100);
    let sent = other.check_in(large()).await.unwrap();
    assert!(matches!(claims.redeem(sent.clone()).await, Err(ClaimError::Outside { .. })));
    let both = claims.redeem_also("billing/claims").unwrap();
    both.redeem(sent).await.unwrap();
    both.redeem(both.check_in(large()).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn what_is_too_large_is_not_downloaded() {
    let (claims, store) = claims();
    let sent = claims.check_in(large()).await.unwrap();
    claims.clone().max_size(10_000).redeem(sent.clone()).await.unwrap();
    let (requests, chunks) = (store.requests(), store.chunks.load(SeqCst));
    let small = claims.clone().max_size(9_999);
    let told = small.redeem(sent.clone()).await;
    assert!(matches!(told, Err(ClaimError::TooLarge { size: 10_000, most: 9_999, .. })), "{told:?}");
    assert_eq!(store.requests(), requests, "by what the message says, the store is not asked");
    // The message says little, and the store has much.
    let modest = sent.edit(|fields| {
        fields.extensions.remove("claimsize");
        fields.extensions.push("claimsize", "50");
    });
    assert!(matches!(small.redeem(modest.clone()).await, Err(ClaimError::TooLarge { size: 10_000, .. })));
    store.set(Fault::SaysSize(u64::MAX));
    assert!(matches!(claims.redeem(modest).await, Err(ClaimError::TooLarge { size: u64::MAX, .. })));
    assert_eq!(store.chunks.load(SeqCst), chunks, "nothing was read");
}

#[tokio::test]
async fn no_more_is_read_than_was_announced() {
    let (claims, store) = claims();
    let sent = claims.check_in(large()).await.unwrap();
    store.set(Fault::Endless);
    assert!(matches!(claims.redeem(sent.clone()).await, Err(ClaimError::Altered { .. })));
    assert_eq!(store.chunks.load(SeqCst), 10_000 / CHUNK + 1);
    store.set(Fault::Empties);
    let error = tokio::time::timeout(Duration::from_secs(60), claims.redeem(sent.clone())).await.unwrap().unwrap_err();
    assert!(matches!(&error, ClaimError::Altered { .. }), "{error}");
    store.set(Fault::Short);
    assert!(matches!(claims.redeem(sent).await, Err(ClaimError::Altered { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_no_verdict_on_the_claim() {
    let (claims, store) = claims();
    let claims = claims.timeout(Duration::from_secs(5));
    let message = large();
    let sent = claims.check_in(message.clone()).await.unwrap();
    for (fault, kind) in [
        (Fault::Fail, ErrorKind::Unavailable),
        (Fault::Breaks, ErrorKind::Unavailable),
        (Fault::Hang, ErrorKind::Timeout),
        (Fault::Stalls, ErrorKind::Timeout),
    ] {
        store.set(fault);
        let began = tokio::time::Instant::now();
        let failed = claims.redeem(sent.clone()).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        assert!(!format!("{failed} {failed:?}").contains("SECRET"), "{failed:?}");
        let ClaimError::Store(error) = failed else { panic!("{fault:?}: {failed}") };
        assert_eq!(error.kind(), kind, "{fault:?}");
    }
    store.set(Fault::None);
    assert!(claims.redeem(sent).await.unwrap() == message);
}

#[tokio::test]
async fn attributes_that_contradict_each_other_are_malformed() {
    let (claims, store) = claims();
    let sent = claims.check_in(large()).await.unwrap();
    let before = store.requests();
    for name in ["claimsize", "claimsha256"] {
        let wrong = sent.clone().edit(|fields| drop(fields.extensions.remove(name)));
        assert!(matches!(claims.redeem(wrong).await, Err(ClaimError::Malformed { .. })), "{name}");
    }
    let both = sent.edit(|fields| fields.data = "x".into());
    assert!(matches!(claims.redeem(both).await, Err(ClaimError::Malformed { .. })));
    assert_eq!(store.requests(), before);
}

#[tokio::test]
async fn a_folder_that_is_not_mounted_is_no_missing_payload() {
    let (folder, claims) = folder();
    let sent = claims.check_in(large()).await.unwrap();
    let away = folder.path().join("away");
    std::fs::rename(folder.path().join("shop"), &away).unwrap();
    let error = claims.redeem(sent.clone()).await.unwrap_err();
    assert!(matches!(&error, ClaimError::Store(e) if e.kind() == ErrorKind::Unavailable), "{error}");
    std::fs::rename(&away, folder.path().join("shop")).unwrap();
    claims.redeem(sent).await.unwrap();
    // What was never there is not made.
    let unmounted = Claims::folder(folder.path().join("none"), "claims").unwrap_err();
    assert_eq!(unmounted.kind(), ErrorKind::ConfigInvalid, "{unmounted}");
}

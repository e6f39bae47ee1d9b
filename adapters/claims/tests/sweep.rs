//! What a sweep deletes, and what it leaves.
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, path::Path, sync::Arc, time::Duration};

use polybus_claims::{Claims, Cloud, object_store::memory::InMemory};
use polybus_core::{ErrorKind, clock::TokioClock, time::format_description::well_known::Rfc3339};
use support::*;

/// Clocks are a hundred years ahead of the files: one that was written later than its name says stays.
fn in_folder(root: &Path, clock: &MovedClock) -> Claims {
    let claims = Claims::folder(root, "shop/claims").unwrap().threshold(100).retention(3 * DAY);
    claims.clock(Arc::new(clock.clone()))
}

/// Everything under a folder, folders with a slash.
fn listed(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                found.push(format!("{name}/"));
                folders.push(path);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_day_goes_once_its_retention_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let clock = MovedClock::at("2126-02-26T00:00:00+00:00");
    let claims = in_folder(folder.path(), &clock);
    let first = claims.check_in(large()).await.unwrap();
    clock.set("2126-02-27T00:00:00+00:00");
    let second = claims.check_in(large()).await.unwrap();
    let delayed = claims.check_in_for(large(), 2 * DAY).await.unwrap();
    // The last moment of the 26th was a moment less than three days ago.
    clock.set("2126-03-01T23:59:59+00:00");
    assert_eq!(claims.sweep().await.unwrap().deleted, 0);
    claims.redeem(first.clone()).await.unwrap();
    clock.set("2126-03-02T00:00:00+00:00");
    let report = claims.sweep().await.unwrap();
    assert_eq!((report.deleted, report.days), (1, 1));
    assert!(claims.redeem(first).await.is_err());
    claims.redeem(second.clone()).await.unwrap();
    clock.set("2126-03-03T00:00:00+00:00");
    assert_eq!(claims.sweep().await.unwrap().deleted, 1);
    assert!(claims.redeem(second).await.is_err());
    // Due on the 1st of March: the retention of a delayed message begins then.
    clock.set("2126-03-04T23:59:59+00:00");
    assert_eq!(claims.sweep().await.unwrap().deleted, 0);
    claims.redeem(delayed).await.unwrap();
    clock.set("2126-03-05T00:00:00+00:00");
    assert_eq!(claims.sweep().await.unwrap().deleted, 1);
    assert_eq!(listed(folder.path()), ["shop/", "shop/claims/"]);
    assert_eq!(claims.sweep().await.unwrap(), Default::default());
}

#[tokio::test]
async fn what_has_not_the_shape_of_a_claim_stays() {
    let folder = tempfile::tempdir().unwrap();
    let clock = MovedClock::at("2126-02-26T00:00:00+00:00");
    let claims = in_folder(folder.path(), &clock);
    let name = reference(&claims.check_in(large()).await.unwrap());
    let uuid = &name[name.len() - 36..];
    let others = [
        "important".to_owned(),
        format!("2126-02-26/{uuid}"),
        format!("shop/{uuid}"),
        format!("shop/claims2/2126-02-26/{uuid}"),
        format!("shop/claims/{uuid}"),
        "shop/claims/2126-02-26/readme".into(),
        format!("shop/claims/2126-02-26/{uuid}.bak"),
        format!("shop/claims/2126-02-26/{}", uuid.to_uppercase()),
        format!("shop/claims/2126-02-26/deeper/{uuid}"),
        "shop/claims/2126-02-26/readme#1".into(),
        format!("shop/claims/2126-02-30/{uuid}"),
        format!("shop/claims/old/{uuid}"),
    ];
    for other in &others {
        let path = folder.path().join(other);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "precious").unwrap();
    }
    // A killed process left this behind.
    fs::write(folder.path().join(format!("{name}#3")), "half").unwrap();
    clock.advance(400 * DAY);
    assert_eq!(claims.sweep().await.unwrap().deleted, 1);
    let mut left: Vec<_> = listed(folder.path()).into_iter().filter(|name| !name.ends_with('/')).collect();
    left.sort();
    let mut wanted = others.to_vec();
    wanted.sort();
    assert_eq!(left, wanted);
}

#[tokio::test]
async fn an_upload_under_way_is_not_taken_for_a_leftover() {
    let folder = tempfile::tempdir().unwrap();
    let clock = MovedClock::at("2126-02-26T00:00:00+00:00");
    let claims = in_folder(folder.path(), &clock);
    let name = reference(&claims.check_in(large()).await.unwrap());
    fs::write(folder.path().join(format!("{name}#3")), "half").unwrap();
    clock.advance(2 * DAY);
    claims.sweep().await.unwrap();
    assert!(folder.path().join(format!("{name}#3")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sweepers_at_once_are_fine() {
    let folder = tempfile::tempdir().unwrap();
    let clock = MovedClock::at("2126-02-26T00:00:00+00:00");
    let claims = in_folder(folder.path(), &clock);
    for _ in 0..300 {
        claims.check_in(large()).await.unwrap();
    }
    clock.advance(10 * DAY);
    let kept = claims.check_in(large()).await.unwrap();
    let sweeps = (0..6).map(|_| in_folder(folder.path(), &clock));
    let sweeps: Vec<_> = sweeps.map(|claims| tokio::spawn(async move { claims.sweep().await })).collect();
    let mut deleted = 0;
    for sweep in sweeps {
        deleted += sweep.await.unwrap().unwrap().deleted;
    }
    assert_eq!(deleted, 300);
    claims.redeem(kept).await.unwrap();
}

#[tokio::test]
async fn a_cloud_is_swept_only_where_that_was_asked_for() {
    let (claims, store) = claims();
    let clock = MovedClock::at("2126-02-26T00:00:00+00:00");
    let claims = claims.clock(Arc::new(clock.clone())).retention(3 * DAY);
    claims.check_in(large()).await.unwrap();
    store.write("claims/2126-02-26/readme", "precious").await;
    clock.advance(2 * DAY);
    let kept = claims.check_in(large()).await.unwrap();
    clock.advance(3 * DAY);
    let before = store.requests();
    assert_eq!(claims.sweep().await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(claims.sweep_every(DAY).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(store.requests(), before);

    let claims = claims.sweep_by_listing();
    store.set(Fault::Fail);
    let failed = claims.sweep().await.unwrap_err();
    assert!(failed.kind() == ErrorKind::Unavailable && !failed.to_string().contains("SECRET"), "{failed}");
    store.set(Fault::None);
    assert_eq!(claims.sweep().await.unwrap().deleted, 1);
    assert_eq!(store.names().await, ["claims/2126-02-26/readme".to_owned(), reference(&kept)]);
}

#[tokio::test(start_paused = true)]
async fn a_running_sweeper_goes_on_after_errors() {
    let folder = tempfile::tempdir().unwrap();
    let claims = Claims::folder(folder.path(), "claims").unwrap().threshold(100).retention(3 * DAY);
    let claims = claims.clock(Arc::new(TokioClock::new()));
    let gone = claims.check_in(large()).await.unwrap();
    let sweeping = claims.clone();
    let sweeper = tokio::spawn(async move { sweeping.sweep_every(Duration::from_secs(3600)).await });
    // A file in the folder's place cannot be listed.
    let (real, aside) = (folder.path().join("claims"), folder.path().join("aside"));
    fs::rename(&real, &aside).unwrap();
    fs::write(&real, "x").unwrap();
    tokio::time::sleep(5 * DAY).await;
    assert!(!sweeper.is_finished());
    fs::remove_file(&real).unwrap();
    fs::rename(&aside, &real).unwrap();
    claims.redeem(gone.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert!(claims.redeem(gone).await.is_err());
    sweeper.abort();
}

#[test]
fn rules_of_clouds_keep_payloads_long_enough() {
    let claims = Claims::new(Arc::new(InMemory::new()), "shop/claims").unwrap();
    let parse = |text: String| polybus_json(&text);
    // A delay may be as long as the retention, and both count; a day more, since clouds round.
    let s3 = parse(claims.lifecycle_rule(Cloud::S3));
    let rule = &s3["Rules"][0];
    assert_eq!((&rule["Expiration"]["Days"], &rule["Filter"]["Prefix"]), (&61.into(), &"shop/claims/".into()));
    assert_eq!((&rule["Status"], &rule["ID"]), (&"Enabled".into(), &"polybus-claims-shop/claims".into()));
    assert_eq!(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 1);

    let odd = claims.max_delay(Duration::ZERO).retention(DAY + Duration::from_millis(1));
    let azure = parse(odd.lifecycle_rule(Cloud::Azure { container: "blobs" }));
    let rule = &azure["rules"][0];
    assert_eq!((&rule["name"], &rule["type"]), (&"polybusclaimsshopclaimsd1c9311d".into(), &"Lifecycle".into()));
    let definition = &rule["definition"];
    assert_eq!(definition["filters"]["prefixMatch"][0], "blobs/shop/claims/");
    assert_eq!(definition["filters"]["blobTypes"][0], "blockBlob");
    assert_eq!(definition["actions"]["baseBlob"]["delete"]["daysAfterModificationGreaterThan"], 3);

    let gcs = parse(odd.lifecycle_rule(Cloud::Gcs));
    let rules = &gcs["lifecycle"]["rule"];
    assert_eq!((&rules[0]["action"]["type"], &rules[0]["condition"]["age"]), (&"Delete".into(), &3.into()));
    assert_eq!(rules[0]["condition"]["matchesPrefix"][0], "shop/claims/");
    assert_eq!(rules[1]["action"]["type"], "AbortIncompleteMultipartUpload");
}

fn polybus_json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn links_lead_no_sweep_out_of_the_folder() {
    let (folder, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clock = MovedClock::at("2126-02-26T00:00:00+00:00");
    let claims = in_folder(folder.path(), &clock);
    claims.check_in(large()).await.unwrap();
    let kept = archive.path().join("0197a1c2-7d3e-7000-8000-000000000001");
    fs::write(&kept, "kept").unwrap();
    fs::write(archive.path().join("0197a1c2-7d3e-7000-8000-000000000001#1"), "kept").unwrap();
    std::os::unix::fs::symlink(archive.path(), folder.path().join("shop/claims/2126-02-25")).unwrap();
    clock.set("2126-12-31T00:00:00+00:00");
    assert_eq!(claims.sweep().await.unwrap().deleted, 1);
    assert_eq!(fs::read_dir(archive.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn a_producer_whose_clock_is_wrong_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = MovedClock::at("2026-01-01T00:00:00+00:00");
    let sent = in_folder(folder.path(), &wrong).check_in(large()).await.unwrap();
    // By its name the payload is years old. The file was written now.
    let claims = Claims::folder(folder.path(), "shop/claims").unwrap().retention(3 * DAY);
    let now = MovedClock::at("2026-01-01T00:00:00+00:00");
    now.set(&polybus_core::time::OffsetDateTime::now_utc().format(&Rfc3339).unwrap());
    now.advance(2 * DAY);
    let claims = claims.clock(Arc::new(now.clone()));
    assert_eq!(claims.sweep().await.unwrap().deleted, 0);
    claims.redeem(sent).await.unwrap();
    now.advance(2 * DAY);
    assert_eq!(claims.sweep().await.unwrap().deleted, 1);
}

//! Claims of the AWS extended client libraries, with folders in the place of buckets.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use polybus_claims::{ClaimError, object_store::local::LocalFileSystem};
use polybus_core::Envelope;
use support::*;

/// What the adapter makes of a message that an extended client sent.
fn pointer(class: &str, bucket: &str, key: &str, attribute: &'static str, size: &'static str) -> Envelope {
    let body = format!(r#"["{class}",{{"s3BucketName":{bucket:?},"s3Key":{key:?}}}]"#);
    Envelope::bare(Envelope::FOREIGN_TYPE, body).id("sqs-1").header(attribute, size).header("tenant", "acme")
}

const CLASS: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";
const LEGACY: &str = "com.amazon.sqs.javamessaging.MessageS3Pointer";
const KEY: &str = "e61f0b1d-21a1-4b34-a3cd-5e1a5f3a7a0f";

fn bucket() -> (tempfile::TempDir, Arc<LocalFileSystem>) {
    let folder = tempfile::tempdir().unwrap();
    let bucket = folder.path().join("bucket");
    std::fs::create_dir_all(bucket.join("prefix")).unwrap();
    std::fs::write(bucket.join(KEY), "the large body, größer").unwrap();
    std::fs::write(bucket.join("prefix").join(KEY), "the large body, größer").unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(bucket).unwrap());
    (folder, store)
}

#[tokio::test]
async fn pointers_of_both_versions_are_redeemed() {
    let (_folder, bucket) = bucket();
    let claims = claims().0.redeem_foreign("large", "", bucket);
    for (class, attribute) in [(CLASS, "ExtendedPayloadSize"), (LEGACY, "SQSLargePayloadSize")] {
        for key in [KEY.to_owned(), format!("prefix/{KEY}")] {
            // Some count characters, some bytes.
            for size in ["22", "24", "x"] {
                let redeemed = claims.redeem(pointer(class, "large", &key, attribute, size)).await.unwrap();
                assert_eq!((&*redeemed.data, &*redeemed.id), ("the large body, größer".as_bytes(), "sqs-1"));
                assert_eq!(redeemed.headers.iter().collect::<Vec<_>>(), [("tenant", "acme")]);
            }
        }
    }
}

#[tokio::test]
async fn nothing_but_named_buckets_is_asked() {
    let (_folder, bucket) = bucket();
    let message = |bucket: &str, key: &str| pointer(CLASS, bucket, key, "ExtendedPayloadSize", "24");
    let (none, _) = claims();
    let untouched = message("large", KEY);
    assert_eq!(
        none.redeem(untouched.clone()).await.unwrap(),
        untouched,
        "without a bucket it is a message as any other"
    );
    let claims = none.redeem_foreign("large", "", bucket);
    for (bucket, key) in [
        ("other", KEY),
        ("", KEY),
        ("large", ""),
        ("large", "../secret"),
        ("large", "prefix/../../secret"),
        ("large", "/etc/passwd"),
        ("large", "prefix//x"),
    ] {
        let refused = claims.redeem(message(bucket, key)).await.unwrap_err();
        assert!(matches!(refused, ClaimError::Outside { .. }), "{bucket} {key}: {refused}");
    }
    let (_folder, again) = self::bucket();
    let of_producer = self::claims().0.redeem_foreign("large", "prefix/", again);
    of_producer.redeem(message("large", &format!("prefix/{KEY}"))).await.unwrap();
    let refused = of_producer.redeem(message("large", KEY)).await.unwrap_err();
    assert!(matches!(refused, ClaimError::Outside { .. }), "{refused}");
    let gone = claims.redeem(message("large", "gone")).await.unwrap_err();
    assert!(matches!(gone, ClaimError::Missing { .. }), "{gone}");
}

#[tokio::test]
async fn foreign_payloads_have_the_same_limit() {
    let (_folder, bucket) = bucket();
    let claims = |most| claims().0.redeem_foreign("large", "", bucket.clone()).max_size(most);
    let message = |size| pointer(CLASS, "large", KEY, "ExtendedPayloadSize", size);
    claims(24).redeem(message("24")).await.unwrap();
    for (most, told) in [(23, "24"), (23, "1"), (24, "25")] {
        let refused = claims(most).redeem(message(told)).await.unwrap_err();
        assert!(matches!(refused, ClaimError::TooLarge { .. }), "{most} {told}: {refused}");
    }
}

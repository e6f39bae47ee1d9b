//! Claims of the AWS extended client libraries.
//!
//! They put the body of a large message into S3 and send a pointer in its place, with the size in an attribute:
//! `["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b","s3Key":"k"}]`. A message of SNS has the
//! pointer as its text; the adapter has taken it out of a notification already.
//! <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-managing-large-messages.html>

use object_store::path::Path;
use polybus_core::Envelope;
use polybus_patterns::claim::ClaimError;
use serde_json::Value;

use crate::{Claims, download::Expected, telemetry};

/// The attribute with the size of the payload; the second one is that of older versions.
const SIZES: [&str; 2] = ["ExtendedPayloadSize", "SQSLargePayloadSize"];
/// What stands first in a pointer; the second one is that of older versions.
const CLASSES: [&str; 2] =
    ["software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer"];
/// The longest pointer: both names may be of some KiB.
const LONGEST: usize = 8 << 10;

/// Where the payload of a foreign message is.
#[derive(Debug, PartialEq)]
pub(crate) struct ForeignPointer {
    bucket: String,
    key: String,
    /// As the message tells it, if it is a number.
    size: Option<u64>,
}

/// The pointer in a foreign message; `None` if it has none.
pub(crate) fn pointer(envelope: &Envelope) -> Option<ForeignPointer> {
    let size = SIZES.iter().find_map(|name| envelope.headers.get(name))?;
    if *envelope.event_type != *Envelope::FOREIGN_TYPE || envelope.data.len() > LONGEST {
        return None;
    }
    let (class, place): (String, Value) = serde_json::from_slice(&envelope.data).ok()?;
    let text = |name| place.get(name)?.as_str().map(str::to_owned);
    let known = CLASSES.contains(&&*class);
    known.then_some(ForeignPointer { bucket: text("s3BucketName")?, key: text("s3Key")?, size: size.parse().ok() })
}

/// A name that may be of some KiB, and of any characters.
fn shown(name: &str) -> String {
    name.chars().take(200).flat_map(char::escape_debug).collect()
}

impl Claims {
    pub(crate) async fn redeem_pointer(
        &self,
        envelope: Envelope,
        pointer: &ForeignPointer,
    ) -> Result<Envelope, ClaimError> {
        let ForeignPointer { bucket, key, size } = pointer;
        let name = format!("{bucket}/{key}");
        let named = self.foreign.get(&**bucket).filter(|named| key.starts_with(&*named.keys));
        let store = &named.ok_or_else(|| ClaimError::outside(&name))?.store;
        // Errors show it: it is the sender's text.
        let name = shown(&name);
        // It has no segments `.` and `..`, which a folder in a bucket's place would follow.
        let path = Path::parse(key).ok().filter(|path| path.as_ref() == *key && !path.is_root());
        let path = path.ok_or_else(|| ClaimError::outside(&name))?;
        if let Some(size) = size.filter(|size| *size > self.max_size) {
            return Err(ClaimError::TooLarge { reference: name.into(), size, most: self.max_size });
        }
        // Libraries count bytes, characters or UTF-16 units: a size that differs is no proof of anything.
        let expected = Expected { name: &name, size: None, sha256: None };
        let data = self.download(&**store, &path, &expected).await?;
        telemetry::claim("redeemed_foreign", data.len() as u64);
        Ok(envelope.edit(|fields| {
            fields.data = data;
            for name in SIZES {
                fields.headers.remove(name);
            }
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(body: &'static str, size: &'static str) -> Envelope {
        Envelope::bare(Envelope::FOREIGN_TYPE, body).id("1").header(size, "300000")
    }

    const NOW: &str = r#"["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b","s3Key":"a/k"}]"#;
    const LEGACY: &str = r#"["com.amazon.sqs.javamessaging.MessageS3Pointer", {"s3BucketName":"b", "s3Key":"a/k"}]"#;

    #[test]
    fn pointers_of_both_versions_are_known() {
        let wanted = ForeignPointer { bucket: "b".into(), key: "a/k".into(), size: Some(300_000) };
        assert_eq!(pointer(&message(NOW, SIZES[0])).unwrap(), wanted);
        assert_eq!(pointer(&message(LEGACY, SIZES[1])).unwrap(), wanted);
    }

    #[test]
    fn what_only_looks_alike_is_no_pointer() {
        assert_eq!(pointer(&Envelope::bare(Envelope::FOREIGN_TYPE, NOW)), None, "no size");
        assert_eq!(pointer(&Envelope::bare("order.placed", NOW).header(SIZES[0], "1")), None, "not foreign");
        for body in ["", "[]", "{}", r#"["x",{"s3BucketName":"b","s3Key":"k"}]"#, r#"["x"]"#, "\"x\"", "[1,2]"] {
            assert_eq!(pointer(&message(body, SIZES[0])), None, "{body}");
        }
        let half = r#"["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b"}]"#;
        assert_eq!(pointer(&message(half, SIZES[0])), None);
    }
}

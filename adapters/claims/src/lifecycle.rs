//! The rules by which clouds delete what is too old themselves.

use polybus_core::driver::kit::crc32c::crc32c;
use serde_json::{Value, json};

use crate::Claims;

/// A cloud whose buckets delete by rules of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cloud<'a> {
    /// Amazon S3, and what speaks its protocol.
    S3,
    /// Azure Blob Storage.
    Azure {
        /// The container. Rules are those of the storage account, so names begin with it.
        container: &'a str,
    },
    /// Google Cloud Storage.
    Gcs,
}

const DAY: u64 = 24 * 3600;

impl Claims {
    /// The rule by which a bucket deletes claims whose retention has ended, and uploads that were never completed, as
    /// JSON in the cloud's own format.
    ///
    /// Clouds count whole days from the upload. So it is the [retention](Self::retention) and the
    /// [longest delay](Self::max_delay), and a day.
    ///
    /// ```text
    /// aws s3api put-bucket-lifecycle-configuration --bucket B --lifecycle-configuration file://rule.json
    /// az storage account management-policy create --account-name A --resource-group G --policy @rule.json
    /// gcloud storage buckets update gs://B --lifecycle-file=rule.json
    /// ```
    ///
    /// **Each of them replaces all rules that are there**: where there are others, add this one to them.
    ///
    /// ```
    /// # use polybus_claims::{Claims, Cloud, object_store::memory::InMemory};
    /// # let store = std::sync::Arc::new(InMemory::new());
    /// let claims = Claims::new(store, "claims")?.max_delay(std::time::Duration::ZERO);
    /// let rule = claims.lifecycle_rule(Cloud::S3);
    /// assert!(rule.contains(r#""Days": 31"#) && rule.contains(r#""Prefix": "claims/""#));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn lifecycle_rule(&self, cloud: Cloud<'_>) -> String {
        let seconds = self.retention.saturating_add(self.longest_delay()).as_secs_f64().ceil() as u64;
        let days = seconds.div_ceil(DAY).saturating_add(1).min(i32::MAX as u64);
        let prefix = format!("{}/", self.prefix);
        let rule: Value = match cloud {
            Cloud::S3 => json!({ "Rules": [{
                "ID": format!("polybus-claims-{}", self.prefix),
                "Status": "Enabled",
                "Filter": { "Prefix": prefix },
                "Expiration": { "Days": days },
                // Where the bucket keeps versions, an expired one is not gone before this.
                "NoncurrentVersionExpiration": { "NoncurrentDays": 1 },
                "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": 1 },
            }] }),
            Cloud::Azure { container } => json!({ "rules": [{
                "name": azure_name(self.prefix.as_str()),
                "enabled": true,
                "type": "Lifecycle",
                "definition": {
                    "filters": { "blobTypes": ["blockBlob"], "prefixMatch": [format!("{container}/{prefix}")] },
                    "actions": {
                        "baseBlob": { "delete": { "daysAfterModificationGreaterThan": days } },
                        "snapshot": { "delete": { "daysAfterCreationGreaterThan": days } },
                        "version": { "delete": { "daysAfterCreationGreaterThan": days } },
                    },
                },
            }] }),
            Cloud::Gcs => json!({ "lifecycle": { "rule": [
                { "action": { "type": "Delete" }, "condition": { "age": days, "matchesPrefix": [prefix] } },
                {
                    "action": { "type": "AbortIncompleteMultipartUpload" },
                    "condition": { "age": 1, "matchesPrefix": [prefix] },
                },
            ] } }),
        };
        format!("{rule:#}")
    }
}

/// Names of rules are letters and digits there. What else a prefix has is told by a hash: `a/b` and `ab` are two rules.
fn azure_name(prefix: &str) -> String {
    let letters: String = prefix.chars().filter(char::is_ascii_alphanumeric).collect();
    match letters == prefix {
        true => format!("polybusclaims{letters}"),
        false => format!("polybusclaims{letters}{:08x}", crc32c(prefix.as_bytes())),
    }
}

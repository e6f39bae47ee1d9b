//! How a payload is uploaded: at once, or in parts if it is large.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload, path::Path};
use polybus_core::Result;

use crate::{Claims, error};

/// Payloads above this size are uploaded in parts.
const LARGE: usize = 16 << 20;
/// The size of each part but the last. S3 takes no part below 5 MiB, and 10,000 of them at most.
const PART: usize = 8 << 20;
/// S3 takes no more parts than this. Larger payloads have larger parts.
const MAX_PARTS: usize = 10_000;
/// How many parts are under way at once.
const AT_ONCE: usize = 4;
/// How long an upload that was given up may take to clean up behind itself.
const ABORT: Duration = Duration::from_secs(30);

impl Claims {
    pub(crate) async fn upload(&self, path: &Path, data: Bytes) -> Result<()> {
        if data.len() <= LARGE {
            let put = self.store.put(path, PutPayload::from_bytes(data));
            return self.request("check_in", put).await?.map(drop).map_err(|e| error::map(&e, "check_in"));
        }
        let started = self.request("check_in", self.store.put_multipart(path)).await?;
        let mut upload = PartedUpload::new(started.map_err(|e| error::map(&e, "check_in"))?);
        let uploaded = self.upload_parts(&mut upload, data).await;
        match &uploaded {
            Ok(()) => upload.completed(),
            Err(_) => upload.abort().await,
        }
        uploaded
    }

    async fn upload_parts(&self, upload: &mut PartedUpload, data: Bytes) -> Result<()> {
        let Some(parted) = upload.0.as_mut() else { return Ok(()) };
        let part = PART.max(data.len().div_ceil(MAX_PARTS));
        let mut starts = (0..data.len()).step_by(part);
        let mut under_way = FuturesUnordered::new();
        loop {
            let free = AT_ONCE - under_way.len();
            // Making a part's future gives it its number.
            let parts = starts.by_ref().take(free).map(|start| data.slice(start..data.len().min(start + part)));
            parts.for_each(|part| under_way.push(parted.put_part(part.into())));
            let put = self.request("check_in", async { under_way.next().await.transpose() }).await?;
            if put.map_err(|e| error::map(&e, "check_in"))?.is_none() {
                break;
            }
        }
        drop(under_way);
        let completed = self.request("check_in", parted.complete()).await?;
        completed.map(drop).map_err(|e| error::map(&e, "check_in"))
    }
}

/// An upload whose parts are taken away again if it does not end well.
struct PartedUpload(Option<Box<dyn MultipartUpload>>);

impl PartedUpload {
    fn new(upload: Box<dyn MultipartUpload>) -> Self {
        Self(Some(upload))
    }

    fn completed(&mut self) {
        self.0 = None;
    }

    async fn abort(&mut self) {
        if let Some(upload) = self.0.take() {
            abort(upload).await;
        }
    }
}

impl Drop for PartedUpload {
    fn drop(&mut self) {
        let Some(upload) = self.0.take() else { return };
        // Outside a runtime the parts stay: that is what the rule for incomplete uploads is for.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(abort(upload));
        }
    }
}

async fn abort(mut upload: Box<dyn MultipartUpload>) {
    let aborted = tokio::time::timeout(ABORT, upload.abort()).await;
    if !matches!(aborted, Ok(Ok(()))) {
        tracing::debug!(target: "polybus", "the parts of an upload that was given up could not be deleted");
    }
}

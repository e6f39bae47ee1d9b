//! How a payload is read, never more of it than was announced.

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::{GetResult, ObjectStore, ObjectStoreExt, path::Path};
use polybus_core::{Error, ErrorKind};
use polybus_patterns::claim::ClaimError;
use sha2::{Digest, Sha256};

use crate::{Claims, error};

/// How many empty pieces may come one after the other.
const MAX_EMPTY: u32 = 100;

/// What is known of a payload before it is read.
pub(crate) struct Expected<'a> {
    /// Its name, as errors show it.
    pub(crate) name: &'a str,
    /// Its size, if a mismatch is an error.
    pub(crate) size: Option<u64>,
    /// Its SHA-256, if there is one.
    pub(crate) sha256: Option<&'a [u8; 32]>,
}

impl Claims {
    pub(crate) async fn download(
        &self,
        store: &dyn ObjectStore,
        path: &Path,
        expected: &Expected<'_>,
    ) -> Result<Bytes, ClaimError> {
        let name = expected.name;
        let found = match self.request("redeem", store.get(path)).await? {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) if !self.is_mounted().await => {
                let text = "the folder of claims is not there: it may not be mounted";
                let error = Error::new(ErrorKind::Unavailable, text).safe().with_operation("redeem");
                return Err(ClaimError::Store(error));
            }
            Err(object_store::Error::NotFound { .. }) => return Err(ClaimError::Missing { reference: name.into() }),
            Err(e) => return Err(ClaimError::Store(error::map(&e, "redeem"))),
        };
        let size = found.meta.size;
        if size > self.max_size {
            return Err(ClaimError::TooLarge { reference: name.into(), size, most: self.max_size });
        }
        if let Some(told) = expected.size.filter(|told| *told != size) {
            return Err(altered(name, format!("it has {size} bytes instead of {told}")));
        }
        let (data, sha256) = self.read(found, name, size).await?;
        if expected.sha256.is_some_and(|told| *told != sha256) {
            return Err(altered(name, "its SHA-256 is another one".into()));
        }
        Ok(data)
    }

    /// Whether a local folder has the folder of its claims, which no sweep takes away. A claim exists, so it was made.
    async fn is_mounted(&self) -> bool {
        let Some(root) = &self.root else { return true };
        let folder = root.join(self.prefix.as_str());
        // A check that cannot be made says nothing.
        tokio::task::spawn_blocking(move || folder.is_dir()).await.unwrap_or(true)
    }

    async fn read(&self, found: GetResult, name: &str, size: u64) -> Result<(Bytes, [u8; 32]), ClaimError> {
        // The size is that of the object, and at most `max_size`.
        let mut data = BytesMut::with_capacity(usize::try_from(size).unwrap_or_default());
        let mut hash = Sha256::new();
        let mut chunks = found.into_stream();
        let mut empty = 0;
        loop {
            let next = async { chunks.next().await.transpose() };
            let chunk = self.request("redeem", next).await?.map_err(|e| ClaimError::Store(error::map(&e, "redeem")))?;
            let Some(chunk) = chunk else { break };
            // A local file that became shorter yields nothing again and again.
            empty = if chunk.is_empty() { empty + 1 } else { 0 };
            if empty > MAX_EMPTY {
                break;
            }
            if (data.len() + chunk.len()) as u64 > size {
                return Err(altered(name, format!("more than its {size} bytes came")));
            }
            hash.update(&chunk);
            data.extend_from_slice(&chunk);
        }
        if data.len() as u64 != size {
            return Err(altered(name, format!("{} of its {size} bytes came", data.len())));
        }
        Ok((data.freeze(), hash.finalize().into()))
    }
}

fn altered(name: &str, difference: String) -> ClaimError {
    ClaimError::Altered { reference: name.into(), difference: difference.into() }
}

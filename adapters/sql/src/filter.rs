//! Which parked rows, as values of a statement.

use polybus_core::{Error, Result};
use polybus_patterns::store::ParkedFilter;

/// Each is a condition if it is there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FilterValues<'a> {
    pub(crate) ids: Option<&'a [i64]>,
    pub(crate) address: Option<&'a str>,
    pub(crate) reason: Option<&'a str>,
}

impl<'a> FilterValues<'a> {
    /// # Errors
    /// `Unsupported` for a filter that this code does not know.
    pub(crate) fn of(filter: &'a ParkedFilter) -> Result<Self> {
        let all = Self::default();
        match filter {
            ParkedFilter::All => Ok(all),
            ParkedFilter::Ids(ids) => Ok(Self { ids: Some(ids), ..all }),
            ParkedFilter::Address(address) => Ok(Self { address: Some(address), ..all }),
            ParkedFilter::Reason(reason) => Ok(Self { reason: Some(reason), ..all }),
            other => Err(Error::unsupported(format!("this store does not know the filter {other:?}"))),
        }
    }
}

//! Where a value is too high.

use std::time::Duration;

/// Where a value is too high: a number, or a duration, which counts in seconds.
///
/// ```
/// use polybus_patterns::monitor::Threshold;
/// use std::time::Duration;
///
/// assert_eq!(Threshold::from(60), Threshold::from(Duration::from_secs(60)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold(pub(super) f64);

macro_rules! threshold_from {
    ($($t:ty),*) => {$(
        impl From<$t> for Threshold {
            fn from(value: $t) -> Self {
                Self(value as f64)
            }
        }
    )*};
}
threshold_from!(i32, u32, u64, f64);

impl From<Duration> for Threshold {
    fn from(value: Duration) -> Self {
        Self(value.as_secs_f64())
    }
}

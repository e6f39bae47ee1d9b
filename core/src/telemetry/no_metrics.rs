//! Stands in for the crate `metrics` where the feature is off: the same names, and nothing is counted.

macro_rules! nothing {
    ($($tokens:tt)*) => {};
}

macro_rules! counter {
    ($name:expr $(, $key:expr => $value:expr)*) => {{
        let _ = (&$name, $(&$value,)*);
        Counter
    }};
}

macro_rules! gauge {
    ($name:expr $(, $key:expr => $value:expr)*) => {{
        let _ = (&$name, $(&$value,)*);
        Gauge
    }};
}

macro_rules! histogram {
    ($name:expr $(, $key:expr => $value:expr)*) => {{
        let _ = (&$name, $(&$value,)*);
        Histogram
    }};
}

pub(super) use counter;
pub(super) use gauge;
pub(super) use histogram;
pub(super) use nothing as describe_counter;
pub(super) use nothing as describe_gauge;
pub(super) use nothing as describe_histogram;

#[derive(Clone)]
pub(super) struct Counter;

impl Counter {
    pub(super) fn increment(&self, _: u64) {}
}

#[derive(Clone)]
pub(super) struct Gauge;

impl Gauge {
    pub(super) fn increment(&self, _: f64) {}

    pub(super) fn decrement(&self, _: f64) {}

    pub(super) fn set(&self, _: f64) {}
}

#[derive(Clone)]
pub(super) struct Histogram;

impl Histogram {
    pub(super) fn record(&self, _: std::time::Duration) {}
}

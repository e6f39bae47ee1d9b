//! A recorder of metrics for tests.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};

/// Records counters and gauges by name and labels; of a histogram it counts the records.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<BTreeMap<String, Arc<Value>>>>);

#[derive(Default)]
struct Value(AtomicI64);

impl CounterFn for Value {
    fn increment(&self, by: u64) {
        self.0.fetch_add(by as i64, Ordering::SeqCst);
    }

    fn absolute(&self, to: u64) {
        self.0.store(to as i64, Ordering::SeqCst);
    }
}

impl GaugeFn for Value {
    fn increment(&self, by: f64) {
        self.0.fetch_add(by as i64, Ordering::SeqCst);
    }

    fn decrement(&self, by: f64) {
        self.0.fetch_sub(by as i64, Ordering::SeqCst);
    }

    fn set(&self, to: f64) {
        self.0.store(to as i64, Ordering::SeqCst);
    }
}

impl HistogramFn for Value {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recorder {
    fn value(&self, key: &Key) -> Arc<Value> {
        let labels: Vec<String> = key.labels().map(|l| format!("{}={}", l.key(), l.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        self.0.lock().unwrap().entry(name).or_default().clone()
    }

    /// The metrics that are not zero, by name and labels, with the labels `without` left out.
    pub(crate) fn nonzero(&self, without: &str) -> BTreeMap<String, i64> {
        let all = self.0.lock().unwrap();
        let values = all.iter().map(|(k, v)| (k.replace(without, ""), v.0.load(Ordering::SeqCst)));
        values.filter(|(_, n)| *n != 0).map(|(k, n)| (k.replace("{,", "{").replace("{}", ""), n)).collect()
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.value(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.value(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.value(key))
    }
}

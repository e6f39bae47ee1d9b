//! The gauges and counters.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};
use parking_lot::Mutex;
use polybus_core::{ErrorKind, Source};
use polybus_patterns::monitor::{Monitor, Rule, SinkError};

use crate::scripted::{Answer, Running, Scripted, polls};

type Values = Arc<Mutex<BTreeMap<String, f64>>>;

/// Keeps the values by name and labels.
#[derive(Default)]
struct Recorded(Values);

struct Handle(String, Values);

impl Handle {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut values = self.1.lock();
        let value = values.entry(self.0.clone()).or_default();
        *value = change(*value);
    }
}

impl CounterFn for Handle {
    fn increment(&self, by: u64) {
        self.change(|value| value + by as f64);
    }
    fn absolute(&self, value: u64) {
        self.change(|_| value as f64);
    }
}

impl GaugeFn for Handle {
    fn increment(&self, by: f64) {
        self.change(|value| value + by);
    }
    fn decrement(&self, by: f64) {
        self.change(|value| value - by);
    }
    fn set(&self, to: f64) {
        self.change(|_| to);
    }
}

impl Recorded {
    fn handle(&self, key: &Key) -> Arc<Handle> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Handle(format!("{}{{{}}}", key.name(), labels.join(",")), self.0.clone()))
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.handle(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.handle(key))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn gauges_show_what_is_known_and_nan_where_nothing_is() {
    let recorded = Recorded::default();
    let values = recorded.0.clone();
    let _recording = set_default_local_recorder(&recorded);
    let get = |name: &str| values.lock().get(name).copied().unwrap_or(-1.0);
    let driver = Scripted::new();
    driver.answer("payments", Answer::Counts(500, 0));
    let rule = Rule::depth(Source::queue("payments")).named("backlog").above(100).held_for(1);
    let refusing = |_| async { Err(SinkError::refused("no")) };
    let running = Running::start(Monitor::new(&driver.bus(&["payments"])).rule(rule).sink_fn("refusing", refusing));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get("polybus_monitor_depth{source=queue:payments}"), 500.0);
    assert_eq!(get("polybus_monitor_value{rule=backlog}"), 500.0);
    assert_eq!(get("polybus_alert_firing{alert=backlog}"), 1.0);
    assert_eq!(get("polybus_alert_firing{alert=unknown queue:payments}"), 0.0);
    assert_eq!(get("polybus_alerts_dropped_total{sink=refusing}"), 1.0);

    driver.answer("payments", Answer::Fails(ErrorKind::Unavailable));
    polls(5).await;
    assert!(get("polybus_monitor_depth{source=queue:payments}").is_nan(), "unknown is not zero");
    assert!(get("polybus_monitor_value{rule=backlog}").is_nan());
    assert_eq!(get("polybus_alert_firing{alert=backlog}"), 1.0, "it still fires");
    assert_eq!(get("polybus_alert_firing{alert=unknown queue:payments}"), 1.0);
    assert_eq!(get("polybus_monitor_polls_failed_total{source=queue:payments}"), 5.0);

    driver.answer("payments", Answer::Counts(3, 0));
    polls(1).await;
    assert_eq!(get("polybus_monitor_value{rule=backlog}"), 3.0);
    assert_eq!(get("polybus_alert_firing{alert=backlog}"), 0.0);
    running.end().await;
    assert!(get("polybus_monitor_depth{source=queue:payments}").is_nan(), "nobody polls any more");
}

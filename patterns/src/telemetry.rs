//! The metrics of the patterns.

#[cfg(feature = "metrics")]
use metrics::{counter, gauge, histogram};
use polybus_core::{Address, Source};

/// Rows that wait: `state` is ready, scheduled or parked. Counted every 10 s, up to a cap.
pub(crate) fn outbox_rows(system: &'static str, state: &'static str, rows: u64) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_outbox_rows", "system" => system, "state" => state).set(rows as f64);
    let _ = (system, state, rows);
}

/// For how long the oldest row could have been published.
pub(crate) fn outbox_oldest_age(system: &'static str, seconds: f64) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_outbox_oldest_age_seconds", "system" => system).set(seconds);
    let _ = (system, seconds);
}

/// Rows by what became of them: published, parked, expired, may_duplicate.
pub(crate) fn outbox_settled(address: &str, outcome: &'static str, rows: u64) {
    #[cfg(feature = "metrics")]
    counter!("polybus_outbox_settled_total", "address" => address.to_owned(), "outcome" => outcome).increment(rows);
    let _ = (address, outcome, rows);
}

/// 1 while an address waits after a failure, else 0.
pub(crate) fn outbox_blocked(address: &str, blocked: bool) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_outbox_blocked", "address" => address.to_owned()).set(if blocked { 1.0 } else { 0.0 });
    let _ = (address, blocked);
}

/// Slots whose lease was lost while this process held them.
pub(crate) fn lease_lost(system: &'static str, leases: u64) {
    #[cfg(feature = "metrics")]
    counter!("polybus_outbox_lease_lost_total", "system" => system).increment(leases);
    let _ = (system, leases);
}

/// How long one read of the outbox took.
pub(crate) fn outbox_read(system: &'static str, took: std::time::Duration) {
    #[cfg(feature = "metrics")]
    histogram!("polybus_outbox_read_seconds", "system" => system).record(took);
    let _ = (system, took);
}

/// Messages by what the inbox found: first, duplicate, unmarked, lost (the transaction was gone at the read-back).
pub(crate) fn inbox_messages(consumer: &str, outcome: &'static str) {
    #[cfg(feature = "metrics")]
    counter!("polybus_inbox_messages_total", "consumer" => consumer.to_owned(), "outcome" => outcome).increment(1);
    let _ = (consumer, outcome);
}

/// What the numbers of keys say: gap, late, repeated, restarted, copy.
pub(crate) fn sequence_finding(consumer: &str, finding: &'static str) {
    #[cfg(feature = "metrics")]
    counter!("polybus_sequence_findings_total", "consumer" => consumer.to_owned(), "finding" => finding).increment(1);
    let _ = (consumer, finding);
}

/// A message that waits for those before it, as long as this lives.
pub(crate) struct SequenceHeld(#[cfg(feature = "metrics")] metrics::Gauge);

impl SequenceHeld {
    pub(crate) fn new(consumer: &str) -> Self {
        let _ = consumer;
        #[cfg(feature = "metrics")]
        let held = gauge!("polybus_sequence_held", "consumer" => consumer.to_owned());
        #[cfg(feature = "metrics")]
        held.increment(1.0);
        Self(
            #[cfg(feature = "metrics")]
            held,
        )
    }
}

impl Drop for SequenceHeld {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        self.0.decrement(1.0);
    }
}

/// Calls by how they ended: ok, timeout, remote, publish, decode, too-many-waiting, closed.
pub(crate) fn request_ended(address: &Address, outcome: &'static str) {
    #[cfg(feature = "metrics")]
    counter!("polybus_requests_total", "address" => address.to_string(), "outcome" => outcome).increment(1);
    let _ = (address, outcome);
}

/// Messages of a reply queue by what they are: answered, late, left-over, stray, no-reply.
pub(crate) fn replies(source: &Source, found: &'static str) {
    #[cfg(feature = "metrics")]
    counter!("polybus_replies_total", "source" => source.to_string(), "found" => found).increment(1);
    let _ = (source, found);
}

/// Requests by what became of them: answered, failed, retried, too-late, no-caller.
pub(crate) fn responses(source: &Source, outcome: &'static str) {
    #[cfg(feature = "metrics")]
    counter!("polybus_responses_total", "source" => source.to_string(), "outcome" => outcome).increment(1);
    let _ = (source, outcome);
}

/// Messages of an older schema version that were made newer. Once none is counted, the upcaster can go.
pub(crate) fn types_upcast(event_type: &'static str, version: u32) {
    #[cfg(feature = "metrics")]
    counter!("polybus_types_upcast_total", "type" => event_type, "version" => version.to_string()).increment(1);
    let _ = (event_type, version);
}

/// Messages that a router gave to no handler, by why, and by what became of them: dead-letter, skipped, retried.
pub(crate) fn types_refused(source: &polybus_core::Source, reason: &'static str, outcome: &'static str) {
    #[cfg(feature = "metrics")]
    counter!(
        "polybus_types_refused_total",
        "source" => source.to_string(), "reason" => reason, "outcome" => outcome
    )
    .increment(1);
    let _ = (source, reason, outcome);
}

/// Jobs that were enqueued, by whether they are new or were there already.
pub(crate) fn jobs_enqueued(queue: &str, kind: &str, is_new: bool) {
    #[cfg(feature = "metrics")]
    counter!(
        "polybus_jobs_enqueued_total",
        "queue" => queue.to_owned(), "kind" => kind.to_owned(), "outcome" => if is_new { "new" } else { "duplicate" }
    )
    .increment(1);
    let _ = (queue, kind, is_new);
}

/// Jobs that were put off because this program cannot run them: unknown-type, unknown-version.
pub(crate) fn jobs_unknown(source: &Source, reason: &'static str) {
    #[cfg(feature = "metrics")]
    counter!("polybus_jobs_unknown_total", "source" => source.to_string(), "reason" => reason).increment(1);
    let _ = (source, reason);
}

/// Jobs that were freed because their worker was lost.
pub(crate) fn jobs_rescued(system: &'static str, jobs: u64) {
    #[cfg(feature = "metrics")]
    counter!("polybus_jobs_rescued_total", "system" => system).increment(jobs);
    let _ = (system, jobs);
}

/// Jobs that are not finished: `state` is available, scheduled or running. Counted every 10 s, up to a cap.
pub(crate) fn jobs_waiting(queue: &str, state: &'static str, jobs: u64) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_jobs", "queue" => queue.to_owned(), "state" => state).set(jobs as f64);
    let _ = (queue, state, jobs);
}

/// For how long the oldest available job could have run.
pub(crate) fn jobs_oldest_age(queue: &str, age: std::time::Duration) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_jobs_oldest_age_seconds", "queue" => queue.to_owned()).set(age.as_secs_f64());
    let _ = (queue, age);
}

/// How old the oldest snapshot is that keeps the database from removing deleted rows.
pub(crate) fn jobs_oldest_snapshot(system: &'static str, age: std::time::Duration) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_jobs_oldest_snapshot_seconds", "system" => system).set(age.as_secs_f64());
    let _ = (system, age);
}

/// Times of schedules by what became of them: fired, missed, skipped.
pub(crate) fn cron_times(schedule: &str, outcome: &'static str, times: u64) {
    #[cfg(feature = "metrics")]
    counter!("polybus_cron_times_total", "schedule" => schedule.to_owned(), "outcome" => outcome).increment(times);
    let _ = (schedule, outcome, times);
}

/// 1 while handlers wait for the database, else 0.
pub(crate) fn store_away(system: &'static str, away: bool) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_store_away", "system" => system).set(if away { 1.0 } else { 0.0 });
    let _ = (system, away);
}

/// How many messages wait in a source, by the monitor's last poll; NaN while that is unknown.
pub(crate) fn monitor_depth(source: &polybus_core::Source, depth: Option<u64>) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_monitor_depth", "source" => source.to_string()).set(depth.map_or(f64::NAN, |depth| depth as f64));
    let _ = (source, depth);
}

/// The value of a rule, by the monitor's last poll; NaN while that is unknown.
pub(crate) fn monitor_value(rule: &str, value: Option<f64>) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_monitor_value", "rule" => rule.to_owned()).set(value.unwrap_or(f64::NAN));
    let _ = (rule, value);
}

/// 1 while an alert fires, else 0.
pub(crate) fn alert_firing(alert: &str, firing: bool) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_alert_firing", "alert" => alert.to_owned()).set(if firing { 1.0 } else { 0.0 });
    let _ = (alert, firing);
}

/// Polls that brought nothing.
pub(crate) fn monitor_poll_failed(of: &dyn std::fmt::Display) {
    #[cfg(feature = "metrics")]
    counter!("polybus_monitor_polls_failed_total", "source" => of.to_string()).increment(1);
    let _ = of;
}

/// Alerts that a sink was not told of: its queue was full, all tries failed, or the monitor ended.
pub(crate) fn alerts_dropped(sink: &str, alerts: u64) {
    #[cfg(feature = "metrics")]
    counter!("polybus_alerts_dropped_total", "sink" => sink.to_owned()).increment(alerts);
    let _ = (sink, alerts);
}

/// Appends that met a stream which was not what they expected.
pub(crate) fn log_conflict() {
    #[cfg(feature = "metrics")]
    counter!("polybus_log_conflicts_total").increment(1);
}

/// Events of the log whose handling by a subscription was committed.
pub(crate) fn log_handled(subscription: &str, events: u64) {
    #[cfg(feature = "metrics")]
    counter!("polybus_log_handled_total", "subscription" => subscription.to_owned()).increment(events);
    let _ = (subscription, events);
}

/// 1 while a subscription stands still, else 0.
pub(crate) fn log_stopped(subscription: &str, stopped: bool) {
    #[cfg(feature = "metrics")]
    gauge!("polybus_log_stopped", "subscription" => subscription.to_owned()).set(f64::from(u8::from(stopped)));
    let _ = (subscription, stopped);
}

/// A transaction that has appended and stays open: how many positions nobody reads behind it, and how old it is.
pub(crate) fn log_floor(system: &'static str, behind: i64, age: std::time::Duration) {
    #[cfg(feature = "metrics")]
    {
        gauge!("polybus_log_floor_behind", "system" => system).set(behind as f64);
        gauge!("polybus_log_floor_age_seconds", "system" => system).set(age.as_secs_f64());
    }
    let _ = (system, behind, age);
}

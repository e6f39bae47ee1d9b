//! What a worker with an inbox is refused at its start, rather than losing attempts later.

use std::{sync::OnceLock, time::Duration};

use polybus_core::{Error, Result, worker::WorkerInfo};

use super::InboxSettings;
use crate::store::StoreControl;

/// RabbitMQ's default for how long a consumer may hold a message:
/// <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The connections that the inbox needs beside one for each handler.
const SPARE_CONNECTIONS: u32 = 2;

/// The patience that follows from the worker's settings, where none was set.
#[derive(Default)]
pub(super) struct ComputedPatience(OnceLock<Option<Duration>>);

impl ComputedPatience {
    /// `None` for no limit. Where no worker has told its settings, what any broker bears.
    pub(super) fn limit(&self, settings: &InboxSettings) -> Option<Duration> {
        settings.patience.or_else(|| self.0.get().copied().unwrap_or(Some(CONSUMER_TIMEOUT / 2)))
    }
}

/// Looks at the settings of a worker before it subscribes. A message may wait for others of its key for `hold`.
pub(super) fn check(
    settings: &InboxSettings,
    computed: &ComputedPatience,
    control: &dyn StoreControl,
    worker: &WorkerInfo,
    hold: Duration,
) -> Result<()> {
    let refuse = |text: String| Error::invalid(text).with_context("source", &worker.source);
    // With one writer, handlers wait for each other without a connection.
    if let Some(connections) = control.max_connections().filter(|_| !control.single_writer()) {
        let needed = (worker.concurrency as u32).saturating_add(SPARE_CONNECTIONS);
        if connections < needed {
            let text = format!(
                "inbox: the pool has {connections} connections, and {} handlers need {needed}: raise max_connections, or \
                 lower the concurrency",
                worker.concurrency
            );
            return Err(refuse(text));
        }
    }
    let retries = time_of_retries(worker);
    let shortest = retries.saturating_add(DAY);
    if settings.retention < shortest {
        let text = format!(
            "inbox: a retention of {:?} is shorter than all retries ({retries:?}) and a day: a copy would be handled again",
            settings.retention
        );
        return Err(refuse(text));
    }
    let own = settings.handler_timeout.unwrap_or_default().saturating_add(hold);
    let patience = settings.patience.or_else(|| default_patience(worker, own));
    if let Some(timeout) = worker.handler_timeout
        && patience.is_none_or(|patience| timeout < patience.saturating_add(own))
    {
        let text = format!(
            "inbox: the worker's handler_timeout of {timeout:?} would end the wait for a database that is away (patience \
             {}): set Inbox::handler_timeout instead, or Inbox::patience below it",
            patience.map_or_else(|| "without a limit".to_owned(), |patience| format!("{patience:?}"))
        );
        return Err(refuse(text));
    }
    let _ = computed.0.set(patience);
    Ok(())
}

/// How long all retries of a message take together.
pub(crate) fn time_of_retries(worker: &WorkerInfo) -> Duration {
    let attempts = worker.settings.max_deliveries.saturating_sub(1) as usize;
    let last = worker.retry.last().copied().unwrap_or_default();
    let named: Duration =
        worker.retry.iter().take(attempts).fold(Duration::ZERO, |sum, wait| sum.saturating_add(*wait));
    let repeated = u32::try_from(attempts.saturating_sub(worker.retry.len())).unwrap_or(u32::MAX);
    named.saturating_add(last.saturating_mul(repeated))
}

/// Without a limit where locks are renewed. Else the message that waits longest in the client, behind all others that
/// were fetched, must be handled within the broker's hold.
fn default_patience(worker: &WorkerInfo, own: Duration) -> Option<Duration> {
    if worker.renews_locks {
        return None;
    }
    let rounds = worker.prefetch.div_ceil(worker.concurrency.max(1)).max(1);
    Some(CONSUMER_TIMEOUT.saturating_sub(own) / u32::try_from(rounds).unwrap_or(u32::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use polybus_core::{
        Bus, BusOptions, ErrorKind, QueueSpec, Source, Topology, driver::async_trait, memory::MemoryDriver,
    };

    use super::*;
    use crate::store::{ChangeSignal, LeaseTable, Outage};

    /// A store that is asked nothing but what it is.
    #[derive(Default)]
    struct Described {
        connections: Option<u32>,
        single_writer: bool,
        changes: ChangeSignal,
        outage: Outage,
    }

    #[async_trait]
    impl StoreControl for Described {
        async fn is_away(&self) -> bool {
            false
        }
        async fn verify(&self, _components: &[&str]) -> Result<()> {
            Ok(())
        }
        fn leases(&self) -> Arc<dyn LeaseTable> {
            unreachable!("no check asks for leases")
        }
        fn changes(&self) -> &ChangeSignal {
            &self.changes
        }
        fn outage(&self) -> &Outage {
            &self.outage
        }
        fn max_connections(&self) -> Option<u32> {
            self.connections
        }
        fn single_writer(&self) -> bool {
            self.single_writer
        }
        fn system(&self) -> &'static str {
            "described"
        }
    }

    fn worker(change: impl FnOnce(&mut WorkerInfo)) -> WorkerInfo {
        let topology = Topology::new().queue("q", QueueSpec::new());
        let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap();
        let mut info = WorkerInfo::of(&bus, Source::queue("q"));
        change(&mut info);
        info
    }

    fn settings() -> InboxSettings {
        InboxSettings {
            consumer: "billing".into(),
            retention: 7 * DAY,
            sweep_interval: DAY,
            key_by: None,
            patience: None,
            handler_timeout: None,
            read_back: true,
        }
    }

    fn refused(settings: &InboxSettings, control: &Described, worker: &WorkerInfo) -> String {
        let error = check(settings, &ComputedPatience::default(), control, worker, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        error.to_string()
    }

    #[test]
    fn the_pool_has_a_connection_for_each_handler_and_two_more() {
        let control = |connections| Described { connections: Some(connections), ..Described::default() };
        let worker = worker(|info| info.concurrency = 16);
        assert!(refused(&settings(), &control(17), &worker).contains("need 18"));
        check(&settings(), &ComputedPatience::default(), &control(18), &worker, Duration::ZERO).unwrap();
        let single = Described { single_writer: true, ..control(2) };
        check(&settings(), &ComputedPatience::default(), &single, &worker, Duration::ZERO).unwrap();
    }

    #[test]
    fn the_retention_outlasts_all_retries_and_a_day() {
        let worker = worker(|info| {
            info.settings.max_deliveries = 4;
            info.retry = vec![Duration::from_secs(3600), 2 * DAY];
        });
        let retries = Duration::from_secs(3600) + 2 * DAY + 2 * DAY;
        assert_eq!(time_of_retries(&worker), retries);
        let retention = |retention| InboxSettings { retention, ..settings() };
        assert!(refused(&retention(5 * DAY), &Described::default(), &worker).contains("retention"));
        check(&retention(retries + DAY), &ComputedPatience::default(), &Described::default(), &worker, Duration::ZERO)
            .unwrap();
    }

    #[test]
    fn the_workers_timeout_does_not_end_the_patience() {
        let patient = InboxSettings {
            patience: Some(Duration::from_secs(300)),
            handler_timeout: Some(Duration::from_secs(30)),
            ..settings()
        };
        let timeout = |secs| worker(|info| info.handler_timeout = Some(Duration::from_secs(secs)));
        assert!(refused(&patient, &Described::default(), &timeout(329)).contains("handler_timeout"));
        check(&patient, &ComputedPatience::default(), &Described::default(), &timeout(330), Duration::ZERO).unwrap();
        // Without a limit no timeout is long enough.
        assert!(refused(&settings(), &Described::default(), &timeout(86_400)).contains("without a limit"));
    }

    #[test]
    fn without_renewals_the_last_message_that_was_fetched_is_handled_in_time() {
        let computed = ComputedPatience::default();
        let worker = worker(|info| {
            info.renews_locks = false;
            (info.concurrency, info.prefetch) = (10, 200);
        });
        check(&settings(), &computed, &Described::default(), &worker, Duration::ZERO).unwrap();
        assert_eq!(computed.limit(&settings()), Some(CONSUMER_TIMEOUT / 20));
        let set = InboxSettings { patience: Some(DAY), ..settings() };
        assert_eq!(computed.limit(&set), Some(DAY), "what was set wins");
        assert_eq!(ComputedPatience::default().limit(&settings()), Some(CONSUMER_TIMEOUT / 2), "no worker asked");
    }
}

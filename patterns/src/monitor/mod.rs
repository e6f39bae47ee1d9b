//! Monitors: somebody is told when messages pile up, wait too long, or are dead.
//!
//! A [`Monitor`] polls sources, compares what it finds with the thresholds of its [`Rule`]s, and tells its sinks when an
//! alert fires, still fires, and is resolved.
//!
//! ```no_run
//! use polybus_core::{Bus, Result, Source};
//! use polybus_patterns::{Outbox, monitor::{Monitor, Rule, TracingSink}, store::OutboxStore};
//! use std::time::Duration;
//!
//! # async fn example<S: OutboxStore>(bus: Bus, db: S, outbox: Outbox<S>) -> Result<()> {
//! let payments = Source::queue("payments");
//! let report = Monitor::new(&bus)
//!     .every(Duration::from_secs(15))
//!     .rule(Rule::depth(&payments).above(10_000).clear_below(5_000).held_for(Duration::from_secs(60)))
//!     .rule(Rule::growth(&payments).above(500)) // messages a minute
//!     .rule(Rule::dead_letters(&payments))
//!     .rule(Rule::outbox_age("shop", &outbox).above(Duration::from_secs(60)))
//!     .remind_every(Duration::from_secs(3600))
//!     .sink(TracingSink::default())
//!     .sink_fn("pager", async |alert| {
//!         println!("{alert}");
//!         Ok(())
//!     })
//!     .named("shop")
//!     .leader(&db) // one process polls; without it, each does
//!     .run(async { drop(tokio::signal::ctrl_c().await) })
//!     .await?;
//! println!("{report:?}");
//! # Ok(()) }
//! ```
//!
//! - **Noise makes one alert.** It fires when a value has been above `above` for three polls, and resolves at
//!   `clear_below`; in between nothing changes. `alert_state.rs` has the rules.
//! - **Unknown is not zero.** A poll that fails changes no alert. After five in a row an alert of the kind
//!   [`Unknown`](AlertKind::Unknown) fires, and is resolved after three answers in a row.
//! - **A sink holds nothing up.** Each has a bounded queue and a task of its own.
//! - **Alerts come at least once**, while the process lives: what a sink could not send is kept, the newest of each alert,
//!   and sent when the sink is well again. Each process that polls has a state of its own, which begins at Ok.
//!
//! | file | |
//! |---|---|
//! | `builder.rs`, `run.rs` | the settings of a monitor, and its run |
//! | `rule.rs`, `rule_limits.rs`, `threshold.rs` | what is measured, its threshold, and what is refused |
//! | `alert_state.rs`, `hold.rs` | Ok, Pending, Firing, Resolved: what a poll makes of an alert |
//! | `poller.rs`, `measured.rs` | the polls, and their limit of time |
//! | `target_watch.rs` | the rules about one source, and the alert that nothing is known of it |
//! | `windows.rs`, `age_estimate.rs`, `age_gauge.rs` | growth, and age |
//! | `leader.rs` | which process polls |
//! | `sink.rs`, `sink_queue.rs`, `webhook/` | where alerts go |
//! | `from_config.rs` | the table `[monitor]` of the configuration file |

mod age_estimate;
mod age_gauge;
mod alert;
mod alert_state;
mod builder;
#[cfg(feature = "config")]
mod from_config;
mod hold;
mod leader;
mod measured;
mod poller;
mod rule;
mod rule_limits;
mod run;
mod sink;
mod sink_queue;
mod target_watch;
mod threshold;
#[cfg(feature = "webhook")]
mod webhook;
mod windows;

#[cfg(feature = "webhook")]
#[cfg_attr(docsrs, doc(cfg(feature = "webhook")))]
pub use self::webhook::Webhook;
pub use self::{
    age_gauge::{AgeGauge, AgedHandler},
    alert::{Alert, AlertKind, AlertState},
    builder::Monitor,
    hold::HoldTime,
    leader::LEADER_TERM,
    rule::{GROWTH_WINDOW, HELD_POLLS, Rule},
    run::MonitorReport,
    sink::{AlertSink, SinkError, TracingSink},
    sink_queue::{SINK_QUEUE, SINK_TRIES},
    target_watch::KNOWN_POLLS,
    threshold::Threshold,
};

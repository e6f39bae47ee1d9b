//! The table `[monitor]` of the bus' configuration file, as a monitor.

use std::time::Duration;

use polybus_core::{
    Bus, Config, Error, Result,
    config::{MonitorRuleConfig, MonitorRuleKind, NumberOrDuration},
};

use super::{HoldTime, Monitor, Rule, Threshold, TracingSink};

impl Monitor {
    /// The monitor that the table `[monitor]` of a configuration describes, with its webhooks and the log as sinks. What
    /// the file cannot say is added by the other methods: [gauges](Self::age_gauge) of its rules about age, rules about
    /// outboxes and measurements, sinks, a [`leader`](Self::leader).
    ///
    /// # Errors
    /// `ConfigInvalid`, with file and line: there is no such table, a rule or a webhook cannot work, or a webhook is
    /// there and the feature `webhook` is not.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// use polybus_core::{Bus, Config, Registry};
    /// use polybus_patterns::monitor::Monitor;
    /// use std::time::Duration;
    ///
    /// let config: Config = r#"
    ///     [bus]
    ///     url = "memory://"
    ///
    ///     [queues.payments]
    ///
    ///     [monitor]
    ///     every = "30s"
    ///
    ///     [[monitor.rules]]
    ///     source = "queue:payments"
    ///     kind = "dead_letters"
    /// "#
    /// .parse()?;
    /// let bus = Bus::new(Registry::new().connect(config.url()?).await?, config.options())?;
    /// bus.declare().await?;
    /// let monitor = Monitor::from_config(&bus, &config)?;
    /// let report = monitor.run(tokio::time::sleep(Duration::from_secs(45))).await?;
    /// assert_eq!((report.polls, report.fired), (2, 0));
    /// # Ok(()) }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "config")))]
    pub fn from_config(bus: &Bus, config: &Config) -> Result<Self> {
        let Some(table) = &config.monitor else {
            return Err(Error::config("the configuration has no table [monitor]"));
        };
        let mut monitor = Self::new(bus).sink(TracingSink);
        if let Some(name) = &table.name {
            monitor = monitor.named(name);
        }
        if let Some(interval) = table.every {
            monitor = monitor.every(interval);
        }
        if let Some(interval) = table.remind_every {
            monitor = monitor.remind_every((interval != Duration::MAX).then_some(interval));
        }
        if let Some(polls) = table.unknown_after {
            monitor = monitor.unknown_after(polls);
        }
        for (i, entry) in table.rules.iter().enumerate() {
            let checked = rule(entry).and_then(|rule| rule.limits(monitor.every, None).map(|_| rule));
            let at = |e: Error| config.locate(e.with_context("key", format!("monitor.rules[{i}]")));
            monitor = monitor.rule(checked.map_err(at)?);
        }
        webhooks(monitor, config)
    }
}

fn rule(entry: &MonitorRuleConfig) -> Result<Rule> {
    let source = &entry.source;
    let mut rule = match entry.kind {
        MonitorRuleKind::Depth => Rule::depth(source),
        MonitorRuleKind::Growth => Rule::growth(source),
        MonitorRuleKind::Age => Rule::age(source),
        MonitorRuleKind::DeadLetters => Rule::dead_letters(source),
        MonitorRuleKind::DeadLettersRising => Rule::dead_letters_rising(source),
        kind => return Err(Error::config(format!("polybus-patterns is older than polybus-core: no rule {kind:?}"))),
    };
    if let Some(name) = &entry.name {
        rule = rule.named(name);
    }
    if let Some(above) = entry.above {
        rule = rule.above(threshold(above));
    }
    if let Some(clear_below) = entry.clear_below {
        rule = rule.clear_below(threshold(clear_below));
    }
    if let Some(hold) = entry.held_for {
        rule = rule.held_for(hold_time(hold));
    }
    if let Some(hold) = entry.keep_firing_for {
        rule = rule.keep_firing_for(hold_time(hold));
    }
    if let Some(window) = entry.over {
        rule = rule.over(window);
    }
    Ok(rule)
}

fn threshold(value: NumberOrDuration) -> Threshold {
    match value {
        NumberOrDuration::Number(n) => n.into(),
        NumberOrDuration::Duration(d) => d.into(),
    }
}

fn hold_time(value: NumberOrDuration) -> HoldTime {
    match value {
        NumberOrDuration::Number(polls) => HoldTime::Polls(polls as u32),
        NumberOrDuration::Duration(time) => HoldTime::Time(time),
    }
}

#[cfg(feature = "webhook")]
fn webhooks(mut monitor: Monitor, config: &Config) -> Result<Monitor> {
    let webhooks = config.monitor.iter().flat_map(|table| &table.webhooks);
    for (i, entry) in webhooks.enumerate() {
        let at = |key: String| move |e: Error| config.locate(e.with_context("key", key));
        let key = |name: &str| format!("monitor.webhooks[{i}].{name}");
        // An error of either shows neither, so that one place does for both.
        let mut webhook = super::Webhook::new(&entry.url, &entry.secret).map_err(at(key("secret")))?;
        for (n, secret) in entry.old_secrets.iter().enumerate() {
            webhook = webhook.also_signed_by(secret).map_err(at(format!("{}[{n}]", key("old_secrets"))))?;
        }
        monitor = monitor.sink(webhook.named(entry.name.as_deref().unwrap_or("webhook")));
    }
    Ok(monitor)
}

#[cfg(not(feature = "webhook"))]
fn webhooks(monitor: Monitor, config: &Config) -> Result<Monitor> {
    match config.monitor.as_ref().is_some_and(|table| !table.webhooks.is_empty()) {
        true => {
            let error = Error::config("this program is built without webhooks: turn the feature webhook on");
            Err(config.locate(error.with_context("key", "monitor.webhooks")))
        }
        false => Ok(monitor),
    }
}

//! The driver: opens senders and consumers, and declares, counts, purges and deletes entities.

use std::{any::Any, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use polybus_core::{
    Address, Error, ErrorKind, Result, Source,
    driver::MessagingSystem,
    driver::{AttemptDurability, Capabilities, Driver, KeyHolder, KeyOrder, Receiver, Sender, Settler, kit::duration},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

use crate::{
    BACKEND, Native,
    config::AwsConfig,
    consume::{consumer::QueueConsumer, receiver::AwsReceiver, settler::AwsSettler},
    error,
    message::limits::{BACKSTOP, ENTRIES, MAX_DELAY, MAX_RECEIVES, MAX_RETRY, MAX_TYPES, MAX_VISIBILITY, TOPIC_BYTES},
    publish::sender::AwsSender,
    topology::{self, names, queues, topics},
    transport::{
        clients::{AwsClients, retryable},
        emulator_info,
    },
};

/// How long a close waits for the last long polls of closed consumers, which give back the messages that they bring.
const LINGER: Duration = Duration::from_secs(2);

pub(crate) struct AwsDriver {
    clients: Arc<AwsClients>,
    capabilities: Capabilities,
    native: Native,
}

impl AwsDriver {
    pub(crate) async fn connect(config: AwsConfig) -> Result<Self> {
        let capabilities = capabilities(&config);
        let clients = Arc::new(AwsClients::connect(config).await?);
        Ok(Self { native: Native::new(clients.clone()), clients, capabilities })
    }

    fn check_source(&self, source: &Entity<Source>) -> Result<()> {
        self.clients.config.options(source)?;
        let settings = &source.settings;
        let unsupported =
            |what: String| Err(Error::unsupported(what).with_backend(BACKEND).with_context("source", &source.name));
        if settings.max_deliveries > MAX_RECEIVES - BACKSTOP {
            let most = MAX_RECEIVES - BACKSTOP;
            return unsupported(format!("max_deliveries = {}: SQS counts to {most}", settings.max_deliveries));
        }
        for (what, span, most) in [
            ("max_hold", Some(&settings.max_hold), MAX_RETRY),
            ("retry", settings.retry.iter().max().filter(|_| !settings.ordered), MAX_RETRY),
        ] {
            if let Some(span) = span.filter(|span| **span > most) {
                let [span, most] = [*span, most].map(duration::format);
                return unsupported(format!("{what} of {span}: SQS hides messages for 12 hours, so at most {most}"));
            }
        }
        if settings.types.len() > MAX_TYPES {
            return unsupported(format!("{} types: a filter policy takes {MAX_TYPES}", settings.types.len()));
        }
        names::check(source, &names::queue(source), false)?;
        names::check(source, &names::dead_letters(source), false)
    }

    /// The queue of a source; `NotFound` if there is none.
    async fn queue(&self, source: &Entity<Source>, operation: &'static str) -> Result<queues::QueueAttributes> {
        let queue = names::of_source(source);
        let found = queues::find(&self.clients, &queue, operation).await?;
        found.ok_or_else(|| {
            let text = format!("no queue {queue:?}: check the region and the account, or declare the topology");
            let e = self.clients.located(error::new(ErrorKind::NotFound, operation, text));
            self.clients.missing(&queue, e).with_context("source", &source.name)
        })
    }
}

fn capabilities(config: &AwsConfig) -> Capabilities {
    let mut can = Capabilities::default();
    can.topics = true;
    can.ordered = Some(KeyOrder::new(KeyHolder::Client, AttemptDurability::Volatile, true));
    can.confirmed_settlement = true;
    can.locks = true;
    can.lock_range = Some((Duration::from_secs(1), MAX_VISIBILITY));
    can.dead_letters = true;
    can.redrive = true;
    can.max_retry_delay = Some(MAX_RETRY);
    can.max_queue_delay = Some(MAX_DELAY);
    can.max_queue_payload = Some(config.max_message_size);
    can.max_topic_payload = Some(config.max_message_size.min(TOPIC_BYTES));
    can.attempts_across_crash = true;
    can.stats = true;
    can.purge = true;
    can.declare = true;
    // `ApproximateReceiveCount` grows with every receive, whatever becomes of the message then.
    can.receive_counts = true;
    // A FIFO queue hands out no more of a group while one of its messages is in flight.
    can.kept_letters_block = true;
    can
}

#[async_trait]
impl Driver for AwsDriver {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        let sqs = ("sqs", MessagingSystem::new("aws_sqs", "aws.sqs"));
        let sns = ("sns", MessagingSystem::new("aws.sns", "aws.sns"));
        let [queues, topics] = [sqs, sns].map(|(service, system)| match self.clients.server(service) {
            Some((host, port)) => system.server(host, port),
            None => system,
        });
        (queues, topics)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        let topics = plan.topics.iter().map(|t| (format!("topic {}", names::topic(t)), t.name.to_string()));
        let queues = plan.sources.iter().flat_map(|s| {
            [names::queue(s), names::dead_letters(s)].map(|queue| (format!("queue {queue}"), s.name.to_string()))
        });
        topics.chain(queues).collect()
    }

    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        for topic in &plan.topics {
            self.clients.config.options(topic)?;
            names::check(topic, &names::topic(topic), true)?;
        }
        plan.sources.iter().try_for_each(|source| self.check_source(source))
    }

    async fn version(&self) -> Option<String> {
        emulator_info::version(&self.clients).await
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.clients.ensure_open()?;
        Box::pin(topology::declare(&self.clients, plan, mode)).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.clients.ensure_open()?;
        Ok(Arc::new(AwsSender::open(self.clients.clone(), to).await?))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.clients.ensure_open()?;
        let queue = names::of_source(from);
        self.clients.url(&queue, "subscribe").await.map_err(|e| e.with_context("source", &from.name))?;
        let consumer = Arc::new(QueueConsumer::new(self.clients.clone(), queue, from));
        let settler = AwsSettler::new(consumer.clone(), from);
        Ok((Box::new(AwsReceiver::new(consumer, from)), Arc::new(settler)))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        let found = self.queue(of, "stats").await?;
        let mut stats = SourceStats::default();
        stats.ready = found.number(&Attribute::ApproximateNumberOfMessages);
        stats.in_flight = found.number(&Attribute::ApproximateNumberOfMessagesNotVisible);
        stats.delayed = found.number(&Attribute::ApproximateNumberOfMessagesDelayed);
        stats.approximate = true;
        if !of.name.is_dead_letters() {
            let letters = queues::find(&self.clients, &names::dead_letters(of), "stats").await?;
            stats.dead_lettered = letters.and_then(|l| {
                let count = |name| l.number(&name);
                Some(
                    count(Attribute::ApproximateNumberOfMessages)?
                        + count(Attribute::ApproximateNumberOfMessagesNotVisible)?,
                )
            });
        }
        Ok(stats)
    }

    /// Receives and deletes. `PurgeQueue` would also delete what consumers hold, works once a minute at most, and tells
    /// no number.
    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        let found = self.queue(from, "purge").await?;
        // A bound, since others may publish meanwhile. It is generous, since the count is approximate.
        let ready = found.number(&Attribute::ApproximateNumberOfMessages).unwrap_or_default();
        let most = ready.saturating_mul(2).saturating_add(1000);
        let consumer = QueueConsumer::new(self.clients.clone(), names::of_source(from), from);
        let url = self.clients.url(&consumer.queue, "purge").await?;
        let mut purged = 0;
        while purged < most {
            let call =
                self.clients.polling.receive_message().queue_url(&*url).wait_time_seconds(1).visibility_timeout(30);
            let call = call.max_number_of_messages(i32::try_from(ENTRIES).unwrap_or(10));
            let failed = |e| retryable(self.clients.failed(e, "purge")).with_context("source", &from.name);
            let counted = |e: Error| e.with_context("deleted_at_least", purged);
            let messages = Box::pin(call.send()).await.map_err(|e| counted(failed(e)))?.messages.unwrap_or_default();
            let handles: Vec<Arc<str>> = messages.iter().filter_map(|m| m.receipt_handle().map(Into::into)).collect();
            if handles.is_empty() {
                break;
            }
            for deleted in consumer.delete(&handles).await {
                deleted.map_err(|e| e.with_context("deleted_at_least", purged))?;
                purged += 1;
            }
        }
        Ok(purged)
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        self.clients.ensure_open()?;
        for topic in &plan.topics {
            topics::delete(&self.clients, &self.clients.topic_arn(&names::topic(topic)).await?).await?;
        }
        for source in &plan.sources {
            for queue in [names::queue(source), names::dead_letters(source)] {
                queues::delete(&self.clients, &queue).await?;
            }
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.clients.close(LINGER).await;
        Ok(())
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.native)
    }
}

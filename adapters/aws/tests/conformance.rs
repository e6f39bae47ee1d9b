//! The conformance suite against SQS and SNS as LocalStack emulates them.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use polybus_aws::{
    AwsConnector, Native,
    aws_sdk_sqs::{primitives::Blob, types::MessageAttributeValue},
};
use polybus_conformance::{
    CommandBroker, CountAccuracy, Drift, RawEntities, RawInject, RawMessage, RawValue, Restart, Target, main_for,
};
use polybus_core::{Address, Bus, Error, ErrorKind, Registry, Result, driver::async_trait};

struct SdkInject;

fn failed(e: impl std::error::Error) -> Error {
    let cause = e.source().map(ToString::to_string).unwrap_or_default();
    Error::new(ErrorKind::Unexpected, format!("{e}: {cause}"))
}

/// An id that nothing else has.
fn fresh() -> String {
    polybus_core::Envelope::new("fresh", "").id.to_string()
}

#[async_trait]
impl RawInject for SdkInject {
    /// Bodies are text, and not empty; attributes are ten, and there are no other properties. Only topics' messages
    /// have a subject, which no queue shows under raw delivery.
    fn carries(&self, raw: &RawMessage) -> bool {
        let nowhere = [&raw.content_encoding, &raw.correlation_id, &raw.reply_to, &raw.subject, &raw.kind, &raw.app_id];
        if nowhere.iter().any(|property| property.is_some()) || raw.ttl.is_some() || raw.routing_key.is_some() {
            return false;
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if raw.headers.iter().any(|(name, _)| !name.chars().all(legal)) {
            return false;
        }
        let attributes = raw.attributes.len() + raw.headers.len() + usize::from(raw.content_type.is_some());
        attributes <= 10 && !raw.body.is_empty() && std::str::from_utf8(&raw.body).is_ok()
    }

    async fn inject(&self, bus: &Bus, to: &Address, raw: RawMessage) -> Result<()> {
        let native = bus.native::<Native>().ok_or_else(|| Error::unsupported("no SDK clients"))?;
        let body = String::from_utf8(raw.body.to_vec()).map_err(failed)?;
        let mut texts: Vec<(String, String)> = Vec::new();
        let mut others = Vec::new();
        texts.extend(raw.content_type.map(|value| ("content-type".to_owned(), value)));
        texts.extend(raw.attributes.into_iter().map(|(name, value)| (format!("cloudEvents_{name}"), value)));
        let value = |kind: &str| MessageAttributeValue::builder().data_type(kind);
        for (name, header) in raw.headers {
            match header {
                RawValue::Text(text) => texts.push((name, text)),
                RawValue::Int(n) => others.push((name, value("Number").string_value(n.to_string()))),
                RawValue::Binary(bytes) => others.push((name, value("Binary").binary_value(Blob::new(bytes)))),
                _ => others.push((name, value("Binary").binary_value(Blob::new([1, 255])))),
            }
        }
        let entity = bus.topology().address(to);
        let physical = match entity.settings.ordered && !entity.physical.ends_with(".fifo") {
            true => format!("{}.fifo", entity.physical),
            false => entity.physical.to_string(),
        };
        // FIFO names need a group and an id by which SQS deduplicates: fresh here, since nothing is to be lost by it.
        let group = raw.group.or_else(|| entity.settings.ordered.then(|| "raw".to_owned()));
        let dedup = entity.settings.ordered.then(fresh);
        if to.is_topic() {
            let mut call = native.sns().publish().topic_arn(native.topic_arn(&physical).await?).message(body);
            for (name, text) in texts {
                let value = polybus_aws::aws_sdk_sns::types::MessageAttributeValue::builder().data_type("String");
                call = call.message_attributes(name, value.string_value(text).build().map_err(failed)?);
            }
            call = call.set_message_group_id(group).set_message_deduplication_id(dedup);
            return Box::pin(call.send()).await.map(|_| ()).map_err(failed);
        }
        let mut call = native.sqs().send_message().queue_url(native.queue_url(&physical).await?).message_body(body);
        others.extend(texts.into_iter().map(|(name, text)| (name, value("String").string_value(text))));
        for (name, value) in others {
            call = call.message_attributes(name, value.build().map_err(failed)?);
        }
        call = call.set_message_group_id(group).set_message_deduplication_id(dedup);
        Box::pin(call.send()).await.map(|_| ()).map_err(failed)
    }
}

/// Queues as an operator makes them, by the names that polybus has for them.
struct OperatorEntities;

#[async_trait]
impl RawEntities for OperatorEntities {
    /// Retention, which is 60 s at least, and redrive policies are tried in `tests/drift.rs`.
    fn knows(&self, drift: Drift) -> bool {
        drift == Drift::NoDeadLetters
    }

    async fn declare(&self, bus: &Bus, _: Drift) -> Result<()> {
        let native = bus.native::<Native>().ok_or_else(|| Error::unsupported("no SDK clients"))?;
        for source in &bus.topology().plan().sources {
            if source.parent.is_some() || source.settings.ordered {
                return Err(Error::unsupported("only plain queues are made by hand here"));
            }
            native.sqs().create_queue().queue_name(&*source.physical).send().await.map_err(failed)?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let registry = Registry::new().with(AwsConnector);
    let mut target = Target::env("aws-localstack-4.13", "aws", registry, "POLYBUS_AWS_URL");
    target.counts = CountAccuracy::Eventual;
    target.raw = Some(Arc::new(SdkInject));
    target.entities = Some(Arc::new(OperatorEntities));
    target.lock_outlives = Some(Duration::from_secs(15));
    // LocalStack looks once a second at what becomes visible, and is a single process of Python.
    target.coarse = Duration::from_millis(1500);
    (target.allowance, target.quiet) = (4, Duration::from_secs(2));
    if std::env::var_os("POLYBUS_LOCALSTACK").is_some() {
        let stack: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "localstack"].iter().collect();
        let restart = format!("'{}/restart' aws", stack.display());
        let commands = CommandBroker::new(format!("{restart} kill"), format!("{restart} start"));
        target = target.restarts(commands, Restart::Volatile);
    }
    // SQS takes the receipt handle of an earlier receive.
    let target = target.deviation("settle/late-on-the-wire", "README, Delivery semantics: a delete that comes late");
    main_for([target])
}

//! The conformance suite against a Redis of its own: `./redis start`, then
//! `REDIS_URL=redis://127.0.0.1:6399 cargo test`.

use std::{process::ExitCode, sync::Arc, time::Duration};

use adapter_skeleton::RedisConnector;
use polybus_conformance::{
    CommandBroker, Drift, RawEntities, RawInject, RawMessage, RawValue, Restart, Target, main_for,
};
use polybus_core::{Address, Bus, Error, ErrorKind, Registry, Result, driver::async_trait};

/// Publishes and makes streams as another program would, with the client alone.
struct RawClient(String);

impl RawClient {
    async fn run(&self, command: &mut redis::Cmd) -> Result<()> {
        let failed = |e: redis::RedisError| Error::new(ErrorKind::Unexpected, e.to_string());
        let client = redis::Client::open(&*self.0).map_err(failed)?;
        let mut redis = client.get_multiplexed_async_connection().await.map_err(failed)?;
        command.exec_async(&mut redis).await.map_err(failed)
    }
}

#[async_trait]
impl RawEntities for RawClient {
    fn knows(&self, drift: Drift) -> bool {
        drift == Drift::NoDeadLetters
    }

    async fn declare(&self, bus: &Bus, _: Drift) -> Result<()> {
        for source in &bus.topology().plan().sources {
            let mut create = redis::cmd("XGROUP");
            self.run(create.arg("CREATE").arg(&*source.physical).arg("polybus").arg(0).arg("MKSTREAM")).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl RawInject for RawClient {
    /// A stream's entry has names and values; its id is the server's.
    fn carries(&self, raw: &RawMessage) -> bool {
        let natives = [&raw.content_encoding, &raw.correlation_id, &raw.reply_to, &raw.subject, &raw.kind, &raw.app_id];
        natives.iter().all(|native| native.is_none()) && raw.ttl.is_none() && raw.group.is_none()
    }

    async fn inject(&self, bus: &Bus, to: &Address, raw: RawMessage) -> Result<()> {
        let mut add = redis::cmd("XADD");
        add.arg(&*bus.topology().address(to).physical).arg("*").arg("body").arg(&*raw.body);
        for (name, value) in &raw.attributes {
            add.arg(format!("ce-{name}")).arg(value);
        }
        for (name, value) in &raw.headers {
            match value {
                RawValue::Text(text) => add.arg(name).arg(text),
                RawValue::Int(number) => add.arg(name).arg(number),
                RawValue::Binary(bytes) => add.arg(name).arg(bytes),
                // An entry nests nothing: what no text is comes nearest.
                _ => add.arg(name).arg(&[0xff]),
            };
        }
        if let Some(content_type) = &raw.content_type {
            add.arg("content-type").arg(content_type);
        }
        self.run(&mut add).await
    }
}

fn main() -> ExitCode {
    let registry = Registry::new().with(RedisConnector);
    let mut target = Target::env("redis-streams", "redis", registry, "REDIS_URL");
    if let Ok(url) = std::env::var("REDIS_URL") {
        target.raw = Some(Arc::new(RawClient(url.clone())));
        target.entities = Some(Arc::new(RawClient(url)));
    }
    // Nothing but its lock binds a delivery to its consumer.
    target.lock_outlives = Some(Duration::from_secs(5));
    let full = |bytes| format!("redis-cli -p 6399 config set maxmemory {bytes}");
    let broker = CommandBroker::new("./redis kill", "./redis start").blocking(full(1), full(0));
    main_for([target.restarts(broker, Restart::Durable)])
}

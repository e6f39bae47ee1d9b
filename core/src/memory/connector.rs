//! Connects by `memory://` URLs.

use std::sync::Arc;

use async_trait::async_trait;

use super::{BACKEND, MemoryDriver};
use crate::{
    Error, Result,
    driver::{ConnectUrl, Connector, Driver, kit::size},
};

/// Serves `memory://`, a new broker for each connection, and `memory://name`, one broker for the whole process, whose
/// messages stay until the process ends. Every [`Registry`](crate::Registry) has it.
///
/// The URL takes two parameters. `max_message_size` is the largest message in bytes with all attributes and headers,
/// 256 MiB by default. `fifo_dead_letters=true` calls [`MemoryDriver::fifo_dead_letters`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// let driver = polybus_core::Registry::new().connect("memory://shop?max_message_size=64KiB").await?;
/// assert_eq!(driver.backend(), "memory");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryConnector;

#[async_trait]
impl Connector for MemoryConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &[BACKEND]
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(driver(url)?))
    }
}

fn driver(url: &ConnectUrl) -> Result<MemoryDriver> {
    let wrong = |what: &str| Err(Error::config(format!("memory URL: {what}")).with_backend(BACKEND));
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("takes no user or password; write memory:// or memory://name");
    }
    if url.port().is_some() {
        return wrong("takes no port; write memory:// or memory://name");
    }
    if !url.path().is_empty() {
        return wrong("takes nothing after the name; write memory:// or memory://name");
    }
    let mut driver = if url.host().is_empty() { MemoryDriver::new() } else { MemoryDriver::named(url.host()) };
    for (key, value) in url.parameters()? {
        match key.as_str() {
            "max_message_size" => match size::parse(&value) {
                Ok(bytes) => driver = driver.max_message_size(bytes),
                // Not the value: what stands there may be a part of a secret that was pasted in.
                Err(_) => return wrong("max_message_size takes a positive whole number of bytes, such as 64KiB"),
            },
            "fifo_dead_letters" => match value.as_str() {
                "true" => driver = driver.fifo_dead_letters(),
                "false" => {}
                _ => return wrong("fifo_dead_letters: write true or false"),
            },
            _ => return Err(url.unknown_parameter(&key, "max_message_size, fifo_dead_letters").with_backend(BACKEND)),
        }
    }
    Ok(driver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn parse(url: &str) -> Result<MemoryDriver> {
        driver(&ConnectUrl::parse(url)?)
    }

    #[test]
    fn good_urls() {
        for (url, limit) in [
            ("memory://", 256 << 20),
            ("memory://shop", 256 << 20),
            ("memory://?max_message_size=64KiB", 65_536),
            ("memory://shop?max_message_size=1", 1),
        ] {
            let driver = parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!(driver.capabilities().max_queue_payload, Some(limit), "{url}");
            assert_eq!(driver.capabilities().max_topic_payload, Some(limit), "{url}");
        }
    }

    #[test]
    fn wrong_urls_say_what_is_right() {
        for (url, word) in [
            ("memory://u@h", "no user"),
            ("memory://u:s3cret@h", "no user"),
            ("memory://h:1", "no port"),
            ("memory://h/x", "after the name"),
            ("memory:///", "after the name"),
            ("memory://?max_size=1", "known are max_message_size, fifo_dead_letters"),
            ("memory://?fifo_dead_letters=1", "write true or false"),
            ("memory://?max_message_size=", "positive whole number"),
            ("memory://?max_message_size=0", "positive whole number"),
            ("memory://?max_message_size=64kB", "positive whole number"),
        ] {
            let Err(e) = parse(url) else { panic!("{url} was taken") };
            let text = format!("{e} {e:?}");
            assert!(
                e.kind() == ErrorKind::ConfigInvalid && text.contains(word) && !text.contains("s3cret"),
                "{url}: {text}"
            );
        }
    }
}

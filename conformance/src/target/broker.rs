//! What the suite may do to a broker.

use std::io;

use async_trait::async_trait;

/// Kills, starts and blocks a broker. Each call returns once it is done.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Kills it at once (SIGKILL).
    async fn kill(&self) -> io::Result<()>;

    /// Starts it again on the same data, and waits until it is ready. Fine if it runs already.
    async fn start(&self) -> io::Result<()>;

    /// Whether [`block`](Broker::block) works.
    fn can_block(&self) -> bool {
        false
    }

    /// Makes it refuse or hold back publishers while consumers go on.
    async fn block(&self) -> io::Result<()> {
        Err(io::Error::other("this broker cannot be blocked by the suite"))
    }

    /// Ends `block`.
    async fn unblock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A broker handled by shell commands.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CommandBroker {
    /// Kills it.
    pub kill: String,
    /// Starts it.
    pub start: String,
    /// Blocks publishers, where there is a way.
    pub block: Option<String>,
    /// Ends the block.
    pub unblock: Option<String>,
}

impl CommandBroker {
    /// The commands that kill and start it.
    pub fn new(kill: impl Into<String>, start: impl Into<String>) -> Self {
        Self { kill: kill.into(), start: start.into(), block: None, unblock: None }
    }

    /// The commands that block publishers and end that.
    pub fn blocking(mut self, block: impl Into<String>, unblock: impl Into<String>) -> Self {
        self.block = Some(block.into());
        self.unblock = Some(unblock.into());
        self
    }
}

async fn shell(command: &str) -> io::Result<()> {
    // Files and not pipes: a broker started by the command would keep a pipe open for ever.
    let done = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .await?;
    if done.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?} ended with {done}"))) }
}

#[async_trait]
impl Broker for CommandBroker {
    async fn kill(&self) -> io::Result<()> {
        shell(&self.kill).await
    }

    async fn start(&self) -> io::Result<()> {
        shell(&self.start).await
    }

    fn can_block(&self) -> bool {
        self.block.is_some()
    }

    async fn block(&self) -> io::Result<()> {
        match &self.block {
            Some(command) => shell(command).await,
            None => Err(io::Error::other("no command to block this broker")),
        }
    }

    async fn unblock(&self) -> io::Result<()> {
        match &self.unblock {
            Some(command) => shell(command).await,
            None => Ok(()),
        }
    }
}

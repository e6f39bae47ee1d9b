//! What the suite may do to a broker: kill it, start it again, and make it hold publishers back.

use std::io;

use async_trait::async_trait;

/// Kills, starts and blocks a broker, for [`Target::restarts`](crate::Target::restarts). Each call returns once done.
#[async_trait]
pub trait BrokerControl: Send + Sync {
    /// Kills the broker at once, as SIGKILL does.
    async fn kill(&self) -> io::Result<()>;

    /// Starts the broker on the data it had, and waits until it takes connections. Does nothing where it runs already.
    async fn start(&self) -> io::Result<()>;

    /// Whether [`block`](BrokerControl::block) works. Where it does not, scenarios that need it are skipped.
    fn can_block(&self) -> bool {
        false
    }

    /// Makes the broker refuse publishers, or hold them back, while consumers go on.
    async fn block(&self) -> io::Result<()> {
        Err(io::Error::other("this broker cannot be blocked by the suite"))
    }

    /// Ends [`block`](BrokerControl::block). Does nothing where nothing is blocked.
    async fn unblock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A broker that shell commands kill, start and block. A command that does not end with status 0 fails the scenario.
///
/// ```
/// use polybus_conformance::CommandBroker;
///
/// let broker = CommandBroker::new("docker kill mybroker", "docker start mybroker && ./wait-until-ready")
///     .blocking("docker exec mybroker block", "docker exec mybroker unblock");
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CommandBroker {
    /// The command of [`BrokerControl::kill`].
    pub kill: String,
    /// The command of [`BrokerControl::start`].
    pub start: String,
    /// The command of [`BrokerControl::block`], where there is one.
    pub block: Option<String>,
    /// The command of [`BrokerControl::unblock`].
    pub unblock: Option<String>,
}

impl CommandBroker {
    /// A broker with the commands that kill and start it.
    pub fn new(kill: impl Into<String>, start: impl Into<String>) -> Self {
        Self { kill: kill.into(), start: start.into(), block: None, unblock: None }
    }

    /// Adds the commands that block publishers and that end the block.
    pub fn blocking(mut self, block: impl Into<String>, unblock: impl Into<String>) -> Self {
        self.block = Some(block.into());
        self.unblock = Some(unblock.into());
        self
    }
}

async fn shell(command: &str) -> io::Result<()> {
    // Output does not go to a pipe: a broker that the command starts would keep the pipe open for ever.
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
impl BrokerControl for CommandBroker {
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

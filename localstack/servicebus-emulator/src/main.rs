//! The command `polybus-servicebus-emulator`: reads its arguments, starts one emulator, and stops it on a signal.

use std::error::Error;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use polybus_servicebus_emulator::auth::{AccessKey, AccessRule, JwtKey, KeySet};
use polybus_servicebus_emulator::broker::{NamespaceLimits, Tier};
use polybus_servicebus_emulator::cloud::CloudRules;
use polybus_servicebus_emulator::config::EmulatorConfig;
use polybus_servicebus_emulator::{Emulator, EmulatorOptions, TlsIdentity};
use tracing_subscriber::EnvFilter;

/// An emulator of Azure Service Bus: AMQP 1.0, management and REST, in memory. Port 0 takes a free port.
///
/// Prints one line per address, then `ready`. Logs go to standard error, chosen by RUST_LOG.
#[derive(Debug, Parser)]
#[command(version)]
struct CommandArguments {
    /// Where to serve AMQP.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5672")]
    amqp: SocketAddr,
    /// Where to serve AMQP with TLS as well.
    #[arg(long, value_name = "ADDRESS")]
    amqps: Option<SocketAddr>,
    /// Where to serve HTTP, and HTTPS where there is a certificate.
    #[arg(long, visible_alias = "https", value_name = "ADDRESS", default_value = "127.0.0.1:5300")]
    http: SocketAddr,
    /// Entities to start with: the official emulator's Config.json.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The certificate chain, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Make a certificate for localhost and write it here, for clients to trust.
    #[arg(long, value_name = "FILE", conflicts_with = "tls_cert")]
    tls_self_signed: Option<PathBuf>,
    /// Check signatures: the name of the key clients must use.
    #[arg(long, value_name = "NAME", default_value = "RootManageSharedAccessKey")]
    key_name: String,
    /// Check signatures: the key itself. Without it and --jwt-key everybody may do everything.
    #[arg(long, env = "SERVICEBUS_EMULATOR_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// Check JSON web tokens: the secret they are signed with (HS256), in place of Entra ID's keys.
    #[arg(long, env = "SERVICEBUS_EMULATOR_JWT_KEY", hide_env_values = true, value_name = "SECRET")]
    jwt_key: Option<String>,
    /// Further keys to check signatures with: JSON, a list of {keyName, primaryKey, secondaryKey, rights, entity}.
    #[arg(long, value_name = "FILE")]
    access_rules: Option<PathBuf>,
    /// Detach links that are idle for this long, in seconds, as the service does after 600. 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    idle_links: u64,
    /// A host name that the self-signed certificate is for as well, such as a namespace's; may come more than once.
    #[arg(long, value_name = "NAME")]
    tls_host: Vec<String>,
    /// The namespace's tier: premium lets clients choose the largest message of an entity.
    #[arg(long, value_name = "TIER", default_value = "standard", value_parser = ["standard", "premium"])]
    tier: String,
    /// The largest message, in bytes, where an entity does not say: 256 KiB, or 1 MiB in the premium tier.
    #[arg(long, value_name = "BYTES")]
    max_message_bytes: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let options = CommandArguments::parse().options()?;
    // Before anybody is told that it is ready, and may want to end it.
    let mut terminated = TerminationSignal::new()?;
    let mut emulator = Emulator::start(options).await?;
    announce(&emulator)?;
    tokio::select! {
        () = emulator.run() => return Err("a listener has failed".into()),
        () = terminated.recv() => {}
    }
    emulator.stop().await;
    Ok(())
}

impl CommandArguments {
    fn options(self) -> Result<EmulatorOptions, Box<dyn Error>> {
        let config = match &self.config {
            Some(path) => EmulatorConfig::read(path)?,
            None => EmulatorConfig::default(),
        };
        let tls = match (&self.tls_cert, &self.tls_key, &self.tls_self_signed) {
            (Some(certificate), Some(key), _) => Some(TlsIdentity::from_files(certificate, key)?),
            (_, _, Some(path)) => {
                let tls = TlsIdentity::self_signed_for(&self.tls_host)?;
                std::fs::write(path, tls.certificate()).map_err(|error| format!("{}: {error}", path.display()))?;
                Some(tls)
            }
            _ => None,
        };
        let keys = match &self.access_rules {
            Some(path) => access_keys(path)?,
            None => Vec::new(),
        };
        let tier = if self.tier == "premium" { Tier::Premium } else { Tier::Standard };
        let cloud = CloudRules::default();
        cloud.detach_idle_links(Duration::from_secs(self.idle_links));
        Ok(EmulatorOptions {
            amqp: self.amqp,
            amqps: self.amqps,
            http: self.http,
            tls,
            key: self.key.map(|key| AccessKey::new(self.key_name, key)),
            jwt: self.jwt_key.map(JwtKey::new),
            keys,
            cloud,
            limits: NamespaceLimits {
                tier,
                max_message_bytes: self.max_message_bytes.unwrap_or(tier.max_message_bytes()),
                ..NamespaceLimits::default()
            },
            config,
            ..EmulatorOptions::default()
        })
    }
}

fn access_keys(path: &Path) -> Result<Vec<AccessKey>, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read(path).map_err(|error| at(&error))?;
    let keys = KeySet::default();
    AccessRule::parse(&text).map_err(|error| at(&error))?.into_iter().for_each(|rule| rule.put(&keys));
    Ok(keys.all())
}

/// Prints the addresses, and `ready` as the last line: callers wait for it.
fn announce(emulator: &Emulator) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "amqp {}", emulator.amqp_addr())?;
    if let Some(address) = emulator.amqps_addr() {
        writeln!(out, "amqps {address}")?;
    }
    writeln!(out, "http {}", emulator.http_addr())?;
    if emulator.certificate().is_some() {
        writeln!(out, "https {}", emulator.http_addr())?;
    }
    writeln!(out, "ready")?;
    out.flush()
}

/// The signals that ask the process to end.
#[cfg(unix)]
struct TerminationSignal([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl TerminationSignal {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]))
    }

    async fn recv(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// The signals that ask the process to end.
#[cfg(not(unix))]
struct TerminationSignal;

#[cfg(not(unix))]
impl TerminationSignal {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn recv(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}

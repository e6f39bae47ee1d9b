//! Opening a bus in a scenario.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use polybus_core::{Bus, BusOptions, Error, Topology, driver::Driver, topology::DeclareMode};

use crate::{Calls, Cx, During, Outcome, Proxy};

/// A bus about to be opened: `cx.setup(topology).parameter("max_message_size", "64KiB").open().await?`.
#[must_use = "call open"]
pub struct Setup {
    cx: Cx,
    options: BusOptions,
    declare: bool,
    drifting: bool,
    parameters: Vec<(String, String)>,
    through: Option<SocketAddr>,
    wraps: Vec<Wrap>,
}

/// How long a scenario's consumers are refused before they end, unless it says otherwise. Short, so that an adapter which takes a passing fault
/// for an end is noticed, and so that ends do not take half a minute each.
const GIVE_UP_AFTER: Duration = Duration::from_secs(1);

type Wrap = Box<dyn FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send>;

impl Setup {
    pub(crate) fn new(cx: Cx, topology: Topology) -> Self {
        let mut topology = topology.prefix(cx.prefix());
        if let Some(lock) = cx.lock_outlives() {
            topology.queues.values_mut().for_each(|q| q.lock = q.lock.or(Some(lock)));
            let subscriptions = topology.topics.values_mut().flat_map(|t| t.subscriptions.values_mut());
            subscriptions.for_each(|s| s.lock = s.lock.or(Some(lock)));
        }
        let mut options = BusOptions::topology(topology);
        options.give_up_after = GIVE_UP_AFTER;
        // A publish that must be Ok fails for no machine's slowness. Who waits for its end says how long it may take.
        options.publish_timeout = options.publish_timeout.max(cx.patience());
        Self { cx, options, declare: true, drifting: false, parameters: Vec::new(), through: None, wraps: Vec::new() }
    }

    /// Adds a URL parameter.
    pub fn parameter(mut self, key: &str, value: &str) -> Self {
        self.parameters.push((key.into(), value.into()));
        self
    }

    /// Connects through a proxy.
    pub fn through(mut self, proxy: &Proxy) -> Self {
        self.through = Some(proxy.addr());
        self
    }

    /// Changes bus options: `.options(|o| o.publish_timeout = Duration::from_secs(2))`.
    pub fn options(mut self, f: impl FnOnce(&mut BusOptions)) -> Self {
        f(&mut self.options);
        self
    }

    /// Does not declare the topology.
    pub fn undeclared(mut self) -> Self {
        self.declare = false;
        self
    }

    /// Others declared some of it: differences are what the scenario expects.
    pub fn drifting(mut self) -> Self {
        self.drifting = true;
        self
    }

    /// Puts a driver around the target's own.
    pub fn wrap(mut self, f: impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + 'static) -> Self {
        self.wraps.push(Box::new(f));
        self
    }

    /// Counts the calls that reach the driver.
    pub fn counting(self, calls: &Calls) -> Self {
        let calls = calls.clone();
        self.wrap(move |driver| calls.around(driver))
    }

    /// Connects and makes the bus, without declaring: where making it should be refused.
    pub async fn make(mut self) -> Outcome<Result<Bus, Error>> {
        let mut overrides = self.cx.overrides();
        overrides.parameters.extend(self.parameters);
        overrides.through = self.through;
        let mut driver = (self.cx.target().connect)(overrides).await.during("connect")?;
        for wrap in self.wraps {
            driver = wrap(driver);
        }
        let can = driver.capabilities().declare;
        self.options.declare = if self.declare && can { DeclareMode::Create } else { DeclareMode::Off };
        let made = Bus::new(driver, self.options);
        if let Ok(bus) = &made {
            self.cx.register(bus.clone());
        }
        Ok(made)
    }

    /// Connects, declares (unless told not to, or the driver cannot), and registers everything for deletion.
    pub async fn open(self) -> Outcome<Bus> {
        let (declare, drifting) = (self.declare, self.drifting);
        let bus = self.make().await?.during("Bus::new")?;
        if declare && bus.capabilities().declare {
            let report = bus.declare().await.during("declare")?;
            let fine = drifting || report.differences.is_empty();
            crate::ensure!(fine, "declare found differences: {:?}", report.differences);
        }
        Ok(bus)
    }
}

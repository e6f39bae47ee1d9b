//! Opening a bus in a scenario, with what differs from the usual.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use polybus_core::{Bus, BusOptions, Error, Topology, driver::Driver, topology::DeclareMode};

use crate::{CallCounter, Cx, During, Outcome, Proxy};

/// A bus that is not open yet: `cx.setup(topology).parameter("max_message_size", "64KiB").open().await?`.
#[must_use = "call open"]
pub struct BusSetup {
    cx: Cx,
    options: BusOptions,
    declare: bool,
    drifting: bool,
    parameters: Vec<(String, String)>,
    through: Option<SocketAddr>,
    wraps: Vec<DriverWrap>,
}

/// `give_up_after` of each bus, unless the scenario sets another one.
///
/// It is short, so that an adapter which takes a passing fault for the end of a consumer is noticed, and so that the
/// end of a consumer does not take half a minute.
const GIVE_UP_AFTER: Duration = Duration::from_secs(1);

type DriverWrap = Box<dyn FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send>;

impl BusSetup {
    pub(crate) fn new(cx: Cx, topology: Topology) -> Self {
        let mut topology = topology.prefix(cx.prefix());
        if let Some(lock) = cx.lock_outlives() {
            topology.queues.values_mut().for_each(|q| q.lock = q.lock.or(Some(lock)));
            let subscriptions = topology.topics.values_mut().flat_map(|t| t.subscriptions.values_mut());
            subscriptions.for_each(|s| s.lock = s.lock.or(Some(lock)));
        }
        let mut options = BusOptions::topology(topology);
        options.give_up_after = GIVE_UP_AFTER;
        // A slow machine must not fail a publish that has to be Ok. A scenario that waits for the timeout sets its own.
        options.publish_timeout = options.publish_timeout.max(cx.patience());
        Self { cx, options, declare: true, drifting: false, parameters: Vec::new(), through: None, wraps: Vec::new() }
    }

    /// Adds a URL parameter.
    pub fn parameter(mut self, key: &str, value: &str) -> Self {
        self.parameters.push((key.into(), value.into()));
        self
    }

    /// Connects through this proxy.
    pub fn through(mut self, proxy: &Proxy) -> Self {
        self.through = Some(proxy.addr());
        self
    }

    /// Changes the bus options: `.options(|o| o.publish_timeout = Duration::from_secs(2))`.
    pub fn options(mut self, f: impl FnOnce(&mut BusOptions)) -> Self {
        f(&mut self.options);
        self
    }

    /// Does not declare the topology.
    pub fn undeclared(mut self) -> Self {
        self.declare = false;
        self
    }

    /// Expects differences: other tools declared some of the entities.
    pub fn drifting(mut self) -> Self {
        self.drifting = true;
        self
    }

    /// Puts a driver around the target's driver. The last one given is the outermost.
    pub fn wrap(mut self, f: impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + 'static) -> Self {
        self.wraps.push(Box::new(f));
        self
    }

    /// Counts the calls that reach the driver. See [`CallCounter`].
    pub fn counting(self, calls: &CallCounter) -> Self {
        let calls = calls.clone();
        self.wrap(move |driver| calls.around(driver))
    }

    /// Connects and makes the bus without declaring, for scenarios in which `Bus::new` should be refused.
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

    /// Connects, makes the bus, and declares its topology, unless told otherwise or the driver cannot.
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

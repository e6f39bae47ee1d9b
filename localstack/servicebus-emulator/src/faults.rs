//! The faults that a test can switch on. Every switch is off at the start and costs one atomic load while it is off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::broadcast;

use crate::clock::Clock;
use crate::refusal::Refusal;

/// The fault switches of one emulator. A clone refers to the same switches.
#[derive(Clone, Debug)]
pub struct Faults(Arc<FaultState>);

#[derive(Debug)]
struct FaultState {
    refuse: AtomicBool,
    delay_ms: AtomicU64,
    drop_after: AtomicI64,
    lose_settlements: AtomicU64,
    lose_answers: AtomicU64,
    refuse_renewals: AtomicU64,
    refuse_attaches: AtomicU64,
    busy: BusyState,
    orders: broadcast::Sender<FaultOrder>,
}

/// A fault that all open connections act on at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultOrder {
    /// Close the socket without sending anything.
    DropConnections,
    /// Compute anew when links will have been idle for too long, since the rules have changed.
    LookAgain,
    /// Treat every token as expired.
    EndTokens,
    /// Forget every token but leave the links that it covered attached, as in the moment before the service detaches
    /// them.
    ForgetTokens,
    /// Detach (closed, with this error) each link whose address contains `address`, ignoring case.
    Detach {
        /// Part of an address; empty for every link.
        address: String,
        /// The error's condition.
        condition: String,
        /// The error's text.
        description: String,
    },
}

/// An operation that a busy service refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusyOperation {
    /// A link to an entity, or a REST request to receive.
    Attach = 1,
    /// A message or a batch, over AMQP or REST.
    Send = 2,
    /// A disposition over AMQP, or a REST request to settle.
    Settle = 4,
    /// A request to `$management`.
    Request = 8,
    /// A request of the Atom API.
    Manage = 16,
}

/// How long the service is busy, as a number of answers or as a time, and for which operations.
#[derive(Debug, Default)]
struct BusyState {
    answers: AtomicU64,
    until_ms: AtomicI64,
    /// Operations as bits.
    of: AtomicU8,
}

/// Which half of one settlement is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleLoss {
    /// Nothing is lost.
    None,
    /// The request is lost: the settlement is neither done nor answered.
    Request,
    /// The answer is lost: the settlement is done but not answered.
    Answer,
}

impl Default for Faults {
    fn default() -> Self {
        Self(Arc::new(FaultState {
            refuse: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            drop_after: AtomicI64::new(-1),
            lose_settlements: AtomicU64::new(0),
            lose_answers: AtomicU64::new(0),
            refuse_renewals: AtomicU64::new(0),
            refuse_attaches: AtomicU64::new(0),
            busy: BusyState::default(),
            orders: broadcast::channel(16).0,
        }))
    }
}

impl Faults {
    /// Sets whether new connections are closed as soon as they are accepted.
    pub fn refuse_connections(&self, refuse: bool) {
        self.0.refuse.store(refuse, Ordering::Release);
    }

    /// Holds back every frame of a peer by this long before it is handled; zero ends that.
    pub fn delay_frames(&self, delay: Duration) {
        self.0.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Drops the connection on which the `frames`-th frame from now on comes in, once, before that frame is handled.
    pub fn drop_after_frames(&self, frames: u32) {
        self.0.drop_after.store(i64::from(frames.max(1)), Ordering::Release);
    }

    /// Loses the next `count` settlements on their way in.
    pub fn lose_settlements(&self, count: u64) {
        self.0.lose_settlements.store(count, Ordering::Release);
    }

    /// Carries out the next `count` settlements and loses the answers to them.
    pub fn lose_answers(&self, count: u64) {
        self.0.lose_answers.store(count, Ordering::Release);
    }

    /// Refuses the next `count` renewals of the locks of messages and sessions as too busy.
    pub fn refuse_renewals(&self, count: u64) {
        self.0.refuse_renewals.store(count, Ordering::Release);
    }

    /// Refuses the next `count` links to entities as too busy.
    pub fn refuse_attaches(&self, count: u64) {
        self.0.refuse_attaches.store(count, Ordering::Release);
    }

    /// Refuses the next `answers` operations of these kinds as `server-busy`, with the request to wait ten seconds. An
    /// empty `of` means all kinds.
    pub fn be_busy(&self, answers: u64, of: &[BusyOperation]) {
        self.set_busy(answers, 0, of);
    }

    /// Refuses all operations of these kinds in the same way until `until_ms`, in milliseconds since the epoch on the
    /// emulator's clock. An empty `of` means all kinds.
    pub fn be_busy_until(&self, until_ms: i64, of: &[BusyOperation]) {
        self.set_busy(0, until_ms, of);
    }

    fn set_busy(&self, answers: u64, until_ms: i64, of: &[BusyOperation]) {
        let bits = of.iter().fold(0, |bits, operation| bits | *operation as u8);
        self.0.busy.of.store(if bits == 0 { u8::MAX } else { bits }, Ordering::Release);
        self.0.busy.until_ms.store(until_ms, Ordering::Release);
        self.0.busy.answers.store(answers, Ordering::Release);
    }

    /// Drops every open connection.
    pub fn drop_connections(&self) {
        self.order(FaultOrder::DropConnections);
    }

    /// Lets every token run out that clients have put so far. The links that they covered are detached before a
    /// connection reads its next frame.
    pub fn end_tokens(&self) {
        self.order(FaultOrder::EndTokens);
    }

    /// Forgets every token that clients have put so far, and leaves the links that they covered attached: requests over
    /// these links are refused. A real service is in this state for a moment before it detaches the links.
    pub fn forget_tokens(&self) {
        self.order(FaultOrder::ForgetTokens);
    }

    /// Detaches every link whose address contains `address`.
    pub fn detach(&self, address: &str, condition: &str, description: &str) {
        self.order(FaultOrder::Detach {
            address: address.to_owned(),
            condition: condition.to_owned(),
            description: description.to_owned(),
        });
    }

    /// Ends every fault.
    pub fn clear(&self) {
        self.refuse_connections(false);
        self.delay_frames(Duration::ZERO);
        self.0.drop_after.store(-1, Ordering::Release);
        self.lose_settlements(0);
        self.lose_answers(0);
        self.refuse_renewals(0);
        self.refuse_attaches(0);
        self.be_busy(0, &[]);
    }

    /// Whether a connection is to be closed. Called once for each that is accepted.
    pub fn refuses(&self) -> bool {
        self.0.refuse.load(Ordering::Acquire)
    }

    /// How long a frame is to be held back. Called once for each that comes in.
    pub fn delay(&self) -> Duration {
        Duration::from_millis(self.0.delay_ms.load(Ordering::Acquire))
    }

    /// Counts an incoming frame. True if its connection is to be dropped.
    pub fn drops_at_frame(&self) -> bool {
        if self.0.drop_after.load(Ordering::Acquire) < 0 {
            return false;
        }
        self.0.drop_after.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// What is to be lost of a settlement. Called once for each: a disposition, or a token of an update-disposition
    /// request to `$management`.
    pub fn next_loss(&self) -> SettleLoss {
        if take_one(&self.0.lose_settlements) {
            SettleLoss::Request
        } else if take_one(&self.0.lose_answers) {
            SettleLoss::Answer
        } else {
            SettleLoss::None
        }
    }

    /// An error if a renewal is to be refused. Called once for each request to renew.
    pub fn check_renewal(&self) -> Result<(), Refusal> {
        if take_one(&self.0.refuse_renewals) { Err(Refusal::busy()) } else { Ok(()) }
    }

    /// An error if an operation is to be refused. Called once for each.
    pub(crate) fn check_busy(&self, operation: BusyOperation, clock: &Clock) -> Result<(), Refusal> {
        let busy = &self.0.busy;
        let until_ms = busy.until_ms.load(Ordering::Acquire);
        let may_be = until_ms > 0 || busy.answers.load(Ordering::Acquire) > 0;
        if !may_be || busy.of.load(Ordering::Acquire) & operation as u8 == 0 {
            return Ok(());
        }
        match clock.now_ms() < until_ms || take_one(&busy.answers) {
            true => Err(Refusal::throttled()),
            false => Ok(()),
        }
    }

    /// An error if a link is to be refused. Called once for each link to an entity.
    pub fn check_attach(&self) -> Result<(), Refusal> {
        if take_one(&self.0.refuse_attaches) { Err(Refusal::busy()) } else { Ok(()) }
    }

    /// Makes every connection apply the changed [`crate::cloud::CloudRules`] to its links.
    pub fn look_again(&self) {
        self.order(FaultOrder::LookAgain);
    }

    /// The orders from now on. Each connection listens to them.
    pub fn orders(&self) -> broadcast::Receiver<FaultOrder> {
        self.0.orders.subscribe()
    }

    // Sending fails only while no connection listens. Then there is nothing to do.
    fn order(&self, order: FaultOrder) {
        let _ = self.0.orders.send(order);
    }
}

fn take_one(count: &AtomicU64) -> bool {
    if count.load(Ordering::Acquire) == 0 {
        return false;
    }
    count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_wrong_unasked() {
        let faults = Faults::default();
        for _ in 0..10 {
            assert!(!faults.refuses() && !faults.drops_at_frame());
            assert_eq!((faults.delay(), faults.next_loss()), (Duration::ZERO, SettleLoss::None));
        }
    }

    #[test]
    fn the_connection_goes_at_the_frame_that_was_named_and_at_no_other() {
        let faults = Faults::default();
        faults.drop_after_frames(3);
        let drops: Vec<bool> = (0..6).map(|_| faults.drops_at_frame()).collect();
        assert_eq!(drops, [false, false, true, false, false, false]);
        faults.drop_after_frames(0);
        assert!(faults.drops_at_frame(), "none is as one: it needs a frame to go at");
    }

    #[test]
    fn as_many_settlements_get_lost_as_were_asked_for() {
        let faults = Faults::default();
        faults.lose_settlements(2);
        faults.lose_answers(1);
        let losses: Vec<SettleLoss> = (0..4).map(|_| faults.next_loss()).collect();
        assert_eq!(losses, [SettleLoss::Request, SettleLoss::Request, SettleLoss::Answer, SettleLoss::None]);
    }

    #[test]
    fn it_is_busy_as_often_as_was_asked_for() {
        let faults = Faults::default();
        faults.refuse_renewals(1);
        faults.refuse_attaches(2);
        assert_eq!([faults.check_renewal().is_err(), faults.check_renewal().is_err()], [true, false]);
        let attaches: Vec<bool> = (0..3).map(|_| faults.check_attach().is_err()).collect();
        assert_eq!(attaches, [true, true, false]);
    }

    #[test]
    fn it_is_busy_for_what_was_named_and_as_long() {
        let (faults, clock) = (Faults::default(), Clock::manual(1000));
        let busy = |operation| faults.check_busy(operation, &clock).is_err();
        assert!(!busy(BusyOperation::Send));
        faults.be_busy(2, &[BusyOperation::Send, BusyOperation::Settle]);
        let seen = [BusyOperation::Attach, BusyOperation::Send, BusyOperation::Settle, BusyOperation::Send].map(busy);
        assert_eq!(seen, [false, true, true, false]);
        faults.be_busy_until(1500, &[]);
        assert!(busy(BusyOperation::Manage) && busy(BusyOperation::Request) && busy(BusyOperation::Request));
        clock.advance(Duration::from_millis(500));
        assert!(!busy(BusyOperation::Manage));
        let refusal = Refusal::throttled();
        assert_eq!(refusal.condition.symbol(), "com.microsoft:server-busy");
        assert!(refusal.description.contains("wait 10 seconds"));
    }

    #[test]
    fn clearing_ends_everything() {
        let faults = Faults::default();
        faults.refuse_connections(true);
        faults.delay_frames(Duration::from_secs(1));
        faults.drop_after_frames(1);
        faults.lose_settlements(9);
        faults.lose_answers(9);
        faults.refuse_renewals(9);
        faults.refuse_attaches(9);
        faults.be_busy(9, &[]);
        assert!(faults.refuses() && faults.delay() == Duration::from_secs(1));
        faults.clear();
        assert!(!faults.refuses() && !faults.drops_at_frame());
        assert_eq!((faults.delay(), faults.next_loss()), (Duration::ZERO, SettleLoss::None));
        assert!(faults.check_renewal().is_ok() && faults.check_attach().is_ok());
        assert!(faults.check_busy(BusyOperation::Send, &Clock::manual(0)).is_ok());
    }

    #[test]
    fn orders_reach_everyone_who_listens() {
        let faults = Faults::default();
        faults.drop_connections();
        let (mut one, mut two) = (faults.orders(), faults.clone().orders());
        faults.detach("q", "amqp:internal-error", "gone");
        faults.drop_connections();
        let detach = FaultOrder::Detach {
            address: "q".into(),
            condition: "amqp:internal-error".into(),
            description: "gone".into(),
        };
        for orders in [&mut one, &mut two] {
            assert_eq!(orders.try_recv(), Ok(detach.clone()), "what was ordered before is over");
            assert_eq!(orders.try_recv(), Ok(FaultOrder::DropConnections));
        }
    }
}

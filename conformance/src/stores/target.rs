//! What the author of a store tells the suite.

use std::{error::Error as StdError, future::Future, ops::DerefMut};

use polybus_core::{Error, Result};
use polybus_patterns::store::{InboxStore, JobStore, OutboxRow, OutboxStore, SequenceStore, Store};

/// An error of the database client, as a handler has it.
pub type BoxedError = Box<dyn StdError + Send + Sync>;

/// What the suite may expect of a database beyond the traits. All false by default: what is false is listed as not
/// supported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreAbilities {
    /// Several transactions write at once, so that two of them can wait for each other.
    pub parallel_writers: bool,
    /// [`move_clock`](StoreUnderTest::move_clock) moves the database's clock.
    pub clock: bool,
    /// [`StoreControl::notify`](polybus_patterns::store::StoreControl::notify) reaches other processes.
    pub notify: bool,
    /// [`contention`](StoreUnderTest::contention) gives an error.
    pub contention: bool,
    /// [`outage`](StoreUnderTest::outage) takes the database away.
    pub outage: bool,
}

impl StoreAbilities {
    /// Changes them: `StoreAbilities::default().with(|a| a.clock = true)`.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// A database that is away for as long as this lives.
pub struct StoreOutage(#[allow(dead_code, reason = "it is dropped")] Box<dyn Send>);

impl StoreOutage {
    /// What holds the database away, and lets it come back when it is dropped.
    pub fn new(held: impl Send + 'static) -> Self {
        Self(Box::new(held))
    }
}

/// A database that the suite runs on.
///
/// The suite needs a little of an application: a table of effects (`name TEXT`, no uniqueness), and a table of entities
/// that transactions lock. The store's author makes both in [`fresh`](Self::fresh).
pub trait StoreUnderTest: Send + Sync + 'static {
    /// The store.
    type Store: OutboxStore + InboxStore + SequenceStore;
    /// A connection outside any transaction.
    type Plain: DerefMut<Target = <Self::Store as Store>::Conn> + Send;

    /// What the database can do.
    fn abilities(&self) -> StoreAbilities;

    /// A new store with its tables and the application's, in a schema or file of its own. Called once per scenario;
    /// nothing of another scenario may be seen in it.
    fn fresh(&self) -> impl Future<Output = Result<Self::Store>> + Send;

    /// Another store on the same database, as another process would have: with pools and signals of its own.
    fn second_handle(&self, store: &Self::Store) -> impl Future<Output = Result<Self::Store>> + Send;

    /// Removes what [`fresh`](Self::fresh) made. Called at the end of a scenario, also of one that failed.
    fn remove(&self, store: Self::Store) -> impl Future<Output = ()> + Send {
        drop(store);
        async {}
    }

    /// A connection that is in no transaction.
    fn plain(&self, store: &Self::Store) -> impl Future<Output = Result<Self::Plain>> + Send;

    /// Writes a row of the application's: an effect with this name, however often.
    fn add_effect(
        conn: &mut <Self::Store as Store>::Conn,
        name: &str,
    ) -> impl Future<Output = Result<(), BoxedError>> + Send;

    /// The committed effects: each name, and how often it is there.
    fn effects(&self, store: &Self::Store) -> impl Future<Output = Result<Vec<(String, u64)>, BoxedError>> + Send;

    /// Locks an entity of the application's until the end of the transaction, as an `UPDATE` of its row does. The row
    /// may be missing at first. Where one transaction writes at a time there is nothing to do.
    fn lock_entity(
        conn: &mut <Self::Store as Store>::Conn,
        name: &str,
    ) -> impl Future<Output = Result<(), BoxedError>> + Send;

    /// Runs a statement that breaks a constraint, and answers with its error. Where the database can lose the
    /// transaction to such an error, it must.
    fn fail_statement(conn: &mut <Self::Store as Store>::Conn) -> impl Future<Output = BoxedError> + Send;

    /// Runs the statement that [`Outbox::row`](polybus_patterns::Outbox::row) gave.
    fn execute(
        conn: &mut <Self::Store as Store>::Conn,
        row: OutboxRow,
    ) -> impl Future<Output = Result<(), BoxedError>> + Send;

    /// Sets the database's clock to so many seconds from the real one, for all statements of this store.
    fn move_clock(&self, store: &Self::Store, seconds: i64) {
        let _ = (store, seconds);
    }

    /// An error that the client gives when a transaction lost against another one.
    fn contention(&self, store: &Self::Store) -> impl Future<Output = Result<BoxedError>> + Send {
        let _ = store;
        async { Err(Error::unsupported("no contention")) }
    }

    /// Takes the database away until the answer is dropped.
    fn outage(&self, store: &Self::Store) -> impl Future<Output = Result<StoreOutage>> + Send {
        let _ = store;
        async { Err(Error::unsupported("no outage")) }
    }
}

/// A database whose store has jobs and schedules: every [`StoreUnderTest`] with such a store is one.
pub trait JobsUnderTest: StoreUnderTest<Store: JobStore> {}

impl<T: StoreUnderTest<Store: JobStore>> JobsUnderTest for T {}

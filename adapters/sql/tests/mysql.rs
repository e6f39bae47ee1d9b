//! What is special to MySQL and MariaDB.
#![allow(clippy::unwrap_used)]

mod database;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use database::{ALL, TestDatabase, eventually, everything, insert, mysql, mysql_options, read, row};
use polybus_core::{ErrorKind, RetrySafety};
use polybus_patterns::store::{
    InboxStore, Mark, MarkKey, NewRow, OutboxStore, ParkedFilter, Store, StoreTrouble, TransactionLimits,
};
use polybus_sql::MySql;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, MySqlConnection, mysql::MySqlPoolOptions};

const KEY: MarkKey = MarkKey { consumer: 1, hour: 1, key: [7; 16] };

const COUNTERS: &str = "CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL) ENGINE = InnoDB;
    INSERT INTO counters VALUES (1, 0), (2, 0), (11, 0), (12, 0), (13, 0), (14, 0), (15, 0), (16, 0)";

async fn migrated() -> Option<MySql> {
    let store = mysql().await?;
    store.migrate().await.unwrap();
    Some(store)
}

fn limits(mark_wait: u64, statement: Option<u64>) -> TransactionLimits {
    TransactionLimits::new(Duration::from_millis(mark_wait), statement.map(Duration::from_millis))
}

async fn add(conn: &mut MySqlConnection, id: i32) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE counters SET n = n + 1 WHERE id = ?").bind(id).execute(conn).await.map(drop)
}

/// Has the transaction lose a deadlock against one that has written more.
async fn lose(store: &MySql, conn: &mut MySqlConnection) -> sqlx::Error {
    let mut other = store.pool().connect_options().connect().await.unwrap();
    add(conn, 1).await.unwrap();
    let heavy =
        "START TRANSACTION; UPDATE counters SET n = n + 1 WHERE id >= 11; UPDATE counters SET n = n + 1 WHERE id = 2";
    sqlx::raw_sql(heavy).execute(&mut other).await.unwrap();
    let winner = tokio::spawn(async move {
        add(&mut other, 1).await.unwrap();
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    });
    let lost = add(conn, 2).await.unwrap_err();
    winner.await.unwrap();
    assert!(lost.to_string().contains("1213"), "{lost}");
    lost
}

/// What a session is set to, as far as transactions of ours touch it.
async fn settings(conn: &mut MySqlConnection) -> (i64, i64, i64, String, i64) {
    sqlx::query_as(
        "SELECT CAST(@@SESSION.innodb_lock_wait_timeout AS SIGNED), CAST(@@SESSION.wait_timeout AS SIGNED),
            CAST(@@SESSION.tx_read_only AS SIGNED), CAST(@@SESSION.tx_isolation AS CHAR),
            CAST(@@SESSION.autocommit AS SIGNED)",
    )
    .fetch_one(conn)
    .await
    .unwrap()
}

async fn is_mariadb(store: &MySql) -> bool {
    let version: String = sqlx::query_scalar("SELECT VERSION()").fetch_one(store.pool()).await.unwrap();
    version.contains("MariaDB")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_goes_on_after_a_deadlock_writes_nothing() {
    let Some(store) = migrated().await else { return };
    store.run(COUNTERS).await;
    for inbox in [true, false] {
        let mut tx = match inbox {
            true => store.begin_marked(&KEY, &limits(5000, None)).await.unwrap().0,
            false => store.begin().await.unwrap(),
        };
        add(&mut tx, 1).await.unwrap();
        store.insert(&mut tx, &[row(0, "queue:a", "before")]).await.unwrap();
        let lost = lose(&store, &mut tx).await;
        assert_eq!(store.judge(&lost), StoreTrouble::Contention);
        // The commonest loop there is: the statement that failed is run again.
        add(&mut tx, 2).await.unwrap();
        store.insert(&mut tx, &[row(0, "queue:a", "after")]).await.unwrap();
        assert!(!store.is_marked(&mut tx, &KEY).await.unwrap());
        let error = tx.commit().await.unwrap_err();
        // Without a mark nobody knows whether something was committed before.
        let retry = if inbox { RetrySafety::Safe } else { RetrySafety::MayDuplicate };
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unexpected, retry), "{error}");
        assert!(error.message().contains("deadlock"), "{error}");
    }
    assert_eq!(store.number("SELECT CAST(sum(n) AS BIGINT) FROM counters").await, 0);
    assert_eq!(store.number("SELECT (SELECT count(*) FROM {outbox}) + (SELECT count(*) FROM {inbox})").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_another_copy_set_meanwhile_is_not_taken_for_ours() {
    let Some(store) = migrated().await else { return };
    store.run(COUNTERS).await;
    let (mut tx, _) = store.begin_marked(&KEY, &limits(5000, None)).await.unwrap();
    lose(&store, &mut tx).await;
    let (copy, mark) = store.begin_marked(&KEY, &limits(5000, None)).await.unwrap();
    assert_eq!(mark, Mark::First);
    copy.commit().await.unwrap();
    // The read-back finds it, and the commit knows better.
    assert!(store.is_marked(&mut tx, &KEY).await.unwrap());
    assert_eq!(tx.commit().await.unwrap_err().retry(), RetrySafety::Safe);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_commits_by_itself_is_noticed() {
    let Some(store) = migrated().await else { return };
    let mut tx = store.begin().await.unwrap();
    tx.execute("CREATE TABLE by_the_way (id INT)").await.unwrap();
    store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
    let error = tx.commit().await.unwrap_err();
    assert!(error.message().contains("commits by itself"), "{error}");
    assert!(read(&store, "queue:a").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_mark_a_statement_committed_is_no_duplicate_afterwards() {
    let Some(store) = migrated().await else { return };
    let marks = async || store.number("SELECT count(*) FROM {inbox}").await;
    for (n, goes_on) in [true, false].into_iter().enumerate() {
        let (mut tx, _) = store.begin_marked(&KEY, &limits(5000, None)).await.unwrap();
        let create = format!("CREATE TABLE by_the_way{n} (id INT)");
        tx.execute(AssertSqlSafe(create)).await.unwrap();
        assert_eq!(marks().await, 1, "the statement committed it");
        store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
        if goes_on {
            let error = tx.commit().await.unwrap_err();
            assert_eq!((error.kind(), error.retry()), (ErrorKind::Unexpected, RetrySafety::MayDuplicate), "{error}");
            assert_eq!(marks().await, 0);
        } else {
            // A handler that fails.
            drop(tx);
            eventually("the mark is gone", async || marks().await == 0).await;
        }
    }
    let (tx, mark) = store.begin_marked(&KEY, &limits(5000, None)).await.unwrap();
    assert_eq!(mark, Mark::First);
    tx.commit().await.unwrap();
    let (tx, mark) = store.begin_marked(&KEY, &limits(5000, None)).await.unwrap();
    assert_eq!(mark, Mark::Duplicate);
    tx.rollback().await.unwrap();
    assert_eq!(marks().await, 1, "that of another transaction stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_savepoint_is_where_an_expected_error_goes() {
    let Some(store) = migrated().await else { return };
    store.run(COUNTERS).await;
    let mut tx = store.begin().await.unwrap();
    add(&mut tx, 1).await.unwrap();
    let mut inner = tx.begin().await.unwrap();
    add(&mut inner, 2).await.unwrap();
    inner.execute("INSERT INTO counters VALUES (1, 0)").await.unwrap_err();
    inner.rollback().await.unwrap();
    let mut inner = tx.begin().await.unwrap();
    add(&mut inner, 11).await.unwrap();
    inner.commit().await.unwrap();
    // One that is dropped is rolled back to by the next statement.
    let mut inner = tx.begin().await.unwrap();
    add(&mut inner, 12).await.unwrap();
    drop(inner);
    tx.commit().await.unwrap();
    assert_eq!(store.number("SELECT CAST(sum(n * id) AS BIGINT) FROM counters").await, 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_given_back_as_they_were() {
    let Some(options) = mysql_options().await else { return };
    let pool =
        MySqlPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(20)).after_connect(|conn, _| {
            Box::pin(async move {
                let set = "SET SESSION innodb_lock_wait_timeout = 7, SESSION wait_timeout = 1234";
                conn.execute(set).await.map(drop)
            })
        });
    let store = polybus_sql::mysql(pool.connect_with(options).await.unwrap());
    store.migrate().await.unwrap();
    if !is_mariadb(&store).await {
        return;
    }
    let as_it_was = (7, 1234, 0, "REPEATABLE-READ".to_owned(), 1);
    for end in ["commit", "rollback", "drop", "drop in a statement", "error", "duplicate"] {
        let key = MarkKey { hour: i32::try_from(end.len()).unwrap(), ..KEY };
        let (mut tx, mark) = store.begin_marked(&key, &limits(2000, Some(60_000))).await.unwrap();
        assert_eq!(mark, Mark::First, "{end}");
        let inside = settings(&mut tx).await;
        assert_eq!((inside.0, inside.1, inside.4), (7, 120, 0), "{end}");
        match end {
            "commit" => tx.commit().await.unwrap(),
            "rollback" => tx.rollback().await.unwrap(),
            "drop" => drop(tx),
            "drop in a statement" => {
                let sleeps = async { tx.execute("SELECT SLEEP(60)").await.map(drop) };
                assert!(tokio::time::timeout(Duration::from_millis(100), sleeps).await.is_err());
                drop(tx);
            }
            "error" => {
                tx.execute("SELECT no_such_column").await.unwrap_err();
                drop(tx);
            }
            _ => {
                tx.commit().await.unwrap();
                let (tx, mark) = store.begin_marked(&key, &limits(2000, Some(60_000))).await.unwrap();
                assert_eq!(mark, Mark::Duplicate);
                drop(tx);
            }
        }
        let mut conn = store.pool().acquire().await.unwrap();
        assert!(!MySql::in_transaction(&mut conn), "{end}");
        assert_eq!(settings(&mut conn).await, as_it_was, "{end}");
        let open: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id = CONNECTION_ID()",
        )
        .fetch_one(&mut *conn)
        .await
        .unwrap();
        assert_eq!(open, 0, "{end}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_is_that_of_our_transactions_alone() {
    let Some(store) = migrated().await else { return };
    store.run(COUNTERS).await;
    let mut tx = store.begin().await.unwrap();
    let seen = "SELECT n FROM counters WHERE id = 1";
    let before: i32 = sqlx::query_scalar(seen).fetch_one(&mut *tx).await.unwrap();
    store.run("UPDATE counters SET n = 5 WHERE id = 1").await;
    let after: i32 = sqlx::query_scalar(seen).fetch_one(&mut *tx).await.unwrap();
    assert_eq!((before, after), (0, 5), "it is no longer read committed");
    tx.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_for_the_mark_is_limited() {
    let Some(store) = migrated().await else { return };
    let (first, mark) = store.begin_marked(&KEY, &limits(300, None)).await.unwrap();
    assert_eq!(mark, Mark::First);
    let since = Instant::now();
    let error = store.begin_marked(&KEY, &limits(300, None)).await.unwrap_err();
    // Whole seconds are the least that it knows, and it looks once in one.
    assert!(since.elapsed() >= Duration::from_millis(290), "{:?}", since.elapsed());
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetrySafety::Safe));
    assert_eq!(error.context("mark"), Some("busy"));
    assert_eq!(store.judge(&error), StoreTrouble::Contention);
    first.commit().await.unwrap();
    assert_eq!(store.begin_marked(&KEY, &limits(300, None)).await.unwrap().1, Mark::Duplicate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_copies_the_first_of_which_rolls_back_one_is_the_first() {
    let Some(store) = migrated().await else { return };
    for n in 0..20 {
        let key = MarkKey { hour: n, ..KEY };
        let (first, _) = store.begin_marked(&key, &limits(5000, None)).await.unwrap();
        let copy = async || {
            let (tx, mark) = store.begin_marked(&key, &limits(30_000, None)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
            tx.commit().await.unwrap();
            mark
        };
        let roll_back = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            drop(first);
        };
        let (one, other, third, ()) = tokio::join!(copy(), copy(), copy(), roll_back);
        let firsts = [one, other, third].iter().filter(|mark| **mark == Mark::First).count();
        assert_eq!(firsts, 1, "round {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_handler_frees_its_mark_in_the_middle_of_a_statement() {
    let Some(store) = migrated().await else { return };
    let (mut tx, _) = store.begin_marked(&KEY, &limits(5000, None)).await.unwrap();
    let handler = async move { tx.execute("SELECT SLEEP(100)").await.map(|_| tx) };
    assert!(tokio::time::timeout(Duration::from_millis(200), handler).await.is_err());
    let since = Instant::now();
    let (_tx, mark) = store.begin_marked(&KEY, &limits(90_000, None)).await.unwrap();
    assert_eq!(mark, Mark::First);
    assert!(since.elapsed() < Duration::from_secs(50), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_are_dropped_at_any_moment_leave_their_connection_usable_or_closed() {
    let Some(options) = mysql_options().await else { return };
    let pool = MySqlPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(30));
    let store = polybus_sql::mysql(pool.connect_with(options.statement_cache_capacity(0)).await.unwrap());
    store.migrate().await.unwrap();
    for n in 0..300_u32 {
        // A timer is too coarse to hit the middle of a round trip.
        let soon = async {
            for _ in 0..n % 60 {
                tokio::task::yield_now().await;
            }
        };
        let work = async {
            let mut tx = store.begin().await.unwrap();
            // Prepared each time: between its halves the answer of the first one is not read to its end.
            for bound in 0..3_i64 {
                let said: i64 = sqlx::query_scalar("SELECT ?").bind(bound).fetch_one(&mut *tx).await.unwrap();
                assert_eq!(said, bound);
            }
            tx.commit().await.unwrap();
        };
        tokio::select! { biased; () = work => {}, () = soon => {} }
        let mut tx = store.begin().await.unwrap();
        let said: i64 = sqlx::query_scalar("SELECT ?").bind(i64::from(n)).fetch_one(&mut *tx).await.unwrap();
        assert_eq!(said, i64::from(n));
        tx.commit().await.unwrap();
        let _both = (store.pool().acquire().await.unwrap(), store.pool().acquire().await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_work_while_the_application_has_all_connections() {
    let Some(options) = mysql_options().await else { return };
    // Its first connection takes as long on a busy machine as it takes.
    let pool = MySqlPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(5));
    let store = polybus_sql::mysql(pool.connect_with(options).await.unwrap());
    store.migrate().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let leases = store.control().leases();
    assert_eq!(leases.acquire(&["l".to_owned()], "a", Duration::from_secs(10)).await.unwrap().len(), 1);
    assert!(store.outbox().addresses(&ALL).await.unwrap().is_empty());
    store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
    let busy = store.begin().await.unwrap_err();
    assert_eq!((busy.kind(), busy.retry()), (ErrorKind::Unavailable, RetrySafety::Safe));
    assert_eq!(store.judge(&busy), StoreTrouble::MaybeAway);
    assert!(!store.control().is_away().await);
    tx.commit().await.unwrap();
    store.pool().close().await;
    assert_eq!(store.outbox().stats(1).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(store.begin().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_sessions_do_not_matter() {
    let Some(options) = mysql_options().await else { return };
    // Far from UTC; statements do not commit by themselves; another reading of quotes.
    let options = options.timezone(Some("-11:30".to_owned())).charset("latin1");
    let pool = MySqlPoolOptions::new().max_connections(4).after_connect(|conn, _| {
        Box::pin(async move {
            let set = "SET SESSION autocommit = 0,
                SESSION sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES,NO_BACKSLASH_ESCAPES')";
            conn.execute(set).await.map(drop)
        })
    });
    let store = polybus_sql::mysql(pool.connect_with(options).await.unwrap());
    store.migrate().await.unwrap();
    insert(&store, &[row(0, "queue:ä\\'", "0"), row(0, "queue:ä\\'", "1")]).await;
    let rows = read(&store, "queue:ä\\'").await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let apart = i64::try_from(now).unwrap() - rows[0].id.created_at;
    assert!((-5_000_000..60_000_000).contains(&apart), "{apart} microseconds from this machine's clock");
    assert_eq!(store.outbox().delete(&[rows[0].id]).await.unwrap(), 1);
    let plain = polybus_sql::mysql(mysql_pool_without_hooks(&store).await);
    assert_eq!(read(&plain, "queue:ä\\'").await.len(), 1, "it was not committed");
}

async fn mysql_pool_without_hooks(store: &MySql) -> sqlx::MySqlPool {
    MySqlPoolOptions::new().connect_with((*store.pool().connect_options()).clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mode_that_cuts_is_refused() {
    let Some(options) = mysql_options().await else { return };
    let pool = MySqlPoolOptions::new()
        .after_connect(|conn, _| Box::pin(async move { conn.execute("SET SESSION sql_mode = ''").await.map(drop) }));
    let store = polybus_sql::mysql(pool.connect_with(options).await.unwrap());
    for error in [store.migrate().await.unwrap_err(), store.control().verify(&["inbox"]).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(error.message().contains("STRICT_TRANS_TABLES"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_larger_than_a_packet_is_refused_and_its_transaction_lives() {
    let Some(store) = migrated().await else { return };
    let max = store.number("SELECT CAST(@@max_allowed_packet AS BIGINT)").await;
    let max = usize::try_from(max).unwrap();
    if max > 64 << 20 {
        eprintln!("SKIPPED: max_allowed_packet is {max}");
        return;
    }
    let sized = |bytes: usize| NewRow { data: vec![b'x'; bytes].into(), ..row(0, "queue:a", "") };
    let mut tx = store.begin().await.unwrap();
    let error = store.insert(&mut tx, &[row(0, "queue:a", "0"), sized(max)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
    assert!(error.message().contains("max_allowed_packet") && error.message().contains(&max.to_string()), "{error}");
    // What fits one by one, and not in one statement.
    store.insert(&mut tx, &[sized(max / 2), sized(max / 2), sized(max - 2048)]).await.unwrap();
    tx.commit().await.unwrap();
    let sizes: Vec<usize> = read(&store, "queue:a").await.iter().map(|row| row.data.len()).collect();
    assert_eq!(sizes, [max / 2, max / 2, max - 2048]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_was_cut_off_goes_on() {
    let Some(store) = migrated().await else { return };
    // As a crash leaves it between two of its statements: MySQL commits after each.
    store.run("DROP TABLE {outbox_held}; DROP VIEW {outbox_view}; DROP TABLE {member}; DELETE FROM {schema}").await;
    insert(&store, &[row(0, "queue:a", "0")]).await;
    let error = store.verify().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
    store.migrate().await.unwrap();
    store.verify().await.unwrap();
    assert_eq!(store.number("SELECT count(*) FROM {outbox_view}").await, 1);
    // A TRUNCATE begins ids anew, below those that are parked.
    store.outbox().park(read(&store, "queue:a").await[0].id, "no", true).await.unwrap();
    store.run("TRUNCATE TABLE {outbox}").await;
    let error = store.verify().await.unwrap_err();
    let (_, mend) = error.message().split_once("run: ").unwrap();
    store.run(mend).await;
    store.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contention_and_lost_connections_are_told_apart() {
    let Some(store) = migrated().await else { return };
    for commits in [false, true] {
        let mut tx = store.begin().await.unwrap();
        let id: i64 = sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS SIGNED)").fetch_one(&mut *tx).await.unwrap();
        store.run(&format!("KILL CONNECTION {id}")).await;
        let (lost, retry) = match commits {
            true => (tx.commit().await.unwrap_err(), RetrySafety::MayDuplicate),
            false => (store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap_err(), RetrySafety::Safe),
        };
        assert_eq!((lost.kind(), lost.retry()), (ErrorKind::Unavailable, retry), "{lost:?}");
        assert_eq!(store.judge(&lost), StoreTrouble::MaybeAway);
    }
    let nobody = (*store.pool().connect_options()).clone().port(1);
    let pool = MySqlPoolOptions::new().acquire_timeout(Duration::from_millis(300)).connect_lazy_with(nobody);
    let away = polybus_sql::mysql(pool);
    assert!(away.control().is_away().await);
    assert_eq!(away.begin().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let wrong = (*store.pool().connect_options()).clone().password("secret-word");
    let wrong = polybus_sql::mysql(MySqlPoolOptions::new().connect_lazy_with(wrong));
    let error = wrong.begin().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(!format!("{error:?} {wrong:?}").contains("secret-word"));
    assert_eq!(store.judge(&error), StoreTrouble::None);
    let missing = (*store.pool().connect_options()).clone().database("no_such_database");
    let missing = polybus_sql::mysql(MySqlPoolOptions::new().connect_lazy_with(missing));
    assert_eq!(missing.begin().await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
}

/// A user with these rights on the database of the store, and a store of this user's.
async fn limited_user(store: &MySql, rights: &str) -> Option<MySql> {
    let database: String = sqlx::query_scalar("SELECT DATABASE()").fetch_one(store.pool()).await.unwrap();
    let user = format!("u{}", &database[5..].replace('_', "")[..20]);
    let setup = format!("CREATE USER {user}@'%' IDENTIFIED BY 'pw'; GRANT {rights} ON {database}.* TO {user}@'%'");
    if sqlx::raw_sql(AssertSqlSafe(setup)).execute(store.pool()).await.is_err() {
        eprintln!("SKIPPED: this user may not make users");
        return None;
    }
    let options = (*store.pool().connect_options()).clone().username(&user).password("pw");
    Some(polybus_sql::mysql(MySqlPoolOptions::new().max_connections(4).connect_with(options).await.unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_rights_to_make_tables_can_verify_and_use_them() {
    let Some(store) = migrated().await else { return };
    let Some(limited) = limited_user(&store, "SELECT, INSERT, UPDATE, DELETE").await else { return };
    limited.verify().await.unwrap();
    limited.migrate().await.unwrap();
    insert(&limited, &[row(0, "queue:a", "0")]).await;
    let rows = read(&limited, "queue:a").await;
    limited.outbox().park(rows[0].id, "no", true).await.unwrap();
    assert_eq!(limited.outbox().retry_parked(&ParkedFilter::All).await.unwrap(), 1);
    assert_eq!(limited.outbox().read(&everything("queue:a")).await.unwrap().len(), 1);
    let leases = limited.control().leases();
    assert_eq!(leases.acquire(&["l".to_owned()], "a", Duration::from_secs(10)).await.unwrap().len(), 1);
    // Also its own statements can be cancelled.
    let (mut tx, _) = limited.begin_marked(&KEY, &limits(5000, None)).await.unwrap();
    let handler = async move { tx.execute("SELECT SLEEP(100)").await.map(|_| tx) };
    assert!(tokio::time::timeout(Duration::from_millis(100), handler).await.is_err());
    assert_eq!(limited.begin_marked(&KEY, &limits(50_000, None)).await.unwrap().1, Mark::First);
    let error = limited.with_prefix("new_").migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_made_read_only_is_away() {
    if std::env::var("POLYBUS_LOCALSTACK").as_deref() != Ok("1") {
        eprintln!("SKIPPED: POLYBUS_LOCALSTACK is not 1");
        return;
    }
    let Some(store) = migrated().await else { return };
    let Some(limited) = limited_user(&store, "ALL PRIVILEGES").await else { return };
    limited.verify().await.unwrap();
    // It does not concern users with all rights, such as that of the other tests.
    store.run("SET GLOBAL read_only = 1").await;
    let (away, begun) = (limited.control().is_away().await, limited.begin().await);
    let renewed = limited.control().leases().join("g", "m", Duration::from_secs(10)).await;
    store.run("SET GLOBAL read_only = 0").await;
    assert!(away);
    for error in [begun.unwrap_err(), renewed.unwrap_err()] {
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetrySafety::Safe), "{error}");
        assert_eq!(store.judge(&error), StoreTrouble::MaybeAway);
    }
    assert!(!limited.control().is_away().await);
    limited.begin().await.unwrap().commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_can_be_named() {
    let Some(store) = mysql().await else { return };
    let name = format!("odd `{}`\"'s", std::process::id());
    let named = store.clone().database(&name);
    assert_eq!(named.migrate().await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
    let quoted = name.replace('`', "``");
    store.run(&format!("DROP DATABASE IF EXISTS `{quoted}`; CREATE DATABASE `{quoted}`")).await;
    named.migrate().await.unwrap();
    named.verify().await.unwrap();
    let mut tx = named.begin().await.unwrap();
    tx.execute("USE information_schema").await.unwrap();
    named.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(read(&named, "queue:a").await.len(), 1);
    assert_eq!(store.verify().await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
    store.run(&format!("DROP DATABASE `{quoted}`")).await;
    assert_eq!(store.clone().database("a?1").verify().await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_and_renewals_beside_each_other_deadlock_with_nobody() {
    let Some(store) = migrated().await else { return };
    let rows: Vec<NewRow> = (0..1200).map(|n| row(n % 16, "queue:a", "x")).collect();
    insert(&store, &rows).await;
    let ids: Vec<_> = read(&store, "queue:a").await.iter().map(|row| row.id).collect();
    // All delete the same ones, each beginning elsewhere, while others write.
    let delete = async |first: usize| {
        let (after, before) = (&ids[first..], &ids[..first]);
        store.outbox().delete(&[after, before].concat()).await
    };
    let write = async || {
        for _ in 0..20 {
            insert(&store, &[row(3, "queue:b", "y")]).await;
        }
    };
    let (a, b, c, d, (), ()) = tokio::join!(delete(0), delete(300), delete(600), delete(900), write(), write());
    let deleted: u64 = [a, b, c, d].into_iter().map(Result::unwrap).sum();
    assert_eq!(deleted, 1200);
    assert_eq!(read(&store, "queue:b").await.len(), 40);
}

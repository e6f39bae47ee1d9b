//! `Db`: the same statements on every database, chosen by a URL.
#![allow(clippy::unwrap_used)]

mod database;

use database::{TestDatabase, eventually, row};
use polybus_core::{Address, Envelope, ErrorKind, Handler, HandlerContext, RetrySafety, Source};
use polybus_patterns::{
    Inbox, Outbox,
    store::{OutboxStore, Store, StoreTrouble},
};
use polybus_sql::{Db, DbOptions, DbValue};

on_both!(
    values_of_each_type_come_back,
    nulls_of_each_type_come_back,
    one_text_takes_values_of_any_type,
    counts_and_sums_are_numbers,
    what_a_column_does_not_hold_is_an_error,
    errors_of_statements_are_those_of_the_stores,
    none_has_a_type,
    a_commit_after_a_failed_statement_says_what_is_written,
    a_transaction_is_there_after_its_commit_alone,
    a_dropped_transaction_is_rolled_back,
    the_connection_is_that_of_sqlx,
    a_script_makes_tables,
    the_outbox_and_the_inbox_work,
    a_connection_without_a_transaction_is_told,
    another_prefix_is_another_outbox,
);

/// The columns' types, as this database calls them.
fn table(db: &Db) -> String {
    let bytes = if db.system() == "postgres" { "BYTEA" } else { "BLOB" };
    format!(
        "CREATE TABLE things (id BIGINT NOT NULL PRIMARY KEY, small SMALLINT, middle INTEGER, large BIGINT,
            fraction DOUBLE PRECISION, name TEXT, data {bytes}, open BOOLEAN, price DECIMAL(20, 2))"
    )
}

async fn with_table(store: impl Into<Db>) -> Db {
    let db = store.into();
    db.execute_script(sqlx::AssertSqlSafe(table(&db))).await.unwrap();
    db
}

const INSERT: &str = "INSERT INTO things (id, small, middle, large, fraction, name, data, open)
    -- one ? for each column
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
const SELECT: &str = "SELECT small, middle, large, fraction, name, data, open FROM things WHERE id = ?";

type Thing = (i16, i32, i64, f64, &'static str, &'static [u8], bool);

async fn values_of_each_type_come_back(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let rows: [Thing; 4] = [
        (0, 0, 0, 0.0, "", b"", false),
        (1, -1, 1, 1.5, "it's ä 😀 ? $1 \\", b"\r\n\x00\x7f\x80\xc3\xff'\\", true),
        (i16::MIN, i32::MIN, i64::MIN, -1e300, "a\r\n\t", b"\0\0", true),
        (i16::MAX, i32::MAX, i64::MAX, 0.1, "  x  ", b"\xff", false),
    ];
    let mut tx = db.begin().await.unwrap();
    for (id, (small, middle, large, fraction, name, data, open)) in (0_i64..).zip(rows) {
        let values = [
            id.into(),
            small.into(),
            middle.into(),
            large.into(),
            fraction.into(),
            name.into(),
            data.into(),
            open.into(),
        ];
        assert_eq!(tx.execute(INSERT, values).await.unwrap(), 1);
    }
    tx.commit().await.unwrap();
    for (id, (small, middle, large, fraction, name, data, open)) in (0_i64..).zip(rows) {
        let found = db.fetch_all(SELECT, [id.into()]).await.unwrap();
        let [row] = &found[..] else { panic!("{} rows", found.len()) };
        assert_eq!(row.len(), 7);
        assert_eq!(row.get::<i64>(0).unwrap(), i64::from(small));
        assert_eq!(row.get::<i64>(1).unwrap(), i64::from(middle));
        assert_eq!(row.get::<i64>(2).unwrap(), large);
        assert_eq!(row.get::<f64>(3).unwrap(), fraction);
        assert_eq!(row.get::<String>(4).unwrap(), name);
        assert_eq!(row.get::<Vec<u8>>(5).unwrap(), data);
        assert_eq!(row.get::<bool>(6).unwrap(), open);
        assert_eq!(row.get::<i64>(6).unwrap(), i64::from(open));
        assert_eq!(row.get::<Option<String>>(4).unwrap().as_deref(), Some(name));
        // The value finds the row again, whatever its type.
        let by_all = "SELECT id FROM things WHERE small = ? AND large = ? AND name = ? AND data = ? AND open = ?";
        let values = [small.into(), large.into(), name.into(), data.into(), open.into()];
        assert_eq!(db.fetch_all(by_all, values).await.unwrap()[0].get::<i64>(0).unwrap(), id);
    }
}

async fn nulls_of_each_type_come_back(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let nulls = || std::iter::repeat_n(DbValue::Null, 7);
    db.execute(INSERT, [1.into()].into_iter().chain(nulls())).await.unwrap();
    let row = db.fetch_all(SELECT, [1.into()]).await.unwrap().remove(0);
    for column in 0..3 {
        assert_eq!(row.get::<Option<i64>>(column).unwrap(), None);
    }
    assert_eq!(row.get::<Option<f64>>(3).unwrap(), None);
    assert_eq!(row.get::<Option<String>>(4).unwrap(), None);
    assert_eq!(row.get::<Option<Vec<u8>>>(5).unwrap(), None);
    assert_eq!(row.get::<Option<bool>>(6).unwrap(), None);
    let error = row.get::<i64>(2).unwrap_err();
    assert!(error.to_string().contains("column 2 (large) holds NULL"), "{error}");
}

/// A client keeps one prepared statement for one text.
async fn one_text_takes_values_of_any_type(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let mut conn = db.acquire().await.unwrap();
    let update = "UPDATE things SET fraction = ?, middle = ?, name = ? WHERE id = 1";
    conn.execute("INSERT INTO things (id) VALUES (?)", [1.into()]).await.unwrap();
    for _ in 0..2 {
        for (values, fraction, middle) in [
            ([DbValue::Null, DbValue::Null, DbValue::Null], None, None),
            ([7.into(), 1_i64.into(), "a".into()], Some(7.0), Some(1)),
            ([2.5.into(), DbValue::Null, "b".into()], Some(2.5), None),
            ([DbValue::Null, 3.into(), DbValue::Null], None, Some(3)),
        ] {
            conn.execute(update, values).await.unwrap();
            let row = conn.fetch_one("SELECT fraction, middle FROM things", []).await.unwrap();
            assert_eq!((row.get(0).unwrap(), row.get(1).unwrap()), (fraction, middle));
        }
    }
}

async fn counts_and_sums_are_numbers(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    for id in 1..=3 {
        let insert = "INSERT INTO things (id, small, middle, large, price) VALUES (?, ?, ?, ?, ?)";
        db.execute(insert, [id.into(), id.into(), id.into(), (1_i64 << 40).into(), 12.5.into()]).await.unwrap();
    }
    let sums = "SELECT COUNT(*), COUNT(DISTINCT large), SUM(small), SUM(middle), SUM(large), MAX(id), SUM(price),
            COALESCE(SUM(large), 0), SUM(fraction)
        FROM things WHERE id > ?";
    let row = db.fetch_all(sums, [0.into()]).await.unwrap().remove(0);
    let numbers: Vec<i64> = (0..6).map(|column| row.get(column).unwrap()).collect();
    assert_eq!(numbers, [3, 1, 6, 6, 3 << 40, 3]);
    assert_eq!(row.get::<f64>(6).unwrap(), 37.5);
    assert!(row.get::<i64>(6).is_err(), "what is behind the point would be gone");
    assert_eq!(row.get::<f64>(4).unwrap(), (3_i64 << 40) as f64);
    assert_eq!(row.get::<i64>(7).unwrap(), 3 << 40);
    assert_eq!(row.get::<Option<f64>>(8).unwrap(), None);
    let none = db.fetch_all(sums, [9.into()]).await.unwrap().remove(0);
    assert_eq!((none.get::<i64>(0).unwrap(), none.get::<Option<i64>>(4).unwrap()), (0, None));
    assert_eq!(none.get::<i64>(7).unwrap(), 0);
}

async fn what_a_column_does_not_hold_is_an_error(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let values =
        [1.into(), 1.into(), 2.into(), 3.into(), 1.5.into(), "secret".into(), b"secret"[..].into(), true.into()];
    db.execute(INSERT, values).await.unwrap();
    let row = db.fetch_all(SELECT, [1.into()]).await.unwrap().remove(0);
    for (error, wanted) in [
        (row.get::<i64>(4).unwrap_err(), "column 4 (name) holds text that is no i64"),
        (row.get::<String>(1).unwrap_err(), "column 1 (middle) holds a whole number that is no String"),
        (row.get::<bool>(2).unwrap_err(), "column 2 (large) holds a whole number that is no bool"),
        (row.get::<i64>(3).unwrap_err(), "column 3 (fraction) holds a number of floating point that is no i64"),
        (row.get::<String>(5).unwrap_err(), "column 5 (data) holds bytes that is no String"),
        (row.get::<Option<Vec<u8>>>(4).unwrap_err(), "column 4 (name) holds text that is no Vec<u8>"),
        (row.get::<i64>(7).unwrap_err(), "column 7 was asked for, counted from 0, in a row of 7"),
    ] {
        assert_eq!((error.kind(), error.backend()), (ErrorKind::InvalidArgument, db.system()));
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(!format!("{error:?} {row:?}").contains("secret"));
    }
    if db.system() != "sqlite" {
        let row = db.fetch_all("SELECT CURRENT_TIMESTAMP AS at", []).await.unwrap().remove(0);
        let error = row.get::<String>(0).unwrap_err();
        assert!(
            error.to_string().contains("column 0 (at) is of the type") && error.to_string().contains("cast"),
            "{error}"
        );
    }
}

async fn errors_of_statements_are_those_of_the_stores(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let insert = "INSERT INTO things (id) VALUES (?)";
    db.execute(insert, [1.into()]).await.unwrap();
    let taken = db.execute(insert, [1.into()]).await.unwrap_err();
    assert_eq!((taken.kind(), taken.backend(), taken.operation()), (ErrorKind::Conflict, db.system(), "execute"));
    assert_eq!(db.judge(&taken), StoreTrouble::None);
    let missing = db.fetch_all("SELECT 1 FROM nowhere", []).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::ConfigInvalid, "{missing}");
    assert!(!missing.to_string().contains("migrate()"), "the application's own table: {missing}");
    for values in [vec![], vec![1.into(), 2.into()]] {
        let error = db.execute(insert, values).await.unwrap_err();
        assert_eq!((error.kind(), error.backend()), (ErrorKind::InvalidArgument, db.system()), "{error}");
    }
    let error = db.execute("DELETE FROM things WHERE id = ?1", [1.into()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");

    let mut conn = db.acquire().await.unwrap();
    assert!(conn.fetch_optional("SELECT id FROM things WHERE id = ?", [2.into()]).await.unwrap().is_none());
    let none = conn.fetch_one("SELECT id FROM things WHERE id = ?", [2.into()]).await.unwrap_err();
    assert_eq!((none.kind(), none.backend()), (ErrorKind::Unexpected, db.system()));
    assert_eq!(conn.fetch_one("SELECT id FROM things", []).await.unwrap().get::<i64>(0).unwrap(), 1);
    drop(conn);

    db.close().await;
    assert_eq!(db.execute(insert, [2.into()]).await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn none_has_a_type(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    db.execute("INSERT INTO things (id, large) VALUES (?, ?)", [1.into(), None::<i64>.into()]).await.unwrap();
    for (wanted, found) in [(None::<i64>, 1), (Some(7), 0)] {
        let any = "SELECT COUNT(*) FROM things WHERE ? IS NULL OR large=? AND id > 0";
        let rows = db.fetch_all(any, [wanted.into(), wanted.into()]).await.unwrap();
        assert_eq!(rows[0].get::<i64>(0).unwrap(), found, "{wanted:?}");
    }
}

async fn a_commit_after_a_failed_statement_says_what_is_written(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let insert = "INSERT INTO things (id) VALUES (?)";
    for swallows in [false, true] {
        let mut tx = db.begin().await.unwrap();
        tx.execute(insert, [10.into()]).await.unwrap();
        if swallows {
            tx.execute(insert, [10.into()]).await.unwrap_err();
        }
        let committed = tx.commit().await;
        let ends = swallows && db.system() == "postgres";
        assert_eq!(committed.is_ok(), !ends, "{committed:?}");
        if let Err(error) = committed {
            assert_eq!((error.kind(), error.retry()), (ErrorKind::Unexpected, RetrySafety::Safe), "{error}");
        }
        assert_eq!(count(&db).await, i64::from(!ends));
        db.execute("DELETE FROM things", []).await.unwrap();
    }
    // A savepoint that was rolled back is no end.
    let mut tx = db.begin().await.unwrap();
    tx.execute_script("SAVEPOINT mine").await.unwrap();
    tx.execute("INSERT INTO nowhere VALUES (?)", [1.into()]).await.unwrap_err();
    tx.execute_script("ROLLBACK TO SAVEPOINT mine").await.unwrap();
    tx.execute(insert, [11.into()]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(count(&db).await, 1);
}

async fn count(db: &Db) -> i64 {
    db.fetch_all("SELECT COUNT(*) FROM things", []).await.unwrap()[0].get(0).unwrap()
}

async fn a_transaction_is_there_after_its_commit_alone(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let mut tx = db.begin().await.unwrap();
    assert!(tx.in_transaction() && Db::in_transaction(&mut tx));
    tx.execute("INSERT INTO things (id) VALUES (?)", [1.into()]).await.unwrap();
    assert_eq!(count(&db).await, 0, "seen before its commit");
    tx.commit().await.unwrap();
    assert_eq!(count(&db).await, 1);
    let mut tx = db.begin().await.unwrap();
    assert_eq!(tx.execute("DELETE FROM things", []).await.unwrap(), 1);
    tx.rollback().await.unwrap();
    assert_eq!(count(&db).await, 1);
}

async fn a_dropped_transaction_is_rolled_back(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    // More often than the pool has connections.
    for id in 0..20 {
        let mut tx = db.begin().await.unwrap();
        tx.execute("INSERT INTO things (id) VALUES (?)", [id.into()]).await.unwrap();
    }
    let mut tx = db.begin().await.unwrap();
    tx.execute("INSERT INTO things (id) VALUES (?)", [0.into()]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(count(&db).await, 1);
}

async fn the_connection_is_that_of_sqlx(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let mut tx = db.begin().await.unwrap();
    let insert = "INSERT INTO things (id) VALUES (1)";
    match db.system() {
        "postgres" => {
            sqlx::query(insert).execute(tx.as_postgres().unwrap()).await.unwrap();
            assert!(db.as_postgres().is_some() && db.as_mysql().is_none() && tx.as_sqlite().is_none());
            // Its own operator, beside a placeholder.
            let asked = "SELECT '{\"a\": 1}'::jsonb ?? ?, $$ ? $$";
            let row = tx.fetch_one(asked, ["a".into()]).await.unwrap();
            assert_eq!((row.get::<bool>(0).unwrap(), row.get::<String>(1).unwrap()), (true, " ? ".to_owned()));
        }
        "mysql" => {
            sqlx::query(insert).execute(tx.as_mysql().unwrap()).await.unwrap();
            assert!(db.as_mysql().is_some() && db.as_sqlite().is_none() && tx.as_postgres().is_none());
            let asked = "SELECT 'it\\'s ?', ?, CAST(18446744073709551615 AS UNSIGNED), _utf8mb4'a' COLLATE utf8mb4_bin";
            let row = tx.fetch_one(asked, ["a".into()]).await.unwrap();
            assert_eq!(
                (row.get::<String>(0).unwrap(), row.get::<String>(1).unwrap()),
                ("it's ?".to_owned(), "a".to_owned())
            );
            assert_eq!(row.get::<String>(2).unwrap(), "18446744073709551615");
            assert_eq!(row.get::<String>(3).unwrap(), "a", "text that is compared by its bytes");
        }
        _ => {
            sqlx::query(insert).execute(tx.as_sqlite().unwrap()).await.unwrap();
            assert!(db.as_sqlite().is_some() && db.as_postgres().is_none() && tx.as_mysql().is_none());
        }
    }
    tx.commit().await.unwrap();
    assert_eq!(count(&db).await, 1);
}

async fn a_script_makes_tables(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let script = "CREATE TABLE one (id BIGINT); CREATE TABLE other (id BIGINT); INSERT INTO one VALUES (1), (2);";
    db.execute_script(script).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.execute_script("INSERT INTO other SELECT id FROM one; DELETE FROM one WHERE id = 1;").await.unwrap();
    tx.commit().await.unwrap();
    let counts = "SELECT (SELECT COUNT(*) FROM one), (SELECT COUNT(*) FROM other)";
    let row = db.fetch_all(counts, []).await.unwrap().remove(0);
    assert_eq!((row.get::<i64>(0).unwrap(), row.get::<i64>(1).unwrap()), (1, 2));
    assert!(db.execute_script("DELETE FROM other; DELETE FROM nowhere;").await.is_err());
}

async fn the_outbox_and_the_inbox_work(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    db.verify().await.unwrap();
    assert!(db.migration_sql().await.unwrap().contains("polybus_outbox"));
    let outbox = Outbox::new(&db, "/test");
    let handler = Inbox::new(&db, "c").handler(outbox, async |outbox, mut tx, _cx, msg| {
        tx.execute("INSERT INTO things (id, name) VALUES (?, ?)", [1.into(), (&*msg.id).into()]).await?;
        outbox.enqueue(&mut tx, Address::queue("a"), Envelope::new("t", "caused")).await?;
        if msg.id.starts_with("bad") {
            return Err("no".into());
        }
        Ok(tx)
    });
    let handle = async |id: &str| {
        let context = HandlerContext::detached(&Source::queue("q"), 1);
        handler.handle(context, Envelope::new("t", "").id(id)).await
    };
    handle("bad").await.unwrap_err();
    // The rollback may be under way in a task.
    handle("1").await.unwrap();
    handle("1").await.unwrap();
    assert_eq!(count(&db).await, 1);
    assert_eq!(database_rows(&db, "queue:a").await, ["caused"]);
    assert_eq!(db.control().system(), db.system());
    assert_eq!(db.control().single_writer(), db.system() == "sqlite");
    eventually("the database is there", async || !db.control().is_away().await).await;
}

async fn database_rows(db: &Db, address: &str) -> Vec<String> {
    let rows = db.outbox().read(&database::everything(address)).await.unwrap();
    database::data(&rows)
}

async fn a_connection_without_a_transaction_is_told(store: impl TestDatabase + Into<Db>) {
    let db = with_table(store).await;
    let outbox = Outbox::new(&db, "/test");
    let mut conn = db.acquire().await.unwrap();
    assert!(!conn.in_transaction());
    let refused = outbox.enqueue(&mut conn, Address::queue("a"), Envelope::new("t", "refused")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    outbox.enqueue_outside(&mut conn, Address::queue("a"), [Envelope::new("t", "outside")]).await.unwrap();
    conn.execute("INSERT INTO things (id) VALUES (?)", [1.into()]).await.unwrap();
    drop(conn);
    assert_eq!(count(&db).await, 1);
    assert_eq!(database_rows(&db, "queue:a").await, ["outside"]);
}

async fn another_prefix_is_another_outbox(store: impl TestDatabase + Into<Db>) {
    let db: Db = store.into();
    let other = db.clone().prefix("other_");
    other.migrate().await.unwrap();
    let mut tx = other.begin().await.unwrap();
    other.insert(&mut tx, &[row(0, "queue:a", "other's")]).await.unwrap();
    Db::commit(tx).await.unwrap();
    assert_eq!(database_rows(&db, "queue:a").await, Vec::<String>::new());
    assert_eq!(database_rows(&other, "queue:a").await, ["other's"]);
}

// ---- URLs

fn servers() -> Vec<(&'static str, String)> {
    let variables = [("postgres", "POLYBUS_POSTGRES_URL"), ("mysql", "POLYBUS_MARIADB_URL")];
    let url = |name| std::env::var(name).ok().filter(|url: &String| !url.is_empty());
    variables.into_iter().filter_map(|(system, name)| Some((system, url(name)?))).collect()
}

#[tokio::test]
async fn a_url_chooses_the_server() {
    for (system, url) in servers() {
        let (_, rest) = url.split_once(':').unwrap();
        let (one, other) = if system == "mysql" { ("mysql", "MariaDB") } else { ("postgres", "postgresql") };
        for scheme in [one, other] {
            let db = DbOptions::new().max_connections(1).connect(&format!("{scheme}:{rest}")).await.unwrap();
            assert_eq!(db.system(), system);
            assert_eq!(db.fetch_all("SELECT ? + 1", [6.into()]).await.unwrap()[0].get::<i64>(0).unwrap(), 7);
            let connections = db.control().max_connections();
            assert_eq!(connections, Some(1));
        }
    }
}

#[tokio::test]
async fn a_login_that_is_refused_shows_no_password() {
    for (system, url) in servers() {
        let mut url: String = url;
        let at = url.rfind('@').unwrap();
        let colon = url[..at].rfind(':').unwrap();
        url.replace_range(colon + 1..at, "wrongsecret");
        let error = Db::connect(&url).await.unwrap_err();
        assert_eq!((error.kind(), error.backend()), (ErrorKind::Unauthenticated, system), "{error}");
        assert!(!format!("{error} {error:?}").contains("wrongsecret"), "{error:?}");
    }
}

/// The clock stands still, so that the pool's 30 s are over at once.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_unavailable() {
    for scheme in ["postgres", "mysql"] {
        let error = Db::connect(&format!("{scheme}://shop:secret@127.0.0.1:1/shop")).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetrySafety::Safe), "{error}");
        assert!(!format!("{error:?}").contains("secret"));
    }
}

#[tokio::test]
async fn nothing_shows_a_password() {
    for (_, url) in servers() {
        let db = Db::connect(&url).await.unwrap();
        let tx = db.begin().await.unwrap();
        let shown = format!("{db:?} {:?} {:?} {:?}", *tx, tx, db.acquire().await.unwrap());
        let password = url.rsplit_once('@').unwrap().0.rsplit_once(':').unwrap().1.to_owned();
        // The tests' own password is the name of the project.
        assert!(password == "polybus" || !shown.contains(&password), "{shown}");
        assert!(!shown.contains("127.0.0.1") && !shown.contains("://"), "{shown}");
    }
}

#[tokio::test]
async fn a_url_chooses_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file.db");
    let url = format!("sqlite:{}", file.display());
    let error = Db::connect(&url).await.unwrap_err();
    assert!(error.kind() == ErrorKind::ConfigInvalid && error.to_string().contains("?mode=rwc"), "{error}");
    assert!(!file.exists());

    let db = Db::connect(&format!("{url}?mode=rwc")).await.unwrap();
    assert!(file.exists());
    db.migrate().await.unwrap();
    let mut conn = db.acquire().await.unwrap();
    let mode = conn.fetch_one("PRAGMA journal_mode", []).await.unwrap();
    assert_eq!(mode.get::<String>(0).unwrap(), "wal");
    for (pragma, wanted) in [("PRAGMA synchronous", 2), ("PRAGMA foreign_keys", 1), ("PRAGMA busy_timeout", 5000)] {
        assert_eq!(conn.fetch_one(pragma, []).await.unwrap().get::<i64>(0).unwrap(), wanted, "{pragma}");
    }
    drop(conn);
    assert_eq!(db.control().max_connections(), Some(18));
    let again = DbOptions::new().max_connections(3).connect(&url.replace("sqlite:", "SQLite://")).await.unwrap();
    again.verify().await.unwrap();
    assert_eq!(again.control().max_connections(), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_another_database_is_refused() {
    let here = Db::from(database::sqlite().await);
    here.migrate().await.unwrap();
    let Some(there) = database::postgres().await else { return };
    let there = Db::from(there);
    there.migrate().await.unwrap();
    let mut tx = here.begin().await.unwrap();
    let error = there.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("transaction of sqlite"),
        "{error}"
    );
}

/// On SQLite a statement by itself waits for its turn to write, which the handler has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_would_wait_for_itself_is_told() {
    let db = with_table(database::sqlite().await).await;
    db.migrate().await.unwrap();
    let handler = Inbox::new(&db, "c").handler(db.clone(), async |db, tx, _cx, _msg| {
        let error = db.execute("DELETE FROM things", []).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(count(&db).await, 0, "reading needs no turn");
        Ok(tx)
    });
    let context = HandlerContext::detached(&Source::queue("q"), 1);
    handler.handle(context, Envelope::new("t", "").id("1")).await.unwrap();
}

/// What lost against another transaction is known as that, also in the error of a handler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_contention_is_judged_as_one() {
    let db = with_table(database::sqlite().await).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("INSERT INTO things (id) VALUES (1)", []).await.unwrap();
    let mut conn = db.acquire().await.unwrap();
    conn.execute("PRAGMA busy_timeout = 0", []).await.unwrap();
    let error = conn.execute("INSERT INTO things (id) VALUES (2)", []).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetrySafety::Safe), "{error}");
    assert_eq!(db.judge(&error), StoreTrouble::Contention);
}

/// Many write at once, each by itself: on SQLite they wait for each other, and none is told that it is busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_statements_write_at_once() {
    let db = with_table(database::sqlite().await).await;
    let writers = (0..50).map(|id: i64| {
        let db = db.clone();
        tokio::spawn(async move { db.execute("INSERT INTO things (id) VALUES (?)", [id.into()]).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        assert_eq!(writer.await.unwrap().unwrap(), 1);
    }
    assert_eq!(count(&db).await, 50);
}

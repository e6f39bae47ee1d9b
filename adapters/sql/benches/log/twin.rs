//! The same append without what keeps readers from missing events: the function of the log without its first step, called
//! with the same values.

use polybus_core::Envelope;
use polybus_sql::Postgres;
use sqlx::AssertSqlSafe;

use crate::OrderPlaced;

/// Makes `twin_append`.
pub(crate) async fn make(store: &Postgres) {
    let definition: String = sqlx::query_scalar("SELECT pg_get_functiondef('polybus_log_append'::regproc)")
        .fetch_one(store.pool())
        .await
        .unwrap();
    let (before, rest) = definition.split_once("    SELECT l.tag INTO STRICT log_tag").unwrap();
    let (_, after) = rest.split_once("    END IF;\n").unwrap();
    let twin = format!("{before}{after}").replacen("polybus_log_append", "twin_append", 1);
    sqlx::raw_sql(AssertSqlSafe(twin)).execute(store.pool()).await.unwrap();
}

pub(crate) async fn append(store: &Postgres, stream: &str, event: &OrderPlaced) {
    let message = Envelope::event(event).unwrap().key(stream);
    let mut tx = store.begin().await.unwrap();
    let (outcome, _, _): (i32, i64, Vec<i64>) =
        sqlx::query_as("SELECT outcome, first_version, places FROM twin_append($1, -1, $2, $3, $4, $5, $6)")
            .bind(stream)
            .bind(vec![&*message.id])
            .bind(vec![&*message.event_type])
            // As long as that of the log.
            .bind(vec!["x".repeat(420)])
            .bind(vec![&message.data[..]])
            .bind(0_i64)
            .fetch_one(&mut *tx)
            .await
            .unwrap();
    assert_eq!(outcome, 0);
    tx.commit().await.unwrap();
}

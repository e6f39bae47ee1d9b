//! An error that ends a transaction.

use polybus_sql::DbTx;

/// Loses the transaction, as an error of a statement may. The table `taken` must have a 1. Answers whether it did.
pub async fn lose(tx: &mut DbTx) -> bool {
    match tx.system() {
        // No constraint ends a transaction there. A deadlock does, and that is what it comes to.
        "mysql" => tx.execute("ROLLBACK", []).await.is_ok(),
        "sqlite" => tx.execute("INSERT OR ROLLBACK INTO taken VALUES (1)", []).await.is_err(),
        // By sqlx itself: `Db` would remember that a statement has failed, and look at the commit.
        _ => match tx.as_postgres() {
            Some(conn) => polybus_sql::sqlx::query("INSERT INTO taken VALUES (1)").execute(conn).await.is_err(),
            None => false,
        },
    }
}

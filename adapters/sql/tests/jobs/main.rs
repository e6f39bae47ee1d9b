//! Workers of jobs on every database.
#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "../database/mod.rs"]
mod database;

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let store = crate::database::sqlite().await;
                store.migrate().await.unwrap();
                super::$name(store).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(store) = crate::database::postgres().await else { return };
                store.migrate().await.unwrap();
                super::$name(store).await;
            })*
        }
    };
}

mod cancelled;
mod kinds;
mod outcomes;
mod shared;
mod support;
mod transactions;
mod unique;

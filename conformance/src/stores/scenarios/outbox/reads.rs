//! What the relay relies on in each statement: order, bounds, and which row is which.

use polybus_core::{Address, Envelope};
use polybus_patterns::store::{OutboxStore, ReadRows, RowId};

use super::{all_slots, rows_of, whole};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, of_key},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/reads-from-the-front",
            "A read gives the first rows by their ids, each with its slot, and again until they are deleted.",
            reads_from_the_front,
        ),
        store_scenario(
            "outbox/reads-so-many-bytes",
            "A read keeps its limits of bytes and rows, and the first row comes however large it is.",
            reads_so_many_bytes,
        ),
        store_scenario("outbox/reads-no-held", "Held keys and held rows of the request are left out.", reads_no_held),
        store_scenario(
            "outbox/deletes-by-id-and-time",
            "A row is deleted by its id and its time; one with another time stays.",
            deletes_by_id_and_time,
        ),
        store_scenario(
            "outbox/addresses",
            "The addresses with rows are told with their slots, without those that are paused.",
            addresses,
        ),
    ]
}

const AT: &str = "queue:q";

async fn reads_from_the_front<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let table = store.outbox();
    cx.enqueue(&store, &to, of_key("a", 0..5)).await?;
    cx.enqueue(&store, &to, (0..40).map(|n| Envelope::new("t", "x").key(format!("k{n}")))).await?;
    let rows = rows_of(&*table, AT).await?;
    ensure_eq!(rows.len(), 45, "rows");
    ensure!(rows.is_sorted_by_key(|row| row.id.id), "the ids do not rise: {:?}", rows.iter().map(|r| r.id.id));
    let slot = rows.iter().find(|row| row.key.as_deref() == Some(b"a")).map_or(0, |row| row.slot);
    let of_slot = table.read(&whole(&[slot], AT)).await?;
    ensure!(of_slot.iter().all(|row| row.slot == slot), "rows of another slot than {slot}");
    let expected: Vec<RowId> = rows.iter().filter(|row| row.slot == slot).map(|row| row.id).collect();
    ensure_eq!(of_slot.iter().map(|row| row.id).collect::<Vec<_>>(), expected, "the rows of slot {slot}");
    let numbers: Vec<&[u8]> = of_slot.iter().filter(|r| r.key.as_deref() == Some(b"a")).map(|r| &*r.data).collect();
    ensure_eq!(numbers, [b"0", b"1", b"2", b"3", b"4"], "the key's rows");
    ensure_eq!(rows_of(&*table, AT).await?.len(), 45, "rows at another read");
    ensure_eq!(table.delete(&expected).await?, expected.len() as u64, "rows deleted");
    ensure_eq!(rows_of(&*table, AT).await?.len(), 45 - expected.len(), "rows left");
    Ok(())
}

async fn reads_so_many_bytes<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let table = store.outbox();
    let large = |n: usize| Envelope::new("t", vec![b'x'; 10_000]).key("k").id(n.to_string());
    cx.enqueue(&store, &to, (0..10).map(large)).await?;
    let slots = all_slots();
    let all = rows_of(&*table, AT).await?;
    let size = |n: usize| all[n].head.len() + all[n].data.len();
    for (max_bytes, rows_per_slot, expected) in [
        (1, 100, 1),
        (size(0), 100, 1),
        (size(0) + size(1) - 1, 100, 1),
        (size(0) + size(1), 100, 2),
        (35_000, 100, 3),
        (1 << 30, 4, 4),
        (1 << 30, 100, 10),
    ] {
        let request = ReadRows { rows_per_slot, max_bytes, ..whole(&slots, AT) };
        let read: Vec<RowId> = table.read(&request).await?.iter().map(|row| row.id).collect();
        let wanted: Vec<RowId> = all.iter().take(expected).map(|row| row.id).collect();
        ensure_eq!(read, wanted, "a read of {max_bytes} bytes and {rows_per_slot} rows");
    }
    Ok(())
}

async fn reads_no_held<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let table = store.outbox();
    cx.enqueue(&store, &to, ["a", "b\u{0}\u{1F980}", "c"].map(|key| Envelope::new("t", "x").key(key))).await?;
    cx.enqueue(&store, &to, [Envelope::new("t", "none"), Envelope::new("t", "none")]).await?;
    let slots = all_slots();
    let all = rows_of(&*table, AT).await?;
    let held_keys = [all[1].key.clone().unwrap_or_default()];
    let held_rows = [all[3].id.id];
    let request = ReadRows { held_keys: &held_keys, held_rows: &held_rows, ..whole(&slots, AT) };
    let read: Vec<RowId> = table.read(&request).await?.iter().map(|row| row.id).collect();
    ensure_eq!(read, [all[0].id, all[2].id, all[4].id], "rows that are not held");
    Ok(())
}

async fn deletes_by_id_and_time<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let table = store.outbox();
    cx.enqueue(&store, &to, of_key("k", 0..3)).await?;
    let rows: Vec<RowId> = rows_of(&*table, AT).await?.iter().map(|row| row.id).collect();
    // After a failover an id may be given again: to a row that nobody has published.
    let another = |row: RowId| RowId { created_at: row.created_at - 1, ..row };
    ensure_eq!(table.delete(&[another(rows[0]), another(rows[1])]).await?, 0, "rows deleted by their ids alone");
    ensure_eq!(table.delete(&[rows[0], another(rows[1])]).await?, 1, "rows deleted");
    ensure_eq!(table.delete(&[rows[0]]).await?, 0, "rows deleted once more");
    table.park(another(rows[1]), "x", true).await?;
    table.record_failure(another(rows[1]), "x").await?;
    let left = rows_of(&*table, AT).await?;
    ensure_eq!(left.iter().map(|row| row.id).collect::<Vec<_>>(), rows[1..], "rows that are left");
    ensure_eq!(left[0].attempts, 0, "failures of a row with another time");
    Ok(())
}

async fn addresses<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.outbox();
    ensure_eq!(table.addresses(&all_slots()).await?, [], "addresses of an empty outbox");
    for queue in ["a", "b", "c"] {
        let keys = (0..30).map(|n| Envelope::new("t", "x").key(format!("k{n}")));
        cx.enqueue(&store, &Address::queue(queue), keys).await?;
    }
    table.set_paused("queue:b", true).await?;
    table.set_paused("queue:b", true).await?;
    ensure_eq!(table.paused().await?, ["queue:b"], "paused addresses");
    let mut found = table.addresses(&all_slots()).await?;
    let mut wanted = Vec::new();
    for address in ["queue:a", "queue:c"] {
        let mut slots: Vec<i16> = rows_of(&*table, address).await?.iter().map(|row| row.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        wanted.extend(slots.into_iter().map(|slot| (slot, address.to_owned())));
    }
    found.sort_unstable();
    wanted.sort_unstable();
    ensure_eq!(found, wanted, "slots and addresses");
    let one = wanted[0].0;
    let mut of_one = table.addresses(&[one]).await?;
    of_one.sort_unstable();
    wanted.retain(|(slot, _)| *slot == one);
    ensure_eq!(of_one, wanted, "the addresses of slot {one}");
    table.set_paused("queue:b", false).await?;
    ensure_eq!(table.paused().await?, [""; 0], "paused addresses after they were resumed");
    Ok(())
}

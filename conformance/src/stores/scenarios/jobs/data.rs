//! What a job carries comes back as it was written.

use bytes::Bytes;
use polybus_patterns::store::{JobEnd, JobOutcome, JobStore, NewJobRow};

use super::{JobsUnderTest, WORKER, claim, end, find, job, write_new};
use crate::{
    Outcome, ensure_eq,
    stores::{
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/data", "Arguments, heads, results and errors keep every byte.", data),
        store_scenario("jobs/large", "Arguments of a million bytes come back, claimed with small ones.", large),
    ]
}

async fn data<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let texts =
        ["", "{}", "ä€😀 \u{7f}\u{80}", "'; DROP TABLE x; --", "\\ \\n %s {} $1 ?1", "line\nline\r\n\ttab", "  "];
    let bytes: [&[u8]; 5] = [b"", &[0], &[0, 255, 254, 128, 0], b"\xf0\x28\x8c\x28", b"'\"\\"];
    for (n, text) in texts.into_iter().enumerate() {
        let row = NewJobRow {
            kind: format!("kind {text}"),
            head: serde_json::json!({ "k": text }).to_string(),
            data: Bytes::from_static(bytes[n % bytes.len()]),
            schedule: Some(text.to_owned()),
            ..job("")
        };
        let id = write_new::<T>(&store, std::slice::from_ref(&row)).await?[0];
        let claimed = claim::<T>(&store, 1).await?;
        ensure_eq!(claimed.len(), 1, "jobs claimed");
        let (one, found) = (&claimed[0], find::<T>(&store, id).await?);
        ensure_eq!((&one.kind, &one.head, &one.data), (&row.kind, &row.head, &row.data), "what was claimed");
        ensure_eq!((&found.kind, &found.head, &found.data), (&row.kind, &row.head, &row.data), "what is listed");
        ensure_eq!((&one.schedule, &found.schedule), (&row.schedule, &row.schedule), "its schedule");
        let (result, error) = (Some(row.head.clone()), Some(text.to_owned()));
        let how = JobEnd::Finished { outcome: JobOutcome::Discarded, result, error: error.clone() };
        end::<T>(&store, one, how).await?;
        let done = find::<T>(&store, id).await?;
        ensure_eq!((done.result, done.last_error), (Some(row.head), error), "its result and error");
    }
    Ok(())
}

async fn large<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let of = |kind: &str, size: usize| NewJobRow {
        data: (0..size).map(|n| (n % 251) as u8).collect::<Vec<u8>>().into(),
        ..job(kind)
    };
    let rows = [of("small", 10), of("large", 1_000_000), of("small too", 11), of("large too", 1_000_001)];
    write_new::<T>(&store, &rows).await?;
    let claimed = store.jobs().claim("q", WORKER, super::LEASE, 10).await?;
    ensure_eq!(claimed.len(), rows.len(), "jobs claimed");
    for (claimed, row) in claimed.iter().zip(&rows) {
        ensure_eq!(claimed.data.len(), row.data.len(), "the length of {}", row.kind);
        ensure_eq!(claimed.data == row.data, true, "the bytes of {} are the same", row.kind);
    }
    Ok(())
}

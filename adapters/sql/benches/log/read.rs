//! How many events a second are read, in pages of 1,000.

use std::time::Instant;

use polybus_patterns::{
    log::{Append, EventLog},
    store::LogStore,
};

use crate::{OrderPlaced, median, number};

const PAGE: u32 = 1_000;

pub(crate) async fn measure<S: LogStore>(name: &str, store: &S) {
    let (log, wanted) = (EventLog::new(store), number("--read", 200_000));
    let mut begin = 0;
    // Behind what was appended before, some of it by hand.
    while let Some(last) = store.log().read_all(begin, PAGE).await.unwrap().events.last() {
        begin = last.position;
    }
    for n in 0..wanted / 500 {
        let mut tx = store.begin().await.unwrap();
        let events = (0..500).fold(Append::to(format!("read-{n}")), |append, k| append.event(&OrderPlaced::number(k)));
        log.append(&mut tx, events).await.unwrap();
        S::commit(tx).await.unwrap();
    }
    let (mut rates, mut decoded) = (Vec::new(), Vec::new());
    for round in 0..2 * number("--rounds", 5) {
        let (began, mut behind, mut read) = (Instant::now(), begin, 0);
        loop {
            let page = log.read_all(behind, PAGE).await.unwrap();
            let Some(last) = page.events.last() else { break };
            behind = last.position;
            read += page.events.len();
            if round % 2 == 1 {
                assert!(page.events.iter().all(|event| event.decode::<OrderPlaced>().is_ok()));
            }
        }
        assert_eq!(read, wanted);
        let rate = read as f64 / began.elapsed().as_secs_f64();
        if round % 2 == 1 { decoded.push(rate) } else { rates.push(rate) }
    }
    println!("{name}, read all: {:.0} events/s, with each decoded {:.0}/s", median(&mut rates), median(&mut decoded));
}

//! Jobs in the queues of a broker.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, ErrorKind, Event, QueueSpec, Source, Topology, memory::MemoryDriver,
    time::OffsetDateTime,
};
use polybus_patterns::jobs::{BrokerJobs, Job, JobWorker, NewJob, Unique};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Numbered {
    n: u32,
}

impl Event for Numbered {
    const TYPE: &'static str = "test.numbered";
    const VERSION: u32 = 1;
}

impl Job for Numbered {}

async fn bus() -> (Bus, Arc<MemoryDriver>) {
    let retry = [Duration::from_secs(1)];
    let topology = Topology::new()
        .queue("default", QueueSpec::new().max_deliveries(3).retry(retry))
        .queue("urgent", QueueSpec::new().max_deliveries(3).retry(retry));
    let memory = Arc::new(MemoryDriver::new());
    memory.record(true);
    let bus = Bus::new(memory.clone(), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    (bus, memory)
}

#[tokio::test(start_paused = true)]
async fn the_same_handlers_run_jobs_of_a_broker() {
    let (bus, _) = bus().await;
    let jobs = BrokerJobs::new(&bus).priority_queue(-1, "urgent");
    jobs.submit(Numbered { n: 1 }).await.unwrap();
    jobs.submit(NewJob::of(&Numbered { n: 2 }).priority(-1)).await.unwrap();
    jobs.submit(NewJob::of(&Numbered { n: 3 }).delay(Duration::from_secs(600))).await.unwrap();
    bus.publish(Address::queue("default"), Envelope::new("test.other", "{}")).await.unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let worker = JobWorker::on_broker(&bus).queue("default", 4).queue("urgent", 4);
    let worker = worker.on(log.clone(), async |log, cx, job: Numbered| {
        log.lock().unwrap().push((job.n, cx.source().to_string(), cx.attempt()));
        assert_eq!(cx.id(), None);
        assert_eq!(cx.progress(50, None).await.unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(cx.set_result(&1).unwrap_err().kind(), ErrorKind::Unsupported);
        if job.n == 1 { Err("always".into()) } else { Ok(()) }
    });
    let report = worker.run(tokio::time::sleep(Duration::from_secs(900))).await.unwrap();
    assert_eq!((report.completed, report.retried, report.discarded), (2, 2, 2));
    let mut ran = log.lock().unwrap().clone();
    ran.sort();
    let of = |n, queue: &str, attempt| (n, format!("queue:{queue}"), attempt);
    assert_eq!(
        ran,
        [of(1, "default", 1), of(1, "default", 2), of(1, "default", 3), of(2, "urgent", 1), of(3, "default", 1)]
    );
    let mut letters = bus.subscribe(Source::queue("default").dead_letters()).open().await.unwrap();
    let mut reasons = Vec::new();
    for _ in 0..2 {
        let letter = letters.next().await.unwrap().unwrap();
        reasons.push(letter.dead_letter_info().unwrap().reason.as_deref().unwrap().to_owned());
        letter.ack().await.unwrap();
    }
    reasons.sort();
    assert_eq!(reasons, ["max-deliveries-exceeded", "unknown-type"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_broker_cannot_do_is_refused_before_any_io() {
    let (bus, memory) = bus().await;
    let jobs = BrokerJobs::new(&bus);
    let job = || NewJob::of(&Numbered { n: 1 });
    for (job, what) in [
        (job().unique(Unique::UntilDone), "unique"),
        (job().max_attempts(7), "attempts"),
        (job().priority(3), "priority_queue"),
    ] {
        let error = jobs.submit(job).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let wrong = jobs.submit(job().queue("No Queue")).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::InvalidArgument, "{wrong}");
    assert!(memory.published(&Address::queue("default")).is_empty());
    // A time that has passed is now.
    jobs.submit(job().at(OffsetDateTime::UNIX_EPOCH)).await.unwrap();
    assert_eq!(memory.published(&Address::queue("default")).len(), 1);
}

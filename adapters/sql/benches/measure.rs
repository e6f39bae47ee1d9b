//! Rates, and what is made of them.

use std::time::Instant;

use polybus_core::{Address, Bus, Envelope};

use crate::{PAYLOAD, QUEUE};

/// Rates of one comparison.
#[derive(Default)]
pub(crate) struct Comparison {
    twin: Vec<f64>,
    polybus: Vec<f64>,
    ratio: Vec<f64>,
}

impl Comparison {
    pub(crate) fn add(&mut self, twin: f64, polybus: f64) {
        self.twin.push(twin);
        self.polybus.push(polybus);
        self.ratio.push(polybus / twin);
    }

    pub(crate) fn print(&mut self, what: &str) {
        let (twin, polybus, ratio) = (median(&mut self.twin), median(&mut self.polybus), median(&mut self.ratio));
        println!("{what:<46} {twin:>12.0} {polybus:>12.0} {ratio:>7.2}");
    }
}

pub(crate) fn print_rate(what: &str, rates: &mut [f64]) {
    println!("{what:<46} {:>12} {:>12.0}", "", median(rates));
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn rate(n: usize, since: Instant) -> f64 {
    n as f64 / since.elapsed().as_secs_f64()
}

pub(crate) fn message() -> Envelope {
    Envelope::new("bench.message", vec![b'x'; PAYLOAD])
}

/// Publishes as the relay does, without a database: 500 at a time, four batches at once.
pub(crate) async fn publish_all(bus: &Bus, messages: usize) -> f64 {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let bus = bus.clone();
        tasks.spawn(async move {
            for _ in 0..messages / 4 / 500 {
                let answers = bus.publish_all(Address::queue(QUEUE), (0..500).map(|_| message())).await;
                answers.into_iter().for_each(|answer| drop(answer.unwrap()));
            }
        });
    }
    tasks.join_all().await;
    rate(messages, started)
}

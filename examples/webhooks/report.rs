//! What came of a run, and whether it adds up.

use std::{collections::BTreeMap, fmt, time::Duration};

/// What a handler saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    pub handled: u64,
    /// Failures that another attempt follows.
    pub retried: u64,
    /// Failures that none follows.
    pub given_up: u64,
    /// Handled before: at-least-once delivery allows it.
    pub duplicates: u64,
    pub out_of_order: u64,
}

/// One subscription.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub subscription: String,
    /// The published messages that it wants.
    pub published: u64,
    pub counts: Counts,
    /// Read from its dead letters, by reason.
    pub dead_lettered: BTreeMap<String, u64>,
    pub redriven: u64,
    /// Still in its dead letters at the end.
    pub left: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub broker: String,
    pub messages: u64,
    /// Confirmed by the broker, by topic.
    pub published: BTreeMap<String, u64>,
    pub rows: Vec<Row>,
    pub interrupted: bool,
    pub took: Duration,
}

impl Row {
    fn dead(&self) -> u64 {
        self.dead_lettered.values().sum()
    }

    fn problems(&self) -> Vec<String> {
        let Self { subscription, published, counts, redriven, left, .. } = self;
        let (handled, dead) = (counts.handled, self.dead());
        let mut wrong = Vec::new();
        if published + redriven != handled + dead {
            wrong.push(format!(
                "{subscription}: {published} published + {redriven} redriven are not {handled} handled + {dead} dead-lettered"
            ));
        }
        if counts.given_up != dead {
            wrong.push(format!("{subscription}: {} given up, but {dead} in the dead letters", counts.given_up));
        }
        if redriven + left != dead {
            wrong.push(format!("{subscription}: {dead} dead-lettered are not {redriven} redriven + {left} left"));
        }
        if counts.out_of_order > 0 {
            wrong.push(format!("{subscription}: {} came out of order", counts.out_of_order));
        }
        wrong
    }
}

impl Summary {
    /// Everything that does not add up.
    pub fn problems(&self) -> Vec<String> {
        let lost = self.published.iter().filter(|(_, n)| **n != self.messages);
        let lost = lost.map(|(topic, n)| format!("{topic}: {n} of {} messages published", self.messages));
        lost.chain(self.rows.iter().flat_map(Row::problems)).collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} messages to each topic on {} in {:.1} s\n",
            self.messages,
            self.broker,
            self.took.as_secs_f64()
        )?;
        writeln!(
            f,
            "{:<18} {:>9} {:>9} {:>9} {:>9}   dead-lettered",
            "subscription", "published", "handled", "retried", "redriven"
        )?;
        for row in &self.rows {
            let Row { subscription, published, counts: Counts { handled, retried, .. }, redriven, .. } = row;
            write!(f, "{subscription:<18} {published:>9} {handled:>9} {retried:>9} {redriven:>9}   {}", row.dead())?;
            let reasons: Vec<String> = row.dead_lettered.iter().map(|(why, n)| format!("{n} {why}")).collect();
            writeln!(f, "{}", if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) })?;
        }
        for row in self.rows.iter().filter(|row| row.counts.duplicates > 0) {
            writeln!(f, "{}: {} delivered again after they were handled", row.subscription, row.counts.duplicates)?;
        }
        let problems = self.problems();
        match (self.interrupted, problems.is_empty()) {
            (true, _) => write!(f, "\nInterrupted: handlers finished what they had begun."),
            (_, true) => write!(
                f,
                "\nIt adds up: published + redriven = handled + dead-lettered, and each repository's events came in order."
            ),
            (_, false) => write!(f, "\nIt does NOT add up:\n  {}", problems.join("\n  ")),
        }
    }
}

//! What came of a run, and whether it adds up.

use std::{collections::BTreeMap, fmt, time::Duration};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub broker: String,
    /// Sent whole. The broken ones are not counted.
    pub files: u64,
    pub bytes: u64,
    /// Of those files, how many were too large for a message.
    pub in_folder: u64,
    /// All that was put into the folder, broken ones included.
    pub claims: u64,
    /// The largest payload that was in its message.
    pub largest_message: u64,
    /// Whole and repaired ones.
    pub arrived: u64,
    pub arrived_bytes: u64,
    /// Delivered again: at-least-once delivery allows it.
    pub duplicates: u64,
    /// With another hash than was sent.
    pub wrong: u64,
    /// By reason, before the repair.
    pub dead_letters: BTreeMap<String, u64>,
    pub redriven: u64,
    /// Still dead letters at the end.
    pub left: u64,
    /// Payloads that a sweep of today deleted.
    pub swept_today: u64,
    /// Payloads that a sweep a month later deleted.
    pub swept: u64,
    pub interrupted: bool,
    pub took: Duration,
}

/// Each file that is repaired has this size.
pub const REPAIRED: u64 = 5_000_000;

impl Summary {
    /// Everything that does not add up.
    pub fn problems(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut expect = |what: &str, found: u64, wanted: u64| {
            if found != wanted {
                wrong.push(format!("{what}: {found} instead of {wanted}"));
            }
        };
        expect("files that arrived", self.arrived, self.files + 2);
        expect("bytes that arrived", self.arrived_bytes, self.bytes + 2 * REPAIRED);
        expect("files with a wrong hash", self.wrong, 0);
        for reason in ["claim-altered", "claim-missing", "claim-outside"] {
            expect(reason, self.dead_letters.get(reason).copied().unwrap_or_default(), 1);
        }
        expect("dead letters", self.dead_letters.values().sum(), 3);
        expect("redriven", self.redriven, 2);
        expect("dead letters that are left", self.left, 1);
        expect("payloads swept today", self.swept_today, 0);
        expect("payloads swept in a month", self.swept, self.claims);
        wrong
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        writeln!(f, "{} files on {} in {:.1} s\n", self.files, self.broker, self.took.as_secs_f64())?;
        writeln!(f, "{:<28} {:>8} {:>12}", "", "files", "bytes")?;
        let small = self.files - self.in_folder.min(self.files);
        let rows = [
            ("sent", self.files, megabytes(self.bytes)),
            ("  in their messages", small, format!("≤ {} each", self.largest_message)),
            ("  by claim check", self.in_folder, String::new()),
            ("broken on purpose", 3, String::new()),
            ("arrived, hash compared", self.arrived, megabytes(self.arrived_bytes)),
            ("  repaired and redriven", self.redriven, String::new()),
            ("  delivered again", self.duplicates, String::new()),
            ("payloads swept today", self.swept_today, String::new()),
            ("payloads swept in a month", self.swept, String::new()),
        ];
        for (what, count, bytes) in rows {
            writeln!(f, "{}", format!("{what:<28} {count:>8} {bytes:>12}").trim_end())?;
        }
        let reasons: Vec<String> = self.dead_letters.iter().map(|(why, n)| format!("{n} {why}")).collect();
        writeln!(f, "{:<28} {:>8}   {}", "dead letters", self.dead_letters.values().sum::<u64>(), reasons.join(", "))?;
        let problems = self.problems();
        match (self.interrupted, problems.is_empty()) {
            (true, _) => write!(f, "\nInterrupted: what had begun was finished."),
            (_, true) => write!(f, "\nIt adds up: every file arrived as it was sent, and what was broken was noticed."),
            (_, false) => write!(f, "\nIt does NOT add up:\n  {}", problems.join("\n  ")),
        }
    }
}

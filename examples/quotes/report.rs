//! What came of a run, and whether it adds up.

use std::{fmt, time::Duration};

use super::services::Kind;

/// How calls ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcomes {
    pub answered: u64,
    pub refused: u64,
    pub timed_out: u64,
    /// Calls that ended in another way than they should have.
    pub wrong: Vec<String>,
    /// How long the answered ones took.
    pub times: Vec<Duration>,
}

impl Outcomes {
    pub fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.timed_out += other.timed_out;
        self.wrong.extend(other.wrong);
        self.times.extend(other.times);
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub broker: String,
    pub calls: u64,
    pub outcomes: Outcomes,
    /// Calls that still waited when all had ended.
    pub waiting: usize,
    /// Quotes in the ledger, each once.
    pub events: usize,
    pub took: Duration,
    pub tree: String,
}

impl Summary {
    /// What does not add up; empty if all does.
    pub fn problems(&self) -> Vec<String> {
        let wanted = |kinds: &[Kind]| (0..self.calls).filter(|n| kinds.contains(&Kind::of(*n))).count() as u64;
        let mut wrong = self.outcomes.wrong.clone();
        for (what, found, wanted) in [
            ("answered", self.outcomes.answered, wanted(&[Kind::Known, Kind::Flaky])),
            ("refused", self.outcomes.refused, wanted(&[Kind::Unknown])),
            ("timed out", self.outcomes.timed_out, wanted(&[Kind::Slow])),
            ("quotes in the ledger", self.events as u64, wanted(&[Kind::Known, Kind::Flaky])),
            ("calls that still wait", self.waiting as u64, 0),
        ] {
            if found != wanted {
                wrong.push(format!("{found} {what} in place of {wanted}"));
            }
        }
        if self.tree.is_empty() {
            wrong.push("no conversation went through all services".into());
        }
        wrong
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.outcomes.times.clone();
        times.sort();
        let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
        writeln!(f, "\none conversation over three services:\n{}", self.tree)?;
        writeln!(f, "{:>10} calls on {} in {:.1?}", self.calls, self.broker, self.took)?;
        writeln!(f, "{:>10} answered, in {:.1?} (median) and {:.1?} (95 %)", self.outcomes.answered, at(50), at(95))?;
        writeln!(f, "{:>10} refused: nobody sells it", self.outcomes.refused)?;
        writeln!(f, "{:>10} timed out: the answer took longer than the caller waited", self.outcomes.timed_out)?;
        writeln!(f, "{:>10} quotes in the ledger", self.events)?;
        match self.problems() {
            wrong if wrong.is_empty() => write!(f, "everything adds up"),
            wrong => write!(f, "it does NOT add up: {}", wrong.join(", ")),
        }
    }
}

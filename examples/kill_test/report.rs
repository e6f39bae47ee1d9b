//! What came of a run.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::Without;

#[derive(Clone, Default)]
pub struct Report {
    pub seed: u64,
    pub broker: String,
    pub database: String,
    pub without: Option<Without>,
    pub rows: u64,
    /// Rows that were written.
    pub written: u64,
    pub effects: u64,
    /// Rows that have an effect.
    pub rows_with_effect: u64,
    pub kills_wanted: u32,
    pub kills: BTreeMap<&'static str, u32>,
    pub pauses_wanted: u32,
    /// How often a relay stood still.
    pub pauses: u32,
    /// Slots that another relay took meanwhile.
    pub taken_over: u64,
    /// Leases that relays lost. Those that were killed cannot tell, here and in the next one.
    pub leases_lost: u64,
    /// Rows that relays know to be published twice, or perhaps.
    pub may_duplicate: u64,
    /// Processes that ended though nobody killed them.
    pub ended: u64,
    /// Copies that the inbox stopped.
    pub duplicates: u64,
    pub swallowed: u64,
    pub dead_letters: u64,
    /// Nothing happened any more before it was done.
    pub stalled: bool,
    pub took: Duration,
}

impl Report {
    pub fn kills(&self) -> u32 {
        self.kills.values().sum()
    }

    fn missing(&self) -> u64 {
        self.rows - self.rows_with_effect
    }

    fn doubled(&self) -> u64 {
        self.effects - self.rows_with_effect
    }

    /// Whether all rows were written, and each has one effect.
    pub fn is_exact(&self) -> bool {
        let troubled = self.kills() >= self.kills_wanted && self.pauses >= self.pauses_wanted;
        troubled && self.written == self.rows && self.missing() == 0 && self.doubled() == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, broker, database, rows, written, effects, duplicates, swallowed, .. } = self;
        let without = match self.without {
            None => "",
            Some(Without::Outbox) => ", without the outbox",
            Some(Without::Inbox) => ", without the inbox",
            Some(Without::ReadBack) => ", without the read-back",
        };
        writeln!(f, "{rows} rows on {database}, through {broker}{without}; seed {seed}\n")?;
        let kills: Vec<String> = self.kills.iter().map(|(role, n)| format!("{n} {role}")).collect();
        let seconds = self.took.as_secs_f64();
        let rate =
            format!("{:.0} effects/s, {:.1} kills/s", *effects as f64 / seconds, f64::from(self.kills()) / seconds);
        for (name, value, note) in [
            ("rows written", *written, String::new()),
            ("effects", *effects, String::new()),
            ("missing", self.missing(), String::new()),
            ("doubled", self.doubled(), String::new()),
            ("kills", u64::from(self.kills()), kills.join(", ")),
            ("pauses", u64::from(self.pauses), "a relay stands still, and does not know".to_owned()),
            ("slots taken over", self.taken_over, "by the other relay in a pause".to_owned()),
            ("leases lost", self.leases_lost, "say the relays that were not killed".to_owned()),
            ("may be duplicates", self.may_duplicate, "say the relays that were not killed".to_owned()),
            ("ended by themselves", self.ended, String::new()),
            ("duplicates seen", *duplicates, "by the inbox; a killed consumer may not have told all".to_owned()),
            ("errors swallowed", *swallowed, "by handlers, each of which ended its transaction".to_owned()),
            ("dead letters", self.dead_letters, String::new()),
            ("seconds", seconds.round() as u64, rate),
        ] {
            writeln!(f, "{}", format!("{name:<20} {value:>9}   {note}").trim_end())?;
        }
        if self.stalled {
            writeln!(f, "\nIt was ended because nothing happened any more.")?;
        }
        match self.is_exact() {
            true => write!(f, "\nExact: each row has one effect."),
            false => write!(
                f,
                "\nNOT exact: {} rows without an effect, {} effects too many, {} kills of {}, {} pauses of {}.",
                self.missing(),
                self.doubled(),
                self.kills(),
                self.kills_wanted,
                self.pauses,
                self.pauses_wanted
            ),
        }
    }
}

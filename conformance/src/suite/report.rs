//! The results of a run, as Markdown and as JUnit XML.

use std::{fmt::Write, time::Duration};

use crate::ScenarioVerdict;

/// The result of one scenario.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScenarioResult {
    /// `group/name`.
    pub name: String,
    /// What must be true.
    pub doc: String,
    /// Whether the promise holds.
    pub verdict: ScenarioVerdict,
    /// How long it took.
    pub took: Duration,
}

/// All results of one target.
///
/// ```
/// use polybus_conformance::{Report, junit};
///
/// let report = Report::new("mybroker", "mybroker://localhost", None, Vec::new());
/// assert_eq!(report.closing_line(), "0 passed, 0 failed, 0 skipped");
/// assert!(junit(&report).starts_with("<?xml"));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The target's name.
    pub target: String,
    /// Its URL without secrets, or where else it is.
    pub place: String,
    /// Product and version, as the broker told.
    pub version: Option<String>,
    /// The results.
    pub rows: Vec<ScenarioResult>,
}

impl Report {
    /// A report. `place` is shown, and must hold no secret.
    pub fn new(
        target: impl Into<String>,
        place: impl Into<String>,
        version: Option<String>,
        rows: Vec<ScenarioResult>,
    ) -> Self {
        Self { target: target.into(), place: place.into(), version, rows }
    }

    /// How many scenarios passed, failed, and were skipped. Known deviations count as skipped.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |f: fn(&ScenarioVerdict) -> bool| self.rows.iter().filter(|r| f(&r.verdict)).count();
        let (passed, failed) =
            (count(|v| matches!(v, ScenarioVerdict::Passed)), count(|v| matches!(v, ScenarioVerdict::Failed(_))));
        (passed, failed, self.rows.len() - passed - failed)
    }

    /// The line `N passed, N failed, N skipped`.
    pub fn closing_line(&self) -> String {
        let (passed, failed, skipped) = self.counts();
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// The report as Markdown: what was tested, a table of all scenarios, and the reason of each failure.
pub fn markdown(report: &Report) -> String {
    let cell = |s: &str| s.replace('|', "\\|").replace(['\n', '\r'], " ");
    let version = report.version.as_deref().unwrap_or("version not told");
    let mut out = format!("# Conformance of {}\n\n", report.target);
    let _ = writeln!(
        out,
        "Tested: `{}`, {}. polybus-conformance {}.\n",
        report.place,
        cell(version),
        env!("CARGO_PKG_VERSION")
    );
    let _ = writeln!(out, "{}\n\n| scenario | result | what must be true |\n|---|---|---|", report.closing_line());
    for row in &report.rows {
        let result = match &row.verdict {
            ScenarioVerdict::Passed => "passed".to_owned(),
            ScenarioVerdict::Failed(_) => "**failed**".to_owned(),
            ScenarioVerdict::Skipped(why) => why.clone(),
            ScenarioVerdict::Deviation(reference) => format!("known deviation: {reference}"),
        };
        let _ = writeln!(out, "| {} | {} | {} |", cell(&row.name), cell(&result), cell(&row.doc));
    }
    let failures: Vec<_> = report
        .rows
        .iter()
        .filter_map(|r| if let ScenarioVerdict::Failed(why) = &r.verdict { Some((r, why)) } else { None })
        .collect();
    if !failures.is_empty() {
        out.push_str("\n## Failures\n");
        for (row, why) in failures {
            let _ = writeln!(out, "\n- {}: {}", row.name, cell(why));
        }
    }
    out
}

/// The report as JUnit XML, with one test suite. Skipped scenarios and known deviations are `<skipped>` with a reason.
pub fn junit(report: &Report) -> String {
    let (_, failed, skipped) = report.counts();
    let seconds: f64 = report.rows.iter().map(|r| r.took.as_secs_f64()).sum();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        out,
        "<testsuites>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" skipped=\"{skipped}\" time=\"{seconds:.3}\">",
        xml(&report.target),
        report.rows.len()
    );
    let version = report.version.as_deref().unwrap_or("");
    let _ = writeln!(
        out,
        "<properties><property name=\"place\" value=\"{}\"/><property name=\"version\" value=\"{}\"/></properties>",
        xml(&report.place),
        xml(version)
    );
    for row in &report.rows {
        let (group, name) = row.name.split_once('/').unwrap_or(("", &row.name));
        let _ = write!(
            out,
            "<testcase classname=\"{}.{}\" name=\"{}\" time=\"{:.3}\"",
            xml(&report.target),
            xml(group),
            xml(name),
            row.took.as_secs_f64()
        );
        let _ = match &row.verdict {
            ScenarioVerdict::Passed => writeln!(out, "/>"),
            ScenarioVerdict::Failed(why) => writeln!(out, "><failure message=\"{}\"/></testcase>", xml(why)),
            ScenarioVerdict::Skipped(why) => writeln!(out, "><skipped message=\"{}\"/></testcase>", xml(why)),
            ScenarioVerdict::Deviation(r) => {
                writeln!(out, "><skipped message=\"known deviation: {}\"/></testcase>", xml(r))
            }
        };
    }
    out.push_str("</testsuite>\n</testsuites>\n");
    out
}

/// Escapes for XML 1.0, which cannot hold most control characters at all.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\r' | '\t' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let row = |name: &str, verdict| ScenarioResult {
            name: name.into(),
            doc: "a | b".into(),
            verdict,
            took: Duration::from_millis(5),
        };
        let rows = vec![
            row("a/ok", ScenarioVerdict::Passed),
            row("a/bad", ScenarioVerdict::Failed("got <\"x\">\n\u{0} & more".into())),
            row("a/not", ScenarioVerdict::Skipped("not supported: no topics".into())),
            row("a/known", ScenarioVerdict::Deviation("issue 7".into())),
        ];
        Report::new("memory", "memory://", Some("memory 1".into()), rows)
    }

    #[test]
    fn counts_and_closing_line() {
        assert_eq!(report().closing_line(), "1 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn markdown_shows_every_row_with_its_reason() {
        let text = markdown(&report());
        for part in [
            "memory 1",
            "| a/ok | passed | a \\| b |",
            "not supported: no topics",
            "known deviation: issue 7",
            "## Failures",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn junit_is_escaped() {
        let text = junit(&report());
        assert!(text.contains("tests=\"4\" failures=\"1\" skipped=\"2\""), "{text}");
        assert!(text.contains("got &lt;&quot;x&quot;&gt;&#10;\u{fffd} &amp; more"), "{text}");
        assert!(!text.contains('\u{0}'));
    }
}

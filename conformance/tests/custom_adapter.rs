//! The suite on a third-party driver with few capabilities: what it can do passes, the rest is listed with its reason.
#![allow(clippy::unwrap_used)]

use polybus_conformance::ScenarioVerdict;

#[allow(unreachable_pub)]
#[path = "../examples/custom_adapter.rs"]
mod custom_adapter;

#[test]
fn passes_what_it_declares_and_lists_the_rest() {
    let report = custom_adapter::run();
    let failed: Vec<_> = report.rows.iter().filter(|r| matches!(r.verdict, ScenarioVerdict::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let row = |name: &str| report.rows.iter().find(|r| r.name == name).map(|r| &r.verdict);
    assert_eq!(row("publish/single"), Some(&ScenarioVerdict::Passed));
    assert_eq!(row("negative/topics"), Some(&ScenarioVerdict::Passed));
    let unsupported = report
        .rows
        .iter()
        .filter(|r| matches!(&r.verdict, ScenarioVerdict::Skipped(why) if why.contains("not supported: no topics")));
    assert!(unsupported.count() >= 1, "{:#?}", report.rows);
    assert!(report.rows.iter().all(|r| !matches!(&r.verdict, ScenarioVerdict::Skipped(why) if why.is_empty())));
}

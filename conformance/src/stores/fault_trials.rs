//! The scenarios against stores that break one promise each: they must notice.
//!
//! `POLYBUS_STORE_FAULTS=survey` prints which scenarios notice which faults: use it to fill in the catalogue.
//! `survey:Marks:inbox/` limits the faults, and the scenarios, to those whose name contains these words.

use std::{collections::BTreeSet, sync::Arc};

use libtest_mimic::{Failed, Trial};

use super::{
    catalogue::{SeededFault, seeded_faults},
    fault::StoreFault,
    scenario::StoreScenario,
    scenarios::store_scenarios,
    target::StoreUnderTest,
    trials::{PATIENCE, run_patiently, run_store_scenario},
};
use crate::{Need, ScenarioVerdict};

/// One trial for each fault, named `name::fault`, and one that the loss of notifications harms nothing but waking.
///
/// Without a target there are none.
pub(super) fn fault_trials<T: StoreUnderTest>(name: &str, target: Result<Arc<T>, String>) -> Vec<Trial> {
    let Ok(target) = target else { return Vec::new() };
    if let Ok(mode) = std::env::var("POLYBUS_STORE_FAULTS") {
        survey(name, &target, &mode);
        return Vec::new();
    }
    let mut trials = Vec::new();
    for seeded in seeded_faults() {
        let (full, target) = (format!("{name}::{:?}", seeded.fault), target.clone());
        let runs = scenarios(&*target, seeded.caught_by);
        let trial = match runs.is_empty() {
            true => Trial::test(full, || Ok(())).with_kind("not supported by this store").with_ignored_flag(true),
            false => Trial::test(full, move || check(&seeded, &runs, &target)),
        };
        trials.push(trial);
    }
    let (full, for_all) = (format!("{name}::polling-is-enough"), target.clone());
    trials.push(Trial::test(full, move || polling_is_enough(&for_all)));
    let full = format!("{name}::catalogue");
    trials.push(Trial::test(full, catalogue::<T>));
    trials
}

/// Those of these scenarios that run on the store.
fn scenarios<T: StoreUnderTest>(target: &T, names: &[&str]) -> Vec<StoreScenario<T>> {
    let mut all = store_scenarios::<T>();
    all.retain(|s| names.contains(&s.name) && (s.needs)(&target.abilities()) == Need::Run);
    all
}

fn fails<T: StoreUnderTest>(scenario: &StoreScenario<T>, target: &Arc<T>, fault: StoreFault) -> Option<String> {
    match run_store_scenario(scenario, target, Some(fault)) {
        ScenarioVerdict::Failed(why) => Some(why),
        _ => None,
    }
}

fn check<T: StoreUnderTest>(seeded: &SeededFault, runs: &[StoreScenario<T>], target: &Arc<T>) -> Result<(), Failed> {
    for scenario in runs {
        if fails(scenario, target, seeded.fault).is_none() {
            return Err(format!("{} does not notice {:?}", scenario.name, seeded.fault).into());
        }
    }
    Ok(())
}

/// NOTIFY is a hint: whoever misses it polls.
fn polling_is_enough<T: StoreUnderTest>(target: &Arc<T>) -> Result<(), Failed> {
    let all = store_scenarios::<T>();
    let polls = |s: &&StoreScenario<T>| {
        s.name.starts_with("outbox/") && s.name != "outbox/notify" && (s.needs)(&target.abilities()) == Need::Run
    };
    for scenario in all.iter().filter(polls) {
        // As patient as without a fault: nothing may fail here.
        let verdict = run_patiently(scenario, target, Some(StoreFault::NotifiesNobody), PATIENCE);
        if let ScenarioVerdict::Failed(why) = verdict {
            return Err(format!("{} needs notifications: {why}", scenario.name).into());
        }
    }
    Ok(())
}

/// What the catalogue names is there.
fn catalogue<T: StoreUnderTest>() -> Result<(), Failed> {
    let names: BTreeSet<&str> = store_scenarios::<T>().iter().map(|s| s.name).collect();
    for seeded in seeded_faults() {
        if seeded.caught_by.is_empty() {
            return Err(format!("nobody notices {:?}", seeded.fault).into());
        }
        if let Some(unknown) = seeded.caught_by.iter().find(|name| !names.contains(*name)) {
            return Err(format!("{unknown} is no scenario").into());
        }
    }
    Ok(())
}

fn survey<T: StoreUnderTest>(name: &str, target: &Arc<T>, mode: &str) {
    let mut words = mode.split(':').skip(1);
    let (fault, scenario) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    for seeded in seeded_faults().iter().filter(|seeded| format!("{:?}", seeded.fault).contains(fault)) {
        let mut by = Vec::new();
        for scenario in store_scenarios::<T>().iter().filter(|s| s.name.contains(scenario)) {
            if let Some(why) = fails(scenario, target, seeded.fault) {
                eprintln!("NOTICED {:?} {}: {why}", seeded.fault, scenario.name);
                by.push(scenario.name);
            }
        }
        println!("{name} {:?}: {}", seeded.fault, if by.is_empty() { "NOBODY".to_owned() } else { by.join(" ") });
    }
}

//! The scenarios against stores that break one promise each: they must notice.
//!
//! `POLYBUS_STORE_FAULTS=survey` prints which scenarios notice which faults: use it to fill in the catalogue.
//! `survey:Marks:inbox/` limits the faults, and the scenarios, to those whose name contains these words.

use std::{collections::BTreeSet, sync::Arc};

use libtest_mimic::{Failed, Trial};

use super::{
    catalogue::SeededFault,
    fault::StoreFault,
    scenario::StoreScenario,
    scenarios::store_scenarios,
    target::StoreUnderTest,
    trials::{PATIENCE, run_patiently, run_store_scenario},
};
use crate::{Need, ScenarioVerdict};

/// One trial for each of these faults, named `name::fault`, and one that all scenarios they name are there.
pub(super) fn fault_trials<T: StoreUnderTest>(
    name: &str,
    target: &Arc<T>,
    all: &[StoreScenario<T>],
    faults: Vec<SeededFault>,
) -> Vec<Trial> {
    if let Ok(mode) = std::env::var("POLYBUS_STORE_FAULTS") {
        survey(name, target, all, &faults, &mode);
        return Vec::new();
    }
    let catalogue = catalogue(all, &faults);
    let group = all.first().map_or("empty", |first| first.group());
    let mut trials =
        vec![Trial::test(format!("{name}::catalogue-{group}"), move || catalogue.clone().map_err(Failed::from))];
    for seeded in faults {
        let (full, target) = (format!("{name}::{:?}", seeded.fault), target.clone());
        let runs = scenarios(&*target, all, seeded.caught_by);
        let trial = match runs.is_empty() {
            true => Trial::test(full, || Ok(())).with_kind("not supported by this store").with_ignored_flag(true),
            false => Trial::test(full, move || check(&seeded, &runs, &target)),
        };
        trials.push(trial);
    }
    trials
}

/// A trial that the loss of notifications harms nothing but waking.
pub(super) fn polling_trial<T: StoreUnderTest>(name: &str, target: &Arc<T>) -> Option<Trial> {
    let (full, target) = (format!("{name}::polling-is-enough"), target.clone());
    std::env::var_os("POLYBUS_STORE_FAULTS").is_none().then(|| Trial::test(full, move || polling_is_enough(&target)))
}

/// Those of these scenarios that have one of these names and run on the store.
fn scenarios<T: StoreUnderTest>(target: &T, all: &[StoreScenario<T>], names: &[&str]) -> Vec<StoreScenario<T>> {
    let runs = |s: &&StoreScenario<T>| names.contains(&s.name) && (s.needs)(&target.abilities()) == Need::Run;
    all.iter().filter(runs).cloned().collect()
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
fn catalogue<T: StoreUnderTest>(all: &[StoreScenario<T>], faults: &[SeededFault]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    if let Some(twice) = all.iter().find(|scenario| !names.insert(scenario.name)) {
        return Err(format!("{} is the name of two scenarios", twice.name));
    }
    for seeded in faults {
        if seeded.caught_by.is_empty() {
            return Err(format!("nobody notices {:?}", seeded.fault));
        }
        if let Some(unknown) = seeded.caught_by.iter().find(|name| !names.contains(*name)) {
            return Err(format!("{unknown} is no scenario"));
        }
    }
    Ok(())
}

fn survey<T: StoreUnderTest>(
    name: &str,
    target: &Arc<T>,
    all: &[StoreScenario<T>],
    faults: &[SeededFault],
    mode: &str,
) {
    let mut words = mode.split(':').skip(1);
    let (fault, scenario) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    for seeded in faults.iter().filter(|seeded| format!("{:?}", seeded.fault).contains(fault)) {
        let mut by = Vec::new();
        for scenario in all.iter().filter(|s| s.name.contains(scenario)) {
            if let Some(why) = fails(scenario, target, seeded.fault) {
                eprintln!("NOTICED {:?} {}: {why}", seeded.fault, scenario.name);
                by.push(scenario.name);
            }
        }
        println!("{name} {:?}: {}", seeded.fault, if by.is_empty() { "NOBODY".to_owned() } else { by.join(" ") });
    }
}

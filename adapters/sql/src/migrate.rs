//! Which versions of the tables there are, and whether those in a database will do.

use polybus_core::{Error, Result};

use crate::names::Names;

/// What a component's tables need to be made, one file after the other.
#[derive(Debug)]
pub(crate) struct Component {
    /// Its name: `lease`, `outbox`, `inbox`, `sequence`, `job`, `log`.
    pub(crate) name: &'static str,
    /// The files, the first one making version 1.
    pub(crate) steps: &'static [Step],
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) sql: &'static str,
    /// The oldest version of the code that can work with these tables.
    pub(crate) min_code: i32,
}

macro_rules! components {
    ($database:literal) => {
        &[
            $crate::migrate::Component { name: "lease", steps: components!(@ $database "lease") },
            $crate::migrate::Component { name: "outbox", steps: components!(@ $database "outbox") },
            $crate::migrate::Component { name: "inbox", steps: components!(@ $database "inbox") },
            $crate::migrate::Component { name: "sequence", steps: components!(@ $database "sequence") },
            $crate::migrate::Component { name: "job", steps: components!(@ $database "job") },
            $crate::migrate::Component { name: "log", steps: components!(@ $database "log") },
        ]
    };
    (@ $database:literal $component:literal) => {
        &[$crate::migrate::Step {
            sql: include_str!(concat!("../../migrations/", $database, "/", $component, "/0001.sql")),
            min_code: 1,
        }]
    };
}
pub(crate) use components;

/// A row of the schema table.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) component: String,
    pub(crate) version: i32,
    pub(crate) min_code: i32,
}

impl Component {
    /// The version that this code needs.
    pub(crate) fn version(&self) -> i32 {
        i32::try_from(self.steps.len()).unwrap_or(i32::MAX)
    }

    /// The newest step's.
    pub(crate) fn min_code(&self) -> i32 {
        self.steps.last().map_or(1, |step| step.min_code)
    }

    fn found<'a>(&self, applied: &'a [Applied]) -> Option<&'a Applied> {
        applied.iter().find(|applied| applied.component == self.name)
    }

    /// The steps that are missing.
    ///
    /// # Errors
    /// `ConfigInvalid` where the tables are of a newer code that says that this one cannot work with them.
    pub(crate) fn missing(&self, applied: &[Applied]) -> Result<&'static [Step]> {
        let found = self.found(applied);
        if let Some(found) = found
            && found.version > self.version()
            && found.min_code > self.version()
        {
            return Err(Error::config(format!(
                "the tables of {} have version {}, which needs code of version {} or newer, and this code has version \
                 {}: use a newer polybus",
                self.name,
                found.version,
                found.min_code,
                self.version()
            )));
        }
        let have = found.map_or(0, |found| usize::try_from(found.version).unwrap_or(0));
        Ok(self.steps.get(have..).unwrap_or_default())
    }

    /// # Errors
    /// `ConfigInvalid` where the tables are missing, older than this code needs, or too new for it.
    pub(crate) fn verify(&self, applied: &[Applied]) -> Result<()> {
        if self.missing(applied)?.is_empty() {
            return Ok(());
        }
        Err(match self.found(applied) {
            None => Error::config(format!(
                "the tables of {} are missing, and this code needs version {}: run migrate() of the store",
                self.name,
                self.version()
            )),
            Some(found) => Error::config(format!(
                "the tables of {} have version {}, and this code needs version {}: run migrate() of the store",
                self.name,
                found.version,
                self.version()
            )),
        })
    }
}

/// Those of these names.
///
/// # Errors
/// `InvalidArgument` for a name that is none.
pub(crate) fn named(all: &'static [Component], names: &[&str]) -> Result<Vec<&'static Component>> {
    names
        .iter()
        .map(|name| {
            all.iter()
                .find(|component| component.name == *name)
                .ok_or_else(|| Error::invalid("no such component").with_context("component", name))
        })
        .collect()
}

/// Refuses a sequence that went back, with the statement that mends it.
///
/// # Errors
/// `ConfigInvalid`, if the last id that was given is below the highest that is there.
pub(crate) fn check_sequence(last: Option<i64>, highest: Option<i64>, mend: impl Fn(i64) -> String) -> Result<()> {
    let Some(highest) = highest.filter(|highest| last.unwrap_or(0) < *highest) else { return Ok(()) };
    Err(Error::config(format!(
        "the ids of the outbox went back: the last one given is {}, and a row has {highest}; new rows would be \
         published before older ones. Stop the producers and run: {}",
        last.map_or("none".to_owned(), |last| last.to_string()),
        mend(highest)
    )))
}

/// All steps as one text, with the rows of the schema table.
pub(crate) fn text(
    names: &Names,
    schema_table: &str,
    record: &str,
    components: &[Component],
    placeholder: impl Fn(u32) -> String,
) -> String {
    let mut text = format!("BEGIN;\n{}", names.text(schema_table));
    for component in components {
        for step in component.steps {
            text.push('\n');
            text.push_str(&names.text(step.sql));
        }
        let record = names
            .text(record)
            .replace(&placeholder(1), &format!("'{}'", component.name))
            .replace(&placeholder(2), &component.version().to_string())
            .replace(&placeholder(3), &component.min_code().to_string());
        text.push_str(&format!("\n{record};\n"));
    }
    text.push_str("COMMIT;\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: Component =
        Component { name: "outbox", steps: &[Step { sql: "1", min_code: 1 }, Step { sql: "2", min_code: 2 }] };

    fn applied(version: i32, min_code: i32) -> [Applied; 1] {
        [Applied { component: "outbox".to_owned(), version, min_code }]
    }

    #[test]
    fn older_and_missing_ones_are_named_with_both_versions() {
        assert_eq!(TWO.missing(&[]).unwrap().len(), 2);
        let missing = TWO.verify(&[]).unwrap_err().to_string();
        assert!(missing.contains("are missing") && missing.contains("version 2") && missing.contains("migrate()"));
        assert_eq!(TWO.missing(&applied(1, 1)).unwrap()[0].sql, "2");
        let older = TWO.verify(&applied(1, 1)).unwrap_err().to_string();
        assert!(older.contains("have version 1") && older.contains("needs version 2"), "{older}");
        TWO.verify(&applied(2, 2)).unwrap();
    }

    #[test]
    fn a_newer_one_is_fine_if_it_says_so() {
        TWO.verify(&applied(9, 2)).unwrap();
        let newer = TWO.verify(&applied(9, 3)).unwrap_err().to_string();
        assert!(newer.contains("version 9") && newer.contains("this code has version 2"), "{newer}");
    }
}

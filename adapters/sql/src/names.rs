//! The names of the tables, and the templates of statements that they stand in.

use std::{fmt::Write, sync::Arc};

use polybus_core::{Error, Result};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The prefix of the tables where none was given.
pub(crate) const PREFIX: &str = "polybus_";

/// Where the tables are, and the expression of the database's clock: what the templates of a store are filled with.
///
/// In a template, `{now}` is the clock, `{prefix}` the prefix alone, and `{outbox}` or any other word the qualified
/// and quoted name of that table. Both names are checked before they get here, so a statement made of them is safe.
#[derive(Debug)]
pub(crate) struct Names {
    schema: String,
    prefix: String,
    now: String,
    /// What names are quoted with.
    quote: char,
}

impl Names {
    /// # Errors
    /// `ConfigInvalid` for a prefix or schema that cannot be one.
    pub(crate) fn new(schema: &str, prefix: &str, now: String) -> Result<Self> {
        Self::quoted_by('"', schema, prefix, now)
    }

    /// The same with names that are quoted otherwise.
    ///
    /// # Errors
    /// `ConfigInvalid` for a prefix or schema that cannot be one.
    pub(crate) fn quoted_by(quote: char, schema: &str, prefix: &str, now: String) -> Result<Self> {
        check_prefix(prefix)?;
        if schema.is_empty() || schema.len() > 63 || schema.contains('\0') {
            return Err(Error::config("the schema's name must have 1 to 63 bytes, without U+0000")
                .with_context("schema", schema));
        }
        let schema = schema.replace(quote, &format!("{quote}{quote}"));
        Ok(Self { schema, prefix: prefix.to_owned(), now, quote })
    }

    /// A table's name, qualified and quoted.
    pub(crate) fn table(&self, name: &str) -> String {
        let quote = self.quote;
        format!("{quote}{}{quote}.{quote}{}{name}{quote}", self.schema, self.prefix)
    }

    /// A template with its names filled in.
    pub(crate) fn text(&self, template: &str) -> String {
        let mut text = String::with_capacity(template.len() + 200);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((word, after)) = after.split_once('}') else { break };
            text.push_str(before);
            match word {
                "now" => text.push_str(&self.now),
                "prefix" => text.push_str(&self.prefix),
                table => {
                    let _ = write!(text, "{}", self.table(table));
                }
            }
            rest = after;
        }
        text.push_str(rest);
        text
    }

    /// The same as a statement that is cheap to clone.
    pub(crate) fn sql(&self, template: &str) -> SqlStr {
        AssertSqlSafe(Arc::<str>::from(self.text(template))).into_sql_str()
    }
}

/// # Errors
/// `ConfigInvalid` for a prefix that cannot be one.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    let fits = prefix.len() <= 21
        && prefix.starts_with(|first: char| first.is_ascii_lowercase())
        && prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if fits {
        return Ok(());
    }
    Err(Error::config("the tables' prefix must be 1 to 21 of a-z, 0-9 and _, and begin with a letter")
        .with_context("prefix", prefix))
}

/// A struct of statements, made of templates.
macro_rules! statements {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $template:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name { $(pub(super) $field: sqlx::SqlStr),* }

        impl $name {
            pub(super) fn new(names: &crate::names::Names) -> Self {
                Self { $($field: names.sql($template)),* }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_gets_qualified_names_and_the_clock() {
        let names = Names::new("my \"app\"", "shop_", "clock()".to_owned()).unwrap();
        assert_eq!(
            names.text("UPDATE {outbox} SET due_at = {now} -- {prefix}due"),
            "UPDATE \"my \"\"app\"\"\".\"shop_outbox\" SET due_at = clock() -- shop_due"
        );
    }

    #[test]
    fn names_are_quoted_as_the_database_wants_it() {
        let names = Names::quoted_by('`', "my `app`", "shop_", "clock()".to_owned()).unwrap();
        assert_eq!(names.table("outbox"), "`my ``app```.`shop_outbox`");
    }

    #[test]
    fn a_prefix_is_a_short_word() {
        for good in ["p", "polybus_", "a2345678901234567890_"] {
            check_prefix(good).unwrap();
        }
        for bad in ["", "_p", "P_", "a\"; DROP TABLE x; --", "1a", "a23456789012345678901_", "ä_"] {
            let error = check_prefix(bad).unwrap_err();
            assert_eq!(error.kind(), polybus_core::ErrorKind::ConfigInvalid, "{bad}");
        }
    }
}

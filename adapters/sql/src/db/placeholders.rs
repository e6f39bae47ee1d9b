//! Finds the placeholders of a statement.

use polybus_core::{Error, Result};

/// What quotes and comments look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Postgres,
    MySql,
    Sqlite,
}

/// A `?` outside of quotes and comments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It stands for a value.
    Value(usize),
    /// It is the first of two, which stand for a `?` of PostgreSQL's own.
    Doubled(usize),
}

/// The places of a statement, in their order.
///
/// # Errors
/// `InvalidArgument` for a placeholder with a number: it means something else on each database.
pub(super) fn places(sql: &str, dialect: Dialect) -> Result<Vec<Place>> {
    let text = sql.as_bytes();
    let (mut places, mut at) = (Vec::new(), 0);
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        at = match byte {
            b'\'' => at + quoted(rest, byte, dialect == Dialect::MySql || is_escaping(text, at, dialect)),
            b'"' => at + quoted(rest, byte, dialect == Dialect::MySql),
            b'`' if dialect != Dialect::Postgres => at + quoted(rest, byte, false),
            b'[' if dialect == Dialect::Sqlite => at + through(rest, 1, b"]"),
            b'-' if rest.starts_with(b"--") && begins_comment(rest, dialect) => at + through(rest, 2, b"\n"),
            b'#' if dialect == Dialect::MySql => at + through(rest, 1, b"\n"),
            b'/' if rest.starts_with(b"/*") => at + comment(rest, dialect == Dialect::Postgres),
            b'$' if dialect != Dialect::MySql && is_numbered(rest) && !follows_word(text, at) => {
                return Err(numbered());
            }
            b'$' if dialect == Dialect::Postgres && !follows_word(text, at) => at + dollar_quoted(rest),
            b'?' if is_numbered(rest) => return Err(numbered()),
            b'?' if dialect == Dialect::Postgres && rest.starts_with(b"??") => {
                places.push(Place::Doubled(at));
                at + 2
            }
            b'?' => {
                places.push(Place::Value(at));
                at + 1
            }
            _ => at + 1,
        };
    }
    Ok(places)
}

fn numbered() -> Error {
    Error::invalid("a statement for any database has a ? for each value, in their order, and no number behind it")
}

fn is_numbered(rest: &[u8]) -> bool {
    rest.get(1).is_some_and(u8::is_ascii_digit)
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || !byte.is_ascii()
}

fn follows_word(text: &[u8], at: usize) -> bool {
    at > 0 && is_of_word(text[at - 1])
}

/// Whether the quote begins a text such as E'…', in which a backslash escapes.
fn is_escaping(text: &[u8], quote: usize, dialect: Dialect) -> bool {
    dialect == Dialect::Postgres
        && quote > 0
        && text[quote - 1].eq_ignore_ascii_case(&b'e')
        && !follows_word(text, quote - 1)
}

/// In MySQL `--1` is a number.
fn begins_comment(rest: &[u8], dialect: Dialect) -> bool {
    dialect != Dialect::MySql || rest.get(2).is_none_or(|next| next.is_ascii_whitespace() || next.is_ascii_control())
}

/// How far it is through the next end, or to the end of the text.
fn through(rest: &[u8], from: usize, end: &[u8]) -> usize {
    let found = rest.get(from..).and_then(|rest| rest.windows(end.len()).position(|part| part == end));
    found.map_or(rest.len(), |found| from + found + end.len())
}

/// A quote within is doubled.
fn quoted(rest: &[u8], quote: u8, backslash_escapes: bool) -> usize {
    let mut at = 1;
    while let Some(&byte) = rest.get(at) {
        match byte {
            b'\\' if backslash_escapes => at += 2,
            _ if byte == quote && rest.get(at + 1) == Some(&quote) => at += 2,
            _ if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A comment of PostgreSQL may have others in it.
fn comment(rest: &[u8], nested: bool) -> usize {
    let (mut depth, mut at) = (1, 2);
    while at < rest.len() {
        if rest[at..].starts_with(b"*/") {
            at += 2;
            depth -= 1;
            if depth == 0 {
                return at;
            }
        } else if nested && rest[at..].starts_with(b"/*") {
            at += 2;
            depth += 1;
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// `$$…$$` or `$tag$…$tag$`; or a lone dollar.
fn dollar_quoted(rest: &[u8]) -> usize {
    let tag = rest[1..].iter().take_while(|&&byte| byte != b'$' && is_of_word(byte)).count();
    if rest.get(1 + tag) != Some(&b'$') {
        return 1;
    }
    let quote = &rest[..tag + 2];
    through(rest, quote.len(), quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many placeholders it has.
    fn count(sql: &str, dialect: Dialect) -> usize {
        places(sql, dialect).unwrap().iter().filter(|place| matches!(place, Place::Value(_))).count()
    }

    const ALL: [Dialect; 3] = [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite];

    #[test]
    fn quotes_and_comments_have_none_on_any_database() {
        for dialect in ALL {
            for sql in [
                "SELECT ?",
                "SELECT '?', \"?\", ?",
                "SELECT 'it''s ?', ?",
                "SELECT '', ?, ''",
                "SELECT \"a\"\"?\" FROM t WHERE x = ?",
                "SELECT ? -- ?",
                "-- what?\nSELECT ?",
                "SELECT /* ? * / ? */ ?",
                "SELECT 1 - ? / 2",
                "SELECT 'ä ?' || ?",
                "SELECT ? /* ?",
                "SELECT ?, '?",
            ] {
                assert_eq!(count(sql, dialect), 1, "{sql} of {dialect:?}");
            }
            assert_eq!(count("INSERT INTO t VALUES (?,?,?)", dialect), 3);
            assert_eq!(count("", dialect), 0);
        }
    }

    #[test]
    fn each_database_has_quotes_of_its_own() {
        use Dialect::{MySql, Postgres, Sqlite};
        for (sql, dialect, wanted) in [
            ("SELECT $$ ? ' $$, ?", Postgres, 1),
            ("SELECT $a$ ? $$ $b$ ? $a$, ?", Postgres, 1),
            ("SELECT a$b$, ?, c$b$", Postgres, 1),
            ("SELECT $a, ?", Postgres, 1),
            ("SELECT E'\\'?', e'\\\\', ?", Postgres, 1),
            ("SELECT 'C:\\', ?", Postgres, 1),
            ("SELECT type'\\', ?", Postgres, 1),
            ("SELECT /* /* ? */ ? */ ?", Postgres, 1),
            ("SELECT a[?], ?", Postgres, 2),
            ("SELECT `?`, 'it\\'s ?', \"\\\"?\", ?", MySql, 1),
            ("SELECT ? # ?\n, ?", MySql, 2),
            ("SELECT 1--?", MySql, 1),
            ("SELECT /* /* ? */ ?", MySql, 1),
            ("SELECT `?`, [?], 'C:\\', ?", Sqlite, 1),
            ("SELECT 1--?", Sqlite, 0),
            ("SELECT /* /* ? */ ?", Sqlite, 1),
        ] {
            assert_eq!(count(sql, dialect), wanted, "{sql} of {dialect:?}");
        }
    }

    #[test]
    fn a_doubled_quote_does_not_end_a_text_with_escapes() {
        assert_eq!(count(r"SELECT E'it''s \'?', ?", Dialect::Postgres), 1);
        assert_eq!(count(r"SELECT E'a''\'??'", Dialect::Postgres), 0);
        assert_eq!(count(r"SELECT 'it''s \'?', ?", Dialect::MySql), 1);
    }

    #[test]
    fn two_are_an_operator_of_postgres() {
        let found = places("SELECT tags ?? ?, tags ??| x, '??'", Dialect::Postgres).unwrap();
        assert_eq!(found, [Place::Doubled(12), Place::Value(15), Place::Doubled(23)]);
    }

    #[test]
    fn numbers_are_refused() {
        for (sql, dialects) in [
            ("SELECT ?1", &ALL[..]),
            ("SELECT ?, ?2", &ALL[..]),
            ("SELECT $1", &[Dialect::Postgres, Dialect::Sqlite][..]),
        ] {
            for &dialect in dialects {
                assert!(places(sql, dialect).is_err(), "{sql} of {dialect:?}");
            }
        }
        for sql in ["SELECT '$1'", "SELECT '?1'", "SELECT a$1"] {
            assert_eq!(count(sql, Dialect::Postgres), 0, "{sql}");
        }
    }
}

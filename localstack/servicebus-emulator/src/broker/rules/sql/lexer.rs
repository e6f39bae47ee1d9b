//! Splits the text of an expression into tokens.

#[derive(Clone, Debug, PartialEq)]
pub(super) enum SqlToken {
    /// A keyword or a name: letters, digits and underscores.
    Word(String),
    /// A name in `"…"` or `[…]`.
    Quoted(String),
    /// Without its `@`.
    Parameter(String),
    Text(String),
    Integer(i64),
    Float(f64),
    /// Punctuation, `!=` read as `<>`.
    Sign(&'static str),
}

/// The signs as written and as meant. Longer signs come first, because otherwise `<` would match the start of `<=`.
const SIGNS: [(&str, &str); 17] = [
    ("<>", "<>"),
    ("!=", "<>"),
    ("<=", "<="),
    (">=", ">="),
    ("=", "="),
    ("<", "<"),
    (">", ">"),
    ("(", "("),
    (")", ")"),
    (",", ","),
    (";", ";"),
    (".", "."),
    ("+", "+"),
    ("-", "-"),
    ("*", "*"),
    ("/", "/"),
    ("%", "%"),
];

pub(super) fn tokens(text: &str) -> Result<Vec<SqlToken>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, left) = match first {
            '\'' => quoted(rest, '\'').map(|(text, left)| (SqlToken::Text(text), left))?,
            '"' => quoted(rest, '"').map(|(name, left)| (SqlToken::Quoted(name), left))?,
            '[' => quoted(rest, ']').map(|(name, left)| (SqlToken::Quoted(name), left))?,
            '@' => {
                let (name, left) = word(&rest[1..]);
                (SqlToken::Parameter(name.to_owned()), left)
            }
            _ if first.is_ascii_digit() || starts_fraction(rest) => number(rest)?,
            _ if first.is_alphabetic() || first == '_' => {
                let (name, left) = word(rest);
                (SqlToken::Word(name.to_owned()), left)
            }
            _ => sign(rest).ok_or_else(|| format!("unexpected character '{first}'"))?,
        };
        tokens.push(token);
        rest = left.trim_start();
    }
    Ok(tokens)
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

fn sign(text: &str) -> Option<(SqlToken, &str)> {
    SIGNS.iter().find_map(|(written, meant)| Some((SqlToken::Sign(meant), text.strip_prefix(written)?)))
}

/// The text up to the closing mark. A doubled mark stands for itself.
fn quoted(text: &str, close: char) -> Result<(String, &str), String> {
    let mut inner = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != close {
            inner.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == close) {
            inner.push(close);
            chars.next();
        } else {
            return Ok((inner, &text[at + close.len_utf8()..]));
        }
    }
    Err(format!("no closing {close}"))
}

fn starts_fraction(text: &str) -> bool {
    text.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn number(text: &str) -> Result<(SqlToken, &str), String> {
    let bytes = text.as_bytes();
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let mut end = digits(0);
    let mut whole = true;
    if bytes.get(end) == Some(&b'.') {
        whole = false;
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let signed = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = end + 1 + signed;
        if digits(exponent) > exponent {
            whole = false;
            end = digits(exponent);
        }
    }
    let (written, left) = text.split_at(end);
    let token =
        if whole { written.parse().ok().map(SqlToken::Integer) } else { written.parse().ok().map(SqlToken::Float) };
    Ok((token.ok_or_else(|| format!("{written} is out of range"))?, left))
}

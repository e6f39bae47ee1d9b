//! `${VAR}` and `${VAR:-default}` inside the strings of a configuration file.

/// The text with its variables filled in, or `None` if there is nothing to fill in. The error says what is wrong and
/// never shows a value.
///
/// `${VAR}` must be set. `${VAR:-default}` stands for `default` where `VAR` is unset or empty. `$${` stands for `${`.
pub(crate) fn interpolate(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let inside = &rest[at + 2..];
        let Some(end) = inside.find('}') else {
            return Err("${ without }: write ${VAR} or ${VAR:-default}, or $${ for the characters themselves".into());
        };
        out.push_str(&variable(&inside[..end], env)?);
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    Ok(Some(out))
}

/// The value of what stands between `${` and `}`.
fn variable(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(legal) || name.starts_with(|c: char| c.is_ascii_digit()) {
        let text = "what stands between ${ and } is no name: write ${VAR} or ${VAR:-default} with a name of A-Z, a-z, 0-9 \
                    and '_', or $${ for the characters themselves";
        return Err(text.into());
    }
    if default.is_some_and(|d| d.contains("${")) {
        return Err(format!("${{{}:-…}}: a default cannot hold another ${{…}}", shown(name)));
    }
    match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.into()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.into()),
        (None, None) => {
            let name = shown(name);
            Err(format!(
                "the environment variable {name} is not set: set it, or write ${{{name}:-default}}, or $${{ for the characters themselves"
            ))
        }
    }
}

/// The name as errors show it. Only names without small letters are shown: a password may hold `${…}` too.
fn shown(name: &str) -> &str {
    if name.bytes().any(|b| b.is_ascii_lowercase()) { "…" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "A" => Some("1".into()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${A}".into()),
            _ => None,
        }
    }

    #[test]
    fn forms() {
        for (text, wanted) in [
            ("plain $A $ {A}", None),
            ("${A}", Some("1")),
            ("x${A}y${B:-z}", Some("x1yz")),
            ("${EMPTY}", Some("")),
            ("${EMPTY:-d}", Some("d")),
            ("${B:-}", Some("")),
            ("${B:-a:-b}", Some("a:-b")),
            ("$${A}", Some("${A}")),
            ("$$${A}", Some("$${A}")),
            ("$${A}${A}", Some("${A}1")),
            ("${NESTED}", Some("${A}")),
            ("é${A}é", Some("é1é")),
        ] {
            assert_eq!(interpolate(text, &env).unwrap().as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn mistakes() {
        for (text, word) in [
            ("${B}", "variable B is not set"),
            ("${A", "${ without }"),
            ("${}", "write ${VAR}"),
            ("${A-x}", "write ${VAR}"),
            ("${1A}", "write ${VAR}"),
            ("${A:-${B}}", "cannot hold another"),
        ] {
            let e = interpolate(text, &env).unwrap_err();
            assert!(e.contains(word), "{text}: {e}");
        }
    }
}

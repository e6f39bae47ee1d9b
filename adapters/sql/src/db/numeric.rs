//! NUMERIC, the type of PostgreSQL's sums, in digits.

use std::fmt::Write;

/// The digits of a NUMERIC as the server sends it: the number of its groups of four digits, the weight of the first
/// one, a sign, the number of digits after the point, and the groups.
pub(super) fn text(bytes: &[u8]) -> Result<String, sqlx::Error> {
    parse(bytes).ok_or_else(|| sqlx::Error::Decode("this is no NUMERIC".into()))
}

fn parse(bytes: &[u8]) -> Option<String> {
    let mut words = bytes.chunks_exact(2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let (count, weight, sign, scale) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let groups: Vec<u16> = words.collect();
    if groups.len() != usize::from(count) || groups.iter().any(|group| *group > 9999) {
        return None;
    }
    let sign = match sign {
        0x0000 => "",
        0x4000 => "-",
        0xC000 => return Some("NaN".to_owned()),
        0xD000 => return Some("Infinity".to_owned()),
        0xF000 => return Some("-Infinity".to_owned()),
        _ => return None,
    };
    let weight = i32::from(weight as i16);
    // Groups that are not there are zero.
    let group = |n: i32| usize::try_from(n).ok().and_then(|n| groups.get(n)).copied().unwrap_or_default();
    let mut text = sign.to_owned();
    let _ = write!(text, "{}", group(0).min(if weight < 0 { 0 } else { 9999 }));
    for n in 1..=weight {
        let _ = write!(text, "{:04}", group(n));
    }
    let scale = usize::from(scale);
    if scale > 0 {
        let mut fraction = String::with_capacity(scale + 4);
        let mut n = weight + 1;
        while fraction.len() < scale {
            let _ = write!(fraction, "{:04}", group(n));
            n += 1;
        }
        fraction.truncate(scale);
        text.push('.');
        text.push_str(&fraction);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[u16]) -> Option<String> {
        parse(&words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>())
    }

    #[test]
    fn the_groups_become_digits() {
        for (words, wanted) in [
            (&[0, 0, 0, 0][..], "0"),
            (&[0, 0, 0, 2], "0.00"),
            (&[1, 0, 0, 0, 7], "7"),
            (&[1, 0, 0x4000, 0, 7], "-7"),
            (&[1, 1, 0, 0, 7], "70000"),
            (&[2, 1, 0, 0, 1, 23], "10023"),
            (&[2, 0, 0, 2, 12, 5000], "12.50"),
            (&[1, 0xFFFF, 0, 4, 5], "0.0005"),
            (&[1, 0xFFFE, 0x4000, 8, 5], "-0.00000005"),
            (&[5, 4, 0, 0, 922, 3372, 368, 5477, 5807], "9223372036854775807"),
            (&[0, 0, 0xC000, 0], "NaN"),
            (&[0, 0, 0xF000, 32], "-Infinity"),
        ] {
            assert_eq!(of(words).as_deref(), Some(wanted), "{words:?}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for words in [&[][..], &[1, 0, 0], &[2, 0, 0, 0, 1], &[1, 0, 0, 0, 10_000], &[0, 0, 1, 0]] {
            assert_eq!(of(words), None, "{words:?}");
        }
    }
}

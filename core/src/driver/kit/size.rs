//! Reads sizes as people write them: `65536`, `64KiB`, `16MiB`, `1GiB`.

use crate::{Error, Result};

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("B", 0)];

/// Reads a size: a whole number of bytes, or one that is followed at once by `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// `InvalidArgument` for anything else, for zero, and for more than this machine can address.
///
/// ```
/// use polybus_core::driver::kit::size;
///
/// assert_eq!(size::parse("64KiB")?, 65_536);
/// assert!(size::parse("64 KB").is_err());
/// # Ok::<(), polybus_core::Error>(())
/// ```
pub fn parse(text: &str) -> Result<usize> {
    let (digits, shift) =
        UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number = digits.parse::<usize>().ok().filter(|n| plain && *n > 0);
    number.and_then(|n| n.checked_mul(1usize << shift)).ok_or_else(|| {
        Error::invalid(format!("size {text:?}: write a positive whole number of bytes, or one with B, KiB, MiB or GiB"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, wanted) in [("1", 1), ("7B", 7), ("64KiB", 65_536), ("16MiB", 16 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(parse(text).unwrap(), wanted, "{text}");
        }
        for bad in [
            "",
            "0",
            "0KiB",
            "KiB",
            "-1",
            "+1",
            "1.5MiB",
            "64 KiB",
            "64kb",
            "64KB",
            "99999999999999999999",
            "9999999999999GiB",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

//! The distance of two words, to guess which name was meant by a misspelt one.

/// The Levenshtein distance: how many bytes must be inserted, removed or replaced.
pub(crate) fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::edit_distance;

    #[test]
    fn distances() {
        for (a, b, d) in [("", "", 0), ("a", "", 1), ("max_delivries", "max_deliveries", 1), ("lock", "retry", 5)] {
            assert_eq!(edit_distance(a, b), d, "{a} {b}");
        }
    }
}

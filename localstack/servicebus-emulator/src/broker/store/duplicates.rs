//! Duplicate detection: the message ids that were seen within the history window.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::codec::Value;

#[derive(Default)]
pub(crate) struct DuplicateHistory {
    seen: HashSet<Arc<str>>,
    order: VecDeque<(i64, Arc<str>)>,
}

impl DuplicateHistory {
    /// Remembers an id; false when it was seen within the window.
    pub(crate) fn is_new(&mut self, id: &Value, now: i64, window_ms: i64) -> bool {
        while self.order.front().is_some_and(|(at, _)| at.saturating_add(window_ms) <= now) {
            if let Some((_, id)) = self.order.pop_front() {
                self.seen.remove(&id);
            }
        }
        let id: Arc<str> = match id.as_text() {
            Some(text) => Arc::from(text),
            None => Arc::from(format!("{id:?}")),
        };
        if !self.seen.insert(id.clone()) {
            return false;
        }
        self.order.push_back((now, id));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_until_the_window_ends() {
        let mut seen = DuplicateHistory::default();
        let id = Value::string("a");
        assert!(seen.is_new(&id, 0, 100));
        assert!(!seen.is_new(&id, 99, 100), "a second one does not lengthen the window");
        assert!(seen.is_new(&id, 100, 100));
        assert!(!seen.is_new(&id, 150, 100));
        assert!(seen.is_new(&Value::Uuid([1; 16]), 150, 100));
        assert!(!seen.is_new(&Value::Uuid([1; 16]), 150, 100));
        assert_eq!(seen.order.len(), 2, "what is past the window is forgotten");
    }
}

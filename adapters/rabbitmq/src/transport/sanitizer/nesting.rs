//! Bounds how deeply headers may be nested, in what comes from the broker, before lapin sees it.
//!
//! lapin reads tables and arrays by recursion without a limit. A frame has room for 26,000 of them within each other, the
//! broker passes them on, and a few hundred overflow the stack, which ends the process. So whoever may publish could end
//! every consumer, again and again. A table or array that is too deep becomes a byte array, which is laid out alike on the
//! wire: one byte changes, in place.

/// Tables and arrays that may stand within each other, the headers' own included. What brokers and clients write has three
/// or four. lapin needs up to 14 KiB of stack for each in a debug build, and has 2 MiB.
pub(crate) const DEEPEST: usize = 32;

#[derive(Clone, Copy)]
pub(crate) enum Holder {
    Table,
    Array,
}

/// The tables and arrays that are open, and where they end.
pub(crate) struct Nesting {
    open: [(Holder, usize); DEEPEST],
    depth: usize,
}

/// What stands at a place between two entries.
pub(crate) enum Place {
    Inside(Holder),
    /// All are closed.
    Outside,
    /// An entry went past the end of what holds it.
    Torn,
}

impl Default for Nesting {
    fn default() -> Self {
        Self { open: [(Holder::Table, 0); DEEPEST], depth: 0 }
    }
}

impl Nesting {
    pub(crate) fn close_all(&mut self) {
        self.depth = 0;
    }

    /// Whether no more may be opened.
    pub(crate) fn is_full(&self) -> bool {
        self.depth == DEEPEST
    }

    /// Whether what ends there fits into what is open.
    pub(crate) fn has_room(&self, end: usize) -> bool {
        self.open[..self.depth].last().is_none_or(|(_, outer)| end <= *outer)
    }

    pub(crate) fn open(&mut self, holder: Holder, end: usize) {
        self.open[self.depth] = (holder, end);
        self.depth += 1;
    }

    /// Closes what ends here.
    pub(crate) fn place(&mut self, at: usize) -> Place {
        while let Some((holder, end)) = self.open[..self.depth].last() {
            match at.cmp(end) {
                std::cmp::Ordering::Less => return Place::Inside(*holder),
                std::cmp::Ordering::Equal => self.depth -= 1,
                std::cmp::Ordering::Greater => return Place::Torn,
            }
        }
        Place::Outside
    }
}

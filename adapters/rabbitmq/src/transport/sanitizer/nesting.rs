//! Bounds how deeply the tables and arrays of headers may be nested.
//!
//! lapin reads tables and arrays by recursion, without a limit. A frame has room for 26,000 of them within each
//! other, the broker passes them on, and a few hundred overflow the stack, which ends the process. A table or array
//! that is too deep becomes a byte array, which has the same layout on the wire: one byte changes, in place.

/// How many tables and arrays may stand within each other, including the table of the headers itself. Brokers and
/// clients write three or four. lapin needs up to 14 KiB of stack for each in a debug build, and has 2 MiB.
pub(crate) const DEEPEST: usize = 32;

/// What holds other values.
#[derive(Clone, Copy)]
pub(crate) enum ContainerKind {
    Table,
    Array,
}

/// The tables and arrays that are open, and where they end.
pub(crate) struct OpenContainers {
    open: [(ContainerKind, usize); DEEPEST],
    depth: usize,
}

/// Where a place between two entries is.
pub(crate) enum NestingPlace {
    /// In a container of this kind, which goes on.
    Inside(ContainerKind),
    /// In no container: all have ended.
    Outside,
    /// Beyond the end of a container, whose last entry was too long.
    Torn,
}

impl Default for OpenContainers {
    fn default() -> Self {
        Self { open: [(ContainerKind::Table, 0); DEEPEST], depth: 0 }
    }
}

impl OpenContainers {
    /// Forgets all containers, at the beginning of a payload.
    pub(crate) fn close_all(&mut self) {
        self.depth = 0;
    }

    /// Whether no further container may be opened.
    pub(crate) fn is_full(&self) -> bool {
        self.depth == DEEPEST
    }

    /// Whether a value that ends there fits into the innermost container.
    pub(crate) fn has_room(&self, end: usize) -> bool {
        self.open[..self.depth].last().is_none_or(|(_, outer)| end <= *outer)
    }

    /// Opens a container that ends there. The caller has asked [`is_full`](Self::is_full) before.
    pub(crate) fn open(&mut self, container: ContainerKind, end: usize) {
        self.open[self.depth] = (container, end);
        self.depth += 1;
    }

    /// Closes the containers that end at this place, and answers where it is.
    pub(crate) fn place(&mut self, at: usize) -> NestingPlace {
        while let Some((container, end)) = self.open[..self.depth].last() {
            match at.cmp(end) {
                std::cmp::Ordering::Less => return NestingPlace::Inside(*container),
                std::cmp::Ordering::Equal => self.depth -= 1,
                std::cmp::Ordering::Greater => return NestingPlace::Torn,
            }
        }
        NestingPlace::Outside
    }
}

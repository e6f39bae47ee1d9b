//! The limit on how deeply the tables and arrays of headers may be nested.
//!
//! lapin reads tables and arrays by recursion, without a limit. A frame has room for 26,000 of them within each other,
//! and the broker passes them on. A few hundred overflow the stack, which ends the process. A table or array that is
//! too deep becomes a byte array, which has the same layout on the wire: one byte changes, in place.

/// How many tables and arrays may stand within each other, including the table of the headers itself. Brokers and
/// clients write three or four. lapin needs up to 14 KiB of stack for each in a debug build, and has 2 MiB.
pub(crate) const DEEPEST: usize = 32;

/// The kind of a value that holds other values.
#[derive(Clone, Copy)]
pub(crate) enum ContainerKind {
    Table,
    Array,
}

/// The containers (tables and arrays) around the reader's position, the outermost first, each with the offset of its
/// end.
pub(crate) struct OpenContainers {
    open: [(ContainerKind, usize); DEEPEST],
    depth: usize,
}

/// What encloses the reader's position, between two entries.
pub(crate) enum NestingPlace {
    /// A container of this kind, which has more entries.
    Inside(ContainerKind),
    /// No container: all have ended.
    Outside,
    /// The position is past the end of its container, since the last entry was longer than the container.
    Torn,
}

impl Default for OpenContainers {
    fn default() -> Self {
        Self { open: [(ContainerKind::Table, 0); DEEPEST], depth: 0 }
    }
}

impl OpenContainers {
    /// Closes all containers. Called at the beginning of a payload.
    pub(crate) fn close_all(&mut self) {
        self.depth = 0;
    }

    /// Whether no further container may be opened.
    pub(crate) fn is_full(&self) -> bool {
        self.depth == DEEPEST
    }

    /// Whether a value that ends at the offset `end` fits into the innermost container.
    pub(crate) fn has_room(&self, end: usize) -> bool {
        self.open[..self.depth].last().is_none_or(|(_, outer)| end <= *outer)
    }

    /// Opens a container that ends at the offset `end`. The caller checks [`is_full`](Self::is_full) first.
    pub(crate) fn open(&mut self, container: ContainerKind, end: usize) {
        self.open[self.depth] = (container, end);
        self.depth += 1;
    }

    /// Closes the containers that end at the offset `at`, and returns what encloses that position.
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

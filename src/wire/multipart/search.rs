//! Finds the boundary at a line start in a value that arrives in pieces.

use memchr::memmem::Finder;
use memchr::memrchr;

/// What stands before a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineEnd {
    CrLf,
    /// For some parsers it is a delimiter all the same.
    BareLf,
    /// The empty line of the head: the value has no first byte.
    Head,
}

/// Looks for LF, two dashes and the boundary.
///
/// An LF stands only at the start of that: once a match has failed, no byte of it can belong to another one, so every
/// byte is looked at once and nothing needs to be kept of the value.
#[derive(Debug, Clone)]
pub(super) struct Search {
    finder: Finder<'static>,
    /// How many bytes of the needle stand at the end of what was seen.
    matched: usize,
    /// What stands before them; without any, how the value ends so far.
    before: Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// The head: its last LF counts as the first matched byte.
    Head,
    Cr,
    Other,
}

impl Search {
    /// `needle` is LF, two dashes and the boundary.
    pub(super) fn new(needle: &[u8]) -> Self {
        Self { finder: Finder::new(needle).into_owned(), matched: 1, before: Before::Head }
    }

    /// A new value begins.
    pub(super) fn restart(&mut self) {
        (self.matched, self.before) = (1, Before::Head);
    }

    /// Takes the next bytes, up to the end of the first boundary at a line start, and says how many that are.
    pub(super) fn push(&mut self, rest: &[u8]) -> usize {
        let left = &self.finder.needle()[self.matched..];
        let same = match self.matched {
            0 => 0,
            _ => left.iter().zip(rest).take_while(|(want, byte)| want == byte).count(),
        };
        if same == left.len() || same == rest.len() {
            self.matched += same;
            return same;
        }
        if self.matched > 0 {
            (self.matched, self.before) = (0, Before::Other);
        }
        same + self.find(&rest[same..])
    }

    /// As `push`, where no match is under way.
    fn find(&mut self, rest: &[u8]) -> usize {
        let needle_len = self.finder.needle().len();
        if let Some(at) = self.finder.find(rest) {
            (self.matched, self.before) = (needle_len, self.before_at(&rest[..at]));
            return at + needle_len;
        }
        let tail = rest.len().saturating_sub(needle_len - 1);
        let start = memrchr(b'\n', &rest[tail..]).map(|lf| tail + lf);
        let start = start.filter(|&lf| self.finder.needle().starts_with(&rest[lf..])).unwrap_or(rest.len());
        (self.matched, self.before) = (rest.len() - start, self.before_at(&rest[..start]));
        rest.len()
    }

    /// What stands behind these bytes, which no match is part of.
    fn before_at(&self, bytes: &[u8]) -> Before {
        match bytes.last() {
            None => self.before,
            Some(b'\r') => Before::Cr,
            Some(_) => Before::Other,
        }
    }

    /// How many of the last bytes may belong to a delimiter, or do.
    pub(super) fn undecided(&self) -> usize {
        match self.before {
            // Its LF is not part of the value.
            Before::Head => self.matched - 1,
            Before::Cr => self.matched + 1,
            Before::Other => self.matched,
        }
    }

    /// What stands before the boundary, if the last byte taken was its last.
    pub(super) fn found(&self) -> Option<LineEnd> {
        (self.matched == self.finder.needle().len()).then_some(match self.before {
            Before::Head => LineEnd::Head,
            Before::Cr => LineEnd::CrLf,
            Before::Other => LineEnd::BareLf,
        })
    }
}

//! Edits a body while it passes: some byte ranges are replaced, every other byte goes through untouched.
//!
//! It knows offsets only. Whoever found the ranges (the JSON or the form scanner) says what stands there.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};

/// One replacement. Its bytes are emitted when the first byte of `range` is reached; an empty range is an
/// insertion before that offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What is replaced: byte offsets in the body as it came.
    pub range: Range<usize>,
    /// What stands there afterwards.
    pub with: Bytes,
}

/// Replaces some ranges of a body while it passes; every other byte goes through untouched.
///
/// Every range must begin inside the body: an edit at or past its last offset (so also an insertion at the very
/// end) is never reached, yet counts in [`Splice::delta`].
#[derive(Debug, Clone)]
pub struct Splice {
    /// Those not yet done, in order. The first may be half done: its bytes are out, its range is still dropped.
    edits: VecDeque<Edit>,
    at: usize,
    delta: i64,
}

impl Splice {
    /// Takes edits sorted by offset, none overlapping another.
    pub fn new(edits: Vec<Edit>) -> Self {
        debug_assert!(edits.iter().all(|edit| edit.range.start <= edit.range.end), "a range runs backwards");
        debug_assert!(edits.is_sorted_by(|a, b| a.range.end <= b.range.start), "edits overlap or are unsorted");
        let delta = edits.iter().map(|edit| signed(edit.with.len()) - signed(edit.range.len())).sum();
        Self { edits: edits.into(), at: 0, delta }
    }

    /// One more edit, behind all others and behind what has passed.
    pub fn add(&mut self, edit: Edit) {
        debug_assert!(self.at <= edit.range.start, "its place has passed");
        debug_assert!(self.edits.back().is_none_or(|last| last.range.end <= edit.range.start), "it is out of order");
        self.delta += signed(edit.with.len()) - signed(edit.range.len());
        self.edits.push_back(edit);
    }

    /// By how much the body grows, or shrinks below zero: what a Content-Length changes by.
    pub fn delta(&self) -> i64 {
        self.delta
    }

    /// Takes the next bytes of the body and gives what goes out instead, which may be nothing.
    ///
    /// A chunk that no edit touches is handed back as it is, without a copy.
    pub fn push(&mut self, mut chunk: Bytes) -> Bytes {
        let end = self.at + chunk.len();
        let Some(first) = self.edits.front().filter(|edit| edit.range.start < end) else {
            self.at = end;
            return chunk;
        };
        let mut out = BytesMut::with_capacity(chunk.len() + first.with.len());
        while let Some(edit) = self.edits.front_mut().filter(|edit| edit.range.start < end) {
            let before = edit.range.start.saturating_sub(self.at);
            out.extend_from_slice(&chunk.split_to(before));
            out.extend_from_slice(&mem::take(&mut edit.with));
            self.at += before;
            let dropped = edit.range.end.min(end) - self.at;
            chunk.advance(dropped);
            self.at += dropped;
            if edit.range.end > end {
                break;
            }
            self.edits.pop_front();
        }
        out.extend_from_slice(&chunk);
        self.at = end;
        out.freeze()
    }
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::{pieces, same_however_cut};

    fn edit(range: Range<usize>, with: &'static str) -> Edit {
        Edit { range, with: Bytes::from_static(with.as_bytes()) }
    }

    fn run(edits: &[Edit], pieces: &[&[u8]]) -> Vec<u8> {
        let mut splice = Splice::new(edits.to_vec());
        pieces.iter().flat_map(|piece| splice.push(Bytes::copy_from_slice(piece))).collect()
    }

    #[test]
    fn ranges_are_replaced_however_the_body_is_cut() {
        for (label, edits, want) in [
            ("nothing", vec![], "0123456789"),
            ("longer", vec![edit(2..4, "abc")], "01abc456789"),
            ("shorter", vec![edit(2..6, "x")], "01x6789"),
            ("away", vec![edit(2..6, "")], "016789"),
            ("insertion at the start", vec![edit(0..0, "x")], "x0123456789"),
            ("insertion before the last byte", vec![edit(9..9, "x")], "012345678x9"),
            ("last byte", vec![edit(9..10, "x")], "012345678x"),
            ("whole body", vec![edit(0..10, "x")], "x"),
            ("side by side", vec![edit(1..3, "a"), edit(3..5, "b")], "0ab56789"),
            ("insertion, then replacement", vec![edit(3..3, "a"), edit(3..5, "b")], "012ab56789"),
            ("replacement, then insertion", vec![edit(3..5, "b"), edit(5..5, "a")], "012ba56789"),
            ("two insertions in order", vec![edit(3..3, "a"), edit(3..3, "b")], "012ab3456789"),
        ] {
            assert_eq!(run(&edits, &[b"0123456789"]), want.as_bytes(), "{label}");
            assert_eq!(10 + Splice::new(edits.clone()).delta(), signed(want.len()), "{label}");
            same_however_cut(b"0123456789", |pieces| run(&edits, pieces));
        }
    }

    #[test]
    fn a_replacement_leaves_with_the_first_byte_of_its_range() {
        let mut splice = Splice::new(vec![edit(2..6, "abc")]);
        let mut push = |chunk: &'static str| splice.push(Bytes::from_static(chunk.as_bytes()));
        assert_eq!([push("01"), push("2"), push(""), push("34"), push("567")], ["01", "abc", "", "", "67"]);
    }

    #[test]
    fn an_untouched_chunk_is_not_copied() {
        let mut splice = Splice::new(vec![edit(4..8, "x")]);
        for (label, chunk, untouched) in [("before", "0123", true), ("in it", "4567", false), ("after", "89", true)] {
            let chunk = Bytes::from_static(chunk.as_bytes());
            assert_eq!(splice.push(chunk.clone()).as_ptr() == chunk.as_ptr(), untouched, "{label}");
        }
    }

    /// A body, and edits inside it: from (gap, length, replacement) triples, as far as they fit.
    fn body_and_edits() -> impl Strategy<Value = (Vec<u8>, Vec<Edit>)> {
        let triples = vec((0..6_usize, 0..6_usize, vec(any::<u8>(), 0..6)), 0..6);
        (vec(any::<u8>(), 0..48), triples).prop_map(|(body, triples)| {
            let mut at = 0;
            let mut edits = Vec::new();
            for (gap, length, with) in triples {
                let range = at + gap..at + gap + length;
                at = range.end;
                if range.start < body.len() && range.end <= body.len() {
                    edits.push(Edit { range, with: with.into() });
                }
            }
            (body, edits)
        })
    }

    proptest! {
        #[test]
        fn any_edits_of_any_body_equal_splicing_the_whole(
            (body, edits) in body_and_edits(),
            sizes in vec(0..9_usize, 0..6),
        ) {
            let mut want = body.clone();
            for edit in edits.iter().rev() {
                want.splice(edit.range.clone(), edit.with.clone());
            }
            prop_assert_eq!(&run(&edits, &pieces(&body, &sizes)), &want);
            same_however_cut(&body, |pieces| run(&edits, pieces));
            prop_assert_eq!(signed(body.len()) + Splice::new(edits).delta(), signed(want.len()));
        }
    }
}

//! What the tests of every scanner share.

use std::fmt::Debug;

/// The law of every scanner: however the network cuts its input, the result is the same.
pub(crate) fn same_however_cut<T: PartialEq + Debug>(input: &[u8], run: impl Fn(&[&[u8]]) -> T) {
    let whole = run(&[input]);
    for cut in 0..=input.len() {
        let (left, right) = input.split_at(cut);
        assert_eq!(run(&[left, right]), whole, "cut at byte {cut}");
    }
    assert_eq!(run(&input.chunks(1).collect::<Vec<_>>()), whole, "one byte at a time");
}

/// Cuts `input` into pieces of the given sizes, over and over; a size of 0 is an empty piece.
pub(crate) fn pieces<'a>(mut input: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for &size in sizes.iter().chain([&1]).cycle() {
        if input.is_empty() {
            break;
        }
        let (piece, rest) = input.split_at(size.min(input.len()));
        pieces.push(piece);
        input = rest;
    }
    pieces
}

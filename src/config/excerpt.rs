//! The text of a config as complaints may show it: at every byte where it was, with nothing readable in it that
//! could be a secret.
//!
//! A provider's key that an operator wrote into the file, under whatever name, must not reach a terminal, a log
//! or a bug report. So a value is shown only when the reader of its key says it is harmless; comments are blank.
//! Where the file does not parse, nobody knows what is a value, and only what the reader recognised is shown.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A file's name and the harmless part of its text.
#[derive(Debug, Clone)]
pub(super) struct Excerpt {
    name: String,
    text: String,
}

impl Excerpt {
    /// Of a file whose text is not known.
    pub(super) fn empty(name: &str) -> Self {
        Self { name: name.to_owned(), text: String::new() }
    }

    /// Masks `text`, all but the `shown`.
    pub(super) fn new(name: &str, text: &str, shape: &Shape, shown: &[Range<usize>]) -> Self {
        let mut looks = vec![if shape.broken { Look::Masked } else { Look::Plain }; text.len()];
        shape.leaves.iter().for_each(|span| paint(&mut looks, span, Look::Masked));
        shown.iter().for_each(|span| paint(&mut looks, span, Look::Plain));
        for span in comments(text, shape) {
            paint(&mut looks, &span, Look::Blank);
        }
        let text = text.char_indices().map(|(at, c)| looks.get(at).map_or(' ', |look| look.of(c))).collect();
        Self { name: name.to_owned(), text }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The line of a byte, counted from one.
    pub(super) fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }

    /// A span that can be underlined: inside the text, on characters, and not past the line it begins on.
    pub(super) fn on_one_line(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.boundary(span.start);
        let end = self.boundary(span.end).max(start);
        let line = self.text[start..end].split(['\r', '\n']).next().unwrap_or_default();
        start..start + line.len()
    }

    /// The nearest beginning of a character that is not behind `at`.
    fn boundary(&self, at: usize) -> usize {
        (0..=at.min(self.text.len())).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
    }
}

/// Where the values of a file are.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Strings, numbers and times.
    leaves: Vec<Range<usize>>,
    keys: Vec<Range<usize>>,
    /// The file did not parse.
    broken: bool,
}

impl Shape {
    pub(super) fn of(tree: &DeTable<'_>, broken: bool) -> Self {
        let mut shape = Self { broken, ..Self::default() };
        shape.table(tree);
        shape
    }

    fn table(&mut self, table: &DeTable<'_>) {
        for (key, value) in table.iter() {
            self.keys.push(key.span());
            self.value(value);
        }
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(table) => self.table(table),
            DeValue::Array(list) => list.iter().for_each(|item| self.value(item)),
            DeValue::Boolean(_) => {}
            _ => self.leaves.push(value.span()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Plain,
    Masked,
    Blank,
}

impl Look {
    /// A character that takes as many bytes, so that every span stays true.
    fn of(self, c: char) -> char {
        match (self, c) {
            (Self::Plain, _) | (_, '\n' | '\r' | '\t') | (Self::Masked, ' ' | '"' | '\'' | '[' | ']' | '=' | ',') => c,
            (Self::Blank, _) if c.len_utf8() <= 3 => [' ', '\u{a0}', '\u{2002}'][c.len_utf8() - 1],
            _ => ['*', '\u{b7}', '\u{2022}', '\u{1f512}'][c.len_utf8() - 1],
        }
    }
}

fn paint(looks: &mut [Look], span: &Range<usize>, look: Look) {
    if let Some(looks) = looks.get_mut(span.clone()) {
        looks.fill(look);
    }
}

/// From every `#` that is in no key and no value to the end of its line.
fn comments(text: &str, shape: &Shape) -> Vec<Range<usize>> {
    let mut taken = vec![false; text.len()];
    for span in shape.leaves.iter().chain(&shape.keys) {
        if let Some(taken) = taken.get_mut(span.clone()) {
            taken.fill(true);
        }
    }
    let mut begin = 0;
    let lines = text.split_inclusive('\n').map(|line| {
        begin += line.len();
        begin - line.len()..begin
    });
    let comment = |line: Range<usize>| {
        let mut hashes = text[line.clone()].match_indices('#').map(|(at, _)| line.start + at);
        hashes.find(|at| !taken[*at]).map(|at| at..line.end)
    };
    lines.filter_map(comment).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn excerpt(text: &str, shown: &[&str]) -> String {
        let (tree, errors) = DeTable::parse_recoverable(text);
        let shown: Vec<_> = shown
            .iter()
            .map(|part| text.find(part).map(|at| at..at + part.len()).expect("a part of the text"))
            .collect();
        Excerpt::new("x", text, &Shape::of(tree.get_ref(), !errors.is_empty()), &shown).text().to_owned()
    }

    #[test]
    fn only_what_is_said_to_be_harmless_is_readable() {
        for (text, shown, want) in [
            ("a = \"sk-1\" # sk-2\n", &[][..], "a = \"****\"       \n"),
            ("a = \"sk-1\" # sk-2\n", &["\"sk-1\""], "a = \"sk-1\"       \n"),
            ("[k.\"a#b\"]\nx = { y = [1, true] }", &[], "[k.\"a#b\"]\nx = { y = [*, true] }"),
            ("a = \"ä€😀#x\"", &[], "a = \"\u{b7}\u{2022}\u{1f512}**\""),
            // No value where it does not parse is known for what it is.
            ("a = sk-1\nb = 2", &["a", "2"], "a = ****\n* = 2"),
        ] {
            assert_eq!(excerpt(text, shown), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_stays_where_it_was(
            text in "\\PC{0,40}|[a-z#=\"\\[\\]\n äß€]{0,40}",
            from in 0..50usize,
            len in 0..50usize,
        ) {
            let shown = excerpt(&text, &[]);
            prop_assert_eq!(shown.len(), text.len());
            prop_assert!(text.char_indices().map(|(at, _)| at).eq(shown.char_indices().map(|(at, _)| at)));
            let excerpt = Excerpt { name: String::new(), text: shown };
            let span = excerpt.on_one_line(&(from..from + len));
            prop_assert!(excerpt.text().get(span).is_some_and(|part| !part.contains('\n')));
        }
    }
}

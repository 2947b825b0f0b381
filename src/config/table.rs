//! Takes a TOML tree apart: keys out of tables, values out of keys. Whatever is not as it should be becomes a
//! finding, and the reading goes on, so that one run tells everything.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Environment;
use super::complaint::{Finding, quote};

/// What the reading of one file shares.
pub(super) struct Reader<'a> {
    pub(super) env: &'a dyn Environment,
    /// What relative paths are relative to.
    pub(super) base: &'a Path,
    text: &'a str,
    /// The file did not parse: what the tree says may be in the wrong place.
    broken: bool,
    findings: RefCell<Vec<Finding>>,
    shown: RefCell<Vec<Range<usize>>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a dyn Environment, base: &'a Path, text: &'a str, broken: bool) -> Self {
        Self { env, base, text, broken, findings: RefCell::default(), shown: RefCell::default() }
    }

    pub(super) fn report(&self, finding: Finding) {
        self.findings.borrow_mut().push(finding);
    }

    /// Lets complaints show a part of the text, unless an open quote may have drawn other things into it.
    pub(super) fn show(&self, span: Range<usize>) {
        let Some(part) = self.text.get(span.clone()) else { return };
        let mixed = self.broken && part.trim_matches(['"', '\'']).contains(['"', '\'', '=', '#']);
        if !mixed && !part.contains('\n') {
            self.shown.borrow_mut().push(span);
        }
    }

    /// What was found, and what may be shown of the text.
    pub(super) fn into_findings(self) -> (Vec<Finding>, Vec<Range<usize>>) {
        (self.findings.into_inner(), self.shown.into_inner())
    }
}

/// A table whose keys are taken one after the other. What is left when it is finished is unknown.
pub(super) struct Section<'r, 't> {
    reader: &'r Reader<'r>,
    path: String,
    span: Range<usize>,
    entries: DeTable<'t>,
    known: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    pub(super) fn root(reader: &'r Reader<'r>, entries: DeTable<'t>) -> Self {
        Self { reader, path: String::new(), span: 0..0, entries, known: Vec::new() }
    }

    /// As messages call it: `providers.openai`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Its header.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'r, 't>> {
        self.known.push(key);
        let (name, value) = self.entries.remove_entry(key)?;
        self.reader.show(name.span());
        Some(Item { reader: self.reader, path: joined(&self.path, key), value })
    }

    /// A key that has to be there.
    pub(super) fn require(&mut self, key: &'static str, help: &str) -> Option<Item<'r, 't>> {
        let item = self.take(key);
        if item.is_none() {
            let message = format!("{} is missing in {}", quote(key), quote(&self.path));
            self.reader.report(Finding::error(self.span(), message).help(help));
        }
        item
    }

    /// A table below this one; an empty one if there is none.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let absent = Self { path: joined(&self.path, key), ..Self::root(self.reader, DeTable::new()) };
        self.take(key).and_then(Item::section).unwrap_or(absent)
    }

    /// Every entry that is left, under the names the operator gave them, in the order of the file.
    pub(super) fn named(self) -> Vec<Entry<'r, 't>> {
        let Self { reader, path, entries, .. } = self;
        let item = |(name, value): (Spanned<DeString<'_>>, _)| {
            reader.show(name.span());
            let path = joined(&path, name.get_ref());
            (Spanned::new(name.span(), name.into_inner().into_owned()), Item { reader, path, value })
        };
        let mut items: Vec<_> = entries.into_iter().map(item).collect();
        items.sort_by_key(|(name, _)| name.span().start);
        items
    }

    /// Whether every key was taken; complains about each that was not.
    pub(super) fn finish(self) {
        for (key, _) in self.entries.iter() {
            let place = if self.path.is_empty() { String::new() } else { format!(" in {}", quote(&self.path)) };
            let message = format!("unknown key {}{place}", quote(key.get_ref()));
            let finding = Finding::error(key.span(), message);
            self.reader.report(finding.suggest(key.get_ref(), "known here", self.known.iter().copied()));
        }
    }
}

/// A name that the operator gave, and what stands under it.
pub(super) type Entry<'r, 't> = (Spanned<String>, Item<'r, 't>);

/// A value, and the way to it.
pub(super) struct Item<'r, 't> {
    pub(super) reader: &'r Reader<'r>,
    path: String,
    value: Spanned<DeValue<'t>>,
}

impl<'r, 't> Item<'r, 't> {
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn span(&self) -> Range<usize> {
        self.value.span()
    }

    pub(super) fn value(&self) -> &DeValue<'t> {
        self.value.get_ref()
    }

    /// Complains that the value is not what it should be. The value itself is seen in the excerpt, if at all.
    pub(super) fn refuse(&self, expected: &str) -> Finding {
        let finding = Finding::error(self.span(), format!("{} has to be {expected}", quote(&self.path)));
        match self.value() {
            DeValue::String(_) => finding,
            other => finding.label(format!("this is {}", kind(other))),
        }
    }

    /// A harmless text, which complaints may show.
    pub(super) fn text(&self, expected: &str) -> Option<&str> {
        self.show();
        let text = self.value().as_str();
        if text.is_none() {
            self.reader.report(self.refuse(expected));
        }
        text
    }

    /// A harmless text that means something to `parse`.
    pub(super) fn parse<'s, T>(&'s self, expected: &str, parse: impl FnOnce(&'s str) -> Option<T>) -> Option<T> {
        let text = self.text(expected)?;
        let parsed = parse(text);
        if parsed.is_none() {
            self.reader.report(self.refuse(expected));
        }
        parsed
    }

    pub(super) fn switch(&self) -> Option<bool> {
        self.show();
        let switch = self.value().as_bool();
        if switch.is_none() {
            self.reader.report(self.refuse("`true` or `false`"));
        }
        switch
    }

    pub(super) fn integer(&self, range: RangeInclusive<usize>) -> Option<usize> {
        self.show();
        let integer = self.value().as_integer();
        let number = integer.and_then(|number| usize::from_str_radix(number.as_str(), number.radix()).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let end = *range.end();
            let upto = if end == usize::MAX { " or more".to_owned() } else { format!(" to {end}") };
            self.reader.report(self.refuse(&format!("a whole number, {}{upto}", range.start())));
        }
        number
    }

    /// Shows nothing by itself: what stands where a list of secrets should be may be one.
    pub(super) fn list(self) -> Option<Vec<Self>> {
        let reader = self.reader;
        if !matches!(self.value(), DeValue::Array(_)) {
            reader.report(self.refuse("a list: `[…]`").help("write it in brackets, even if it is one: `[\"…\"]`"));
        }
        let DeValue::Array(list) = self.value.into_inner() else { return None };
        // A list that was left open has swallowed what follows it: nothing in it is known to be harmless.
        let item = |(index, value)| Self { reader, path: format!("{}[{index}]", self.path), value };
        (!reader.broken).then(|| list.into_iter().enumerate().map(item).collect())
    }

    pub(super) fn section(self) -> Option<Section<'r, 't>> {
        let (reader, span) = (self.reader, self.span());
        if !matches!(self.value(), DeValue::Table(_)) {
            reader.report(self.refuse("a table"));
        }
        let DeValue::Table(entries) = self.value.into_inner() else { return None };
        Some(Section { reader, path: self.path, span, entries, known: Vec::new() })
    }

    fn show(&self) {
        if !matches!(self.value(), DeValue::Table(_) | DeValue::Array(_)) {
            self.reader.show(self.span());
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "`true` or `false`",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `models."gpt-4.1"`: quoted where a dot would mislead.
fn joined(path: &str, key: &str) -> String {
    let mut joined = path.to_owned();
    if !path.is_empty() {
        joined.push('.');
    }
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let quote = if bare { "" } else { "\"" };
    joined + quote + key + quote
}

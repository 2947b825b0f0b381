//! Where a provider's keys come from. A key itself is in no finding: not where it is good, and not where it is
//! empty, malformed, or written into the file in clear.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::complaint::{Finding, quote};
use super::table::{Item, Reader};
use super::values;
use crate::units::Secret;

const SPELLINGS: &str = "`\"${NAME}\"` for an environment variable, `{ file = \"…\" }` for a file, or \
                         `{ credential = \"…\" }` for a systemd credential";

/// More keys than any provider has limits for.
const KEYS_MAX: usize = 32;

/// The keys of a provider: of `<PROVIDER>_API_KEY` and `<PROVIDER>_API_KEY_1` onwards where such are set, else those the
/// file points to.
pub(super) fn of_provider(reader: &Reader<'_>, name: &str, place: &Range<usize>, keys: Option<Item>) -> Vec<Secret> {
    let written = keys.map(written).unwrap_or_default();
    let variable = format!("{}_API_KEY", name.to_ascii_uppercase().replace('-', "_"));
    let numbered = (1..=KEYS_MAX).map(|n| format!("{variable}_{n}"));
    let set = std::iter::once(variable.clone()).chain(numbered);
    let set = set.filter_map(|name| Some((reader.env.var(&name).filter(|key| !key.is_empty())?, name)));
    let mut found: Vec<Secret> = set
        .filter_map(|(key, name)| {
            checked(reader, key, place.clone(), &format!("the environment variable {}", quote(&name)))
        })
        .collect();
    if found.is_empty() {
        found = written.into_iter().filter_map(|(source, span)| source.resolve(reader, span)).collect();
    }
    let mut keys: Vec<Secret> = Vec::new();
    for key in found {
        // A key is limited once, however often it stands there.
        if keys.iter().all(|other| other.expose() != key.expose()) {
            keys.push(key);
        }
    }
    keys
}

/// What the file says about where the key is.
enum Source {
    Variable(String),
    File(PathBuf),
    Credential(String),
}

fn written(keys: Item) -> Vec<(Source, Range<usize>)> {
    let reader = keys.reader;
    let Some(keys) = keys.list() else { return Vec::new() };
    if let Some(more) = keys.get(KEYS_MAX) {
        reader.report(Finding::error(more.span(), format!("a provider has at most {KEYS_MAX} keys")));
    }
    let keys = keys.into_iter().take(KEYS_MAX);
    keys.filter_map(|item| {
        let span = item.span();
        source(item).map(|source| (source, span))
    })
    .collect()
}

fn source(item: Item) -> Option<Source> {
    let reader = item.reader;
    match item.value() {
        DeValue::Table(_) => pointer(item),
        DeValue::String(text) => {
            let variable = values::variable(text).map(|name| Source::Variable(name.to_owned()));
            match variable {
                Some(_) => reader.show(item.span()),
                None if text.starts_with('$') => reader.report(
                    Finding::error(item.span(), format!("{} names no variable", quote(item.path())))
                        .help("a variable is written \"${NAME}\""),
                ),
                None => reader.report(
                    Finding::error(item.span(), format!("{} holds a key in clear", quote(item.path())))
                        .help(format!("a key does not belong in this file: write {SPELLINGS}")),
                ),
            }
            variable
        }
        _ => {
            reader.report(item.refuse("a place where the key is").help(format!("write {SPELLINGS}")));
            None
        }
    }
}

/// `{ file = "…" }` or `{ credential = "…" }`, one of them.
fn pointer(item: Item) -> Option<Source> {
    let reader = item.reader;
    let refused = item.refuse("one of `file` and `credential`").help(format!("write {SPELLINGS}"));
    let mut table = item.section()?;
    let (file, credential) = (table.take("file"), table.take("credential"));
    table.finish();
    match (file, credential) {
        (Some(file), None) => {
            let path = file.parse("the path of a file", |text| (!text.is_empty()).then(|| reader.base.join(text)))?;
            Some(Source::File(path))
        }
        (None, Some(credential)) => {
            let plain = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
            credential
                .parse("the name of a credential", |name| plain(name).then(|| Source::Credential(name.to_owned())))
        }
        _ => {
            reader.report(refused);
            None
        }
    }
}

impl Source {
    fn resolve(&self, reader: &Reader<'_>, span: Range<usize>) -> Option<Secret> {
        match self {
            Self::Variable(name) => {
                let place = format!("the environment variable {}", quote(name));
                let Some(key) = reader.env.var(name) else {
                    reader.report(Finding::error(span, format!("{place} is not set")));
                    return None;
                };
                checked(reader, key, span, &place)
            }
            Self::File(path) => read(reader, path, span),
            Self::Credential(name) => {
                let Some(folder) = reader.env.var("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty()) else {
                    let message = format!("there is no credential {}: `CREDENTIALS_DIRECTORY` is not set", quote(name));
                    let help = "systemd sets it for a unit with `LoadCredential=`; outside of one use `file`";
                    reader.report(Finding::error(span, message).help(help));
                    return None;
                };
                read(reader, &Path::new(&folder).join(name), span)
            }
        }
    }
}

fn read(reader: &Reader<'_>, path: &Path, span: Range<usize>) -> Option<Secret> {
    let shown = quote(&path.to_string_lossy());
    match reader.env.read(path) {
        Ok(text) => {
            if reader.env.open_to_all(path) {
                let warning = Finding::warning(span.clone(), format!("every user may read the secret file {shown}"));
                reader.report(warning.help("take the permission away: `chmod o-r`"));
            }
            checked(reader, text.trim_end_matches(['\r', '\n']).to_owned(), span, &format!("the file {shown}"))
        }
        Err(error) => {
            reader.report(Finding::error(span, format!("cannot read the secret file {shown}: {error}")));
            None
        }
    }
}

/// A key that can stand in a header.
fn checked(reader: &Reader<'_>, key: String, span: Range<usize>, place: &str) -> Option<Secret> {
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("{place} holds something that cannot be a key");
        let help = "a key is sent in a header: it consists of visible ASCII characters, without spaces and line breaks";
        reader.report(Finding::error(span, message).help(help));
        return None;
    }
    let secret = Secret::new(key);
    if secret.is_none() {
        reader.report(Finding::error(span, format!("{place} is empty")));
    }
    secret
}

//! Who may use what, as it is written: the clients' keys and the rules of user paths.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use toml::de::DeValue;

use super::complaint::{Finding, quote};
use super::names::Names;
use super::settings::{Key, Passthrough, Selector};
use super::table::{Entry, Item, Reader, Section};
use super::values;
use crate::units::KeyHash;
use crate::wire::glob::Glob;

const NAME: &str = "a name of 1 to 256 bytes without control characters";
const USER_PATH: &str = "a path such as \"/team/mobile\", without `.`, `..` and `:`";

/// The clients' keys. Each has one name.
pub(super) fn keys(reader: &Reader<'_>, written: Vec<Entry>, names: &Names) -> Vec<Arc<Key>> {
    let mut hashes: BTreeMap<String, (String, Range<usize>)> = BTreeMap::new();
    let mut keys = Vec::new();
    for (name, item) in written {
        if values::name(name.get_ref()).is_none() {
            reader.report(Finding::error(name.span(), format!("the name of a key has to be {NAME}")));
        }
        let Some((key, place)) = key(name.get_ref(), item, names) else { continue };
        match hashes.get(&key.hash.to_string()) {
            Some((other, first)) => reader.report(
                Finding::error(place, format!("{} and {} are the same key", quote(other), quote(&key.name)))
                    .second(first.clone(), "first here")
                    .help("a key has one name; remove one of the two"),
            ),
            None => {
                hashes.insert(key.hash.to_string(), (key.name.clone(), place));
            }
        }
        keys.push(key.into());
    }
    keys
}

/// A client's key, and where its hash stands.
fn key(name: &str, item: Item, names: &Names) -> Option<(Key, Range<usize>)> {
    let mut table = item.section()?;
    let hash =
        table.require("sha256", "`aulos keys create NAME` prints a key and its hash").and_then(|item| hash(&item));
    let user_path = table.take("user_path").and_then(|item| item.parse(USER_PATH, values::normalise_user_path));
    let workspace =
        table.take("workspace").and_then(|item| item.parse(NAME, |text| values::name(text).map(str::to_owned)));
    let allow = table.take("allow").and_then(|item| selectors(item, names));
    let passthrough = passthrough(&mut table);
    let expires = table.take("expires").and_then(|item| expires(&item));
    let disabled = table.take("disabled").and_then(|item| item.switch()).unwrap_or(false);
    table.finish();
    let (hash, place) = hash?;
    let (name, user_path) = (name.to_owned(), user_path.unwrap_or_else(|| "/".to_owned()));
    Some((Key { name, hash, user_path, workspace, allow, passthrough, expires, disabled }, place))
}

/// Whether a key may pass bytes through, and where to.
fn passthrough(table: &mut Section) -> Option<Passthrough> {
    let may = table.take("passthrough").and_then(|item| item.switch()).unwrap_or(false);
    let (allow, deny) = (table.take("passthrough_allow"), table.take("passthrough_deny"));
    if let Some(item) = allow.as_ref().or(deny.as_ref()).filter(|_| !may) {
        let message = "this key may not pass anything through, whatever is listed here";
        item.reader.report(Finding::error(item.span(), message).help("say `passthrough = true` beside it"));
    }
    let allow = allow.map(globs);
    let deny = deny.map(globs).unwrap_or_default();
    may.then_some(Passthrough { allow, deny })
}

fn globs(item: Item) -> Vec<Glob> {
    const EXPECTED: &str = "`provider/path`, where `*` stands for a segment and `**` for any number of them";
    let items = item.list().unwrap_or_default();
    items.iter().filter_map(|item| item.parse(EXPECTED, Glob::parse)).collect()
}

/// Not shown where it is wrong: it may be the key itself.
fn hash(item: &Item) -> Option<(KeyHash, Range<usize>)> {
    let hash = item.value().as_str().and_then(KeyHash::parse);
    match hash {
        Some(_) => item.reader.show(item.span()),
        None => item.reader.report(
            item.refuse("64 hexadecimal digits")
                .help("it is the SHA-256 of the whole key, never the key; `aulos keys create NAME` prints both"),
        ),
    }
    hash.map(|hash| (hash, item.span()))
}

/// As a string or as TOML's own type, which is the same text.
fn expires(item: &Item) -> Option<Timestamp> {
    const EXPECTED: &str = "an instant with its offset, such as \"2027-01-01T00:00:00Z\"";
    let DeValue::Datetime(instant) = item.value() else { return item.parse(EXPECTED, values::instant) };
    let instant = values::instant(&instant.to_string());
    item.reader.show(item.span());
    if instant.is_none() {
        item.reader.report(item.refuse(EXPECTED));
    }
    instant
}

fn selectors(item: Item, names: &Names) -> Option<Vec<Selector>> {
    Some(item.list()?.iter().filter_map(|item| names.selector(item)).collect())
}

/// The rules of user paths, under the one spelling of each.
pub(super) fn paths(reader: &Reader<'_>, written: Vec<Entry>, names: &Names) -> BTreeMap<String, Vec<Selector>> {
    let mut firsts: BTreeMap<String, Range<usize>> = BTreeMap::new();
    let mut paths = BTreeMap::new();
    for (name, item) in written {
        let Some(mut table) = item.section() else { continue };
        let allow = table.require("allow", "it lists what the path may use").and_then(|item| selectors(item, names));
        table.finish();
        let Some(path) = values::normalise_user_path(name.get_ref()) else {
            reader.report(Finding::error(name.span(), format!("a user path has to be {USER_PATH}")));
            continue;
        };
        match firsts.get(&path) {
            Some(first) => reader.report(
                Finding::error(name.span(), format!("the user path {} has two rules", quote(&path)))
                    .second(first.clone(), "first here"),
            ),
            None => {
                firsts.insert(path.clone(), name.span());
            }
        }
        paths.insert(path, allow.unwrap_or_default());
    }
    paths
}

//! The test vectors of the `http_desync_guardian` crate, read from its package. The tests of the head lint and the
//! stories of bad input both include this file; it knows neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A request head, and what the crate says of it: how bad it is, and why.
#[derive(Debug, Default)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) uri: Vec<u8>,
    pub(super) method: Vec<u8>,
    pub(super) version: Vec<u8>,
    pub(super) headers: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) tier: String,
    pub(super) reason: String,
}

/// All of them, in the order of their files.
pub(super) fn cases() -> Vec<Case> {
    let files = fs::read_dir(package().join("tests")).expect("the package has its tests");
    let mut files: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files.iter().flat_map(|path| parse(&fs::read_to_string(path).expect("readable"))).collect()
}

/// Where cargo keeps the crate's package.
fn package() -> PathBuf {
    let cargo = |arguments: &[&str]| {
        let root = env!("CARGO_MANIFEST_DIR");
        let output = Command::new(env!("CARGO")).args(arguments).current_dir(root).output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    // For this machine only: packages for others need not have been fetched.
    let version = cargo(&["--version", "--verbose"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
    let metadata = cargo(&["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let found = packages.iter().find(|package| package["name"] == "http_desync_guardian");
    let manifest = found.and_then(|package| package["manifest_path"].as_str()).expect("a dev-dependency");
    Path::new(manifest).parent().expect("a directory").to_owned()
}

/// The little YAML that those files use: a list of cases, one `key: scalar` a line, nested by indentation.
fn parse(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
        let body = line.trim_start();
        let Some((key, value)) = body.split_once(':').filter(|_| !body.starts_with("- \"")) else { continue };
        let value = scalar(value.trim());
        let text = || String::from_utf8_lossy(&value).into_owned();
        if (line.len() - body.len(), key) == (0, "- name") {
            cases.push(Case { name: text(), ..Case::default() });
            continue;
        }
        let case = cases.last_mut().expect("a case begins with its name");
        match (line.len() - body.len(), key) {
            (2, "uri") => case.uri = value,
            (2, "method") => case.method = value,
            (2, "version") => case.version = value,
            (4, "- name") => case.headers.push((value, Vec::new())),
            (6, "value") => case.headers.last_mut().expect("a header begins with its name").1 = value,
            (4, "tier") => case.tier = text(),
            (4, "reason") => case.reason = text(),
            (2, "headers" | "expected") | (4, "required_message_items") | (6, "tier") => {}
            other => assert_eq!(other, (0, ""), "a line of a kind that is new: {line:?}"),
        }
    }
    cases
}

/// A scalar as bytes: `\xHH` is that byte. Their plain scalars are escaped too; a name in single quotes is not.
fn scalar(text: &str) -> Vec<u8> {
    let quoted = |mark| text.strip_prefix(mark).and_then(|text| text.strip_suffix(mark));
    if let Some(text) = quoted('\'') {
        return text.replace("''", "'").into_bytes();
    }
    let text = quoted('"').unwrap_or(text);
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, tail)) = rest.split_first() {
        let (byte, tail) = match (byte, tail) {
            (b'\\', [b'x', hex @ ..]) => {
                let digits = str::from_utf8(&hex[..2]).expect("two digits");
                (u8::from_str_radix(digits, 16).expect("hexadecimal"), &hex[2..])
            }
            (b'\\', [b't', tail @ ..]) => (b'\t', tail),
            (b'\\', [b'r', tail @ ..]) => (b'\r', tail),
            (b'\\', [b'n', tail @ ..]) => (b'\n', tail),
            (b'\\', [other, tail @ ..]) => (*other, tail),
            _ => (byte, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    bytes
}

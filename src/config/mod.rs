//! The config file: from text to [`Settings`], or to everything that is wrong with it, each with its place.
//!
//! TOML, strict: a key nobody knows is an error. No provider's key stands in the file, only where it is; and
//! whatever an operator writes into the wrong place, no key is shown by any complaint.

use std::fs;
use std::io;
use std::path::Path;

use toml::de::DeTable;

mod access;
mod complaint;
mod excerpt;
mod file;
mod names;
mod secret;
pub mod settings;
mod table;
pub mod values;

pub use complaint::{Complaint, Complaints};
pub use settings::Settings;

use complaint::Finding;
use excerpt::{Excerpt, Shape};
use table::Reader;

/// Of a file that does not parse so many places are shown; the first ones cause most of the others.
const SYNTAX_COMPLAINTS_MAX: usize = 8;

/// Where the config's words come from besides its file. A test brings its own.
pub trait Environment {
    /// An environment variable.
    fn var(&self, name: &str) -> Option<String>;
    /// A text file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// Whether every user of the machine may read a file.
    fn open_to_all(&self, _path: &Path) -> bool {
        false
    }
}

/// What the process itself was given.
#[derive(Debug, Clone, Copy)]
pub struct Process;

impl Environment for Process {
    /// What is not UTF-8 comes back damaged, not absent: it is set, and the complaint is about what it holds.
    fn var(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    #[cfg(unix)]
    fn open_to_all(&self, path: &Path) -> bool {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
    }
}

/// Reads a config file. The settings come with warnings; the complaints are all there is to say.
pub fn load(path: &Path, env: &dyn Environment) -> Result<(Settings, Vec<Complaint>), Complaints> {
    let name = path.to_string_lossy();
    let text = env.read(path).map_err(|error| Complaints::unreadable(&name, &error))?;
    parse(&name, &text, path.parent().unwrap_or(Path::new("")), env)
}

/// Reads the text of a config. Messages call it `name`, and its relative paths begin at `base`.
pub fn parse(
    name: &str,
    text: &str,
    base: &Path,
    env: &dyn Environment,
) -> Result<(Settings, Vec<Complaint>), Complaints> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let broken = !errors.is_empty();
    let shape = Shape::of(tree.get_ref(), broken);
    let reader = Reader::new(env, base, text, broken);
    let settings = file::settings(&reader, tree.into_inner());
    let (findings, shown) = reader.into_findings();
    let excerpt = Excerpt::new(name, text, &shape, &shown);
    // Where the file does not parse, keys end up in tables they were not written for: what the tree says then is
    // good for telling what may be shown, not for complaining.
    let findings = if broken { syntax(&errors, &excerpt) } else { findings };
    complaint::judge(findings, excerpt).map(|warnings| (settings, warnings))
}

/// One complaint a line, as the rest of a line is mostly an echo.
fn syntax(errors: &[toml::de::Error], excerpt: &Excerpt) -> Vec<Finding> {
    let mut errors: Vec<_> = errors.iter().map(|error| (error.span().unwrap_or(0..0), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    errors.dedup_by_key(|(span, _)| excerpt.line(span.start));
    let more = errors.len().saturating_sub(SYNTAX_COMPLAINTS_MAX);
    errors.truncate(SYNTAX_COMPLAINTS_MAX);
    let last = errors.len().saturating_sub(1);
    let finding = |(index, (span, message)): (usize, (_, &str))| {
        let finding = Finding::error(Some(span), format!("this is not TOML: {message}"));
        if more > 0 && index == last { finding.help(format!("{more} more lines do not parse")) } else { finding }
    };
    errors.into_iter().enumerate().map(finding).collect()
}

#[cfg(test)]
mod tests;

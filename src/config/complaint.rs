//! What is wrong with a config, drawn on the lines it is about.
//!
//! A complaint holds no text of the file but what [`Excerpt`] lets through: values that are not known to be
//! harmless are masked before they get here, so that a key written into the wrong place is never shown.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str};

use super::excerpt::Excerpt;
use crate::units::printable;

/// Names are shown up to here; a longer one would hide what is said about it.
const QUOTED_BYTES_MAX: usize = 80;

/// One thing that is wrong, or looks so, and where.
#[derive(Debug, Clone)]
pub struct Complaint {
    finding: Finding,
    excerpt: Arc<Excerpt>,
}

impl Complaint {
    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.finding.message
    }

    /// The line it is about, counted from one. `None`: it is about the file as a whole.
    pub fn line(&self) -> Option<usize> {
        self.finding.span.as_ref().map(|span| self.excerpt.line(span.start))
    }

    /// A warning does not keep the gateway from starting.
    pub fn is_warning(&self) -> bool {
        self.finding.severity == Severity::Warning
    }

    /// Message, `file:line:column`, the line underlined, help.
    pub fn render(&self, colour: bool) -> String {
        let finding = &self.finding;
        let level = match finding.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(finding.message.as_str()));
        if let Some(snippet) = self.snippet() {
            group = group.element(snippet);
        }
        let help = finding.help.iter().map(|help| Level::HELP.message(normalize_untrusted_str(help)));
        let renderer = if colour { Renderer::styled().hyperlink(false) } else { Renderer::plain() };
        renderer.render(&[group.elements(help)])
    }

    fn snippet(&self) -> Option<Snippet<'_, annotate_snippets::Annotation<'_>>> {
        let primary = AnnotationKind::Primary.span(self.excerpt.on_one_line(self.finding.span.as_ref()?));
        let second = self.finding.second.as_ref().map(|(span, label)| {
            AnnotationKind::Context.span(self.excerpt.on_one_line(span)).label(normalize_untrusted_str(label))
        });
        let label = self.finding.label.as_deref().map(normalize_untrusted_str);
        Some(
            Snippet::source(self.excerpt.text())
                .path(self.excerpt.name())
                .annotation(primary.label(label))
                .annotations(second),
        )
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Everything that keeps a config from being used, and what is doubtful beside it, in the order of the file.
#[derive(Debug, Clone)]
pub struct Complaints(Vec<Complaint>);

impl Complaints {
    /// About a file that cannot even be read.
    pub(super) fn unreadable(name: &str, error: &std::io::Error) -> Self {
        let finding = Finding::error(None, format!("cannot read {}: {error}", quote(name)));
        Self(vec![Complaint { finding, excerpt: Arc::new(Excerpt::empty(name)) }])
    }

    /// One by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Complaint> {
        self.0.iter()
    }

    /// All of them, a blank line between two.
    pub fn render(&self, colour: bool) -> String {
        self.0.iter().map(|complaint| complaint.render(colour)).collect::<Vec<_>>().join("\n\n")
    }
}

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Complaints {}

/// Puts findings in the order of the file. `Ok` with the warnings if there is no error among them.
pub(super) fn judge(mut findings: Vec<Finding>, excerpt: Excerpt) -> Result<Vec<Complaint>, Complaints> {
    findings.sort_by_key(|finding| finding.span.as_ref().map(|span| span.start));
    let excerpt = Arc::new(excerpt);
    let complaints: Vec<_> =
        findings.into_iter().map(|finding| Complaint { finding, excerpt: excerpt.clone() }).collect();
    if complaints.iter().all(Complaint::is_warning) { Ok(complaints) } else { Err(Complaints(complaints)) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Error,
    Warning,
}

/// A complaint before it knows its file.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    severity: Severity,
    span: Option<Range<usize>>,
    message: String,
    label: Option<String>,
    second: Option<(Range<usize>, String)>,
    help: Vec<String>,
}

impl Finding {
    pub(super) fn error(span: impl Into<Option<Range<usize>>>, message: impl Into<String>) -> Self {
        let (span, message) = (span.into(), message.into());
        Self { severity: Severity::Error, span, message, label: None, second: None, help: Vec::new() }
    }

    pub(super) fn warning(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// A word beside the underline.
    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Another place that has to do with it.
    pub(super) fn second(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.second = Some((span, label.into()));
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Says which of the names there are was probably meant, or else which there are.
    pub(super) fn suggest<'n>(self, asked: &str, known: &'n str, names: impl Iterator<Item = &'n str>) -> Self {
        const LISTED_MAX: usize = 12;
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names.dedup();
        let closest = closest(asked, &names);
        let finding = match closest {
            Some(name) => self.help(format!("did you mean {}?", quote(name))),
            None => self,
        };
        // A list of one name says nothing beside that name.
        if names.len() > LISTED_MAX || names.len() <= usize::from(closest.is_some()) {
            return finding;
        }
        finding.help(format!("{known}: {}", names.join(", ")))
    }
}

/// A name as it stands in a message.
pub(super) fn quote(name: &str) -> String {
    format!("`{}`", printable(name.as_bytes(), QUOTED_BYTES_MAX))
}

/// The name that differs least, if it differs little.
fn closest<'n>(asked: &str, names: &[&'n str]) -> Option<&'n str> {
    // The distance takes time by the product of the lengths; no name anybody mistypes is longer.
    if asked.len() > 4 * QUOTED_BYTES_MAX {
        return None;
    }
    let asked = asked.to_lowercase();
    let distance = |name: &&str| strsim::osa_distance(&asked, &name.to_lowercase());
    let (name, distance) = names.iter().map(|name| (*name, distance(name))).min_by_key(|(_, distance)| *distance)?;
    (distance <= (asked.chars().count() / 3).max(1)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let names = ["listen", "admin", "state_dir", "drain"];
        for (asked, want) in [
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("statedir", Some("state_dir")),
            ("drian", Some("drain")),
            ("cors", None),
            ("", None),
        ] {
            assert_eq!(closest(asked, &names), want, "{asked}");
        }
        assert_eq!(closest("anything", &[]), None);
    }

    #[test]
    fn a_name_cannot_write_on_the_terminal() {
        assert_eq!(quote("a\u{1b}[31m"), "`a\u{fffd}[31m`");
        let finding = Finding::error(0..1, "about").label("\u{1b}[31m").help("\u{1b}[32m");
        let complaint = Complaint { finding, excerpt: Arc::new(Excerpt::empty("x")) };
        assert!(!complaint.render(false).contains('\u{1b}'), "{complaint}");
        assert!(complaint.render(true).contains('\u{1b}'), "colour is asked for");
        assert!(!complaint.render(true).contains("\u{1b}[31m"), "and is ours only");
    }
}

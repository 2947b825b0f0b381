//! What is known of providers' models: shipped with the binary, as data.
//!
//! The catalog narrows a request only where it knows; a model it does not know is its provider's business.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::surface::Endpoint;

/// One model of one kind of provider.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The provider's kind.
    pub kind: String,
    /// The provider's own names for it.
    pub ids: Vec<String>,
    pub task: Task,
    /// Seconds since 1970, as the provider lists it; 0 where it is not known.
    #[serde(default)]
    pub created: u64,
    /// The day after which the provider no longer serves it, `YYYY-MM-DD`.
    pub shutdown_date: Option<String>,
    pub voices: Option<Vec<String>>,
    pub formats: Option<Vec<String>>,
    /// Code points of `input`.
    pub input_chars_max: Option<usize>,
    /// The range of `speed`.
    pub speed: Option<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    Speech,
    /// Of speech, in its own language or translated.
    Transcription,
    Chat,
}

impl Task {
    /// Whether a request to this endpoint can be for a model of this task.
    pub fn fits(self, endpoint: Endpoint) -> bool {
        match self {
            Self::Speech => endpoint == Endpoint::Speech,
            Self::Transcription => endpoint.is_upload(),
            Self::Chat => endpoint == Endpoint::Chat,
        }
    }
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("models.json")).unwrap_or_else(|error| {
        log::error!("the catalog that was shipped is not readable: {error}");
        Vec::new()
    })
});

static INDEX: LazyLock<HashMap<(&str, &str), &Entry>> = LazyLock::new(|| {
    ENTRIES
        .iter()
        .flat_map(|entry| entry.ids.iter().map(move |id| ((entry.kind.as_str(), id.as_str()), entry)))
        .collect()
});

/// What is known of `model` at a provider of this kind.
pub fn find(kind: &str, model: &str) -> Option<&'static Entry> {
    INDEX.get(&(kind, model)).copied()
}

/// Everything known of a provider of this kind.
pub fn of_kind(kind: &str) -> impl Iterator<Item = &'static Entry> {
    ENTRIES.iter().filter(move |entry| entry.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_catalog_is_whole() {
        assert!(!ENTRIES.is_empty());
        assert_eq!(INDEX.len(), ENTRIES.iter().map(|entry| entry.ids.len()).sum::<usize>(), "no id stands twice");
        for entry in ENTRIES.iter() {
            let ids = &entry.ids;
            assert!(crate::provider::by_kind(&entry.kind).is_some(), "{ids:?}: a kind that exists");
            assert!(entry.shutdown_date.as_ref().is_none_or(|day| day.parse::<jiff::civil::Date>().is_ok()), "{ids:?}");
            assert!(entry.speed.is_none_or(|(low, high)| low < high), "{ids:?}");
        }
    }

    #[test]
    fn a_model_is_found_by_any_of_its_names() {
        let dated = find("openai", "gpt-4o-mini-tts-2025-12-15").expect("known");
        assert_eq!(dated.task, Task::Speech);
        assert!(find("openai", "unheard-of").is_none());
    }
}

//! What one config becomes when it runs: built aside, swapped in by one pointer, never changed.
//!
//! A request keeps the state it began with to its end.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::settings::{Key, Provider, Route, Selector, Settings};
use crate::units::KeyHash;
use crate::upstream::Upstreams;

pub struct State {
    pub settings: Settings,
    keys: HashMap<u64, Vec<Arc<Key>>>,
    /// What a caller becomes where no key is asked for.
    pub anonymous: Option<Arc<Key>>,
    /// What is known of the providers while they run.
    pub upstreams: Upstreams,
}

impl State {
    /// `insecure`: serve without keys where the config has none.
    pub fn new(settings: Settings, insecure: bool) -> Self {
        Self::with(settings, insecure, Upstreams::default())
    }

    /// One that serves.
    pub fn with(settings: Settings, insecure: bool, upstreams: Upstreams) -> Self {
        let mut keys: HashMap<u64, Vec<Arc<Key>>> = HashMap::new();
        for key in &settings.keys {
            keys.entry(key.hash.prefix()).or_default().push(Arc::clone(key));
        }
        let anonymous = (insecure && settings.keys.is_empty()).then(|| Arc::new(Key::anonymous()));
        Self { settings, keys, anonymous, upstreams }
    }

    /// The key that was presented. The hash is compared whole, in constant time.
    pub fn key(&self, presented: &KeyHash) -> Option<&Arc<Key>> {
        self.keys.get(&presented.prefix())?.iter().find(|key| key.hash.matches(presented))
    }

    pub fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.settings.providers.get(name)
    }

    /// The model or `provider/model` behind a name. The config has followed every alias to its end.
    pub fn unaliased<'s>(&'s self, asked: &'s str) -> &'s str {
        self.settings.aliases.get(asked).map_or(asked, String::as_str)
    }

    /// `provider/model` taken apart, if the first part is a provider of ours.
    pub fn split<'n>(&self, name: &'n str) -> Option<(&Arc<Provider>, &'n str)> {
        let (provider, model) = name.split_once('/')?;
        Some((self.provider(provider)?, model)).filter(|_| !model.is_empty())
    }

    /// The allow lists that hold for a path: its own and those of everything above it.
    pub fn lists_of<'s>(&'s self, path: &'s str) -> impl Iterator<Item = &'s [Selector]> {
        self.settings.paths.iter().filter(|(rule, _)| is_below(path, rule)).map(|(_, list)| list.as_slice())
    }

    /// Whether `selector` allows a model asked for as `asked`, served under the name `served`, by `route`. A bare
    /// name means the model or alias of that name, and a provider's own model only where there is none.
    pub fn selects(&self, selector: &Selector, asked: &str, served: &str, route: &Route) -> bool {
        match selector {
            Selector::All => true,
            Selector::Provider(provider) => *provider == route.provider,
            Selector::Exact { provider, model } => *provider == route.provider && *model == route.model,
            Selector::Name(name) if name == served => true,
            // A name that was asked for, and by a hint became something else, is not what the list means.
            Selector::Name(name) if name == asked && self.unaliased(asked) == served => true,
            Selector::Name(name) => {
                let is_ours = self.settings.models.contains_key(name) || self.settings.aliases.contains_key(name);
                !is_ours && *name == route.model
            }
        }
    }

    /// Whether a served name may appear as a metric's label: clients cannot make up new ones.
    pub fn is_configured_model(&self, name: &str) -> bool {
        self.settings.models.contains_key(name)
    }
}

/// Whether `path` is `above` or stands below it: `/team` covers `/team/app`, not `/team-alpha`.
pub fn is_below(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_covers_what_is_below_it_and_nothing_beside_it() {
        for (path, above, want) in [
            ("/team/app", "/team", true),
            ("/team", "/team", true),
            ("/team-alpha", "/team", false),
            ("/", "/", true),
            ("/anything", "/", true),
            ("/", "/team", false),
        ] {
            assert_eq!(is_below(path, above), want, "{path} below {above}");
        }
    }

    #[test]
    fn a_selector_allows_what_it_names() {
        let state = crate::stage::testing::state(
            "[models.ours]\nroutes = [\"local/x\"]\n[models.tts-fast]\nroutes = [\"openai/gpt-4o-mini-tts\"]\n\
             [aliases]\ntts-1 = \"tts-fast\"\n",
        );
        let route = Route { provider: "openai".into(), model: "gpt-4o-mini-tts".into() };
        for (selector, want) in [
            (Selector::All, true),
            (Selector::Provider("openai".into()), true),
            (Selector::Provider("azure".into()), false),
            (Selector::Exact { provider: "openai".into(), model: "gpt-4o-mini-tts".into() }, true),
            (Selector::Exact { provider: "openai".into(), model: "tts-fast".into() }, false),
            (Selector::Name("tts-1".into()), true),
            (Selector::Name("tts-fast".into()), true),
            (Selector::Name("gpt-4o-mini-tts".into()), true),
            (Selector::Name("tts".into()), false),
            (Selector::Name("ours".into()), false),
        ] {
            assert_eq!(state.selects(&selector, "tts-1", "tts-fast", &route), want, "{selector:?}");
        }
        let raw = Route { provider: "openai".into(), model: "ours".into() };
        let ours = Selector::Name("ours".into());
        assert!(!state.selects(&ours, "openai/ours", "openai/ours", &raw), "another's model of the same name");
        assert!(!state.selects(&ours, "ours", "openai/ours", &raw), "nor by a hint");
    }
}

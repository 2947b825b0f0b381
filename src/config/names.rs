//! The names a config gives, and what other parts of it mean by them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::de::DeValue;

use super::complaint::{Finding, quote};
use super::settings::{Route, Selector};
use super::table::{Entry, Item, Reader};
use super::values;
use crate::provider;
use crate::surface::Endpoint;

/// Every name of the file, also of what is wrong otherwise: a name that is there is never called unknown.
pub(super) struct Names {
    providers: BTreeSet<String>,
    /// Those whose kind serves nothing but passthrough.
    passing: BTreeSet<String>,
    models: BTreeMap<String, Range<usize>>,
    aliases: BTreeSet<String>,
}

impl Names {
    /// Complains about names that cannot be one.
    pub(super) fn new(providers: &[Entry], models: &[Entry], aliases: &[Entry]) -> Self {
        for (name, item) in providers {
            if values::provider_name(name.get_ref()).is_none() {
                let message = format!("{} cannot be the name of a provider", quote(name.get_ref()));
                let help = "it begins with a letter or digit and has 1 to 63 of `a-z`, `0-9`, `-` and `_`";
                item.reader.report(Finding::error(name.span(), message).help(help));
            }
        }
        for (name, item) in models.iter().chain(aliases) {
            if values::name(name.get_ref()).is_none() {
                let message = format!("{} cannot be the name of a model", quote(name.get_ref()));
                let help = "it has 1 to 256 bytes and no control characters";
                item.reader.report(Finding::error(name.span(), message).help(help));
            }
        }
        let names = |named: &[Entry]| named.iter().map(|(name, _)| name.get_ref().clone()).collect();
        let passing = providers.iter().filter(|(_, item)| passes_only(item)).map(|(name, _)| name.get_ref().clone());
        Self {
            providers: names(providers),
            passing: passing.collect(),
            models: models.iter().map(|(name, _)| (name.get_ref().clone(), name.span())).collect(),
            aliases: names(aliases),
        }
    }

    /// `provider/model`, cut at the first slash: the model may have slashes of its own.
    pub(super) fn route(&self, item: &Item) -> Option<Route> {
        let text = item.parse("`provider/model`", values::name)?;
        let parts = split(text);
        match parts {
            None => item.reader.report(item.refuse("`provider/model`")),
            Some((provider, _)) if !self.providers.contains(provider) => {
                item.reader.report(self.no_provider(item, text))
            }
            Some((provider, _)) if self.passing.contains(provider) => {
                let message = format!("{} serves no models here", quote(provider));
                let help = "its API is behind `/p/` alone, as it is";
                item.reader.report(Finding::error(item.span(), message).help(help));
            }
            Some(_) => {}
        }
        let (provider, model) = parts?;
        Some(Route { provider: provider.to_owned(), model: model.to_owned() })
    }

    /// The name of a provider.
    pub(super) fn provider(&self, item: &Item) -> Option<String> {
        let text = item.parse("the name of a provider", values::provider_name)?;
        if !self.providers.contains(text) {
            let finding = Finding::error(item.span(), format!("there is no provider {}", quote(text)));
            item.reader.report(finding.suggest(text, "there are", self.providers.iter().map(String::as_str)));
        }
        Some(text.to_owned())
    }

    /// One entry of an allow list.
    pub(super) fn selector(&self, item: &Item) -> Option<Selector> {
        const EXPECTED: &str = "\"/\", \"provider/\", \"provider/model\" or the name of a model";
        let text = item.parse(EXPECTED, values::name)?;
        let known = self.models.contains_key(text) || self.aliases.contains(text);
        match text.split_once('/') {
            Some(("", "")) => Some(Selector::All),
            Some((provider, "")) if self.providers.contains(provider) => Some(Selector::Provider(provider.to_owned())),
            Some((provider, model)) if self.providers.contains(provider) => {
                Some(Selector::Exact { provider: provider.to_owned(), model: model.to_owned() })
            }
            Some(_) if !known => {
                item.reader.report(self.no_provider(item, text));
                None
            }
            _ => {
                if !known {
                    item.reader.report(self.no_model(item, text));
                }
                Some(Selector::Name(text.to_owned()))
            }
        }
    }

    /// Every alias with the end of its way: a model of the file or a `provider/model`.
    pub(super) fn aliases(&self, reader: &Reader<'_>, written: Vec<Entry>) -> BTreeMap<String, String> {
        let mut targets: BTreeMap<String, (String, Range<usize>)> = BTreeMap::new();
        for (name, item) in written {
            if let Some(model) = self.models.get(name.get_ref()) {
                let message = format!("the alias {} hides the model of that name", quote(name.get_ref()));
                reader.report(Finding::error(name.span(), message).second(model.clone(), "the model"));
            }
            if let Some(target) = self.target(&item) {
                targets.insert(name.into_inner(), (target, item.span()));
            }
        }
        let mut looping = BTreeSet::new();
        for (name, (_, span)) in &targets {
            if let Some(round) = self.round(name, &targets)
                && looping.insert(round.iter().copied().min())
            {
                let way: Vec<_> = round.iter().chain(round.first()).copied().collect();
                reader.report(Finding::error(
                    span.clone(),
                    format!("these aliases lead nowhere: {}", quote(&way.join(" → "))),
                ));
            }
        }
        let end = |name: &str| self.way(name, &targets).last().map(|(_, target)| (*target).to_owned());
        targets.keys().filter_map(|name| Some((name.clone(), end(name)?))).collect()
    }

    fn target(&self, item: &Item) -> Option<String> {
        let text = item.parse("the name of a model or `provider/model`", values::name)?;
        let known = self.models.contains_key(text) || self.aliases.contains(text);
        match split(text) {
            _ if known => {}
            Some((provider, _)) if self.providers.contains(provider) => {}
            Some(_) => item.reader.report(self.no_provider(item, text)),
            None => {
                let finding = Finding::error(item.span(), format!("there is no model {}", quote(text)));
                item.reader.report(finding.suggest(text, "there are", self.servable()));
            }
        }
        Some(text.to_owned())
    }

    /// The steps from an alias on, each taken once.
    fn way<'a>(&self, name: &'a str, targets: &'a BTreeMap<String, (String, Range<usize>)>) -> Vec<(&'a str, &'a str)> {
        let mut seen = BTreeSet::new();
        let mut next = |name: &'a str| {
            let (name, (target, _)) = targets.get_key_value(name).filter(|(name, _)| seen.insert(*name))?;
            Some((name.as_str(), target.as_str()))
        };
        let alias = |target: &&str| !self.models.contains_key(*target);
        std::iter::successors(next(name), |(_, target)| Some(*target).filter(alias).and_then(&mut next)).collect()
    }

    /// The aliases of the loop that `name` is a part of.
    fn round<'a>(&self, name: &'a str, targets: &'a BTreeMap<String, (String, Range<usize>)>) -> Option<Vec<&'a str>> {
        let way = self.way(name, targets);
        let closed = way.last().is_some_and(|(_, target)| *target == name);
        closed.then(|| way.into_iter().map(|(name, _)| name).collect())
    }

    fn servable(&self) -> impl Iterator<Item = &str> {
        self.models.keys().chain(&self.aliases).map(String::as_str)
    }

    fn no_provider(&self, item: &Item, text: &str) -> Finding {
        let provider = text.split('/').next().unwrap_or_default();
        let finding = Finding::error(item.span(), format!("there is no provider {}", quote(provider)));
        if self.providers.is_empty() {
            return finding.help("a provider is a table `[providers.NAME]`");
        }
        finding.suggest(provider, "there are", self.providers.iter().map(String::as_str))
    }

    /// Only doubtful: a bare name may be a provider's own.
    fn no_model(&self, item: &Item, text: &str) -> Finding {
        let message = format!("{} is no model or alias of this file", quote(text));
        let finding = Finding::warning(item.span(), message);
        if self.providers.contains(text) {
            return finding.help(format!("everything at the provider is `\"{text}/\"`"));
        }
        finding.suggest(text, "there are", self.servable()).help("it holds only for a provider's model of that name")
    }
}

/// Whether the kind that is written there serves none of the endpoints we know.
fn passes_only(provider: &Item) -> bool {
    let DeValue::Table(table) = provider.value() else { return false };
    let kind = table.get("kind").and_then(|kind| kind.get_ref().as_str()).and_then(provider::by_kind);
    kind.is_some_and(|kind| !Endpoint::FORWARDED.iter().any(|endpoint| kind.serves(*endpoint)))
}

fn split(text: &str) -> Option<(&str, &str)> {
    text.split_once('/').filter(|(provider, model)| !provider.is_empty() && !model.is_empty())
}

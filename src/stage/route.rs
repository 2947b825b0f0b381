//! Caller and call → [`Plan`]: which provider serves the request, and whether this caller may have it.

use std::sync::Arc;

use crate::catalog::{self, Entry};
use crate::config::settings::{Provider, Route};
use crate::provider::Target;
use crate::refusal::Refusal;
use crate::stage::authenticate::Caller;
use crate::stage::inspect::{Bounds, Call};
use crate::state::State;
use crate::surface::Endpoint;

/// Where a request may go.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The name it is served under: a configured model, or `provider/model`.
    pub model: String,
    /// The ways to serve it, in the order they are tried; at least one.
    pub routes: Vec<Leg>,
    pub again: Again,
}

/// When a request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Wherever it failed.
    Failed,
    /// Where it had not been sent in full.
    NotWhole,
    /// Where nothing of it had been sent, as there was no connection.
    Unsent,
}

/// One way to serve a request: a model at a provider.
#[derive(Debug, Clone)]
pub struct Leg {
    pub provider: Arc<Provider>,
    /// The provider's own name for the model.
    pub provider_model: String,
    /// Where it goes there.
    pub target: Target,
}

/// A model as somebody named it, and the provider they want it from.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub model: &'a str,
    pub provider: Option<&'a str>,
    pub endpoint: Endpoint,
}

impl<'a> From<&'a Call> for Asked<'a> {
    fn from(call: &'a Call) -> Self {
        Self { model: &call.model, provider: call.provider.as_deref(), endpoint: call.endpoint }
    }
}

/// Finds the providers. A model the caller may not use is refused before it is said whether it could be served.
pub fn plan(state: &State, caller: &Caller, asked: Asked<'_>) -> Result<Plan, Refusal> {
    let unknown = || Refusal::UnknownModel { model: asked.model.to_owned() };
    let (served, routes) = resolve(state, asked.model, asked.provider).ok_or_else(unknown)?;
    let routes: Vec<Route> =
        routes.into_iter().filter(|route| allowed(state, caller, asked.model, &served, route)).collect();
    if routes.is_empty() {
        let status = state.settings.server.access_denied_status;
        return Err(Refusal::AccessDenied { model: asked.model.to_owned(), status });
    }
    let mut legs = Vec::with_capacity(routes.len());
    let mut lacking = None;
    for route in routes {
        let provider = Arc::clone(state.provider(&route.provider).ok_or_else(unknown)?);
        match provider.kind.target(asked.endpoint, &route.model, provider.api_version.as_deref()) {
            Some(target) => legs.push(Leg { provider, provider_model: route.model, target }),
            None => lacking = lacking.or(Some(provider.name.clone())),
        }
    }
    if legs.is_empty() {
        return Err(Refusal::Unsupported { provider: lacking.unwrap_or_default() });
    }
    let at_most_once = state.settings.models.get(&served).is_some_and(|model| model.at_most_once);
    let again = if at_most_once { Again::NotWhole } else { Again::Failed };
    Ok(Plan { model: served, routes: legs, again })
}

/// What a name stands for: the name it is served under, and its routes.
pub fn resolve(state: &State, asked: &str, hint: Option<&str>) -> Option<(String, Vec<Route>)> {
    let name = state.unaliased(asked);
    let direct = |provider: &Arc<Provider>, model: &str| {
        let route = Route { provider: provider.name.clone(), model: model.to_owned() };
        (!state.settings.server.closed_models).then(|| (format!("{}/{model}", provider.name), vec![route]))
    };
    let configured = state.settings.models.get(name);
    let Some(hint) = hint else {
        return match configured {
            Some(model) => Some((name.to_owned(), model.routes.clone())),
            None => state.split(name).and_then(|(provider, model)| direct(provider, model)),
        };
    };
    let at_hint: Vec<Route> = configured
        .map(|model| model.routes.iter().filter(|route| route.provider == hint).cloned().collect())
        .unwrap_or_default();
    if !at_hint.is_empty() {
        return Some((name.to_owned(), at_hint));
    }
    let provider = state.provider(hint)?;
    let model = name.strip_prefix(hint).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
    direct(provider, model)
}

/// The key's own list and those of the path must all agree.
pub fn allowed(state: &State, caller: &Caller, asked: &str, served: &str, route: &Route) -> bool {
    let key = caller.key.allow.as_deref();
    key.into_iter()
        .chain(state.lists_of(&caller.user_path))
        .all(|list| list.iter().any(|selector| state.selects(selector, asked, served, route)))
}

/// What is known of a route: nothing where the provider is not the one the catalog speaks of.
pub fn known(provider: &Provider, model: &str) -> Option<&'static Entry> {
    provider.is_original().then(|| catalog::find(provider.kind.kind(), model)).flatten()
}

impl Plan {
    /// The way that is tried first.
    pub fn first(&self) -> &Leg {
        &self.routes[0]
    }

    /// Bytes of an upload that are kept to be sent again.
    pub fn replay_bytes(&self, state: &State) -> usize {
        let own = state.settings.models.get(&self.model).and_then(|model| model.replay_bytes);
        own.unwrap_or(state.settings.spool.replay_bytes)
    }

    /// Keeps the ways that can do what is asked for. None can: what the first one says of it.
    pub fn keep_able(&mut self, state: &State, call: &Call) -> Result<(), Refusal> {
        let model = state.settings.models.get(&self.model);
        let check = |leg: &Leg| call.check(&Bounds::of(model, known(&leg.provider, &leg.provider_model)));
        check(self.first())
            .or_else(|refusal| if self.routes.iter().any(|leg| check(leg).is_ok()) { Ok(()) } else { Err(refusal) })?;
        self.routes.retain(|leg| check(leg).is_ok());
        Ok(())
    }
}

impl Leg {
    /// What the body has to call the model. `None`: the provider does not read it there.
    pub fn body_model(&self) -> Option<&str> {
        (!self.target.names_model).then_some(self.provider_model.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Key;
    use crate::stage::testing;

    const CONFIG: &str = r#"
        [models.tts-fast]
        routes = ["openai/gpt-4o-mini-tts"]
        [models."house/voice"]
        routes = ["local/kokoro/v1"]
        [aliases]
        tts-1 = "tts-fast"
        plain = "local/piper"
        [keys.k]
        sha256 = "HASH:k"
        [paths."/team"]
        allow = ["tts-fast", "local/"]
        [paths."/team/app"]
        allow = ["local/piper", "openai/"]
    "#;

    fn caller(state: &State, path: &str, allow: Option<&str>) -> Caller {
        let key = &state.settings.keys[0];
        let allow = allow.map(|more| {
            let config = format!("[keys.k]\nsha256 = \"HASH:k\"\nallow = {more}\n");
            testing::settings(&config).keys[0].allow.clone().expect("a list")
        });
        let key = Key {
            name: key.name.clone(),
            hash: key.hash,
            user_path: path.to_owned(),
            workspace: None,
            allow,
            passthrough: None,
            expires: None,
            disabled: false,
        };
        Caller { key: Arc::new(key), user_path: path.to_owned(), spelling: "bearer" }
    }

    fn go(state: &State, caller: &Caller, model: &str, provider: Option<&str>) -> Result<String, (u16, &'static str)> {
        plan(state, caller, Asked { model, provider, endpoint: Endpoint::Speech })
            .map(|plan| {
                let leg = |leg: &Leg| format!("{}/{}", leg.provider.name, leg.provider_model);
                format!("{} = {}", plan.model, plan.routes.iter().map(leg).collect::<Vec<_>>().join(", "))
            })
            .map_err(|refusal| (refusal.status(), refusal.code()))
    }

    #[test]
    fn a_name_leads_to_its_route() {
        let state = testing::state(CONFIG);
        let anyone = caller(&state, "/", None);
        let unknown = Err((404, "model_not_found"));
        for (model, hint, want) in [
            ("tts-fast", None, Ok("tts-fast = openai/gpt-4o-mini-tts")),
            ("tts-1", None, Ok("tts-fast = openai/gpt-4o-mini-tts")),
            ("plain", None, Ok("local/piper = local/piper")),
            ("openai/tts-1-hd", None, Ok("openai/tts-1-hd = openai/tts-1-hd")),
            ("local/a/b", None, Ok("local/a/b = local/a/b")),
            ("house/voice", None, Ok("house/voice = local/kokoro/v1")),
            ("tts-1-hd", None, unknown),
            ("elsewhere/tts-1", None, unknown),
            ("openai/", None, unknown),
            ("OPENAI/tts-1", None, unknown),
            ("tts-1-hd", Some("openai"), Ok("openai/tts-1-hd = openai/tts-1-hd")),
            ("openai/tts-1-hd", Some("openai"), Ok("openai/tts-1-hd = openai/tts-1-hd")),
            ("openai/tts-1-hd", Some("local"), Ok("local/openai/tts-1-hd = local/openai/tts-1-hd")),
            ("tts-fast", Some("openai"), Ok("tts-fast = openai/gpt-4o-mini-tts")),
            ("tts-1", Some("nobody"), unknown),
        ] {
            assert_eq!(go(&state, &anyone, model, hint), want.map(str::to_owned), "{model} at {hint:?}");
        }
    }

    #[test]
    fn closed_models_are_closed() {
        let mut settings = testing::settings(CONFIG);
        settings.server.closed_models = true;
        let state = State::new(settings, false);
        let anyone = caller(&state, "/", None);
        assert!(go(&state, &anyone, "tts-1", None).is_ok());
        for (model, hint) in [("openai/tts-1-hd", None), ("tts-1-hd", Some("openai")), ("openai/gpt-4o-mini-tts", None)]
        {
            assert_eq!(go(&state, &anyone, model, hint), Err((404, "model_not_found")), "{model} at {hint:?}");
        }
    }

    #[test]
    fn lists_of_key_and_paths_must_all_agree() {
        let state = testing::state(CONFIG);
        let denied = Err((403, "model_access_denied"));
        for (path, allow, model, want) in [
            ("/", None, "local/x", Ok(())),
            ("/", Some(r#"["openai/"]"#), "openai/tts-1", Ok(())),
            ("/", Some(r#"["openai/"]"#), "local/x", denied),
            ("/", Some(r#"["tts-1"]"#), "tts-1", Ok(())),
            ("/", Some(r#"["tts-1"]"#), "tts-fast", denied),
            ("/", Some(r#"["tts-fast"]"#), "tts-1", Ok(())),
            ("/", Some(r#"["openai/gpt-4o-mini-tts"]"#), "tts-1", Ok(())),
            ("/", Some("[]"), "tts-1", denied),
            ("/", Some(r#"["/"]"#), "local/x", Ok(())),
            ("/team", None, "tts-1", Ok(())),
            ("/team", None, "openai/tts-1", denied),
            ("/team-b", None, "openai/tts-1", Ok(())),
            ("/team/app", None, "local/piper", Ok(())),
            ("/team/app", None, "local/x", denied),
            ("/team/app", None, "tts-1", Ok(())),
            ("/team/app", Some(r#"["local/"]"#), "tts-1", denied),
        ] {
            let got = go(&state, &caller(&state, path, allow), model, None).map(drop);
            assert_eq!(got, want, "{model} for {path} with {allow:?}");
        }
        for (allow, hint, want) in [
            (r#"["tts-fast"]"#, "local", denied),
            (r#"["tts-1"]"#, "local", denied),
            (r#"["tts-1"]"#, "openai", Ok(())),
            (r#"["local/"]"#, "local", Ok(())),
        ] {
            let got = go(&state, &caller(&state, "/", Some(allow)), "tts-1", Some(hint)).map(drop);
            assert_eq!(got, want, "a hint of {hint} is no way around {allow}");
        }
    }

    #[test]
    fn the_status_of_a_denial_is_a_setting() {
        let mut settings = testing::settings(CONFIG);
        settings.server.access_denied_status = 400;
        let state = State::new(settings, false);
        let got = go(&state, &caller(&state, "/", Some("[]")), "tts-1", None);
        assert_eq!(got, Err((400, "model_access_denied")));
    }

    #[test]
    fn the_catalog_speaks_only_of_the_provider_it_knows() {
        let state = testing::state(CONFIG);
        let at = |name: &str| known(state.provider(name).expect("configured"), "tts-1").is_some();
        assert!(at("openai") && !at("local"));
    }
}

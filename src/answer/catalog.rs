//! `models`, `models/{id}`, `audio/models`, `audio/voices`: what this caller may use.

use serde_json::{Value, json};

use super::Answer;
use crate::catalog::{self, Entry};
use crate::config::settings::{Model, Route};
use crate::refusal::Refusal;
use crate::stage::authenticate::Caller;
use crate::stage::route::{allowed, known, resolve};
use crate::state::State;
use crate::surface::Endpoint;

/// A model as it is listed.
struct Listed<'s> {
    id: String,
    owned_by: String,
    model: Option<&'s Model>,
    known: Option<&'static Entry>,
}

/// `models`: OpenAI's list.
pub fn models(state: &State, caller: Option<&Caller>) -> Answer {
    let data: Vec<Value> = listed(state, caller).iter().map(Listed::object).collect();
    Answer::json(200, &json!({ "object": "list", "data": data }))
}

/// `models/{id}`: one of them. What the caller may not use does not exist for it.
pub fn model(state: &State, caller: Option<&Caller>, id: &str) -> Result<Answer, Refusal> {
    let listed = find(state, caller, id).ok_or_else(|| Refusal::UnknownModel { model: id.to_owned() })?;
    Ok(Answer::json(200, &listed.object()))
}

/// `audio/models`: those that speak, in the shapes that clients of other servers look for.
pub fn audio_models(state: &State, caller: Option<&Caller>) -> Answer {
    let speaking: Vec<Value> =
        listed(state, caller).iter().filter(|listed| listed.may_speak()).map(Listed::object).collect();
    Answer::json(200, &json!({ "object": "list", "models": speaking, "data": speaking }))
}

/// `audio/voices`: of one model, or of all; an id that several models share is listed once.
pub fn voices(state: &State, caller: Option<&Caller>, model: Option<&str>) -> Result<Answer, Refusal> {
    let of: Vec<Listed<'_>> = match model {
        None => listed(state, caller),
        Some(id) => vec![find(state, caller, id).ok_or_else(|| Refusal::UnknownModel { model: id.to_owned() })?],
    };
    let mut data: Vec<Value> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for listed in of.iter().filter(|listed| listed.may_speak()) {
        for voice in listed.voices().iter().filter(|voice| seen.insert((*voice).clone())) {
            data.push(json!({
                "id": voice, "name": voice, "object": "audio.voice", "model": listed.id,
                "language": null, "preview_url": null,
            }));
        }
    }
    let short: Vec<Value> = data.iter().map(|voice| json!({ "id": voice["id"], "name": voice["name"] })).collect();
    Ok(Answer::json(200, &json!({ "object": "list", "data": data, "voices": short, "has_more": false })))
}

/// Everything the config names, and what the catalog knows of providers it speaks of, if any model may be asked for.
fn listed<'s>(state: &'s State, caller: Option<&Caller>) -> Vec<Listed<'s>> {
    let configured = state.settings.models.keys().chain(state.settings.aliases.keys()).cloned();
    let shipped = state.settings.providers.values().filter(|provider| provider.is_original()).flat_map(|provider| {
        let ids = catalog::of_kind(provider.kind.kind()).filter(|_| !state.settings.server.closed_models);
        ids.flat_map(move |entry| entry.ids.iter().map(move |id| format!("{}/{id}", provider.name)))
    });
    let mut ids: Vec<String> = configured.chain(shipped).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.iter().filter_map(|id| find(state, caller, id)).collect()
}

fn find<'s>(state: &'s State, caller: Option<&Caller>, id: &str) -> Option<Listed<'s>> {
    let (served, routes) = resolve(state, id, None)?;
    let may = |route: &Route| caller.is_none_or(|caller| allowed(state, caller, id, &served, route));
    let route = routes.into_iter().find(may)?;
    let provider = state.provider(&route.provider)?;
    Endpoint::FORWARDED.iter().find(|endpoint| provider.kind.serves(**endpoint))?;
    Some(Listed {
        id: id.to_owned(),
        owned_by: provider.name.clone(),
        model: state.settings.models.get(&served),
        known: known(provider, &route.model),
    })
}

impl Listed<'_> {
    fn object(&self) -> Value {
        json!({
            "id": self.id,
            "object": "model",
            "created": self.known.map_or(0, |known| known.created),
            "owned_by": self.owned_by,
            "shutdown_date": self.known.and_then(|known| known.shutdown_date.clone()),
        })
    }

    /// What nobody knows may well speak.
    fn may_speak(&self) -> bool {
        self.known.is_none_or(|known| known.task.fits(Endpoint::Speech))
    }

    fn voices(&self) -> &[String] {
        let said = self.model.and_then(|model| model.voices.as_deref());
        said.or(self.known.and_then(|known| known.voices.as_deref())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::authenticate;
    use crate::stage::testing;
    use http::HeaderMap;

    const CONFIG: &str = r#"
        [models.tts-fast]
        routes = ["openai/gpt-4o-mini-tts"]
        [models.house]
        routes = ["local/kokoro"]
        voices = ["af_bella", "alloy"]
        [aliases]
        tts-1 = "tts-fast"
        [keys.all]
        sha256 = "HASH:all"
        [keys.few]
        sha256 = "HASH:few"
        allow = ["house", "tts-1"]
    "#;

    fn caller(state: &State, key: &str) -> Caller {
        let mut headers = HeaderMap::new();
        headers.insert("api-key", key.parse().expect("a header value"));
        authenticate::caller(state, &headers, "", authenticate::Places::Headers, jiff::Timestamp::UNIX_EPOCH)
            .expect("known")
    }

    fn parsed(answer: &Answer) -> Value {
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    fn ids(list: &Value) -> Vec<&str> {
        list.as_array().expect("a list").iter().filter_map(|item| item["id"].as_str()).collect()
    }

    #[test]
    fn a_caller_sees_what_it_may_use() {
        let state = testing::state(CONFIG);
        let all = parsed(&models(&state, Some(&caller(&state, "all"))));
        assert_eq!(all["object"], "list");
        for id in ["tts-fast", "tts-1", "house", "openai/tts-1-hd", "openai/gpt-audio-1.5"] {
            assert!(ids(&all["data"]).contains(&id), "{id}");
        }
        assert!(!ids(&all["data"]).iter().any(|id| id.starts_with("local/")), "the catalog does not speak of it");
        let few = caller(&state, "few");
        assert_eq!(ids(&parsed(&models(&state, Some(&few)))["data"]), ["house", "tts-1"]);
        assert!(model(&state, Some(&few), "tts-1").is_ok());
        for id in ["tts-fast", "openai/tts-1-hd", "nothing"] {
            let refusal = model(&state, Some(&few), id).expect_err("hidden");
            assert_eq!((refusal.status(), refusal.code()), (404, "model_not_found"), "{id}");
        }
    }

    #[test]
    fn a_model_is_an_openai_object() {
        let state = testing::state(CONFIG);
        let one = parsed(&model(&state, None, "openai/tts-1").expect("known"));
        let want = json!({
            "id": "openai/tts-1", "object": "model", "created": 0, "owned_by": "openai", "shutdown_date": "2027-01-06",
        });
        assert_eq!(one, want);
    }

    #[test]
    fn voices_come_in_every_shape_clients_look_for() {
        let state = testing::state(CONFIG);
        let house = parsed(&voices(&state, None, Some("house")).expect("known"));
        assert_eq!(
            house["voices"],
            json!([{ "id": "af_bella", "name": "af_bella" }, { "id": "alloy", "name": "alloy" }])
        );
        assert_eq!(house["data"][0]["model"], "house");
        assert_eq!((&house["object"], &house["has_more"]), (&json!("list"), &json!(false)));
        let all = parsed(&voices(&state, None, None).expect("listed"));
        let all = ids(&all["data"]);
        assert!(all.contains(&"af_bella") && all.contains(&"cedar"));
        assert_eq!(all.iter().filter(|id| **id == "alloy").count(), 1, "{all:?}");
        assert!(voices(&state, None, Some("nothing")).is_err());
    }

    #[test]
    fn only_what_may_speak_is_an_audio_model() {
        let state = testing::state(CONFIG);
        let listed = parsed(&audio_models(&state, None));
        let ids = ids(&listed["models"]);
        assert!(ids.contains(&"house") && ids.contains(&"openai/tts-1") && !ids.contains(&"openai/gpt-audio"));
        assert_eq!(listed["models"], listed["data"]);
    }
}

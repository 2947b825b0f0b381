//! `aulos route`: the stages of one request, dry. The same functions decide as when it is served; how the providers
//! fare is asked of the service that runs with the config, if one does.

use std::sync::Arc;

use clap::Args;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use jiff::Timestamp;

use super::standing::Standings;
use super::{Config, Failed, WithoutSecrets, load};
use crate::config::settings::Key;
use crate::refusal::Refusal;
use crate::stage::authenticate::{self, Caller};
use crate::stage::inspect::{self, Call, Media};
use crate::stage::passthrough;
use crate::stage::rewrite;
use crate::stage::route::{self, Plan};
use crate::state::State;
use crate::surface::{self, Endpoint, Place};
use crate::wire::json::{Member, Scanner};
use crate::wire::multipart::Boundary;

#[derive(Debug, Args)]
pub(super) struct Route {
    #[command(flatten)]
    config: Config,
    /// The name of a key in the config; without it, access is not judged.
    #[arg(long)]
    key: Option<String>,
    /// The user path, if a header would name one.
    #[arg(long)]
    user_path: Option<String>,
    /// The method.
    #[arg(short = 'X', long, default_value = "POST")]
    method: String,
    /// A header, `name: value`; may stand several times.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// The body, as JSON; without it the model is not looked for.
    #[arg(long)]
    json: Option<String>,
    /// The model that the form of an upload names.
    #[arg(long)]
    model: Option<String>,
    /// The path, with its query.
    #[arg(default_value = "/v1/audio/speech")]
    path: String,
}

pub(super) fn route(args: &Route) -> Result<(), Failed> {
    let state = State::new(load(&args.config, &WithoutSecrets)?, true);
    let standings = Standings::ask(state.settings.server.admin);
    let lines = explain(&state, args, &standings, Timestamp::now()).map_err(Failed::Arguments)?;
    lines.said.iter().for_each(|(step, what)| println!("{step:<9} {what}"));
    match lines.refusal {
        None => Ok(()),
        Some(refusal) => Err(Failed::Not(format!("this request would get {}", refusal.status()))),
    }
}

/// What was decided, step by step, and the refusal it ended with.
#[derive(Debug, Default)]
struct Lines {
    said: Vec<(&'static str, String)>,
    refusal: Option<Refusal>,
}

/// An error is about the arguments. `now` is what a key's expiry is read by.
fn explain(state: &State, args: &Route, standings: &Standings, now: Timestamp) -> Result<Lines, String> {
    let uri: Uri = args.path.parse().map_err(|_| format!("`{}` is no path: it begins with `/`", args.path))?;
    let method: Method = args.method.parse().map_err(|error| format!("{}: {error}", args.method))?;
    let headers = headers(args)?;
    let key = key(state, args)?;
    let mut lines = Lines::default();
    let request = Dry { state, uri: &uri, method: &method, headers: &headers, key: &key, now, args, standings };
    if let Err(refusal) = request.follow(&mut lines.said) {
        lines.said.push(("refused", format!("{} {}: {refusal}", refusal.status(), refusal.code())));
        lines.refusal = Some(refusal);
    }
    Ok(lines)
}

struct Dry<'d> {
    state: &'d State,
    uri: &'d Uri,
    method: &'d Method,
    headers: &'d HeaderMap,
    key: &'d Arc<Key>,
    now: Timestamp,
    args: &'d Route,
    standings: &'d Standings,
}

impl Dry<'_> {
    fn follow(&self, said: &mut Vec<(&'static str, String)>) -> Result<(), Refusal> {
        let path = self.uri.path();
        let host = passthrough::host(self.uri.authority(), self.headers, self.state);
        let routed = host.map(|_| Place { endpoint: Endpoint::Passthrough, model: None });
        let place = routed
            .or_else(|| surface::find(path))
            .ok_or_else(|| Refusal::UnknownPath { path: path.to_owned(), hint: surface::hint(path) })?;
        said.push(("endpoint", place.endpoint.op().to_owned()));
        if !place.endpoint.allows(self.method) {
            let allow = place.endpoint.allow();
            return Err(Refusal::MethodNotAllowed { method: self.method.to_string(), allow });
        }
        let caller = self.caller(said)?;
        if !place.endpoint.is_forwarded() {
            said.push(("answer", "is made here, no provider is asked".to_owned()));
            return Ok(());
        }
        if place.endpoint == Endpoint::Passthrough {
            return self.passed(host, &caller, said);
        }
        let named = inspect::named(&place, self.headers, self.uri.query().unwrap_or_default())?;
        if place.endpoint.is_upload() {
            let boundary = self.boundary(place.endpoint)?;
            let inside = self.args.model.clone().map(inspect::valid_model).transpose()?;
            if named.model.is_none() && inside.is_none() {
                said.push(("body", "say with --model which one its form names, and the rest is said too".to_owned()));
                return Ok(());
            }
            let call = inspect::upload(place.endpoint, named, boundary, inside.as_deref())?;
            return self.routed(&caller, &call, said);
        }
        inspect::media(place.endpoint, self.headers)?;
        let Some(body) = self.args.json.as_deref().map(str::as_bytes) else {
            said.push(("body", "give one with --json, and the rest is said too".to_owned()));
            return Ok(());
        };
        let call = inspect::call(place.endpoint, named, body, &members(body)?)?;
        self.routed(&caller, &call, said)
    }

    fn caller(&self, said: &mut Vec<(&'static str, String)>) -> Result<Caller, Refusal> {
        let caller = authenticate::admit(self.state, self.key, "none", self.headers, self.now).map_err(|denied| {
            if self.key.disabled {
                said.push(("key", format!("{} is disabled", self.key.name)));
            } else if let Some(expires) = self.key.expires.filter(|expires| *expires <= self.now) {
                said.push(("key", format!("{} has expired on {expires}", self.key.name)));
            }
            denied.refusal
        })?;
        let unjudged = if self.args.key.is_some() { "" } else { " (no --key)" };
        said.push(("key", format!("{}, user path {}{unjudged}", caller.key.name, caller.user_path)));
        Ok(caller)
    }

    fn passed(
        &self,
        host: Option<&str>,
        caller: &Caller,
        said: &mut Vec<(&'static str, String)>,
    ) -> Result<(), Refusal> {
        let (provider, rest) = passthrough::place(self.state, host, self.uri.path())?;
        let path = passthrough::target(&provider.base_url.path, rest);
        passthrough::permit(self.state, caller, provider, rest, &path)?;
        let judged = if self.args.key.is_some() { "allowed" } else { "not judged without --key" };
        said.push(("access", judged.to_owned()));
        let pass = passthrough::pass(provider, &path, self.uri.query(), self.headers, false);
        said.push(("candidate", format!("{} at {}{}", provider.name, provider.base_url.origin(), pass.target)));
        said.extend(self.standings.of(&provider.name));
        said.push(("body", "is sent as it is".to_owned()));
        Ok(())
    }

    fn routed(&self, caller: &Caller, call: &Call, said: &mut Vec<(&'static str, String)>) -> Result<(), Refusal> {
        let name = self.state.unaliased(&call.model);
        let kind = match () {
            () if name != call.model => format!(" is an alias of `{name}`"),
            () if self.state.settings.models.contains_key(name) => " is a model of the config".to_owned(),
            () if self.state.split(name).is_some() => " names its provider".to_owned(),
            () => " is no model, no alias, and begins with no provider's name".to_owned(),
        };
        said.push(("model", format!("`{}`{kind}", call.model)));
        let plan = route::plan(self.state, caller, call.into())?;
        let judged = if self.args.key.is_some() { "allowed" } else { "not judged without --key" };
        said.push(("access", judged.to_owned()));
        for (n, leg) in (1..).zip(&plan.routes) {
            let base = &leg.provider.base_url;
            let target = rewrite::target(&leg.provider, &leg.target, self.uri.query());
            let (provider, model) = (&leg.provider.name, &leg.provider_model);
            said.push(("candidate", format!("{n}. {provider}/{model} at {}{target}", base.origin())));
            said.extend(self.standings.of(provider));
        }
        let mut plan = plan;
        plan.keep_able(self.state, call)?;
        said.push(("body", self.body(call, &plan)));
        Ok(())
    }

    /// That of the header, or of a form that nobody sends.
    fn boundary(&self, endpoint: Endpoint) -> Result<Boundary, Refusal> {
        let mut headers = self.headers.clone();
        if !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=aulos"));
        }
        match inspect::media(endpoint, &headers)? {
            Media::Form(boundary) => Ok(boundary),
            Media::Json => Err(Refusal::MediaType("multipart/form-data")),
        }
    }

    /// What becomes of the body.
    fn body(&self, call: &Call, plan: &Plan) -> String {
        let edits: Vec<String> = match (call.json(), plan.first().body_model()) {
            (Some(json), name) => {
                json.edits(name).iter().map(|edit| String::from_utf8_lossy(&edit.with).into_owned()).collect()
            }
            (None, Some(name)) if self.args.model.as_deref() != Some(name) => vec![format!("the model `{name}`")],
            (None, _) => Vec::new(),
        };
        if edits.is_empty() { "is sent as it is".to_owned() } else { format!("gets {}", edits.join(", ")) }
    }
}

fn members(body: &[u8]) -> Result<Vec<Member>, Refusal> {
    let mut scanner = Scanner::new();
    scanner.push(body).and_then(|()| scanner.finish()).map_err(Refusal::from)
}

/// The headers of the arguments, the user path among them.
fn headers(args: &Route) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let path = args.user_path.iter().map(|path| format!("{}: {path}", authenticate::USER_PATH_ALIAS));
    for line in args.headers.iter().cloned().chain(path) {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("`{line}` is no header: `name: value`"))?;
        let name: HeaderName = name.trim().parse().map_err(|error| format!("{line}: {error}"))?;
        let value: HeaderValue = value.trim().parse().map_err(|error| format!("{line}: {error}"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// The key that was named, or one that may do everything.
fn key(state: &State, args: &Route) -> Result<Arc<Key>, String> {
    let keys = &state.settings.keys;
    match &args.key {
        Some(name) => keys
            .iter()
            .find(|key| key.name == *name)
            .cloned()
            .ok_or_else(|| format!("no key of the config is called `{name}`")),
        None => Ok(Arc::new(Key::anonymous())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::testing;

    const CONFIG: &str = r#"
        [models.tts-fast]
        routes = ["openai/gpt-4o-mini-tts"]
        [aliases]
        tts-1 = "tts-fast"
        [keys.few]
        sha256 = "HASH:few"
        allow = ["local/"]
        user_path = "/team"
        [keys.old]
        sha256 = "HASH:old"
        expires = "2020-01-01T00:00:00Z"
        [keys.off]
        sha256 = "HASH:off"
        disabled = true
    "#;
    const BODY: &str = r#"{"model":"tts-1","input":"x","voice":"alloy"}"#;

    fn args(key: Option<&str>, path: &str, json: Option<&str>, header: &[&str]) -> Route {
        Route {
            config: Config { config: "/nowhere".into() },
            key: key.map(str::to_owned),
            user_path: None,
            method: "POST".to_owned(),
            headers: header.iter().map(|line| (*line).to_owned()).collect(),
            json: json.map(str::to_owned),
            model: None,
            path: path.to_owned(),
        }
    }

    fn dry(key: Option<&str>, path: &str, json: Option<&str>, header: &[&str]) -> (String, Option<&'static str>) {
        told(&args(key, path, json, header))
    }

    fn told(args: &Route) -> (String, Option<&'static str>) {
        let now = "2026-11-20T12:00:00Z".parse().expect("a time");
        let unknown = Standings::Unknown("nobody was asked".to_owned());
        let lines = explain(&testing::state(CONFIG), args, &unknown, now).expect("the arguments are fine");
        let said: Vec<_> = lines.said.iter().map(|(step, what)| format!("{step}: {what}")).collect();
        (said.join("\n"), lines.refusal.map(|refusal| refusal.code()))
    }

    #[test]
    fn a_dry_run_says_what_and_why() {
        let (said, refusal) = dry(None, "/v1/audio/speech", Some(BODY), &[]);
        assert_eq!(refusal, None, "{said}");
        for fragment in [
            "endpoint: speech",
            "access: not judged without --key",
            "`tts-1` is an alias of `tts-fast`",
            "1. openai/gpt-4o-mini-tts at https://api.openai.com/v1/audio/speech",
            "health: not known, nobody was asked",
            "body: gets \"gpt-4o-mini-tts\"",
        ] {
            assert!(said.contains(fragment), "{fragment} in\n{said}");
        }
        let (said, refusal) = dry(None, "/v1/audio/speech", None, &[]);
        assert!(refusal.is_none() && said.contains("--json"), "{said}");
    }

    #[test]
    fn what_passes_through_is_said_too() {
        let (said, refusal) = dry(None, "/p/openai/v1/files?x=%2f&key=k", None, &[]);
        assert!(refusal.is_none() && said.contains("openai at https://api.openai.com/v1/files?x=%2f\n"), "{said}");
        for (key, path, code) in [
            (Some("few"), "/p/local/v1", "forbidden"),
            (None, "/p/nobody/v1", "unknown_provider"),
            (None, "/p/openai/../x", "invalid_path"),
        ] {
            assert_eq!(dry(key, path, None, &[]).1, Some(code), "{path}");
        }
    }

    #[test]
    fn an_uploads_model_is_said_in_words() {
        let dry = |path: &str, model: Option<&str>, header: &[&str]| {
            let args = Route { model: model.map(str::to_owned), ..args(None, path, None, header) };
            told(&args)
        };
        let path = "/v1/audio/transcriptions";
        for (path, model, header, want, refusal) in [
            (path, Some("tts-1"), &[][..], "body: gets the model `gpt-4o-mini-tts`", None),
            (
                path,
                Some("openai/whisper-1"),
                &[],
                "1. openai/whisper-1 at https://api.openai.com/v1/audio/transcriptions",
                None,
            ),
            (path, None, &[], "--model", None),
            (path, None, &["x-aulos-model: openai/whisper-1"], "candidate", None),
            (path, Some(""), &[], "refused", Some("invalid_model")),
            (path, Some("tts-1"), &["content-type: text/plain"], "refused", Some("unsupported_media_type")),
            (path, Some("tts-1"), &["content-encoding: gzip"], "refused", Some("unsupported_media_type")),
        ] {
            let (said, code) = dry(path, model, header);
            assert!(said.contains(want) && code == refusal, "{model:?} {header:?}:\n{said}");
        }
    }

    #[test]
    fn what_would_be_refused_is_refused() {
        let speech = "/v1/audio/speech";
        let elsewhere = Some(r#"{"model":"nothing","input":"x","voice":"a"}"#);
        for (key, path, json, header, code, why) in [
            (Some("few"), speech, Some(BODY), &[][..], "model_access_denied", "403"),
            (Some("few"), speech, Some(BODY), &["x-aulos-user-path: /x"], "invalid_user_path", "not below"),
            (Some("old"), speech, Some(BODY), &[], "invalid_api_key", "has expired on 2020"),
            (Some("off"), speech, Some(BODY), &[], "invalid_api_key", "is disabled"),
            (None, "/v1/elsewhere", Some(BODY), &[], "unknown_url", "base URL"),
            (None, "/v1/models", Some(BODY), &[], "method_not_allowed", "GET"),
            (None, speech, Some("{"), &[], "invalid_json", "byte 1"),
            (None, speech, elsewhere, &[], "model_not_found", "no model, no alias"),
        ] {
            let (said, refusal) = dry(key, path, json, header);
            assert_eq!(refusal, Some(code), "{said}");
            assert!(said.contains(why), "{why} in\n{said}");
        }
    }
}

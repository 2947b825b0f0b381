//! `aulos route`: the stages of one request, dry. The same functions decide as when it is served.

use std::sync::Arc;

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::{Config, load};
use crate::config::settings::Key;
use crate::refusal::Refusal;
use crate::stage::authenticate::Caller;
use crate::stage::inspect;
use crate::stage::route::{self, Asked};
use crate::state::State;
use crate::surface;
use crate::wire::json::{Fault, Scanner};

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
    #[arg(short = 'X', long, default_value = "POST")]
    method: String,
    /// A header, `name: value`; may stand several times.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// The body.
    #[arg(long)]
    json: Option<String>,
    /// The path, with its query.
    #[arg(default_value = "/v1/audio/speech")]
    path: String,
}

pub(super) fn route(args: &Route) -> Result<(), String> {
    let state = State::new(load(&args.config)?, true);
    let lines = explain(&state, args)?;
    lines.said.iter().for_each(|(step, what)| println!("{step:<9} {what}"));
    match lines.refusal {
        None => Ok(()),
        Some(refusal) => Err(format!("refused   {} {}: {refusal}", refusal.status(), refusal.code())),
    }
}

/// What was decided, step by step, and the refusal it ended with.
#[derive(Debug, Default)]
struct Lines {
    said: Vec<(&'static str, String)>,
    refusal: Option<Refusal>,
}

/// An error is about the arguments.
fn explain(state: &State, args: &Route) -> Result<Lines, String> {
    let uri: Uri = args.path.parse().map_err(|error| format!("{}: {error}", args.path))?;
    let method: Method = args.method.parse().map_err(|error| format!("{}: {error}", args.method))?;
    let headers = headers(&args.headers)?;
    let caller = caller(state, args)?;
    let mut lines = Lines::default();
    let request = Dry { state, uri: &uri, method: &method, headers: &headers, caller: &caller, args };
    lines.refusal = request.follow(&mut lines.said).err();
    Ok(lines)
}

struct Dry<'d> {
    state: &'d State,
    uri: &'d Uri,
    method: &'d Method,
    headers: &'d HeaderMap,
    caller: &'d Caller,
    args: &'d Route,
}

impl Dry<'_> {
    fn follow(&self, said: &mut Vec<(&'static str, String)>) -> Result<(), Refusal> {
        let path = self.uri.path();
        let place = surface::find(path)
            .ok_or_else(|| Refusal::UnknownPath { path: path.to_owned(), hint: surface::hint(path) })?;
        said.push(("endpoint", place.endpoint.op().to_owned()));
        if !place.endpoint.allows(self.method) {
            let allow = place.endpoint.allow();
            return Err(Refusal::MethodNotAllowed { method: self.method.to_string(), allow });
        }
        let unjudged = if self.args.key.is_some() { "" } else { " (no --key: access is not judged)" };
        said.push(("key", format!("{}, user path {}{unjudged}", self.caller.key.name, self.caller.user_path)));
        if !place.endpoint.is_forwarded() {
            said.push(("answer", "is made here, no provider is asked".to_owned()));
            return Ok(());
        }
        let named = inspect::named(&place, self.headers, self.uri.query().unwrap_or_default())?;
        let body = self.args.json.as_deref().unwrap_or_default().as_bytes();
        let call = inspect::call(place.endpoint, named, body, &members(body)?)?;
        let name = self.state.unaliased(&call.model);
        let alias = if name == call.model { String::new() } else { format!(" is an alias of `{name}`") };
        said.push(("model", format!("`{}`{alias}", call.model)));
        let asked = Asked { model: &call.model, provider: call.provider.as_deref(), endpoint: place.endpoint };
        let plan = route::plan(self.state, self.caller, asked)?;
        said.push(("access", "allowed".to_owned()));
        let base = &plan.provider.base_url;
        let scheme = if base.tls { "https" } else { "http" };
        said.push((
            "candidate",
            format!(
                "1. {}/{} at {scheme}://{}{}{}",
                plan.provider.name,
                plan.provider_model,
                base.authority(),
                base.path,
                plan.path
            ),
        ));
        call.check(&plan.bounds(self.state))?;
        let edits = call.edits(&plan.provider_model).len();
        let rewritten = if edits == 0 { "sent as it is".to_owned() } else { format!("{edits} values replaced in it") };
        said.push(("body", rewritten));
        Ok(())
    }
}

fn members(body: &[u8]) -> Result<Vec<crate::wire::json::Member>, Refusal> {
    let mut scanner = Scanner::new();
    scanner.push(body).and_then(|()| scanner.finish()).map_err(|fault| match fault {
        Fault::Syntax { reason, at } => Refusal::InvalidJson { reason, at },
        Fault::DuplicateKey { key } => Refusal::DuplicateKey { key },
    })
}

fn headers(lines: &[String]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("`{line}` is no header: `name: value`"))?;
        let name: HeaderName = name.trim().parse().map_err(|error| format!("{line}: {error}"))?;
        let value: HeaderValue = value.trim().parse().map_err(|error| format!("{line}: {error}"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn caller(state: &State, args: &Route) -> Result<Caller, String> {
    let key: Arc<Key> = match &args.key {
        Some(name) => state
            .settings
            .keys
            .iter()
            .find(|key| key.name == *name)
            .cloned()
            .ok_or_else(|| format!("no key of the config is called `{name}`"))?,
        None => State::new(crate::config::Settings { keys: Vec::new(), ..state.settings.clone() }, true)
            .anonymous
            .ok_or("a caller without a key")?,
    };
    let user_path = match &args.user_path {
        None => key.user_path.clone(),
        Some(path) => crate::config::values::normalise_user_path(path)
            .filter(|path| crate::state::is_below(path, &key.user_path))
            .ok_or_else(|| format!("`{path}` is not below the key's own path {}", key.user_path))?,
    };
    Ok(Caller { key, user_path, spelling: "none" })
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
    "#;

    fn dry(key: Option<&str>, path: &str, json: &str) -> (String, Option<&'static str>) {
        let args = Route {
            config: Config { config: "/nowhere".into() },
            key: key.map(str::to_owned),
            user_path: None,
            method: "POST".to_owned(),
            headers: vec!["x-aulos-user-path: /x".to_owned()],
            json: Some(json.to_owned()),
            path: path.to_owned(),
        };
        let lines = explain(&testing::state(CONFIG), &args).expect("the arguments are fine");
        let said: Vec<_> = lines.said.iter().map(|(step, what)| format!("{step}: {what}")).collect();
        (said.join("\n"), lines.refusal.map(|refusal| refusal.code()))
    }

    #[test]
    fn a_dry_run_says_what_and_why() {
        let body = r#"{"model":"tts-1","input":"x","voice":"alloy"}"#;
        let (said, refusal) = dry(None, "/v1/audio/speech", body);
        assert_eq!(refusal, None);
        for fragment in [
            "endpoint: speech",
            "access is not judged",
            "`tts-1` is an alias of `tts-fast`",
            "1. openai/gpt-4o-mini-tts at https://api.openai.com/v1/audio/speech",
            "1 values replaced",
        ] {
            assert!(said.contains(fragment), "{fragment} in\n{said}");
        }
        assert_eq!(dry(Some("few"), "/v1/audio/speech", body).1, Some("model_access_denied"));
        assert_eq!(dry(None, "/v1/elsewhere", body).1, Some("unknown_url"));
        assert_eq!(dry(None, "/v1/models", body).1, Some("method_not_allowed"));
        assert_eq!(dry(None, "/v1/audio/speech", "{").1, Some("invalid_json"));
    }
}

//! Settings and states for the stages' tests, written as the config an operator would write.

use std::io;
use std::path::Path;

use crate::config::{self, Environment, settings::Settings};
use crate::stage::authenticate::{self, Caller, Places};
use crate::state::State;
use crate::units::KeyHash;

struct Fixed;

impl Environment for Fixed {
    fn var(&self, name: &str) -> Option<String> {
        (name == "TEST_KEY").then(|| "provider-secret-0123456789".to_owned())
    }

    fn read(&self, _: &Path) -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// A config with two providers, `openai` and `local`, and what `more` adds. `HASH:text` stands for a key's hash.
pub(crate) fn settings(more: &str) -> Settings {
    let mut text = String::from(
        r#"
        [providers.openai]
        kind = "openai"
        keys = ["${TEST_KEY}"]
        [providers.local]
        kind = "openai"
        base_url = "http://127.0.0.1:9/base/v1"
        "#,
    );
    text.push_str(more);
    while let Some(start) = text.find("HASH:") {
        let rest = &text[start + 5..];
        let key = &rest[..rest.find('"').expect("a closing quote")];
        let hash = KeyHash::of(key.as_bytes()).to_string();
        text = text.replacen(&format!("HASH:{key}\""), &format!("{hash}\""), 1);
    }
    match config::parse("test.toml", &text, Path::new("/"), &Fixed) {
        Ok((settings, _)) => settings,
        Err(complaints) => unreachable!("{complaints}"),
    }
}

pub(crate) fn state(more: &str) -> State {
    State::new(settings(more), false)
}

/// Who asks where no key is asked for.
pub(crate) fn anyone(state: &State) -> Caller {
    let headers = http::HeaderMap::new();
    let caller = authenticate::caller(state, &headers, "", Places::Headers, jiff::Timestamp::UNIX_EPOCH);
    caller.expect("insecure")
}

//! `aulos keys`: a key is shown once, when it is made; the config holds its hash.

use std::io::{BufRead as _, IsTerminal as _};

use clap::Subcommand;

use super::{Config, Failed, WithoutSecrets, load};
use crate::config::values;
use crate::units::KeyHash;

/// Random bytes of a key of ours.
const KEY_BYTES: usize = 32;
/// What our own keys begin with, so that scanners for leaked secrets can find them.
const KEY_PREFIX: &str = "aulos_";

#[derive(Debug, Subcommand)]
pub(super) enum Keys {
    /// Make a key, and the lines for the config.
    Create {
        /// The key's name in the config and in records.
        name: String,
        /// The path its requests are for.
        #[arg(long, default_value = "/")]
        user_path: String,
    },
    /// Read a key from standard input, and say which one of the config it is.
    Check {
        #[command(flatten)]
        config: Config,
    },
}

pub(super) fn keys(keys: &Keys) -> Result<(), Failed> {
    match keys {
        Keys::Create { name, user_path } => create(name, user_path),
        Keys::Check { config } => check(config),
    }
}

fn create(name: &str, user_path: &str) -> Result<(), Failed> {
    let name = values::name(name)
        .ok_or_else(|| Failed::Arguments("a key's name has 1 to 256 bytes and no control characters".to_owned()))?;
    let path = values::normalise_user_path(user_path).ok_or_else(|| {
        Failed::Arguments(format!("`{user_path}` is no user path: `/segments`, without `.`, `..` or `:`"))
    })?;
    let mut random = [0; KEY_BYTES];
    getrandom::fill(&mut random).map_err(|error| format!("the system gives no random bytes: {error}"))?;
    let (key, lines) = made(name, &path, &random);
    eprintln!("The key is shown this once. Give it to the client, and put the lines below into the config.\n");
    println!("{key}\n\n{lines}");
    Ok(())
}

/// The key, and the config's lines for it.
fn made(name: &str, user_path: &str, random: &[u8]) -> (String, String) {
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("{KEY_PREFIX}{digits}");
    let hash = KeyHash::of(key.as_bytes());
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let lines = format!("[keys.{}]\nsha256 = \"{hash}\"\nuser_path = {}", quoted(name), quoted(user_path));
    (key, lines)
}

fn check(config: &Config) -> Result<(), Failed> {
    let settings = load(config, &WithoutSecrets)?;
    if std::io::stdin().is_terminal() {
        eprintln!("Type or paste the key:");
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| format!("no key could be read: {error}"))?;
    let hash = KeyHash::of(line.trim().as_bytes());
    let key = settings
        .keys
        .iter()
        .find(|key| key.hash.matches(&hash))
        .ok_or_else(|| format!("this is no key of {}", config.config.display()))?;
    let expired = key.expires.is_some_and(|expires| expires <= jiff::Timestamp::now());
    let state = if key.disabled {
        "disabled"
    } else if expired {
        "expired"
    } else {
        "valid"
    };
    println!("`{}`, {state}, user path {}", key.name, key.user_path);
    if state == "valid" { Ok(()) } else { Err(format!("the key is {state}").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_is_the_one_the_config_knows() {
        let (key, lines) = made("a \"b\"", "/team", &[0xab; KEY_BYTES]);
        assert_eq!(key, format!("aulos_{}", "ab".repeat(KEY_BYTES)));
        let config = format!("{lines}\n");
        let settings = crate::stage::testing::settings(&config);
        assert_eq!((settings.keys[0].name.as_str(), settings.keys[0].user_path.as_str()), ("a \"b\"", "/team"));
        assert!(settings.keys[0].hash.matches(&KeyHash::of(key.as_bytes())));
    }
}

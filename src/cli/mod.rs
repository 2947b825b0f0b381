//! The verbs: `run`, `check`, `route`, `keys`, `demo`.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Environment, Process, Settings};
use crate::listen::run::{self, FromFile};
use crate::upstream;

mod demo;
mod keys;
mod route;
mod standing;

/// An edge gateway for speech: one address, one key and one API in front of every speech provider.
#[derive(Debug, Parser)]
#[command(name = "aulos", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve, until SIGTERM.
    Run(Run),
    /// Read the config and say everything that is wrong with it.
    Check(Check),
    /// Say what would become of one request, and why. Nothing is sent.
    Route(route::Route),
    /// Make a key, or see which key of the config a text is.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Serve on loopback with a provider that really speaks: nothing to set up, nothing to pay.
    Demo(demo::Demo),
}

#[derive(Debug, Args)]
struct Config {
    /// The config file.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/aulos/aulos.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    config: Config,
    /// Ask every provider too, with every key, for what costs nothing: the list of its models.
    #[arg(long)]
    live: bool,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    config: Config,
    /// Serve everybody where the config has no keys.
    #[arg(long)]
    insecure: bool,
}

/// Runs the verb that was asked for. 0: well; 1: not; 2: the arguments are off.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logging();
    let done = match &cli.verb {
        Verb::Run(run) => serve(run),
        Verb::Check(args) => check(args),
        Verb::Route(route) => route::route(route),
        Verb::Keys(keys) => keys::keys(keys),
        Verb::Demo(demo) => demo::demo(demo),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed::Not(why)) => {
            eprintln!("{}", why.trim_end());
            ExitCode::FAILURE
        }
        Err(Failed::Arguments(why)) => {
            eprintln!("error: {}", why.trim_end());
            ExitCode::from(2)
        }
    }
}

/// Why a verb did not do what was asked.
enum Failed {
    Not(String),
    /// What was asked makes no sense.
    Arguments(String),
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self::Not(why)
    }
}

/// Pingora says at `debug` and `trace` what heads and bodies hold: those levels are for our own lines only, unless
/// they are asked for by name.
fn logging() {
    // A filter that names a module is stronger than one that names none: `RUST_LOG=debug` leaves the second alone.
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Info).filter_module("pingora", log::LevelFilter::Error);
    builder.parse_default_env().format_target(false).init();
}

fn serve(run: &Run) -> Result<(), Failed> {
    let source = FromFile { path: run.config.config.clone(), env: Process };
    if run.insecure {
        log::warn!("--insecure: without keys in the config, everybody who reaches the listener is served");
    }
    run::run(source, run.insecure, run::announce).map_err(|failure| failure.to_string().into())
}

fn check(check: &Check) -> Result<(), Failed> {
    let args = &check.config;
    let settings = load(args, &Process)?;
    crate::listen::tls::Certificates::load(&settings.server.listen)?;
    println!(
        "{} is fine: {} providers, {} models, {} aliases, {} keys",
        args.config.display(),
        settings.providers.len(),
        settings.models.len(),
        settings.aliases.len(),
        settings.keys.len()
    );
    if settings.providers.is_empty() {
        println!("note: no provider is configured, so nothing can be forwarded");
    }
    if settings.keys.is_empty() {
        println!("note: no key is configured, so `aulos run` will not serve without --insecure");
    }
    if check.live { prove(&settings) } else { Ok(()) }
}

/// Asks every provider, and says what came of it.
fn prove(settings: &Settings) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let mut failed = 0;
    for (name, provider) in &settings.providers {
        for (peer, key, what) in runtime.block_on(upstream::prove(provider)) {
            // Where nobody knows what costs nothing, no key was shown.
            let is_asked = provider.kind.probe().is_some();
            let key = if key == 0 || !is_asked { String::new() } else { format!(", key {key}") };
            match what {
                Ok(()) if !is_asked => println!("{name} at {peer}: can be reached; its keys cannot be tried"),
                Ok(()) => println!("{name} at {peer}{key}: answers"),
                Err(why) => {
                    failed += 1;
                    println!("{name} at {peer}{key}: {why}");
                }
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failed::Not(format!("{failed} of these would not serve"))) }
}

/// Loads the config; warnings are said, complaints are the error.
fn load(args: &Config, env: &dyn Environment) -> Result<Settings, String> {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (settings, warnings) = config::load(&args.config, env).map_err(|complaints| complaints.render(colour))?;
    warnings.iter().for_each(|warning| eprintln!("{}", warning.render(colour)));
    Ok(settings)
}

/// The environment of a verb that sends nothing: where a provider's key cannot be had, something stands for it. An
/// operator's shell has not what the service is given.
struct WithoutSecrets;

impl WithoutSecrets {
    const PLACEHOLDER: &str = "not-needed-here";
}

impl Environment for WithoutSecrets {
    fn var(&self, name: &str) -> Option<String> {
        let real = Process.var(name).filter(|value| !value.is_empty());
        Some(real.unwrap_or_else(|| Self::PLACEHOLDER.to_owned()))
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        // A config that is not there is an error of its own; everything else that is read is a secret.
        let is_config = path.extension().is_some_and(|extension| extension == "toml");
        Process.read(path).or_else(|error| if is_config { Err(error) } else { Ok(Self::PLACEHOLDER.to_owned()) })
    }
}

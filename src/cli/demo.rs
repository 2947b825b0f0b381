//! `aulos demo`: the gateway, and behind it a provider that really speaks and listens, both on loopback. No key, no
//! network.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use clap::Args;
use pingora_core::services::listening;

use super::Failed;
use crate::config::{self, Complaints, Environment, Process, Settings};
use crate::demo::{SPEECH_MODEL, Speaker, TRANSCRIPTION_MODEL, missing_engines, voices};
use crate::listen::run::{self, Source, Starting};
use crate::listen::sockets::Sockets;
use crate::units::KeyHash;

/// The key the demo's clients send. It opens nothing but a voice and an ear on this machine.
const KEY: &str = "demo";
/// What unmodified clients ask for, and what they get.
const ALIASES: [(&str, &str); 7] = [
    ("tts-1", SPEECH_MODEL),
    ("tts-1-hd", SPEECH_MODEL),
    ("gpt-4o-mini-tts", SPEECH_MODEL),
    ("whisper-1", TRANSCRIPTION_MODEL),
    ("gpt-4o-transcribe", TRANSCRIPTION_MODEL),
    ("gpt-4o-mini-transcribe", TRANSCRIPTION_MODEL),
    ("gpt-transcribe", TRANSCRIPTION_MODEL),
];

/// A long recording is listened to for minutes before its transcript begins.
const FIRST_BYTE_MAX: &str = "6m";

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// The port to listen on. If it is taken, the system chooses another.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where records go; by default a folder of the user's own.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

pub(super) fn demo(args: &Demo) -> Result<(), Failed> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = missing_engines(&path);
    if !missing.is_empty() {
        return Err(format!("nothing here can speak and listen yet: apt-get install {}", missing.join(" ")).into());
    }
    let mut sockets = Sockets::default();
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let speaker = sockets.bind(loopback(0)).map_err(|error| error.to_string())?;
    let port = if TcpListener::bind(loopback(args.port)).is_ok() { args.port } else { 0 };
    let state_dir = args.state_dir.clone().unwrap_or_else(own_state_dir);
    let state_dir = std::path::absolute(state_dir).map_err(|error| error.to_string())?;
    let source = BuiltIn { text: config(loopback(port), speaker, &state_dir) };
    run::run(source, false, |mut starting: Starting<'_>| {
        let mut service = listening::Service::new("demo".to_owned(), Speaker::new(path));
        service.add_tcp(&speaker.to_string());
        starting.beside(sockets, service);
        greet(&starting)
    })
    .map_err(|failure| failure.to_string().into())
}

/// The demo's config is text like any other, and read by the same rules.
struct BuiltIn {
    text: String,
}

impl Source for BuiltIn {
    fn load(&self) -> Result<Settings, Complaints> {
        config::parse("demo", &self.text, Path::new("/"), &Nothing).map(|(settings, _)| settings)
    }
}

/// What is set for other gateways on this machine is not for the demo.
struct Nothing;

impl Environment for Nothing {
    fn var(&self, _: &str) -> Option<String> {
        None
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        Process.read(path)
    }
}

fn own_state_dir() -> PathBuf {
    let home = |name, below: &str| std::env::var_os(name).map(|dir| PathBuf::from(dir).join(below));
    home("XDG_STATE_HOME", "aulos-demo")
        .or_else(|| home("HOME", ".local/state/aulos-demo"))
        .unwrap_or_else(|| std::env::temp_dir().join(format!("aulos-demo-{}", std::process::id())))
}

fn config(listen: SocketAddr, speaker: SocketAddr, state_dir: &Path) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let voices: Vec<String> = voices().iter().map(|voice| quoted(voice.id)).collect();
    let aliases: String = ALIASES.iter().fold(String::new(), |mut lines, (alias, model)| {
        let _ = writeln!(lines, "{} = {}", quoted(alias), quoted(model));
        lines
    });
    format!(
        "[server]\nlisten = [\"{listen}\"]\nadmin = \"127.0.0.1:0\"\nstate_dir = {}\npublic_catalog = true\ndrain = \"5s\"\n\
         [providers.demo]\nkind = \"openai\"\nbase_url = \"http://{speaker}/v1\"\n\
         [models.{SPEECH_MODEL}]\nroutes = [\"demo/{SPEECH_MODEL}\"]\nvoices = [{}]\n\
         formats = [\"mp3\", \"opus\", \"aac\", \"flac\", \"wav\", \"pcm\"]\ninput_chars_max = 4096\n\
         [models.{TRANSCRIPTION_MODEL}]\nroutes = [\"demo/{TRANSCRIPTION_MODEL}\"]\n\
         [timeouts]\nfirst_byte = \"{FIRST_BYTE_MAX}\"\n\
         [aliases]\n{aliases}[keys.demo]\nsha256 = \"{}\"\n",
        quoted(&state_dir.display().to_string()),
        voices.join(", "),
        KeyHash::of(KEY.as_bytes()),
    )
}

/// Says what to try: lines that work when they are pasted.
fn greet(starting: &Starting<'_>) -> io::Result<()> {
    let addresses = starting.addresses;
    let Some(addr) = addresses.public.first() else { return Ok(()) };
    let admin = addresses.admin.map_or_else(String::new, |admin| format!("admin on http://{admin}\n"));
    let curl = |voice: &str, input: &str, format: &str, file: &str| {
        format!(
            "curl -s http://{addr}/v1/audio/speech -H 'Authorization: Bearer {KEY}' -H 'Content-Type: application/json' \
             -d '{{\"model\":\"tts-1\",\"voice\":\"{voice}\",\"response_format\":\"{format}\",\"input\":\"{input}\"}}' -o {file}"
        )
    };
    let mut out = io::stdout().lock();
    write!(
        out,
        "listening on http://{addr}\n{admin}\n\
         Try, in another terminal:\n\n\
         # speech, as a file to play\n{}\nffplay -loglevel error -nodisp -autoexit hello.mp3\n\n\
         # and what is heard in it\n\
         curl -s http://{addr}/v1/audio/transcriptions -H 'Authorization: Bearer {KEY}' \
         -F file=@hello.mp3 -F model=whisper-1\n\n\
         # another language\n{}\n\n\
         # the voices there are\ncurl -s http://{addr}/v1/audio/voices\n\n\
         An OpenAI SDK needs two settings: base URL http://{addr}/v1, API key {KEY}.\n\
         Records are in {}. Ctrl-C ends the demo.\n\n",
        curl("rms", "Hello. This is your own machine, speaking to you.", "mp3", "hello.mp3"),
        curl("de", "Guten Tag. So klingt eine andere Sprache.", "wav", "hallo.wav"),
        run::records_dir(starting.settings).display(),
    )?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demos_config_is_in_order() {
        let addr = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let source = BuiltIn { text: config(addr(8080), addr(9), Path::new("/tmp/a \"b\"")) };
        let settings = source.load().unwrap_or_else(|complaints| unreachable!("{complaints}"));
        assert_eq!(settings.models[SPEECH_MODEL].voices.as_ref().map(Vec::len), Some(voices().len()));
        assert!(ALIASES.iter().all(|(alias, model)| settings.aliases[*alias] == *model));
        assert!(settings.models.contains_key(TRANSCRIPTION_MODEL));
        assert!(settings.keys[0].hash.matches(&KeyHash::of(KEY.as_bytes())));
    }
}

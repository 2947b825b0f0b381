//! Whole files: what they become, and what is said about those that become nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::settings::{Failover, Health, Limits, Listener, Passthrough, Selector, Server, Spool, Timeouts, Tls};
use super::*;
use crate::provider::Placement;
use crate::units::KeyHash;
use crate::wire::glob::Glob;

/// Variables and files, by name.
#[derive(Default)]
struct Fake {
    vars: BTreeMap<&'static str, &'static str>,
    files: BTreeMap<PathBuf, &'static str>,
    open: bool,
}

impl Fake {
    fn new(vars: &[(&'static str, &'static str)], files: &[(&str, &'static str)]) -> Self {
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), *text)).collect();
        Self { vars: vars.iter().copied().collect(), files, open: false }
    }
}

impl Environment for Fake {
    fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).map(|value| (*value).to_owned())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        self.files.get(path).map(|text| (*text).to_owned()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn open_to_all(&self, _path: &Path) -> bool {
        self.open
    }
}

const OPENAI: &str = "[providers.openai]\nkind = \"openai\"\n";
const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn read_in(text: &str, env: &Fake) -> Result<(Settings, Vec<Complaint>), Complaints> {
    parse("aulos.toml", text, Path::new("/etc/aulos"), env)
}

fn read(text: &str) -> Result<(Settings, Vec<Complaint>), Complaints> {
    read_in(text, &Fake::default())
}

fn good(text: &str) -> Settings {
    let (settings, warnings) = read(text).unwrap_or_else(|complaints| panic!("{complaints}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    settings
}

/// Lines and messages.
fn complaints(text: &str) -> Vec<(usize, String)> {
    let complaints = read(text).expect_err("something is wrong");
    complaints.iter().map(|complaint| (complaint.line().unwrap_or(0), complaint.message().to_owned())).collect()
}

/// Each text has one complaint, at that line, whose rendering has all these parts.
fn assert_complaints(prefix: &str, rows: &[(&str, usize, &[&str])]) {
    for (text, line, parts) in rows {
        let text = format!("{prefix}{text}");
        let complaints = read(&text).expect_err(&text);
        let lines: Vec<_> = complaints.iter().map(Complaint::line).collect();
        let line = line + prefix.lines().count();
        assert_eq!(lines, [Some(line)], "{text}\n{complaints}");
        let rendered = complaints.to_string();
        assert!(rendered.contains(&format!("--> aulos.toml:{line}:")), "{text}\n{rendered}");
        for part in *parts {
            assert!(rendered.contains(part), "{part:?} in:\n{rendered}");
        }
    }
}

#[test]
fn an_empty_file_is_all_defaults() {
    let settings = good("");
    let server = Server {
        listen: vec![Listener { addr: "127.0.0.1:8080".parse().expect("an address"), tls: None }],
        admin: Some("127.0.0.1:9090".parse().expect("an address")),
        state_dir: "/var/lib/aulos".into(),
        public_health: true,
        public_catalog: false,
        closed_models: false,
        drain: Duration::from_secs(300),
        user_path_header: http::HeaderName::from_static("x-aulos-user-path"),
        access_denied_status: 403,
        threads: None,
    };
    assert_eq!(settings.server, server);
    let seconds = Duration::from_secs;
    let timeouts = Timeouts {
        header: seconds(10),
        connect: seconds(2),
        first_byte: seconds(120),
        idle: seconds(60),
        tunnel_idle: seconds(300),
        tunnel_total: seconds(7200),
    };
    assert_eq!(settings.timeouts, timeouts);
    let limits =
        Limits { json_body: 1 << 20, chat_body: 1 << 20, upload_body: 100 << 20, in_flight: 4096, tunnels: 1024 };
    assert_eq!(settings.limits, limits);
    let spool = Spool { memory_bytes: 64 << 10, replay_bytes: 100 << 20, total_bytes: 4 << 30 };
    assert_eq!(settings.spool, spool);
    assert!(settings.providers.is_empty() && settings.models.is_empty() && settings.aliases.is_empty());
    assert!(settings.keys.is_empty() && settings.paths.is_empty());
}

#[test]
fn the_config_we_ship_loads_and_states_the_defaults() {
    let text = include_str!("../../conf/aulos.toml");
    let env = Fake::new(&[("OPENAI_API_KEY", "sk-operator")], &[]);
    let (settings, warnings) = read_in(text, &env).unwrap_or_else(|complaints| panic!("{complaints}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    let defaults = good("");
    assert_eq!(settings.server, defaults.server);
    assert_eq!(settings.timeouts, defaults.timeouts);
    assert_eq!(settings.limits, defaults.limits);
    assert_eq!(settings.spool, defaults.spool);
    assert_eq!(settings.providers["openai"].keys.first().map(|key| key.secret.expose()), Some("sk-operator"));
    assert_eq!(settings.aliases["tts-1"], "tts-fast");
    assert!(settings.keys.is_empty(), "nobody starts with a key that everybody knows");
    let complaints = read(text).expect_err("no key for the provider");
    assert!(complaints.to_string().contains("`OPENAI_API_KEY` is not set"), "{complaints}");
}

/// What is commented out is not a lie: the keys of the examples exist.
#[test]
fn the_examples_of_the_config_we_ship_load() {
    let text = include_str!("../../conf/aulos.toml");
    let example = |line: &str| {
        let code = line.strip_prefix("# ")?;
        let key = code.split_once(" = ").map_or(code, |(key, _)| key);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let is_key = key.bytes().all(plain) || (code.starts_with('"') && code.contains("\" = \""));
        (code.starts_with('[') || is_key).then(|| code.replace("\"…\"", &format!("\"{HASH}\"")))
    };
    let text: Vec<_> = text.lines().map(|line| example(line).unwrap_or_else(|| line.to_owned())).collect();
    let set = ["OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "ELEVENLABS_API_KEY", "ANOTHER_API_KEY"];
    let env = Fake::new(&set.map(|name| (name, "sk-operator")), &[]);
    let (settings, _) = read_in(&text.join("\n"), &env).unwrap_or_else(|complaints| panic!("{complaints}"));
    assert_eq!(settings.server.threads, Some(4));
    assert_eq!(settings.limits.chat_body, 32 << 20);
    assert_eq!(settings.models["tts-fast"].input_chars_max, Some(4096));
    assert_eq!(settings.models["tts-fast"].replay_bytes, Some(0));
    assert_eq!(settings.providers["azure"].api_version.as_deref(), Some("2025-04-01-preview"));
    assert_eq!((settings.keys.len(), settings.paths.len(), settings.hosts.len()), (1, 1, 1));
    assert!(settings.keys[0].passthrough.is_some());
}

#[test]
fn what_is_written_of_failover_is_read() {
    let text = r#"
        failover = { max_attempts = 5, total = "1m" }
        [providers.a]
        kind = "openai"
        keys = ["${ONE}", "${TWO}"]
        [providers.b]
        kind = "openai"
        base_url = "http://pool.test/v1"
        peers = ["10.0.0.1:8000", "whisper.test", "[::1]:9"]
        [providers.c]
        kind = "openai"
        health = "http"
        [models.x]
        routes = ["b/y", "a/x"]
        at_most_once = true
    "#;
    let env = Fake::new(&[("ONE", "1"), ("TWO", "2"), ("C_API_KEY", "c0"), ("C_API_KEY_2", "c2")], &[]);
    let (settings, _) = read_in(text, &env).unwrap_or_else(|complaints| panic!("{complaints}"));
    assert_eq!(settings.failover, Failover { max_attempts: 5, total: Duration::from_secs(60) });
    let keys = |name: &str| settings.providers[name].keys.iter().map(|key| key.secret.expose().to_owned());
    assert_eq!(keys("a").chain(keys("b")).chain(keys("c")).collect::<Vec<_>>(), ["1", "2", "c0", "c2"]);
    let peers: Vec<_> = settings.providers["b"].peers.iter().map(|peer| peer.as_str()).collect();
    assert_eq!(peers, ["10.0.0.1:8000", "whisper.test", "[::1]:9"]);
    let health = ["a", "b", "c"].map(|name| settings.providers[name].health);
    assert_eq!(health, [Health::Off, Health::Tcp, Health::Http]);
    let model = &settings.models["x"];
    let routes: Vec<_> = model.routes.iter().map(|route| format!("{}/{}", route.provider, route.model)).collect();
    assert_eq!((routes.join(" "), model.at_most_once), ("b/y a/x".to_owned(), true));
}

#[test]
fn what_is_written_of_uploads_and_odd_providers_is_read() {
    let settings = good(
        r#"
        limits.upload_body = "4KiB"
        spool = { memory_bytes = 0, replay_bytes = "0", total_bytes = "5KB" }
        [providers.azure]
        kind = "azure"
        base_url = "https://res.openai.azure.com/openai/v1/"
        api_version = "2025-04-01-preview"
        hold_200 = true
        [models.whisper]
        routes = ["azure/whisper"]
        replay_bytes = "5MB"
        "#,
    );
    assert_eq!(settings.limits.upload_body, 4096);
    assert_eq!(settings.spool, Spool { memory_bytes: 0, replay_bytes: 0, total_bytes: 5000 });
    let azure = &settings.providers["azure"];
    assert_eq!((azure.api_version.as_deref(), azure.hold_200), (Some("2025-04-01-preview"), true));
    assert_eq!(azure.base_url.path, "", "what stands in every path of Azure's is not doubled");
    let (_, warnings) = read("limits.upload_body = \"5GiB\"").unwrap_or_else(|complaints| panic!("{complaints}"));
    assert!(warnings.iter().any(|w| w.to_string().contains("`spool.total_bytes` is smaller")), "{warnings:?}");
    assert_eq!(settings.models["whisper"].replay_bytes, Some(5_000_000));
}

#[test]
fn everything_that_can_be_written_is_read() {
    let settings = good(&format!(
        r#"
        server.listen = ["0.0.0.0:80", {{ addr = "[::]:443", cert = "tls/c.pem", key = "/k.pem", h2 = false }}]
        server.admin = "off"
        server.state_dir = "state"
        server.user_path_header = "X-Team"
        server.access_denied_status = 400
        server.threads = 2
        limits = {{ json_body = 2_048, in_flight = 0x1 }}
        [providers.pool-1]
        kind = "openai"
        base_url = "http://[::1]:8000/v1/"
        [models."a/b"]
        routes = ["pool-1/org/model"]
        voices = ["x"]
        formats = ["wav"]
        input_chars_max = 7
        [aliases]
        one = "two"
        two = "a/b"
        three = "pool-1/raw"
        [keys.mobile]
        sha256 = "{HASH}"
        user_path = "team//mobile/"
        workspace = "acme"
        allow = ["/", "pool-1/", "pool-1/org/model", "a/b", "one"]
        expires = 2027-01-01T00:00:00Z
        disabled = true
        [paths."team/"]
        allow = []
        "#
    ));
    let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let tls = Tls { cert: "/etc/aulos/tls/c.pem".into(), key: "/k.pem".into(), h2: false };
    let listen =
        [Listener { addr: addr("0.0.0.0:80"), tls: None }, Listener { addr: addr("[::]:443"), tls: Some(tls) }];
    assert_eq!(settings.server.listen, listen);
    assert_eq!((settings.server.admin, settings.server.threads), (None, Some(2)));
    assert_eq!(settings.server.state_dir, Path::new("/etc/aulos/state"));
    assert_eq!((settings.server.user_path_header.as_str(), settings.server.access_denied_status), ("x-team", 400));
    assert_eq!(
        settings.limits,
        Limits { json_body: 2048, chat_body: 2048, upload_body: 100 << 20, in_flight: 1, tunnels: 1024 }
    );

    let provider = &settings.providers["pool-1"];
    assert_eq!((provider.name.as_str(), provider.kind.kind(), provider.keys.is_empty()), ("pool-1", "openai", true));
    assert_eq!((provider.base_url.authority(), provider.base_url.path.as_str()), ("[::1]:8000".to_owned(), "/v1"));
    let model = &settings.models["a/b"];
    assert_eq!((model.routes[0].provider.as_str(), model.routes[0].model.as_str()), ("pool-1", "org/model"));
    assert_eq!((model.voices.as_deref(), model.input_chars_max), (Some(&["x".to_owned()][..]), Some(7)));
    let aliases: Vec<_> = settings.aliases.iter().map(|(name, target)| (name.as_str(), target.as_str())).collect();
    assert_eq!(aliases, [("one", "a/b"), ("three", "pool-1/raw"), ("two", "a/b")]);

    let key = &settings.keys[0];
    assert!(key.hash.matches(&KeyHash::of(b"abc")) && key.disabled);
    assert_eq!(
        (key.name.as_str(), key.user_path.as_str(), key.workspace.as_deref()),
        ("mobile", "/team/mobile", Some("acme"))
    );
    assert_eq!(key.expires.map(|at| at.to_string()).as_deref(), Some("2027-01-01T00:00:00Z"));
    let exact = |provider: &str, model: &str| Selector::Exact { provider: provider.into(), model: model.into() };
    let allow = [
        Selector::All,
        Selector::Provider("pool-1".into()),
        exact("pool-1", "org/model"),
        Selector::Name("a/b".into()),
        Selector::Name("one".into()),
    ];
    assert_eq!(key.allow.as_deref(), Some(&allow[..]));
    assert_eq!(settings.paths, BTreeMap::from([("/team".to_owned(), Vec::new())]));
}

#[test]
fn a_complaint_is_drawn_on_its_line() {
    let text = "[server]\nlisten = [\"127.0.0.1:80\"]\nlisen = 1\n";
    let want = "\
error: unknown key `lisen` in `server`
 --> aulos.toml:3:1
  |
3 | lisen = *
  | ^^^^^
  |
  = help: did you mean `listen`?
  = help: known here: access_denied_status, admin, closed_models, drain, listen, public_catalog, public_health, \
state_dir, threads, user_path_header";
    assert_eq!(read(text).expect_err("a typo").to_string(), want);
}

#[test]
fn every_complaint_is_reported_in_the_order_of_the_file() {
    let text = "\
[aliases]
a = \"b\"
[models.x]
routes = [\"opnai/tts\"]
[server]
drain = \"forever\"
cors = []
[providers.openai]
kind = \"opnai\"
[keys.k]
user_path = \"/a/../b\"
[budgets]
";
    let found = complaints(text);
    let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [2, 4, 6, 7, 9, 10, 11, 12], "{found:#?}");
    for ((_, message), part) in found.iter().zip([
        "there is no model `b`",
        "there is no provider `opnai`",
        "`server.drain` has to be a time",
        "unknown key `cors` in `server`",
        "there is no kind of provider `opnai`",
        "`sha256` is missing in `keys.k`",
        "`keys.k.user_path` has to be a path",
        "unknown key `budgets`",
    ]) {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
}

#[test]
fn what_is_not_toml_is_told_line_by_line() {
    let found = complaints("[server]\ndrain = 10s\nadmin = \nlisten = [\"127.0.0.1:80\"\n");
    let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines[..2], [2, 3], "{found:#?}");
    assert!(
        found.len() > 2 && found.iter().all(|(_, message)| message.starts_with("this is not TOML: ")),
        "{found:#?}"
    );

    let twice = complaints("[server]\ndrain = \"1s\"\ndrain = \"2s\"\n");
    assert_eq!(twice, [(3, "this is not TOML: duplicate key".to_owned())]);

    let many = read(&"= 1\n".repeat(20)).expect_err("no keys");
    assert_eq!(many.iter().count(), SYNTAX_COMPLAINTS_MAX);
    assert!(many.to_string().ends_with("12 more lines do not parse"), "{many}");
}

#[test]
fn the_server_is_strict() {
    assert_complaints(
        "[server]\n",
        &[
            ("listen = \"127.0.0.1:80\"", 1, &["`server.listen` has to be a list"]),
            ("listen = []", 1, &["a list of at least one address"]),
            ("listen = [80]", 1, &["`server.listen[0]` has to be an IP address and a port", "this is a number"]),
            ("listen = [\"localhost:80\"]", 1, &["`server.listen[0]` has to be an IP address and a port"]),
            ("listen = [\"1.1.1.1:80\",\n \"1.1.1.1:80\"]", 2, &["`1.1.1.1:80` is listened on twice", "first here"]),
            ("listen = [\"127.0.0.1:80\"]\nadmin = \"127.0.0.1:80\"", 2, &["`127.0.0.1:80` is listened on twice"]),
            (
                "listen = [{ addr = \"1.1.1.1:443\", cert = \"c\" }]",
                1,
                &["`key` is missing in `server.listen[0]`", "speaks TLS"],
            ),
            (
                "listen = [{ addr = \"1.1.1.1:443\", cert = \"c\", key = \"k\", h3 = true }]",
                1,
                &["unknown key `h3`", "did you mean `h2`?"],
            ),
            ("admin = true", 1, &["`server.admin` has to be", "or false"]),
            ("state_dir = \"\"", 1, &["`server.state_dir` has to be the path"]),
            ("public_health = \"yes\"", 1, &["`server.public_health` has to be `true` or `false`"]),
            ("drain = 300", 1, &["`server.drain` has to be a time such as", "this is a number"]),
            ("user_path_header = \"a b\"", 1, &["the name of a header of its own"]),
            ("user_path_header = \"Authorization\"", 1, &["the name of a header of its own"]),
            ("access_denied_status = 404", 1, &["has to be 403, or 400 for"]),
            ("access_denied_status = \"403\"", 1, &["`server.access_denied_status` has to be a whole number"]),
            ("threads = 0", 1, &["`server.threads` has to be a whole number, 1 to 1024"]),
            ("threads = 1025", 1, &["1 to 1024"]),
            ("threads = -1", 1, &["1 to 1024"]),
            ("trusted_proxies = []", 1, &["unknown key `trusted_proxies` in `server`"]),
        ],
    );
    assert_eq!(good("server.listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]").server.listen.len(), 2, "two free ports");
}

#[test]
fn tables_timeouts_and_limits_are_strict() {
    assert_complaints(
        "",
        &[
            ("server = 1", 1, &["`server` has to be a table", "this is a number"]),
            ("[sever]", 1, &["unknown key `sever`", "did you mean `server`?"]),
            ("[[server]]", 1, &["`server` has to be a table", "this is a list"]),
            ("[timeouts]\nheader = \"0s\"", 2, &["`timeouts.header` has to be a time such as \"500ms\""]),
            ("[timeouts]\nidle = \"25h\"", 2, &["`timeouts.idle`", "at most 24h"]),
            ("[timeouts]\nread = \"1s\"", 2, &["unknown key `read`", "known here: connect, first_byte, header, idle"]),
            ("[limits]\njson_body = \"1Mib\"", 2, &["`limits.json_body` has to be a size such as \"64KiB\""]),
            ("[limits]\njson_body = 0", 2, &["a whole number, 1 or more"]),
            ("[limits]\nchat_body = 1.5", 2, &["`limits.chat_body`", "this is a number with a fraction"]),
            ("[limits]\nin_flight = \"many\"", 2, &["`limits.in_flight` has to be a whole number, 1 to 1000000"]),
            ("[limits]\nupload_body = \"0\"", 2, &["`limits.upload_body` has to be a size"]),
            ("[limits]\nuploads = \"1MiB\"", 2, &["unknown key `uploads`"]),
            ("[failover]\nmax_attempts = 0", 2, &["`failover.max_attempts`", "a whole number, 1 to 16"]),
            ("[providers.p]\nkind = \"openai\"\npeers = [\"a:0\"]", 3, &["has to be a host and perhaps a port"]),
            ("[providers.p]\nkind = \"openai\"\npeers = [\"x:1\", \"x:1\"]", 3, &["`x:1` stands here twice"]),
            ("[providers.p]\nkind = \"openai\"\npeers = []", 3, &["a list of at least one host"]),
            ("[providers.p]\nkind = \"openai\"\nhealth = \"ping\"", 3, &["\"tcp\", \"http\" or \"off\""]),
            ("[spool]\nmemory_bytes = -1", 2, &["`spool.memory_bytes`", "a whole number, 0 or more"]),
            ("[spool]\ntotal_bytes = 0", 2, &["`spool.total_bytes`", "a whole number, 1 or more"]),
            ("[spool]\nbytes = 1", 2, &["unknown key `bytes`", "memory_bytes, replay_bytes, total_bytes"]),
            (
                "[providers.p]\nkind = \"openai\"\napi_version = \"1\"",
                3,
                &["`providers.p.api_version` has to be nothing: this kind of provider has no versions"],
            ),
            ("[providers.p]\nkind = \"azure\"", 1, &["`base_url` is missing in `providers.p`"]),
        ],
    );
}

#[test]
fn providers_models_and_aliases_are_strict() {
    assert_complaints(
        "",
        &[
            ("[providers.OpenAI]\nkind = \"openai\"", 1, &["`OpenAI` cannot be the name of a provider", "`a-z`"]),
            ("[providers.a]", 1, &["`kind` is missing in `providers.a`", "openai"]),
            (
                "[providers.a]\nkind = \"open-ai\"",
                2,
                &["there is no kind of provider `open-ai`", "did you mean `openai`?"],
            ),
            (
                "[providers.a]\nkind = \"openai\"\nbase_url = \"api.openai.com\"",
                3,
                &["`providers.a.base_url` has to be `http://`"],
            ),
            ("[providers.a]\nkind = \"openai\"\nkey = \"${A}\"", 3, &["unknown key `key`", "did you mean `keys`?"]),
            ("[providers]\na = \"openai\"", 2, &["`providers.a` has to be a table"]),
            ("[aliases]\na = \"openai/t\"", 2, &["there is no provider `openai`", "a table `[providers.NAME]`"]),
        ],
    );
    assert_complaints(
        OPENAI,
        &[
            ("[models.x]", 1, &["`routes` is missing in `models.x`"]),
            ("[models.x]\nroutes = []", 2, &["`models.x.routes` has to be a list of at least one `provider/model`"]),
            ("[models.x]\nroutes = [\"tts\"]", 2, &["`models.x.routes[0]` has to be `provider/model`"]),
            ("[models.x]\nroutes = [\"openai/\"]", 2, &["has to be `provider/model`"]),
            ("[models.x]\nroutes = [\"opena/t/s\"]", 2, &["there is no provider `opena`", "did you mean `openai`?"]),
            ("[models.x]\nroutes = [\"eleven/t\"]", 2, &["there is no provider `eleven`", "there are: openai"]),
            ("[models.x]\nroutes = [\"openai/a\", \"openai/b\", \"openai/a\"]", 2, &["`openai/a` stands here twice"]),
            (
                "[models.\"a.b\"]\nroutes = [\"openai/a\"]\nvoices = []",
                3,
                &["`models.\"a.b\".voices` has to be a list of at least"],
            ),
            (
                "[models.x]\nroutes = [\"openai/a\"]\nformats = [\"mp3\", \"\"]",
                3,
                &["`models.x.formats[1]` has to be a name"],
            ),
            ("[models.x]\nroutes = [\"openai/a\"]\ninput_chars_max = 0", 3, &["a whole number, 1 or more"]),
            ("[models.x]\nroutes = [\"openai/a\"]\nprice = {}", 3, &["unknown key `price` in `models.x`"]),
            ("[models.\"\"]\nroutes = [\"openai/a\"]", 1, &["`` cannot be the name of a model"]),
            ("[models.\"a\\u0007\"]\nroutes = [\"openai/a\"]", 1, &["`a\u{fffd}` cannot be the name of a model"]),
            ("[aliases]\na = \"openia/t\"", 2, &["there is no provider `openia`", "did you mean `openai`?"]),
            ("[aliases]\na = 1", 2, &["`aliases.a` has to be the name of a model"]),
            ("[aliases]\na = \"a\"", 2, &["these aliases lead nowhere: `a → a`"]),
            ("[aliases]\nz = \"b\"\nb = \"c\"\nc = \"b\"", 3, &["these aliases lead nowhere: `b → c → b`"]),
            (
                "[models.fast]\nroutes = [\"openai/a\"]\n[aliases]\na = \"fsat\"",
                4,
                &["there is no model `fsat`", "did you mean `fast`?"],
            ),
            (
                "[models.fast]\nroutes = [\"openai/a\"]\n[aliases]\nfast = \"openai/b\"",
                4,
                &["hides the model of that name", "the model"],
            ),
        ],
    );
}

#[test]
fn keys_and_paths_are_strict() {
    let key = format!("{OPENAI}[keys.a]\nsha256 = \"{HASH}\"\n");
    assert_complaints(
        &key,
        &[
            ("user_path = \"/a:b\"", 1, &["`keys.a.user_path` has to be a path such as"]),
            ("workspace = \"\"", 1, &["`keys.a.workspace` has to be a name"]),
            ("allow = \"openai/\"", 1, &["`keys.a.allow` has to be a list"]),
            ("allow = [\"\"]", 1, &["`keys.a.allow[0]` has to be \"/\""]),
            ("allow = [\"openia/\"]", 1, &["there is no provider `openia`", "did you mean `openai`?"]),
            ("allow = [\"/openai\"]", 1, &["there is no provider ``", "there are: openai"]),
            ("allow = [\"tts/fast\"]", 1, &["there is no provider `tts`"]),
            ("expires = \"2027-01-01\"", 1, &["`keys.a.expires` has to be an instant with its offset"]),
            ("expires = 2027-01-01T00:00:00", 1, &["an instant with its offset", "this is a date"]),
            ("disabled = 1", 1, &["`keys.a.disabled` has to be `true` or `false`"]),
            ("[keys.b]\nallow = []", 1, &["`sha256` is missing in `keys.b`", "aulos keys create"]),
            (
                &format!("[keys.b]\nsha256 = \"{}\"", HASH.to_uppercase()),
                2,
                &["`a` and `b` are the same key", "first here"],
            ),
            (
                &format!("[keys.\"\"]\nsha256 = \"{}\"", HASH.replace('b', "c")),
                1,
                &["the name of a key has to be a name of 1"],
            ),
            ("[paths.\"/x\"]", 1, &["`allow` is missing in `paths.\"/x\"`"]),
            ("[paths.\"/x/..\"]\nallow = []", 1, &["a user path has to be a path such as"]),
            ("[paths.\"/x\"]\nallow = []\n[paths.\"x/\"]\nallow = []", 3, &["the user path `/x` has two rules"]),
        ],
    );
}

#[test]
fn what_is_written_of_passthrough_is_read() {
    let settings = good(&format!(
        r#"
        [keys.mobile]
        sha256 = "{HASH}"
        passthrough = true
        passthrough_allow = ["sign/v1/**"]
        passthrough_deny = ["*/v1/secret"]
        [providers.sign]
        kind = "http"
        base_url = "https://sign.test"
        credential = {{ header = "X-Sign", scheme = "Sig" }}
        [providers.ask]
        kind = "http"
        base_url = "https://ask.test"
        credential = {{ query = "sig" }}
        [hosts]
        "Eleven.Example.com" = "sign"
        "#
    ));
    let key = &settings.keys[0];
    let glob = |text| Glob::parse(text).expect("a glob");
    let right = Passthrough { allow: Some(vec![glob("sign/v1/**")]), deny: vec![glob("*/v1/secret")] };
    assert_eq!(key.passthrough, Some(right));
    let placement = |name: &str| &settings.providers[name].placement;
    assert_eq!(*placement("sign"), Placement::header(http::HeaderName::from_static("x-sign"), "Sig"));
    assert_eq!(*placement("ask"), Placement::Query { name: "sig".into() });
    assert_eq!(settings.hosts, BTreeMap::from([("eleven.example.com".to_owned(), "sign".to_owned())]));
}

#[test]
fn passthrough_is_strict() {
    let key = format!("{OPENAI}[keys.a]\nsha256 = \"{HASH}\"\n");
    assert_complaints(
        &key,
        &[
            ("passthrough_deny = [\"a/b\"]", 1, &["may not pass anything through", "passthrough = true"]),
            ("passthrough = true\npassthrough_allow = [\"/v1\"]", 2, &["`provider/path`"]),
        ],
    );
    assert_complaints(
        OPENAI,
        &[
            (
                "[providers.eleven]\nkind = \"elevenlabs\"\n[models.x]\nroutes = [\"eleven/t\"]",
                4,
                &["`eleven` serves no models here", "behind `/p/` alone"],
            ),
            ("[hosts]\n\"a.test\" = \"openia\"", 2, &["there is no provider `openia`", "did you mean `openai`?"]),
            ("[hosts]\n\"a.test:80\" = \"openai\"", 2, &["`a.test:80` is not a host name", "no port"]),
            ("[hosts]\n\"A.test\" = \"openai\"\n\"a.test\" = \"openai\"", 3, &["`a.test` stands here twice"]),
        ],
    );
    assert_complaints(
        "",
        &[
            (
                "[providers.a]\nkind = \"openai\"\ncredential = { header = \"x\", query = \"y\" }",
                3,
                &["`credential` says one place"],
            ),
            ("[providers.a]\nkind = \"openai\"\ncredential = {}", 3, &["`credential` says one place"]),
            ("[providers.a]\nkind = \"openai\"\ncredential = { header = \"Host\" }", 3, &["the name of a header"]),
            (
                "[providers.a]\nkind = \"http\"\nbase_url = \"http://a\"\nhealth = \"http\"",
                4,
                &["`providers.a.health` has to be \"tcp\" or \"off\""],
            ),
        ],
    );
}

#[test]
fn a_bare_name_in_an_allow_list_is_only_doubted() {
    let text = format!(
        "{OPENAI}[models.fast]\nroutes = [\"openai/t\"]\n[paths.\"/\"]\n\
         allow = [\"fsat\", \"openai\",\n\"fast\", \"gpt-9\"]\n"
    );
    let (settings, warnings) = read(&text).unwrap_or_else(|complaints| panic!("{complaints}"));
    let names = ["fsat", "openai", "fast", "gpt-9"].map(|name| Selector::Name(name.to_owned()));
    assert_eq!(settings.paths["/"], names);
    let lines: Vec<_> = warnings.iter().map(|warning| (warning.line(), warning.is_warning())).collect();
    assert_eq!(lines, [(Some(6), true), (Some(6), true), (Some(7), true)]);
    for (warning, parts) in warnings.iter().zip([
        ["warning: `fsat` is no model or alias of this file", "did you mean `fast`?"],
        ["`openai` is no model or alias", "everything at the provider is `\"openai/\"`"],
        ["`gpt-9` is no model or alias", "it holds only for a provider's model of that name"],
    ]) {
        parts.iter().for_each(|part| assert!(warning.to_string().contains(part), "{part:?} in:\n{warning}"));
    }
    let both = read(&format!("{text}[server]\nadmin = 1\n")).expect_err("an error");
    assert_eq!(both.iter().filter(|complaint| complaint.is_warning()).count(), 3, "an error hides no warning");
}

#[test]
fn a_key_comes_from_where_the_file_says() {
    let env = || {
        Fake::new(
            &[("KEY", "sk-variable"), ("CREDENTIALS_DIRECTORY", "/run/cred")],
            &[("/etc/aulos/openai", "sk-file\r\n"), ("/run/cred/openai", "sk-credential\n"), ("/abs", "sk-abs")],
        )
    };
    for (keys, want) in [
        ("[\"${KEY}\"]", Some("sk-variable")),
        ("[{ file = \"openai\" }]", Some("sk-file")),
        ("[{ file = \"/abs\" }]", Some("sk-abs")),
        ("[{ credential = \"openai\" }]", Some("sk-credential")),
        ("[]", None),
    ] {
        let text = format!("[providers.my-pool]\nkind = \"openai\"\nkeys = {keys}\n");
        let key = |env| {
            let (settings, warnings) = read_in(&text, &env).unwrap_or_else(|complaints| panic!("{complaints}"));
            (settings.providers["my-pool"].keys.first().map(|key| key.secret.expose().to_owned()), warnings)
        };
        assert_eq!(key(env()).0.as_deref(), want, "{keys}");
        assert!(key(env()).1.is_empty(), "{keys}");

        let mut empty = env();
        empty.vars.insert("MY_POOL_API_KEY", "");
        assert_eq!(key(empty).0.as_deref(), want, "{keys}, beside an empty variable");
        let mut winning = Fake::default();
        winning.vars.insert("MY_POOL_API_KEY", "sk-wins");
        assert_eq!(key(winning).0.as_deref(), Some("sk-wins"), "{keys}, of which nothing is there");

        let mut open = env();
        open.open = true;
        let warnings = key(open).1;
        assert_eq!(warnings.len(), usize::from(keys.contains("{ ")), "{keys}");
        let told = |warning: &Complaint| warning.message().starts_with("every user may read the secret file");
        assert!(warnings.iter().all(told), "{warnings:?}");
    }
}

#[test]
fn a_key_that_is_not_there_is_an_error_and_no_key_is_ever_shown() {
    let env = Fake::new(
        &[("EMPTY", ""), ("SPACED", "sk-s3cret s3cret"), ("WIDE", "s3cret€"), ("BROKEN_API_KEY", "s3cret\n")],
        &[("/etc/aulos/empty", "\n"), ("/etc/aulos/lines", "s3cret\ns3cret\n"), ("/cred/x", "s3cret\u{7f}")],
    );
    for (name, keys, message) in [
        ("a", "[\"${GONE}\"]", "the environment variable `GONE` is not set"),
        ("a", "[\"${EMPTY}\"]", "the environment variable `EMPTY` is empty"),
        ("a", "[\"${SPACED}\"]", "the environment variable `SPACED` holds something that cannot be a key"),
        ("a", "[\"${WIDE}\"]", "the environment variable `WIDE` holds something that cannot be a key"),
        ("broken", "[]", "the environment variable `BROKEN_API_KEY` holds something that cannot be a key"),
        ("a", "[{ file = \"gone\" }]", "cannot read the secret file `/etc/aulos/gone`: "),
        ("a", "[{ file = \"empty\" }]", "the file `/etc/aulos/empty` is empty"),
        ("a", "[{ file = \"lines\" }]", "the file `/etc/aulos/lines` holds something that cannot be a key"),
        ("a", "[{ file = \"\" }]", "`providers.a.keys[0].file` has to be the path of a file"),
        ("a", "[{ credential = \"x\" }]", "there is no credential `x`: `CREDENTIALS_DIRECTORY` is not set"),
        ("a", "[{ credential = \"../x\" }]", "`providers.a.keys[0].credential` has to be the name of a credential"),
        ("a", "[{}]", "`providers.a.keys[0]` has to be one of `file` and `credential`"),
        ("a", "[{ file = \"empty\", credential = \"x\" }]", "has to be one of `file` and `credential`"),
        ("a", "[\"s3cret\"]", "`providers.a.keys[0]` holds a key in clear"),
        ("a", "[\"s3cret${GONE}\"]", "`providers.a.keys[0]` holds a key in clear"),
        ("a", "[\"${GONE:-s3cret}\"]", "`providers.a.keys[0]` names no variable"),
        ("a", "[\"$s3cret\"]", "`providers.a.keys[0]` names no variable"),
        ("a", "[12345678]", "`providers.a.keys[0]` has to be a place where the key is"),
        ("a", "\"s3cret\"", "`providers.a.keys` has to be a list"),
    ] {
        let text = format!("[providers.{name}]\nkind = \"openai\"\nkeys = {keys} # was s3cret\n");
        let complaints = read_in(&text, &env).expect_err(keys);
        let found: Vec<_> = complaints.iter().map(Complaint::message).collect();
        assert!(found.len() == 1 && found[0].contains(message), "{message}: {found:?}");
        assert_hides(&complaints, "s3cret", keys);
        assert_hides(&complaints, "12345678", keys);
    }
    let two = format!("{OPENAI}keys = [\"${{SPACED}}\", \"s3cret\"]\n");
    let complaints = read_in(&two, &env).expect_err("two");
    assert!(complaints.to_string().contains("`providers.openai.keys[1]` holds a key in clear"), "{complaints}");
    assert_hides(&complaints, "s3cret", "two");
}

fn assert_hides(complaints: &Complaints, secret: &str, label: &str) {
    for rendering in [complaints.render(false), complaints.render(true), format!("{complaints:?}")] {
        assert!(!rendering.contains(secret), "{label}:\n{rendering}");
    }
}

/// Keys end up in strange places. Wherever that is, the line may be drawn, but not the key.
#[test]
fn a_key_in_the_wrong_place_is_never_shown() {
    for text in [
        "[providers.a]\nkind = \"openai\"\napi_key = \"s3cret\"",
        "[provider.a]\nkeys = [\"s3cret\"]",
        "provider = { a = { keys = [\"s3cret\"] } }",
        "[providers]\nopenai = \"s3cret\"",
        "[providers.a]\nkind = \"openai\"\nbase_url = \"https://me:s3cret@host/v1\"",
        "[providers.a]\nkind = \"openai\"\nbase_url = \"https://host/v1?key=s3cret\"",
        "[keys.a]\nsha256 = \"s3cret\"",
        "[keys.a]\nkey = \"s3cret\"",
        "[keys]\na = \"s3cret\"",
        "[server]\nadmin_token = \"s3cret\"",
        "[server]\nport = 80 # s3cret",
        "[server]\nadmin = [\"s3cret\"]",
        "[server]\nadmin = 1\nx = \"\"\"\ns3cret\"\"\"",
        // Not TOML at all.
        "[providers.a]\nkeys = [s3cret]",
        "[providers.a]\nkeys = [\"s3cret]",
        "[providers.a]\nkeys = [\"s3cret\"",
        "[providers.a]\nkeys = [\"${A}\", s3cret\"]",
        "[providers.a]\nkeys = \"s3cret",
        "[providers.a]\nkeys = s3cret",
        "[providers.a]\nkeys: s3cret",
        "[providers.a]\ns3cret",
        "[providers.a\nkeys = [\"s3cret\"]",
        "[keys.a\nsha256 = \"s3cret\"",
        "[keys.a]\nsha256 = s3cret",
        "[server]\nstate_dir = \"\"\"/var\n[providers.a]\nkeys = [\"s3cret\"]",
        "[server]\nlisten = [\"127.0.0.1:80\"\n[keys.a]\nsha256 = \"s3cret\"\n",
        "[models.x]\nroutes = [\"a/b\",\n[keys.a]\nsha256 = \"s3cret\"\n",
        "[models.x]\nroutes = \"a/b\n[providers.a]\nkeys = [\"s3cret\"]\n",
        "[server]\nadmin = \"127.0.0.1:80\" \"s3cret\"",
    ] {
        assert_hides(&read(text).expect_err(text), "s3cret", text);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_complaint() {
    let missing = load(Path::new("/etc/aulos/aulos.toml"), &Fake::default()).expect_err("no file");
    let lines: Vec<_> = missing.iter().map(Complaint::line).collect();
    assert_eq!(lines, [None]);
    assert!(missing.to_string().starts_with("error: cannot read `/etc/aulos/aulos.toml`: "), "{missing}");

    let env = Fake::new(&[], &[("/srv/a.toml", "server.state_dir = \"s\"")]);
    let (settings, _) = load(Path::new("/srv/a.toml"), &env).expect("a good file");
    assert_eq!(settings.server.state_dir, Path::new("/srv/s"));
}

#[cfg(unix)]
#[test]
fn the_process_knows_which_files_everybody_may_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::temp_dir().join(format!("aulos-secret-{}", std::process::id()));
    fs::write(&path, "sk-file\n").expect("a temporary file");
    for (mode, want) in [(0o600, false), (0o640, false), (0o644, true)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our own file");
        assert_eq!(Process.open_to_all(&path), want, "{mode:o}");
    }
    assert_eq!(Process.read(&path).expect("a text file"), "sk-file\n");
    fs::remove_file(&path).expect("our own file");
    assert!(Process.read(&path).is_err() && !Process.open_to_all(&path));
    assert!(Process.var("PATH").is_some() && Process.var("AULOS_NO_SUCH_VARIABLE").is_none());
}

proptest! {
    #[test]
    fn no_text_is_too_strange(text in "\\PC{0,80}|[a-z\\[\\]{}=\"'#.,\\\\ \r\n\t0-9é€😀-]{0,120}", colour: bool) {
        if let Err(complaints) = read(&text) {
            prop_assert!(!complaints.render(colour).is_empty());
        }
    }

    /// Nearly a config: the one we ship, with a piece cut out and another put in.
    #[test]
    fn no_damage_is_too_strange(from in 0..6000usize, length in 0..200usize, put in "[\\[\\]{}=\"'#.,\n a-z]{0,6}") {
        let text = format!("{}{OPENAI}", include_str!("../../conf/aulos.toml"));
        let chars: Vec<_> = text.chars().collect();
        let (from, to) = (from.min(chars.len()), (from + length).min(chars.len()));
        let damaged: String = chars[..from].iter().copied().chain(put.chars()).chain(chars[to..].to_vec()).collect();
        if let Err(complaints) = read(&damaged) {
            let lines: Vec<_> = complaints.iter().map(Complaint::line).collect();
            prop_assert!(lines.is_sorted(), "{:?}", lines);
            prop_assert!(!complaints.to_string().is_empty());
        }
    }

    /// The same around keys in clear.
    #[test]
    fn no_damage_shows_a_key(
        part in 0..3usize,
        from in 0..200usize,
        length in 0..80usize,
        put in "[\\[\\]{}=\"'#.,\n a-z]{0,4}",
    ) {
        let damaged = |index, text: &str| {
            let (from, to) = (from.min(text.len()), (from + length).min(text.len()));
            if index == part { format!("{}{put}{}", &text[..from], &text[to..]) } else { text.to_owned() }
        };
        let text: String = LEAKY.iter().enumerate().map(|(index, (text, key))| damaged(index, text) + key).collect();
        if let Err(complaints) = read(&text) {
            assert_hides(&complaints, "s3c", &text);
        }
    }
}

/// Text that may be damaged, and a line with a key in clear that follows it.
const LEAKY: [(&str, &str); 3] = [
    (
        "[server]\nlisten = [\"127.0.0.1:80\"]\nadmin = \"127.0.0.1:81\"\nstate_dir = \"/var\"\n\
         [providers.a]\nkind = \"openai\"\nbase_url = \"https://host/v1\"\n",
        "keys = [\"s3cret\"]\n",
    ),
    (
        "[models.\"x\"]\nroutes = [\"a/b\", \"a/c\"]\n[keys.k]\nworkspace = \"acme\"\nallow = [\"x\"]\n",
        "sha256 = \"s3cret\"\n",
    ),
    ("expires = \"2027-01-01T00:00:00Z\"\n", "api_key = \"s3cret\" # s3cret\n"),
];

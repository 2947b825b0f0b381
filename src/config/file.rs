//! The config as it is written: every key of this version, what it may hold and what it is when it is absent.
//! Who may use what is in `access.rs`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::uri::Authority;
use toml::de::{DeTable, DeValue};

use super::access;
use super::complaint::{Finding, quote};
use super::names::Names;
use super::secret;
use super::settings::{
    BaseUrl, Failover, Health, Limits, Listener, Model, Provider, Route, Server, Settings, Spool, Timeouts, Tls,
};
use super::table::{Entry, Item, Reader, Section};
use super::values;
use crate::provider::{self, Placement};

const DURATION: &str = "a time such as \"500ms\", \"10s\", \"5m\" or \"1h\", at most 24h";
const SIZE: &str = "a size such as \"64KiB\", \"1MiB\" or \"100MB\", or a number of bytes";
const ADDRESS: &str = "an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"";
const PATH: &str = "the path of a file or directory";
const WORD: &str = "a name of 1 to 256 bytes without control characters";
/// More threads than any machine has use for.
const THREADS_MAX: usize = 1024;
/// More attempts than anybody waits for.
const ATTEMPTS_MAX: usize = 16;
/// More than the file descriptors of a process.
const IN_FLIGHT_MAX: usize = 1_000_000;

/// Reads a whole tree. What is wrong is reported to `reader`; the settings are good only if nothing was.
pub(super) fn settings(reader: &Reader<'_>, tree: DeTable<'_>) -> Settings {
    let mut root = Section::root(reader, tree);
    let server = server(reader, root.section("server"));
    let timeouts = timeouts(root.section("timeouts"));
    let limits = limits(root.section("limits"));
    let spool = spool(reader, root.section("spool"), &limits);
    let failover = failover(root.section("failover"));
    let (written_providers, written_models) = (root.section("providers").named(), root.section("models").named());
    let (written_aliases, written_keys) = (root.section("aliases").named(), root.section("keys").named());
    let (written_paths, written_hosts) = (root.section("paths").named(), root.section("hosts").named());
    root.finish();

    let names = Names::new(&written_providers, &written_models, &written_aliases);
    let named =
        |(name, item): Entry<'_, '_>| Some((name.get_ref().clone(), provider(reader, name.into_inner(), item)?.into()));
    let providers = written_providers.into_iter().filter_map(named);
    let named = |(name, item): Entry<'_, '_>| Some((name.into_inner(), model(item, &names)?));
    let models: BTreeMap<String, Model> = written_models.into_iter().filter_map(named).collect();
    let providers: BTreeMap<String, Arc<Provider>> = providers.collect();
    Settings {
        server,
        timeouts,
        limits,
        spool,
        failover,
        providers,
        models,
        hosts: hosts(reader, written_hosts, &names),
        aliases: names.aliases(reader, written_aliases),
        keys: access::keys(reader, written_keys, &names),
        paths: access::paths(reader, written_paths, &names),
    }
}

fn server(reader: &Reader<'_>, mut table: Section) -> Server {
    let mut taken = Vec::new();
    let listen = match table.take("listen") {
        Some(item) => listeners(reader, item, &mut taken),
        None => vec![Listener { addr: loopback(8080), tls: None }],
    };
    let admin = table.take("admin").map_or(Some(loopback(9090)), |item| admin(reader, &item, &mut taken));
    let mut switch = |key, absent| table.take(key).and_then(|item| item.switch()).unwrap_or(absent);
    let (public_health, public_catalog) = (switch("public_health", true), switch("public_catalog", false));
    let closed_models = switch("closed_models", false);
    let state_dir = table.take("state_dir").and_then(|item| path(reader, &item));
    let drain = duration(&mut table, "drain", 300);
    let header =
        table.take("user_path_header").and_then(|item| item.parse("the name of a header of its own", own_header));
    let status = table.take("access_denied_status").and_then(|item| denied_status(reader, &item));
    let threads = table.take("threads").and_then(|item| item.integer(1..=THREADS_MAX));
    table.finish();
    Server {
        listen,
        admin,
        state_dir: state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/aulos")),
        public_health,
        public_catalog,
        closed_models,
        drain,
        user_path_header: header.unwrap_or(HeaderName::from_static("x-aulos-user-path")),
        access_denied_status: status.unwrap_or(403),
        threads,
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Addresses that are taken, and where the file says so.
type Taken = Vec<(SocketAddr, Range<usize>)>;

fn listeners(reader: &Reader<'_>, item: Item, taken: &mut Taken) -> Vec<Listener> {
    let nothing = item.refuse("a list of at least one address");
    let Some(items) = item.list() else { return Vec::new() };
    if items.is_empty() {
        reader.report(nothing);
    }
    items.into_iter().filter_map(|item| listener(reader, item, taken)).collect()
}

fn listener(reader: &Reader<'_>, item: Item, taken: &mut Taken) -> Option<Listener> {
    if !matches!(item.value(), DeValue::Table(_)) {
        let addr = item.parse(ADDRESS, |text| text.parse().ok());
        return addr.map(|addr| Listener { addr: claim(reader, addr, &item, taken), tls: None });
    }
    let help = "a listener in braces speaks TLS and has `addr`, `cert` and `key`; one in clear is the address alone";
    let mut table = item.section()?;
    let addr = table.require("addr", help).and_then(|item| {
        let addr = item.parse(ADDRESS, |text| text.parse().ok())?;
        Some(claim(reader, addr, &item, taken))
    });
    let cert = table.require("cert", help).and_then(|item| path(reader, &item));
    let key = table.require("key", help).and_then(|item| path(reader, &item));
    let h2 = table.take("h2").map_or(Some(true), |item| item.switch());
    table.finish();
    Some(Listener { addr: addr?, tls: Some(Tls { cert: cert?, key: key?, h2: h2? }) })
}

/// Port 0 asks the system for a free one, so it may stand twice.
fn claim(reader: &Reader<'_>, addr: SocketAddr, item: &Item, taken: &mut Taken) -> SocketAddr {
    let same = |other: &SocketAddr| {
        other.port() == addr.port()
            && addr.port() != 0
            && (other.ip() == addr.ip() || other.ip().is_unspecified() || addr.ip().is_unspecified())
    };
    match taken.iter().find(|(other, _)| same(other)) {
        Some((_, first)) => reader.report(
            Finding::error(item.span(), format!("{} is listened on twice", quote(&addr.to_string())))
                .second(first.clone(), "first here"),
        ),
        None => taken.push((addr, item.span())),
    }
    addr
}

fn admin(reader: &Reader<'_>, item: &Item, taken: &mut Taken) -> Option<SocketAddr> {
    match item.value() {
        DeValue::Boolean(false) => None,
        DeValue::String(text) if text == "off" => None,
        _ => {
            let addr =
                item.parse("an IP address and a port, such as \"127.0.0.1:9090\", or false", |text| text.parse().ok());
            addr.map(|addr| claim(reader, addr, item, taken))
        }
    }
}

/// A header that only says the user path: none that HTTP or a credential needs.
fn own_header(text: &str) -> Option<HeaderName> {
    const TAKEN: [&str; 20] = [
        "accept",
        "api-key",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "te",
        "transfer-encoding",
        "trailer",
        "upgrade",
        "x-api-key",
        "x-aulos-model",
        "x-aulos-provider",
        "x-goog-api-key",
        "xi-api-key",
    ];
    HeaderName::try_from(text).ok().filter(|name| !TAKEN.contains(&name.as_str()))
}

fn denied_status(reader: &Reader<'_>, item: &Item) -> Option<u16> {
    match item.integer(0..=999)? {
        400 => Some(400),
        403 => Some(403),
        _ => {
            reader.report(item.refuse("403, or 400 for clients that come from GoModel"));
            None
        }
    }
}

fn path(reader: &Reader<'_>, item: &Item) -> Option<PathBuf> {
    item.parse(PATH, |text| (!text.is_empty() && !text.contains('\0')).then(|| reader.base.join(text)))
}

fn duration(table: &mut Section, key: &'static str, absent_secs: u64) -> Duration {
    let written = table.take(key).and_then(|item| item.parse(DURATION, values::duration));
    written.unwrap_or(Duration::from_secs(absent_secs))
}

fn timeouts(mut table: Section) -> Timeouts {
    let timeouts = Timeouts {
        header: duration(&mut table, "header", 10),
        connect: duration(&mut table, "connect", 2),
        first_byte: duration(&mut table, "first_byte", 120),
        idle: duration(&mut table, "idle", 60),
        tunnel_idle: duration(&mut table, "tunnel_idle", 300),
        tunnel_total: duration(&mut table, "tunnel_total", 2 * 60 * 60),
    };
    table.finish();
    timeouts
}

fn limits(mut table: Section) -> Limits {
    let json_body = size(&mut table, "json_body", 1).unwrap_or(1 << 20);
    let chat_body = size(&mut table, "chat_body", 1).unwrap_or(json_body);
    let upload_body = size(&mut table, "upload_body", 1).unwrap_or(100 << 20);
    let in_flight = table.take("in_flight").and_then(|item| item.integer(1..=IN_FLIGHT_MAX)).unwrap_or(4096);
    let tunnels = table.take("tunnels").and_then(|item| item.integer(1..=IN_FLIGHT_MAX)).unwrap_or(1024);
    table.finish();
    Limits { json_body, chat_body, upload_body, in_flight, tunnels }
}

fn spool(reader: &Reader<'_>, mut table: Section, limits: &Limits) -> Spool {
    let spool = Spool {
        memory_bytes: size(&mut table, "memory_bytes", 0).unwrap_or(64 << 10),
        replay_bytes: size(&mut table, "replay_bytes", 0).unwrap_or(100 << 20),
        total_bytes: size(&mut table, "total_bytes", 1).unwrap_or(4 << 30),
    };
    if spool.total_bytes < limits.upload_body {
        let message = "`spool.total_bytes` is smaller than `limits.upload_body`";
        let help = "an upload that large, whose model is not known before its end, would never find room";
        reader.report(Finding::warning(table.span(), message).help(help));
    }
    table.finish();
    spool
}

fn failover(mut table: Section) -> Failover {
    let max_attempts = table.take("max_attempts").and_then(|item| item.integer(1..=ATTEMPTS_MAX)).unwrap_or(3);
    let total = duration(&mut table, "total", 180);
    table.finish();
    Failover { max_attempts, total }
}

/// As a number of bytes, or as text with a unit.
fn size(table: &mut Section, key: &'static str, min: usize) -> Option<usize> {
    let item = table.take(key)?;
    match item.value() {
        DeValue::Integer(_) => item.integer(min..=usize::MAX),
        _ => item.parse(SIZE, |text| values::size(text).filter(|size| *size >= min)),
    }
}

fn provider(reader: &Reader<'_>, name: String, item: Item) -> Option<Provider> {
    let mut table = item.section()?;
    let kinds = || provider::ALL.iter().map(|provider| provider.kind());
    let help = format!("it says which API the provider speaks: {}", kinds().collect::<Vec<_>>().join(", "));
    let kind = table.require("kind", &help).and_then(|item| {
        let text = item.text("the name of a kind of provider")?;
        let kind = provider::by_kind(text);
        if kind.is_none() {
            let finding = Finding::error(item.span(), format!("there is no kind of provider {}", quote(text)));
            reader.report(finding.suggest(text, "there are", kinds()));
        }
        kind
    });
    let base_url = match table.take("base_url") {
        Some(item) => base_url(reader, &item),
        None => kind.and_then(|kind| {
            let url = kind.base_url().and_then(values::base_url);
            if url.is_none() {
                let message = format!("`base_url` is missing in {}", quote(table.path()));
                reader.report(
                    Finding::error(table.span(), message).help("this kind of provider has no address of its own"),
                );
            }
            url
        }),
    };
    let placement = table.take("credential").and_then(placement).or_else(|| Some(kind?.placement()));
    let keys = table.take("keys");
    let keys = secret::of_provider(reader, &name, &table.span(), keys);
    let peers = table.take("peers").map(|item| peers(reader, item)).unwrap_or_default();
    let health = table.take("health").and_then(|item| {
        let health = item.parse("\"tcp\", \"http\" or \"off\"", health)?;
        if health == Health::Http && kind.is_some_and(|kind| kind.probe().is_none()) {
            reader.report(item.refuse("\"tcp\" or \"off\": what a request costs nobody here knows"));
        }
        Some(health)
    });
    // One peer alone is tried whatever its probes say.
    let health = health.unwrap_or(if peers.is_empty() { Health::Off } else { Health::Tcp });
    let api_version = table.take("api_version").and_then(|item| api_version(reader, &item, kind));
    let hold_200 = table.take("hold_200").and_then(|item| item.switch()).unwrap_or(false);
    let span = table.span();
    table.finish();
    let (kind, mut base_url, placement) = (kind?, base_url?, placement?);
    if let Some(path) = kind.own_paths().iter().find_map(|own| base_url.path.strip_suffix(own)) {
        base_url.path = path.to_owned();
    }
    let Some(provider) = Provider::new(name, kind, base_url, placement, keys) else {
        reader.report(Finding::error(span, "the host of `base_url`, or the key, cannot stand in an HTTP header"));
        return None;
    };
    Some(Provider { api_version, hold_200, peers, health, ..provider })
}

/// Where a provider's credential stands, where that is not where its kind has it.
fn placement(item: Item) -> Option<Placement> {
    let reader = item.reader;
    let mut table = item.section()?;
    let (header, scheme, query) = (table.take("header"), table.take("scheme"), table.take("query"));
    let span = table.span();
    table.finish();
    match (header, scheme, query) {
        (Some(header), scheme, None) => {
            let name = header.parse("the name of a header", credential_header)?;
            let scheme =
                scheme.map(|item| item.parse("one word", one_word)).map_or(Some(String::new()), |word| word)?;
            Some(Placement::Header { name, scheme: scheme.into() })
        }
        (None, None, Some(query)) => {
            Some(Placement::Query { name: query.parse(WORD, values::name).map(str::to_owned)? })
        }
        _ => {
            let help = "`{ header = \"…\" }`, perhaps with a `scheme`, or `{ query = \"…\" }`";
            reader.report(Finding::error(span, "`credential` says one place").help(help));
            None
        }
    }
}

/// One that is not needed for something else.
fn credential_header(text: &str) -> Option<HeaderName> {
    const TAKEN: [&str; 8] =
        ["connection", "content-length", "content-type", "host", "te", "trailer", "transfer-encoding", "upgrade"];
    HeaderName::try_from(text).ok().filter(|name| !TAKEN.contains(&name.as_str()))
}

fn one_word(text: &str) -> Option<String> {
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    is_word.then(|| text.to_owned())
}

/// Host names, each for the passthrough of a provider.
fn hosts(reader: &Reader<'_>, written: Vec<Entry>, names: &Names) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    for (name, item) in written {
        let provider = names.provider(&item);
        let host = name.get_ref().to_ascii_lowercase();
        let host = host.strip_suffix('.').map(str::to_owned).unwrap_or(host);
        if values::host(&host).is_none() {
            let message = format!("{} is not a host name", quote(name.get_ref()));
            reader.report(Finding::error(name.span(), message).help("it has no scheme, no port and no path"));
        } else if let Some(provider) = provider
            && hosts.insert(host, provider).is_some()
        {
            reader.report(Finding::error(name.span(), format!("{} stands here twice", quote(name.get_ref()))));
        }
    }
    hosts
}

fn health(text: &str) -> Option<Health> {
    match text {
        "tcp" => Some(Health::Tcp),
        "http" => Some(Health::Http),
        "off" => Some(Health::Off),
        _ => None,
    }
}

fn peers(reader: &Reader<'_>, item: Item) -> Vec<Authority> {
    let nothing = item.refuse("a list of at least one host").help("leave the key out for the host of `base_url`");
    let Some(items) = item.list() else { return Vec::new() };
    if items.is_empty() {
        reader.report(nothing);
    }
    let peer = |item: &Item| item.parse("a host and perhaps a port, such as \"10.0.0.1:8000\"", values::peer);
    let mut peers: Vec<Authority> = Vec::new();
    for (item, peer) in items.iter().filter_map(|item| Some((item, peer(item)?))) {
        if peers.contains(&peer) {
            reader.report(Finding::error(item.span(), format!("{} stands here twice", quote(peer.as_str()))));
        }
        peers.push(peer);
    }
    peers
}

fn api_version(reader: &Reader<'_>, item: &Item, kind: Option<&dyn provider::Provider>) -> Option<String> {
    let version = item.parse(WORD, values::name)?;
    if kind.is_some_and(|kind| !kind.takes_api_version()) {
        reader.report(item.refuse("nothing: this kind of provider has no versions"));
    }
    Some(version.to_owned())
}

/// Not shown where it is wrong: it may hold a password.
fn base_url(reader: &Reader<'_>, item: &Item) -> Option<BaseUrl> {
    let url = item.value().as_str().and_then(values::base_url);
    match url {
        Some(_) => reader.show(item.span()),
        None => reader.report(
            item.refuse("`http://` or `https://`, a host, perhaps a port and a path")
                .help("it is not shown because it may hold a password; user, query and fragment are refused"),
        ),
    }
    url
}

fn model(item: Item, names: &Names) -> Option<Model> {
    let reader = item.reader;
    let mut table = item.section()?;
    let help = "it says where the model is: routes = [\"provider/model\"]";
    let routes = table.require("routes", help).and_then(|item| routes(reader, item, names));
    let voices = table.take("voices").and_then(|item| words(reader, item));
    let formats = table.take("formats").and_then(|item| words(reader, item));
    let input_chars_max = table.take("input_chars_max").and_then(|item| item.integer(1..=usize::MAX));
    let replay_bytes = size(&mut table, "replay_bytes", 0);
    let at_most_once = table.take("at_most_once").and_then(|item| item.switch()).unwrap_or(false);
    table.finish();
    Some(Model { routes: routes?, voices, formats, input_chars_max, replay_bytes, at_most_once })
}

fn routes(reader: &Reader<'_>, item: Item, names: &Names) -> Option<Vec<Route>> {
    let none = item.refuse("a list of at least one `provider/model`");
    let items = item.list()?;
    if items.is_empty() {
        reader.report(none);
    }
    let mut routes: Vec<Route> = Vec::new();
    for (item, route) in items.iter().filter_map(|item| Some((item, names.route(item)?))) {
        if routes.contains(&route) {
            let name = format!("{}/{}", route.provider, route.model);
            reader.report(Finding::error(item.span(), format!("{} stands here twice", quote(&name))));
        }
        routes.push(route);
    }
    Some(routes)
}

/// A list that is not empty, of words that are not.
fn words(reader: &Reader<'_>, item: Item) -> Option<Vec<String>> {
    let empty = item.refuse("a list of at least one name").help("leave the key out to let the provider decide");
    let items = item.list()?;
    if items.is_empty() {
        reader.report(empty);
    }
    Some(items.iter().filter_map(|item| item.parse(WORD, values::name)).map(str::to_owned).collect())
}

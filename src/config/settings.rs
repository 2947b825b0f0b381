//! The config as it runs: parsed, checked and resolved. No string is left to interpret here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderName, HeaderValue};

use crate::provider::{Credential, Placement, spellings};
use crate::surface::Endpoint;
use crate::units::{KeyHash, Secret};
use crate::wire::glob::Glob;

/// Everything one state of the gateway is built from. Reload builds a new one and swaps the pointer.
#[derive(Debug, Clone)]
pub struct Settings {
    pub server: Server,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub spool: Spool,
    pub failover: Failover,
    /// By the operator's name for them, which is also the hint in `provider/model`.
    pub providers: BTreeMap<String, Arc<Provider>>,
    /// By the name clients ask for.
    pub models: BTreeMap<String, Model>,
    /// Host names that stand for the passthrough of a provider, in lower case and without a port.
    pub hosts: BTreeMap<String, String>,
    /// Another name for a model of `models`, or for a `provider/model`.
    pub aliases: BTreeMap<String, String>,
    pub keys: Vec<Arc<Key>>,
    /// Allow lists of user paths: a rule holds for its path and everything below.
    pub paths: BTreeMap<String, Vec<Selector>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub listen: Vec<Listener>,
    pub admin: Option<SocketAddr>,
    /// Where records are written.
    pub state_dir: PathBuf,
    /// Bare `/livez` and `/readyz` on the public listeners too.
    pub public_health: bool,
    /// Models and voices may be listed without a key.
    pub public_catalog: bool,
    /// Only what `models` and `aliases` name is served.
    pub closed_models: bool,
    /// How long running requests may go on after SIGTERM.
    pub drain: Duration,
    /// The header that names a user path below the key's own.
    pub user_path_header: HeaderName,
    /// Status of `model_access_denied`: 403, or 400 for clients that come from GoModel.
    pub access_denied_status: u16,
    /// Worker threads of the proxy; `None`: one a core.
    pub threads: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub addr: SocketAddr,
    pub tls: Option<Tls>,
}

/// Certificate and key are read again on every reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Offer HTTP/2 by ALPN.
    pub h2: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// The whole request head.
    pub header: Duration,
    /// TCP and TLS to a provider.
    pub connect: Duration,
    /// Request sent, answer not begun.
    pub first_byte: Duration,
    /// Between two pieces of an upload or an answer.
    pub idle: Duration,
    /// A WebSocket connection over which nothing goes.
    pub tunnel_idle: Duration,
    /// A WebSocket connection.
    pub tunnel_total: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a JSON body.
    pub json_body: usize,
    /// Bytes of the JSON body of a chat, which may carry audio.
    pub chat_body: usize,
    /// Bytes of a form with a file.
    pub upload_body: usize,
    /// Requests at once.
    pub in_flight: usize,
    /// WebSocket connections at once; each is a request as well.
    pub tunnels: usize,
}

/// How hard a request is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// Attempts at providers, the first one included.
    pub max_attempts: usize,
    /// No attempt begins later than this after the request.
    pub total: Duration,
}

/// What is kept of uploads: until their model is known, and to be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    /// Bytes of one request in memory, before it gets a file.
    pub memory_bytes: usize,
    /// Bytes of one request that are kept to be sent again; 0: none.
    pub replay_bytes: usize,
    /// Bytes of all requests together.
    pub total_bytes: usize,
}

#[derive(Debug)]
pub struct Provider {
    pub name: String,
    pub kind: &'static dyn crate::provider::Provider,
    pub base_url: BaseUrl,
    /// Where its credential stands.
    pub placement: Placement,
    /// The credentials sent to it, one at a time; none where it asks for none.
    pub keys: Vec<ProviderKey>,
    /// What goes into `Host`.
    pub host: HeaderValue,
    /// Replicas behind the one name, as `host` or `host:port`; none: the host of the base URL.
    pub peers: Vec<Authority>,
    pub health: Health,
    /// Which version of its API is meant, where its kind has several.
    pub api_version: Option<String>,
    /// Its 200 counts only with the first bytes behind it.
    pub hold_200: bool,
}

/// A credential of a provider.
#[derive(Debug)]
pub struct ProviderKey {
    pub secret: Secret,
    /// As it is sent.
    pub credential: Credential,
    /// As it may come back: no answer may hold any of these.
    pub spellings: Vec<Secret>,
}

/// How peers are asked whether they are well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// By a connection, with TLS where it is `https`.
    Tcp,
    /// By a request that costs nothing.
    Http,
    Off,
}

/// `scheme://host[:port][/path]`, taken apart once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// Without a trailing slash; empty for none.
    pub path: String,
}

impl BaseUrl {
    /// `scheme://host[:port]`.
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    /// What goes into `Host`: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }
}

#[derive(Debug, Clone)]
pub struct Model {
    pub routes: Vec<Route>,
    /// What the operator says the model can do; what is `None` is asked of the catalog, then left to the provider.
    pub voices: Option<Vec<String>>,
    pub formats: Option<Vec<String>>,
    /// Code points of `input`.
    pub input_chars_max: Option<usize>,
    /// Instead of `spool.replay_bytes`.
    pub replay_bytes: Option<usize>,
    /// A request that was sent in full is never sent again.
    pub at_most_once: bool,
}

/// One `provider/model` behind a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub provider: String,
    pub model: String,
}

#[derive(Debug)]
pub struct Key {
    /// The operator's name for it, which records carry; never the key.
    pub name: String,
    pub hash: KeyHash,
    /// Normalised: begins with a slash, no empty segment, no slash at the end (`/` alone is the root).
    pub user_path: String,
    pub workspace: Option<String>,
    /// `None`: every model.
    pub allow: Option<Vec<Selector>>,
    /// `None`: no passthrough.
    pub passthrough: Option<Passthrough>,
    pub expires: Option<jiff::Timestamp>,
    pub disabled: bool,
}

/// Where a key may go through `/p/`: globs of `provider/path`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passthrough {
    /// `None`: wherever the allow lists of models let it go as a whole.
    pub allow: Option<Vec<Glob>>,
    pub deny: Vec<Glob>,
}

/// What an allow list may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `/`: everything.
    All,
    /// `provider/`: everything at a provider.
    Provider(String),
    /// `provider/model`: one model at one provider.
    Exact { provider: String, model: String },
    /// A bare name: a model, an alias, or a provider's model of that name.
    Name(String),
}

impl Provider {
    /// `None` where host or key cannot stand in a header.
    pub fn new(
        name: String,
        kind: &'static dyn crate::provider::Provider,
        base_url: BaseUrl,
        placement: Placement,
        keys: Vec<Secret>,
    ) -> Option<Self> {
        let host = HeaderValue::from_str(&base_url.authority()).ok()?;
        let key = |secret: Secret| {
            Some(ProviderKey { credential: placement.sign(&secret)?, spellings: spellings(&secret), secret })
        };
        let keys = keys.into_iter().map(key).collect::<Option<_>>()?;
        let (peers, health) = (Vec::new(), Health::Off);
        Some(Self { name, kind, base_url, placement, keys, host, peers, health, api_version: None, hold_200: false })
    }

    /// Whether this is the service its kind is named after, and not another that speaks its API.
    pub fn is_original(&self) -> bool {
        self.kind.base_url().and_then(|url| url.split_once("://")).is_some_and(|(scheme, rest)| {
            let tls = scheme == "https";
            let (host, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
            self.base_url.tls == tls && self.base_url.authority() == host && self.base_url.path == path
        })
    }
}

impl Key {
    /// Whose requests are that bring no key.
    pub fn anonymous() -> Self {
        Self {
            name: "anonymous".to_owned(),
            hash: KeyHash::of(b""),
            user_path: "/".to_owned(),
            workspace: None,
            allow: None,
            passthrough: Some(Passthrough::default()),
            expires: None,
            disabled: false,
        }
    }
}

impl Limits {
    /// Bytes of a body to this endpoint.
    pub fn body(&self, endpoint: Endpoint) -> usize {
        match endpoint {
            Endpoint::Chat => self.chat_body,
            _ if endpoint.is_upload() => self.upload_body,
            _ => self.json_body,
        }
    }
}

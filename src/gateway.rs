//! Pingora's phases, in the order a request meets them. Every phase calls a stage, or asks `failure` what an error
//! means; none decides anything itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::Version;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_core::protocols::Digest;
use pingora_core::server::ShutdownWatch;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::admission::Asks;
use crate::answer::{Answer, catalog};
use crate::body::intake::Intake;
use crate::body::read::Failed;
use crate::body::replay::{self, Patience, Way};
use crate::config::settings::{Provider, Timeouts};
use crate::desk::Desk;
use crate::exchange::{Admitted, Attempt, Exchange, Progress};
use crate::failure::{
    ended, internal, is_preferred, is_settled, length_unkept, mark_unwritten, preferred, reason, refused, root, told,
    unsendable, was_answered, was_stale,
};
use crate::refusal::Refusal;
use crate::stage::authenticate::Denied;
use crate::stage::edit::{Editor, Place};
use crate::stage::failover::{self, Meaning, Said};
use crate::stage::inspect::{self, Media};
use crate::stage::record::{Attempted, Client, PATH_BYTES_MAX, Peer, Request};
use crate::stage::stream::Sent;
use crate::stage::{authenticate, h2, rewrite, stream};
use crate::state::State;
use crate::surface::{self, Endpoint};
use crate::units::printable;
use crate::upstream::candidates::{Blame, Candidate};
use crate::wire::head::METHOD_BYTES_MAX;
use crate::wire::sse::Ends;

/// An idle connection to a provider is closed before the provider is likely to.
const UPSTREAM_IDLE: Duration = Duration::from_secs(50);
/// A refused body is read and forgotten, within these bounds, so that the client sees the refusal.
const DRAIN_BYTES_MAX: usize = 256 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
const USER_AGENT_BYTES_MAX: usize = 256;
/// A body of so many bytes is taken by the socket, whatever the provider does.
const SOCKET_BYTES: u64 = 16 * 1024;
/// By how much Pingora's own read timeout is longer than ours.
const READ_SLACK: Duration = Duration::from_secs(1);

/// The proxy.
pub struct Gateway {
    state: Arc<ArcSwap<State>>,
    desk: Arc<Desk>,
    stopping: ShutdownWatch,
}

/// The per-request context: the exchange, and the way back from the replay wrapper.
pub struct Context {
    exchange: Exchange,
    way: Option<Way>,
    /// The client had been sent part of a provider's answer when it broke.
    begun: bool,
    /// The client was told why its request failed.
    told: bool,
}

/// What the stages before the provider decide.
enum Admission {
    Forward(Box<Admitted>, Intake),
    Answer(Answer),
}

impl Gateway {
    pub fn new(state: Arc<ArcSwap<State>>, desk: Arc<Desk>, stopping: ShutdownWatch) -> Self {
        Self { state, desk, stopping }
    }

    /// The path of a request up to the moment its bytes may flow.
    async fn admit(&self, session: &mut Session, exchange: &mut Exchange) -> Result<Admission, Failed> {
        let state = Arc::clone(&exchange.state);
        let head = session.req_header();
        let query = head.uri.query().unwrap_or_default().to_owned();
        // Who asks is for the record, whatever is asked; that nothing is there is said to everybody.
        let denied = match authenticate::caller(&state, &head.headers, &query, exchange.ts) {
            Ok(caller) => {
                exchange.caller = Some(caller);
                None
            }
            Err(Denied { refusal, caller }) => {
                exchange.caller = caller;
                Some(refusal)
            }
        };
        let place = place(head, state.settings.server.public_health)?;
        exchange.endpoint = Some(place.endpoint);
        let is_public = state.settings.server.public_catalog && !place.endpoint.is_forwarded();
        if let Some(refusal) = denied.filter(|refusal| !(is_public && matches!(refusal, Refusal::MissingKey(_)))) {
            return Err(refusal.into());
        }
        let headers = &head.headers;
        let Some(caller) = exchange.caller.as_ref().filter(|_| place.endpoint.is_forwarded()) else {
            return Ok(Admission::Answer(answer(&state, exchange, &place, &query)?));
        };
        let media = inspect::media(place.endpoint, headers)?;
        let named = inspect::named(&place, headers, &query)?;
        let asks = Asks { state: &state, caller, endpoint: place.endpoint, named };
        let before = Instant::now();
        let client = &mut session.downstream_session;
        let (admitted, intake, read) = match media {
            Media::Json => asks.json(client).await?,
            Media::Form(boundary) => asks.form(client, boundary, &self.desk.spools).await?,
        };
        let waited = read.saturating_duration_since(before);
        self.desk.metrics.overhead.observe(exchange.arrived.elapsed().saturating_sub(waited).as_secs_f64());
        Ok(Admission::Forward(Box::new(admitted), intake))
    }

    /// Room for the request, or the reason why there is none.
    fn begin(&self, exchange: &mut Exchange) -> Result<(), Refusal> {
        let slot = self.desk.records.reserve();
        let max = exchange.state.settings.limits.in_flight;
        let in_flight = self.desk.load.enter(max, &self.desk.metrics);
        let refusal = match (&slot, &in_flight) {
            (None, _) => Some(Refusal::RecordsUnavailable),
            (_, None) => Some(Refusal::Overloaded),
            _ => None,
        };
        match (slot, in_flight) {
            (Some(slot), in_flight) => exchange.begin(slot, in_flight),
            (None, _) => self.desk.metrics.unrecorded_refusals.inc(),
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Answers with a refusal. The connection ends where a body is still to come.
    async fn refuse(&self, session: &mut Session, exchange: &mut Exchange, refusal: Refusal) -> Result<()> {
        let mut head = ResponseHeader::build(refusal.status(), None)?;
        for (name, value) in refusal.headers() {
            head.insert_header(name, value)?;
        }
        // Of a broken body nobody knows where it ends, and Pingora takes it for done.
        if refusal.is_of_a_broken_body() || !session.is_body_done() {
            session.set_keepalive(None);
        }
        exchange.status = Some(refusal.status());
        let body = refusal.body();
        if refusal.is_of_credentials() {
            self.desk.metrics.credential_refusals.inc();
        }
        if exchange.admitted().is_none_or(|admitted| admitted.attempts.is_empty()) {
            exchange.progress = Progress::Refused(refusal);
        }
        self.write(session, exchange, head, body).await
    }

    /// Answers with what needs no provider.
    async fn reply(&self, session: &mut Session, exchange: &mut Exchange, answer: Answer) -> Result<()> {
        exchange.progress = Progress::Answered;
        exchange.status = Some(answer.status);
        let head = ResponseHeader::build(answer.status, None)?;
        self.write(session, exchange, head, answer.body).await
    }

    /// Writes an answer of our own.
    async fn write(
        &self,
        session: &mut Session,
        exchange: &Exchange,
        mut head: ResponseHeader,
        body: Bytes,
    ) -> Result<()> {
        head.insert_header("content-type", "application/json")?;
        head.insert_header("content-length", body.len())?;
        let id = exchange.request_id();
        let chosen = exchange.admitted().filter(|admitted| !admitted.attempts.is_empty());
        stream::own(&mut head, id, chosen.map(|admitted| (admitted.sent().leg, admitted.attempts.len())));
        if *self.stopping.borrow() {
            session.set_keepalive(None);
        }
        let end = session.req_header().method == http::Method::HEAD;
        let body = if end { Bytes::new() } else { body };
        let client = &mut session.downstream_session;
        client.write_response_header(Box::new(head)).await.map_err(|error| error.into_down())?;
        client.write_response_body(body, true).await.map_err(|error| error.into_down())
    }

    /// HTTP/2 heads do not pass the front: what its lint refuses is refused here, and counted alike.
    fn lint_h2(&self, head: &RequestHeader) -> Result<(), Refusal> {
        h2::lint(head).inspect_err(|refusal| {
            self.desk.metrics.head_refusals.with_label_values(&[refusal.code()]).inc();
        })
    }

    fn health(&self, endpoint: Endpoint) -> Answer {
        if endpoint == Endpoint::Livez { Answer::live() } else { self.desk.ready(&self.state.load(), &self.stopping) }
    }
}

/// Which endpoint a head is for.
fn place(head: &RequestHeader, public_health: bool) -> Result<surface::Place, Refusal> {
    let path = head.uri.path();
    let place = surface::find(path)
        .filter(|place| public_health || !place.endpoint.is_health())
        .ok_or_else(|| unknown_path(path))?;
    if !place.endpoint.allows(&head.method) {
        let method = printable(head.method.as_str().as_bytes(), METHOD_BYTES_MAX);
        return Err(Refusal::MethodNotAllowed { method, allow: place.endpoint.allow() });
    }
    Ok(place)
}

fn unknown_path(path: &str) -> Refusal {
    Refusal::UnknownPath { path: printable(path.as_bytes(), PATH_BYTES_MAX), hint: surface::hint(path) }
}

/// The answer of an endpoint that needs no provider.
fn answer(state: &State, exchange: &Exchange, place: &surface::Place, query: &str) -> Result<Answer, Refusal> {
    let caller = exchange.caller.as_ref();
    match place.endpoint {
        Endpoint::Models => Ok(catalog::models(state, caller)),
        Endpoint::AudioModels => Ok(catalog::audio_models(state, caller)),
        Endpoint::AudioVoices => {
            let model = surface::query_values(query, "model").next();
            catalog::voices(state, caller, model.as_deref())
        }
        _ => catalog::model(state, caller, place.model.as_deref().unwrap_or_default()),
    }
}

/// Whether the client has been sent the head of an answer; interim ones are none.
fn answered(session: &Session) -> bool {
    session.response_written().is_some_and(|head| !head.status.is_informational())
}

/// What records keep of a head.
fn request(session: &Session) -> Request {
    let head = session.req_header();
    let text = |name: &str| {
        let value = head.headers.get(name)?;
        Some(printable(value.as_bytes(), USER_AGENT_BYTES_MAX))
    };
    let ip = session.client_addr().and_then(|addr| addr.as_inet()).map(std::net::SocketAddr::ip);
    Request {
        client: Client { ip, user_agent: text("user-agent"), request_id: text("x-request-id") },
        method: printable(head.method.as_str().as_bytes(), METHOD_BYTES_MAX),
        path: printable(head.uri.path().as_bytes(), PATH_BYTES_MAX),
        http: match head.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        },
    }
}

/// How long a client may take for a piece. Over HTTP/1 the connection itself knows who takes nothing at all; over
/// HTTP/2 only the stream does, and there a piece has to be taken in time.
fn pace(session: &mut Session, idle: Duration) {
    session.set_read_timeout(Some(idle));
    if session.req_header().version == Version::HTTP_2 {
        session.set_write_timeout(Some(idle));
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        let (state, metrics) = (self.state.load_full(), Arc::clone(&self.desk.metrics));
        let exchange = Exchange::new(self.desk.id(), Instant::now(), self.desk.now(), state, metrics);
        Context { exchange, way: None, begun: false, told: false }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        let exchange = &mut ctx.exchange;
        if let Some(place) = surface::find(session.req_header().uri.path())
            && place.endpoint.is_health()
            && exchange.state.settings.server.public_health
            && place.endpoint.allows(&session.req_header().method)
        {
            exchange.endpoint = Some(place.endpoint);
            self.reply(session, exchange, self.health(place.endpoint)).await?;
            return Ok(true);
        }
        exchange.request = request(session);
        pace(session, exchange.state.settings.timeouts.idle);
        let admission = match self.begin(exchange).and_then(|()| self.lint_h2(session.req_header())) {
            Ok(()) => self.admit(session, exchange).await,
            Err(refusal) => Err(refusal.into()),
        };
        match admission {
            Ok(Admission::Forward(admitted, intake)) => {
                let timeouts = &exchange.state.settings.timeouts;
                let hold_200 = admitted.plan.routes.iter().any(|leg| leg.provider.hold_200);
                let patience = Patience { first_byte: timeouts.first_byte, idle: timeouts.idle, hold_200 };
                exchange.progress = Progress::Admitted(admitted);
                let stopping = self.stopping.clone();
                ctx.way = Some(replay::wrap(&mut session.downstream_session, intake, patience, stopping));
                Ok(false)
            }
            Ok(Admission::Answer(answer)) => {
                self.reply(session, exchange, answer).await?;
                Ok(true)
            }
            Err(Failed::Refused(refusal)) => {
                self.refuse(session, exchange, refusal).await?;
                Ok(true)
            }
            Err(Failed::Gone(error)) => Err(error),
        }
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Context) -> Result<Box<HttpPeer>> {
        let exchange = &mut ctx.exchange;
        self.resolve(exchange).await;
        let state = Arc::clone(&exchange.state);
        let Some(admitted) = exchange.admitted_mut() else { return Err(internal()) };
        let now = Instant::now();
        let Some(candidate) = admitted.failures.next(&state, &admitted.plan, now) else {
            return Err(refused(admitted.failures.last_said().map_or(Refusal::UpstreamUnavailable, Said::refusal)));
        };
        let (route, upstream) = (candidate.route, failover::upstream(&state, &admitted.plan, candidate.route).0);
        let attempt = Attempt {
            underway: upstream.map(|upstream| upstream.begin(candidate.key, candidate.peer, now)),
            candidate: Some(candidate),
            ..attempt(admitted, route, Peer::Addr(candidate.peer), now)
        };
        admitted.attempts.push(attempt);
        let Sent { leg, key } = admitted.sent();
        let number = key.map(|_| candidate.key + 1);
        let provider = Arc::clone(&leg.provider);
        if let Some(attempt) = admitted.attempts.last_mut() {
            attempt.log.key = number;
        }
        Ok(Box::new(peer(candidate.peer, &provider, &state.settings.timeouts, admitted.body.len)))
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _: Option<&Digest>,
        ctx: &mut Context,
    ) -> Result<()> {
        if let Some(attempt) = ctx.exchange.attempt_mut() {
            let now = Instant::now();
            attempt.connected = Some(now);
            attempt.log.reused = reused;
            attempt.log.connect_ms = Some(now.saturating_duration_since(attempt.began));
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        head: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let exchange = &ctx.exchange;
        let Some(admitted) = exchange.admitted() else { return Err(internal()) };
        let length = admitted.attempts.last().and_then(|attempt| attempt.editor.length());
        let Sent { leg, key } = admitted.sent();
        rewrite::head(head, &exchange.state, leg, key, length).map_err(refused)
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        let Some(attempt) = ctx.exchange.attempt_mut() else { return Ok(()) };
        let out = attempt.editor.push(body.take().unwrap_or_default(), end).map_err(unsendable)?;
        // On the way up, `None` tells Pingora the body has ended: a piece swallowed before the end is an empty one.
        // At the end an empty one would go out as a second last chunk: there it is `None`.
        *body = (!end || !out.is_empty()).then_some(out);
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let Some(attempt) = ctx.exchange.attempt_mut() else { return Err(internal()) };
        if head.status.is_informational() {
            attempt.interim += 1;
            return stream::interim(head, attempt.interim).map_err(refused);
        }
        let status = head.status.as_u16();
        attempt.log.status = Some(status);
        attempt.log.ttfb_ms = attempt.connected.map(|connected| connected.elapsed());
        // What is no answer at all is a failure, and not judged by its status.
        let accepted = stream::accept(head);
        if matches!(accepted, Err(Refusal::UpstreamInvalid)) {
            return accepted.map_err(refused);
        }
        if self.is_answered_elsewhere(session, &mut ctx.exchange, head) {
            return Err(preferred(status));
        }
        accepted.map_err(refused)
    }

    async fn response_filter(&self, _: &mut Session, head: &mut ResponseHeader, ctx: &mut Context) -> Result<()> {
        if head.status.is_informational() {
            return Ok(());
        }
        let exchange = &mut ctx.exchange;
        exchange.status = Some(head.status.as_u16());
        let request_id = exchange.request_id();
        let Some(admitted) = exchange.admitted_mut() else { return Ok(()) };
        let form = admitted.attempts.last().and_then(|attempt| attempt.editor.facts());
        let origin = stream::Origin { request_id, attempts: admitted.attempts.len(), form };
        stream::head(head, &admitted.sent(), &admitted.call, &origin);
        let masks = stream::masks(head, &admitted.sent());
        if let Some(attempt) = admitted.attempts.last_mut() {
            attempt.masks = masks;
            attempt.ends = stream::is_events(head).then(Ends::default);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<Option<Duration>> {
        let exchange = &mut ctx.exchange;
        exchange.meter.see_out(body.as_ref().map_or(0, Bytes::len), Instant::now);
        let Some(attempt) = exchange.attempt_mut() else { return Ok(None) };
        let is_substance = end || body.as_ref().is_some_and(|body| !body.is_empty());
        if let Some(underway) = attempt.underway.as_mut().filter(|_| is_substance) {
            underway.served(Instant::now());
        }
        if let (Some(ends), Some(body)) = (&mut attempt.ends, &body) {
            ends.see(body);
        }
        for mask in &mut attempt.masks {
            let mut out = body.take().map(|body| mask.push(body)).unwrap_or_default();
            if end {
                out = crate::units::joined(&[out, mask.finish()]);
            }
            *body = (!out.is_empty()).then_some(out);
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        ctx: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        self.attempt_failed(&mut ctx.exchange, reason(&error));
        self.blame(&mut ctx.exchange, Blame::Peer);
        error.set_retry(self.may_go_on(session, &ctx.exchange));
        self.count_failover(&ctx.exchange, &error);
        error
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Context,
        reused: bool,
    ) -> Box<Error> {
        error.retry.decide_reuse(reused);
        mark_unwritten(&mut error, reused);
        if was_answered(&error) || is_preferred(&error) {
            error.set_retry(is_preferred(&error));
            return error;
        }
        if is_awaiting(&error) && !session.is_body_done() {
            // A provider that takes no more is told by its writing; this one only waits for a client that drips.
            error = refused(Refusal::BodyTimeout);
        }
        if let Some(insert_at) = length_unkept(&error) {
            return Self::put_model_in(session, &mut ctx.exchange, error, insert_at);
        }
        let is_ours = |refusal: &Refusal| refusal.is_the_clients() || *refusal == Refusal::Internal;
        let is_theirs = root(&error).map(|refusal| !is_ours(refusal));
        if !is_theirs.unwrap_or(*error.esource() == ErrorSource::Upstream) {
            if let Some(refusal) = root(&error) {
                note(&mut ctx.exchange, refusal.code());
            }
            error.set_retry(false);
            return error;
        }
        self.attempt_failed(&mut ctx.exchange, reason(&error));
        let attempt = ctx.exchange.attempt_mut();
        let stale =
            attempt.is_some_and(|attempt| was_stale(&error, attempt.connected, attempt.interim, Instant::now()));
        let whole = session.is_body_done() && *error.etype() != ErrorType::WriteError;
        let admitted = ctx.exchange.admitted_mut();
        let stale = stale && admitted.is_some_and(|admitted| admitted.failures.may_repeat(&admitted.plan, whole));
        let mut again = true;
        if !stale && !is_settled(&error) {
            self.blame(&mut ctx.exchange, if whole { Blame::Unanswered } else { Blame::Peer });
            again = !(whole && ctx.exchange.admitted().is_some_and(|admitted| admitted.plan.at_most_once));
        }
        error.set_retry(again && !is_settled(&error) && self.may_go_on(session, &ctx.exchange));
        if !stale {
            self.count_failover(&ctx.exchange, &error);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> FailToProxy {
        if let Some(way) = &ctx.way {
            replay::unwrap(&mut session.downstream_session, way);
        }
        ctx.begun = answered(session);
        let refusal = if ctx.begun { None } else { told(error) };
        // Where the last ones gave no answer, an earlier one is worth more to the client.
        let said = ctx.exchange.admitted().and_then(|admitted| admitted.failures.last_said());
        let refusal = refusal.map(|refusal| match said {
            Some(said) if refusal.is_of_no_answer() => said.refusal(),
            _ => refusal,
        });
        let error_code = refusal.as_ref().map_or(0, Refusal::status);
        if let Some(refusal) = refusal {
            session.set_keepalive(None);
            match self.refuse(session, &mut ctx.exchange, refusal).await {
                Ok(()) => ctx.told = true,
                Err(error) => log::debug!("the client did not take its refusal: {error}"),
            }
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Context) {
        if let Some(way) = ctx.way.take() {
            replay::unwrap(&mut session.downstream_session, &way);
        }
        let (end, code) = ended(&ctx.exchange, ctx.begun, error);
        let exchange = &mut ctx.exchange;
        exchange.meter.bytes_in = session.downstream_session.body_bytes_read() as u64;
        if !answered(session) {
            exchange.status = None;
        }
        let audited = !exchange.is_a_strangers() || self.desk.may_audit_a_stranger(Instant::now());
        exchange.end(end, code, Instant::now(), audited);
        if (error.is_none_or(was_answered) || ctx.told) && !session.is_body_done() {
            drain(session).await;
        }
    }

    fn request_summary(&self, session: &Session, ctx: &Context) -> String {
        let head = session.req_header();
        let path = printable(head.uri.path().as_bytes(), PATH_BYTES_MAX);
        format!("{} {path}, request {}", printable(head.method.as_str().as_bytes(), METHOD_BYTES_MAX), ctx.exchange.id)
    }

    fn suppress_error_log(&self, _: &Session, _: &Context, _: &Error) -> bool {
        // Pingora's line quotes what a provider sent, which may be our own credential. What failed is in the records
        // and in the log line of the attempt.
        true
    }
}

impl Gateway {
    /// Sees that the routes have addresses, up to the first one that has. Only the first requests of a provider wait.
    async fn resolve(&self, exchange: &mut Exchange) {
        let (state, id) = (Arc::clone(&exchange.state), exchange.id);
        let patience = state.settings.timeouts.connect;
        let Some(admitted) = exchange.admitted_mut() else { return };
        for route in 0..admitted.plan.routes.len() {
            let Some(upstream) = failover::upstream(&state, &admitted.plan, route).0 else { continue };
            if !upstream.pool.is_empty() {
                // Asking who is next takes a turn of the peers: it is done only where something has failed before.
                let now = Instant::now();
                let (failures, plan) = (&admitted.failures, &admitted.plan);
                let is_reached = |candidate: Candidate| candidate.route <= route;
                if failures.is_empty() || failures.next(&state, plan, now).is_some_and(is_reached) {
                    return;
                }
                continue;
            }
            if admitted.failures.is_unresolved(route) {
                continue;
            }
            let began = Instant::now();
            let Err(error) = upstream.pool.ready(patience).await else { return };
            let base = &admitted.plan.routes[route].provider.base_url;
            log::warn!("{} could not be resolved: {error}, request {id}", base.host);
            let mut attempt = attempt(admitted, route, Peer::Unresolved(base.authority()), began);
            attempt.log.error = Some("dns");
            self.desk.metrics.upstream_errors.with_label_values(&[attempt.log.provider.as_str(), "dns"]).inc();
            admitted.attempts.push(attempt);
            admitted.failures.unresolved(route);
        }
    }

    /// Whether somebody else is asked instead of passing this answer on. What it says of peer and key is learned in
    /// any case.
    fn is_answered_elsewhere(&self, session: &Session, exchange: &mut Exchange, head: &ResponseHeader) -> bool {
        let (status, now) = (head.status.as_u16(), Instant::now());
        let said = Said::of(status, &head.headers, self.desk.now());
        let Some(admitted) = exchange.admitted_mut() else { return false };
        let lacks = admitted.sent().leg.provider.kind.lacks_model(status);
        let meaning = Meaning::of(status, lacks);
        let Some(attempt) = admitted.attempts.last_mut() else { return false };
        if let Some(underway) = &mut attempt.underway {
            match meaning {
                // A success counts with the first bytes behind it.
                Meaning::Final if head.status.is_success() => {}
                Meaning::Final => underway.served(now),
                Meaning::Deployment => underway.answered(now),
                // It waited for a client that is slow.
                Meaning::Peer if status == 408 => underway.answered(now),
                Meaning::Peer => underway.failed(now, self.desk.jitter()),
                Meaning::Limited => underway.limited(said.retry_after, now),
                Meaning::Refused => underway.refused(now),
            }
        }
        let (Some(blame), Some(candidate)) = (meaning.blame(), attempt.candidate) else { return false };
        let provider = attempt.log.provider.clone();
        admitted.body.learn(&attempt.editor);
        admitted.failures.failed(candidate, blame);
        if !self.may_go_on(session, exchange) {
            return false;
        }
        self.desk.metrics.failovers.with_label_values(&[provider.as_str(), label(meaning)]).inc();
        if let Some(admitted) = exchange.admitted_mut() {
            admitted.failures.said(said);
        }
        true
    }

    /// A request goes on after an attempt without an answer.
    fn count_failover(&self, exchange: &Exchange, error: &Error) {
        if let Some(provider) = exchange.admitted().map(|admitted| &admitted.sent().leg.provider.name)
            && error.retry()
        {
            self.desk.metrics.failovers.with_label_values(&[provider.as_str(), reason(error)]).inc();
        }
    }

    /// An attempt failed without an answer, and this is to blame.
    fn blame(&self, exchange: &mut Exchange, blame: Blame) {
        let Some(admitted) = exchange.admitted_mut() else { return };
        let Some(attempt) = admitted.attempts.last_mut() else { return };
        if let Some(underway) = &mut attempt.underway {
            underway.failed(Instant::now(), self.desk.jitter());
        }
        admitted.body.learn(&attempt.editor);
        if let Some(candidate) = attempt.candidate {
            admitted.failures.failed(candidate, blame);
        }
    }

    /// Whether one more attempt may be made: the request can be sent again, and neither attempts nor time nor candidates
    /// are used up.
    fn may_go_on(&self, session: &Session, exchange: &Exchange) -> bool {
        let Some(admitted) = exchange.admitted() else { return false };
        let (failover, now) = (&exchange.state.settings.failover, Instant::now());
        can_send_again(session)
            && admitted.failures.count() < failover.max_attempts
            && now.saturating_duration_since(exchange.arrived) < failover.total
            && admitted.failures.may_go_on(&exchange.state, &admitted.plan, now)
    }

    /// A form that was thought to name its model does not: it is sent again with one, where it was kept.
    fn put_model_in(session: &Session, exchange: &mut Exchange, mut error: Box<Error>, insert_at: u64) -> Box<Error> {
        note(exchange, "model_absent");
        let again = can_send_again(session);
        let Some(admitted) = exchange.admitted_mut().filter(|_| again) else { return refused(Refusal::SpoolFull) };
        admitted.body.model = Place::Absent { insert_at };
        error.set_retry(true);
        error
    }

    fn attempt_failed(&self, exchange: &mut Exchange, reason: &'static str) {
        let id = exchange.id;
        let Some(attempt) = exchange.attempt_mut().filter(|attempt| attempt.log.error.is_none()) else { return };
        attempt.log.error = Some(reason);
        let Attempted { provider, peer, .. } = &attempt.log;
        log::warn!("{provider} at {peer}: {reason}, request {id}");
        self.desk.metrics.upstream_errors.with_label_values(&[provider.as_str(), reason]).inc();
    }
}

/// A fresh attempt at a route.
fn attempt(admitted: &Admitted, route: usize, peer: Peer, began: Instant) -> Attempt {
    let leg = admitted.plan.routes.get(route).unwrap_or(admitted.plan.first());
    let log = Attempted {
        provider: leg.provider.name.clone(),
        model: leg.provider_model.clone(),
        peer,
        key: None,
        status: None,
        error: None,
        connect_ms: None,
        ttfb_ms: None,
        reused: false,
    };
    let editor = Editor::new(&admitted.call, leg.body_model(), &admitted.body);
    Attempt {
        began,
        connected: None,
        route,
        candidate: None,
        underway: None,
        editor,
        masks: Vec::new(),
        ends: None,
        interim: 0,
        log,
    }
}

/// The peer as Pingora connects to it.
fn peer(addr: std::net::SocketAddr, provider: &Provider, timeouts: &Timeouts, body_len: Option<u64>) -> HttpPeer {
    let mut peer = HttpPeer::new(addr, provider.base_url.tls, provider.base_url.host.clone());
    peer.options.connection_timeout = Some(timeouts.connect);
    peer.options.total_connection_timeout = Some(timeouts.connect);
    peer.options.write_timeout = Some(timeouts.idle);
    peer.options.idle_timeout = Some(UPSTREAM_IDLE);
    if body_len.is_none_or(|len| len > SOCKET_BYTES) {
        // Ours ring before it: it is for a provider that takes no more of an upload, where nobody asks the wrapper.
        peer.options.read_timeout = Some(timeouts.first_byte.max(timeouts.idle) + READ_SLACK);
    }
    peer
}

fn label(meaning: Meaning) -> &'static str {
    match meaning {
        Meaning::Final => "none",
        Meaning::Peer => "status",
        Meaning::Limited => "limited",
        Meaning::Refused => "refused",
        Meaning::Deployment => "deployment",
    }
}

/// Whether nothing of an answer has gone out, and the body is still here.
fn can_send_again(session: &Session) -> bool {
    !answered(session) && !session.as_ref().retry_buffer_truncated()
}

/// Whether Pingora gave up waiting for an answer.
fn is_awaiting(error: &Error) -> bool {
    *error.esource() == ErrorSource::Upstream && *error.etype() == ErrorType::ReadTimedout
}

/// An attempt ended, and not for anything the provider did.
fn note(exchange: &mut Exchange, reason: &'static str) {
    if let Some(attempt) = exchange.attempt_mut() {
        attempt.log.error.get_or_insert(reason);
    }
}

/// Lets the client finish sending what was refused, so that it reads the refusal.
async fn drain(session: &mut Session) {
    let mut drained = 0;
    tokio::time::timeout(DRAIN_TIME_MAX, async {
        while let Ok(Some(piece)) = session.downstream_session.read_request_body().await {
            drained += piece.len();
            if drained > DRAIN_BYTES_MAX {
                break;
            }
        }
    })
    .await
    .ok();
}

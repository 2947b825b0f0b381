//! Pingora's phases, in the order a request meets them. Every phase calls a stage, or asks `failure` what an error
//! means; none decides anything itself. What happens between an attempt and the next is in `attempts`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_core::protocols::Digest;
use pingora_core::server::ShutdownWatch;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::admission::{self, Asks};
use crate::answer::{Answer, catalog};
use crate::body::intake::Intake;
use crate::body::read::Failed;
use crate::body::replay::{self, Patience, Way};
use crate::desk::Desk;
use crate::exchange::{Admitted, Exchange, Progress};
use crate::failure::{ended, internal, preferred, refused, told, tunnel_ended, unsendable, was_answered};
use crate::refusal::Refusal;
use crate::stage::authenticate::Denied;
use crate::stage::authenticate::Places;
use crate::stage::inspect::{self, Media, Task};
use crate::stage::record::{Client, PATH_BYTES_MAX, Request};
use crate::stage::route::Leg;
use crate::stage::stream::{Sent, X_REQUEST_ID};
use crate::stage::{authenticate, h2, passthrough, rewrite, stream};
use crate::state::State;
use crate::surface::{self, Endpoint};
use crate::tunnel::Over;
use crate::units::printable;
use crate::wire::head::METHOD_BYTES_MAX;
use crate::wire::sse::Ends;

mod attempts;
mod upgrade;

/// A refused body is read and forgotten, within these bounds, so that the client sees the refusal.
const DRAIN_BYTES_MAX: usize = 256 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
const USER_AGENT_BYTES_MAX: usize = 256;

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
    /// The connection was switched to another protocol, and this was its end.
    over: Option<Over>,
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
        let path = head.uri.path().to_owned();
        let host = passthrough::host(head.uri.authority(), &head.headers, &state);
        let passes =
            (host.is_some() || path.starts_with(surface::PASSTHROUGH)).then(|| passthrough::place(&state, host, &path));
        // To a stranger, what is configured is not told: only what the name would mean anywhere.
        exchange.dialect = passes.as_ref().and_then(|_| passthrough::dialect(&state, host, &path, false));
        let places = if passes.is_some() { Places::Anywhere } else { Places::Headers };
        // Who asks is for the record, whatever is asked; that nothing is there is said to everybody.
        let denied = match authenticate::caller(&state, &head.headers, &query, places, exchange.ts) {
            Ok(caller) => {
                exchange.caller = Some(caller);
                None
            }
            Err(Denied { refusal, caller }) => {
                exchange.caller = caller;
                Some(refusal)
            }
        };
        let place = match passes {
            Some(_) => surface::Place { endpoint: Endpoint::Passthrough, model: None },
            None => place(head, state.settings.server.public_health)?,
        };
        exchange.endpoint = Some(place.endpoint);
        let is_public = state.settings.server.public_catalog && !place.endpoint.is_forwarded();
        if let Some(refusal) = denied.filter(|refusal| !(is_public && matches!(refusal, Refusal::MissingKey(_)))) {
            return Err(refusal.into());
        }
        if passes.is_some() {
            exchange.dialect = passthrough::dialect(&state, host, &path, true);
        }
        let headers = &head.headers;
        let Some(caller) = exchange.caller.as_ref().filter(|_| place.endpoint.is_forwarded()) else {
            return Ok(Admission::Answer(answer(&state, exchange, &place, &query)?));
        };
        if let Some(at) = passes {
            let client = &mut session.downstream_session;
            let (admitted, intake, read) = admission::pass(&state, caller, at?, client, &self.desk.spools).await?;
            self.desk.metrics.overhead.observe(read.saturating_duration_since(exchange.arrived).as_secs_f64());
            return Ok(Admission::Forward(Box::new(admitted), intake));
        }
        let media = inspect::media(place.endpoint, headers)?;
        let named = inspect::named(&place, headers, &query)?;
        let asks = Asks { state: &state, caller, endpoint: place.endpoint, named };
        let before = Instant::now();
        let client = &mut session.downstream_session;
        let (admitted, intake, read) = match media {
            Media::Json => asks.json(client).await?,
            Media::Form(boundary) => Box::pin(asks.form(client, boundary, &self.desk.spools)).await?,
        };
        let waited = read.saturating_duration_since(before);
        self.desk.metrics.overhead.observe(exchange.arrived.elapsed().saturating_sub(waited).as_secs_f64());
        Ok(Admission::Forward(Box::new(admitted), intake))
    }

    /// Room for the request, or the reason why there is none.
    fn begin(&self, exchange: &mut Exchange) -> Result<(), Refusal> {
        let slot = self.desk.records.reserve();
        let max = exchange.state.settings.limits.in_flight;
        let in_flight = self.desk.load.enter(max);
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
        let complaint = exchange.dialect.and_then(|kind| kind.complaint(&refusal, &exchange.id.to_string()));
        let body = complaint.map_or_else(|| refusal.body(), |complaint| complaint.to_string().into());
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

/// Whether the host name stands for a provider's passthrough.
fn is_routed(head: &RequestHeader, state: &State) -> bool {
    passthrough::host(head.uri.authority(), &head.headers, state).is_some()
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
    session.response_written().is_some_and(|head| !is_interim(head.status))
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// What records keep of a head.
fn request(session: &Session) -> Request {
    let head = session.req_header();
    let text = |name: HeaderName| {
        let value = head.headers.get(name)?;
        Some(printable(value.as_bytes(), USER_AGENT_BYTES_MAX))
    };
    let ip = session.client_addr().and_then(|addr| addr.as_inet()).map(std::net::SocketAddr::ip);
    Request {
        client: Client { ip, user_agent: text(header::USER_AGENT), request_id: text(X_REQUEST_ID) },
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
        let now = self.desk.now();
        let exchange = Exchange::new(self.desk.id(now), Instant::now(), now, state, metrics);
        Context { exchange, way: None, begun: false, told: false, over: None }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        let exchange = &mut ctx.exchange;
        if let Some(place) = surface::find(session.req_header().uri.path())
            && place.endpoint.is_health()
            && exchange.state.settings.server.public_health
            && !is_routed(session.req_header(), &exchange.state)
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
            Ok(Admission::Forward(admitted, _)) if admitted.call.upgrades() => {
                exchange.progress = Progress::Admitted(admitted);
                // Large and rare: it would make every request's future as large as its own.
                Box::pin(self.upgrade(session, ctx)).await?;
                Ok(true)
            }
            Ok(Admission::Forward(admitted, intake)) => {
                let timeouts = &exchange.state.settings.timeouts;
                let holds = |leg: &Leg| leg.provider.hold_200;
                let hold_200 = !admitted.call.passes() && admitted.plan.routes.iter().any(holds);
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
        self.resolve(&mut ctx.exchange).await;
        self.attempt(&mut ctx.exchange)
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
        attempts::connected(ctx, reused);
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
        match &admitted.call.task {
            Task::Pass(pass) => rewrite::passed(head, &exchange.state, leg, key, pass),
            _ => rewrite::head(head, &exchange.state, leg, key, length),
        }
        .map_err(refused)
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
        let call = ctx.exchange.admitted().map(|admitted| &admitted.call);
        let (passes, upgrades) = call.map_or((false, false), |call| (call.passes(), call.upgrades()));
        let Some(attempt) = ctx.exchange.attempt_mut() else { return Err(internal()) };
        if is_interim(head.status) || (head.status.is_informational() && !upgrades) {
            attempt.interim += 1;
            return stream::interim(head, attempt.interim).map_err(refused);
        }
        let status = head.status.as_u16();
        attempt.log.status = Some(status);
        attempt.log.ttfb_ms = attempt.connected.map(|connected| connected.elapsed());
        // What is no answer at all is a failure, and not judged by its status.
        let is_false = head.status == StatusCode::SWITCHING_PROTOCOLS && !stream::is_switched(head);
        let accepted = if is_false { Err(Refusal::UpstreamInvalid) } else { stream::accept(head, passes) };
        if matches!(accepted, Err(Refusal::UpstreamInvalid)) {
            return accepted.map_err(refused);
        }
        if self.is_answered_elsewhere(session, &mut ctx.exchange, head) {
            return Err(preferred(status));
        }
        accepted.map_err(refused)
    }

    async fn response_filter(&self, _: &mut Session, head: &mut ResponseHeader, ctx: &mut Context) -> Result<()> {
        if is_interim(head.status) {
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
            underway.served(Instant::now);
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
        self.unconnected(session, &mut ctx.exchange, &mut error);
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
        // It has to be decided, whatever else is: Pingora panics on an error that leaves it open.
        error.retry.decide_reuse(reused);
        self.judged(session, &mut ctx.exchange, error, reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> FailToProxy {
        if let Some(way) = &ctx.way {
            replay::unwrap(&mut session.downstream_session, way);
        }
        ctx.begun = answered(session);
        let refusal = if ctx.begun { None } else { told(error) };
        let refusal = refusal.map(|refusal| match ctx.exchange.admitted() {
            Some(admitted) => admitted.failures.or_said(refusal),
            None => refusal,
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
        let (end, code) = match ctx.over {
            Some(over) => tunnel_ended(over),
            None => ended(&ctx.exchange, ctx.begun, error),
        };
        let exchange = &mut ctx.exchange;
        exchange.meter.bytes_in = session.downstream_session.body_bytes_read() as u64;
        if !answered(session) {
            exchange.status = None;
        }
        if error.is_none()
            && let Some(underway) = exchange.attempt_mut().and_then(|attempt| attempt.underway.as_mut())
        {
            // An answer without a body has no first bytes to count with.
            underway.served(Instant::now);
        }
        let audited = !exchange.is_a_strangers() || self.desk.may_audit_a_stranger(Instant::now());
        exchange.end(end, code, Instant::now(), audited);
        if ctx.over.is_none() && (error.is_none_or(was_answered) || ctx.told) && !session.is_body_done() {
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

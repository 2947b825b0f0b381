//! One attempt after the other: who is asked next, what an answer or a failure says of whom, and whether there is
//! another attempt. The rules are `stage::failover`'s; here they meet Pingora's errors and the metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::http::ResponseHeader;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;

use super::{Context, Gateway, answered};
use crate::config::settings::{Provider, Timeouts};
use crate::exchange::{Admitted, Attempt, Exchange};
use crate::failure::{
    internal, is_preferred, is_settled, length_unkept, mark_unwritten, reason, refused, root, was_answered, was_stale,
};
use crate::refusal::Refusal;
use crate::stage::edit::{Editor, Place};
use crate::stage::failover::{self, Meaning, Said};
use crate::stage::record::{Attempted, Peer};
use crate::stage::route::Again;
use crate::stage::stream::Sent;
use crate::upstream::candidates::{Blame, Candidate};

/// An idle connection to a provider is closed before the provider is likely to.
const UPSTREAM_IDLE: Duration = Duration::from_secs(50);
/// A body of so many bytes is taken by the socket, whatever the provider does.
const SOCKET_BYTES: u64 = 16 * 1024;
/// How long a limit holds that somebody ran into with what they chose themselves.
const PASSED_LIMIT_MAX: Duration = Duration::from_secs(60);
/// By how much Pingora's own read timeout is longer than ours.
const READ_SLACK: Duration = Duration::from_secs(1);

impl Gateway {
    /// Sees that the routes have addresses, up to the first one that has. Only the first requests of a provider wait.
    pub(super) async fn resolve(&self, exchange: &mut Exchange) {
        let (state, id) = (Arc::clone(&exchange.state), exchange.id);
        let patience = state.settings.timeouts.connect;
        let Some(admitted) = exchange.admitted_mut() else { return };
        for route in 0..admitted.plan.routes.len() {
            let Some(upstream) = failover::upstream(&state, &admitted.plan, route) else { continue };
            if !upstream.pool.is_empty() {
                // Asking who is next takes a turn of the peers: it is done only where something has failed before.
                let (failures, plan) = (&admitted.failures, &admitted.plan);
                let is_reached = |candidate: Candidate| candidate.route <= route;
                if failures.is_empty() || failures.next(&state, plan, Instant::now()).is_some_and(is_reached) {
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

    /// Begins the next attempt.
    pub(super) fn attempt(&self, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        let state = Arc::clone(&exchange.state);
        let Some(admitted) = exchange.admitted_mut() else { return Err(internal()) };
        let now = Instant::now();
        let Some(candidate) = admitted.failures.next(&state, &admitted.plan, now) else {
            return Err(refused(admitted.failures.or_said(Refusal::UpstreamUnavailable)));
        };
        let upstream = failover::upstream(&state, &admitted.plan, candidate.route);
        let mut attempt = attempt(admitted, candidate.route, Peer::Addr(candidate.peer), now);
        attempt.underway = upstream.map(|upstream| upstream.begin(candidate.key, candidate.peer, now));
        attempt.candidate = Some(candidate);
        admitted.attempts.push(attempt);
        let Sent { leg, key } = admitted.sent();
        let number = key.map(|_| candidate.key + 1);
        let peer = peer(candidate.peer, &leg.provider, &state.settings.timeouts, admitted.body.len);
        if let Some(attempt) = admitted.attempts.last_mut() {
            attempt.log.key = number;
        }
        Ok(Box::new(peer))
    }

    /// Whether somebody else is asked instead of passing this answer on. What it says of peer and key is learned in
    /// any case.
    pub(super) fn is_answered_elsewhere(
        &self,
        session: &Session,
        exchange: &mut Exchange,
        head: &ResponseHeader,
    ) -> bool {
        let (status, now) = (head.status.as_u16(), Instant::now());
        let Some(admitted) = exchange.admitted_mut() else { return false };
        let passes = admitted.call.passes();
        let meaning = match passes {
            true => Meaning::of_passed(status, admitted.plan.again),
            false => Meaning::of(status, admitted.sent().leg.provider.kind.lacks_model(status)),
        };
        let Some(attempt) = admitted.attempts.last_mut() else { return false };
        let Some(blame) = meaning.blame() else {
            // A success counts with the first bytes behind it.
            match attempt.underway.as_mut() {
                // Callers choose what they pass through: what comes of it says that the peer is there, if it went well.
                Some(underway) if passes && head.status.as_u16() < 400 => underway.answered(now),
                Some(_) if passes => attempt.underway = None,
                Some(underway) if !head.status.is_success() => underway.served(|| now),
                _ => {}
            }
            return false;
        };
        let said = Said::of(status, &head.headers, self.desk.now());
        if let Some(underway) = &mut attempt.underway {
            match meaning {
                Meaning::Limited if passes => {
                    underway.limited(said.retry_after.map(|after| after.min(PASSED_LIMIT_MAX)), now);
                }
                Meaning::Limited => underway.limited(said.retry_after, now),
                Meaning::Peer if passes => {}
                Meaning::Refused => underway.refused(now),
                // A provider that says 408 waited for a client that is slow.
                Meaning::Peer if status != 408 => underway.failed(now, self.desk.jitter()),
                _ => underway.answered(now),
            }
        }
        admitted.failed(blame);
        if admitted.plan.again == Again::Unsent || !self.may_go_on(session, exchange) {
            return false;
        }
        let Some(admitted) = exchange.admitted_mut() else { return false };
        let provider = admitted.sent().leg.provider.name.as_str();
        self.desk.metrics.failovers.with_label_values(&[provider, meaning.label()]).inc();
        admitted.failures.said(said);
        true
    }

    /// There was no connection.
    pub(super) fn unconnected(&self, session: &Session, exchange: &mut Exchange, error: &mut Error) {
        self.attempt_failed(exchange, reason(error));
        self.failed(exchange);
        self.blame(exchange, Blame::Peer);
        error.set_retry(self.may_go_on(session, exchange));
        self.count_failover(exchange, error);
    }

    /// An attempt ended without an answer, or with one that is not passed on: whose fault that is, and whether there is
    /// another attempt.
    pub(super) fn judged(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        mut error: Box<Error>,
        reused: bool,
    ) -> Box<Error> {
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
            return Self::put_model_in(session, exchange, error, insert_at);
        }
        let is_ours = |refusal: &Refusal| refusal.is_the_clients() || *refusal == Refusal::Internal;
        let is_theirs = root(&error).map(|refusal| !is_ours(refusal));
        if !is_theirs.unwrap_or(*error.esource() == ErrorSource::Upstream) {
            if let Some(refusal) = root(&error) {
                note(exchange, refusal.code());
            }
            error.set_retry(false);
            return error;
        }
        self.attempt_failed(exchange, reason(&error));
        let attempt = exchange.attempt_mut();
        let stale =
            attempt.is_some_and(|attempt| was_stale(&error, attempt.connected, attempt.interim, Instant::now()));
        let whole = session.is_body_done() && *error.etype() != ErrorType::WriteError;
        let admitted = exchange.admitted_mut();
        let (passes, rule) = admitted.as_ref().map_or((false, Again::Failed), |a| (a.call.passes(), a.plan.again));
        let stale = stale && (rule != Again::Unsent || session.req_header().method.is_idempotent());
        let stale = stale && admitted.is_some_and(|admitted| admitted.failures.may_repeat(&admitted.plan, whole));
        let mut again = true;
        if !stale && !is_settled(&error) {
            // How slow an answer to what passes through may be, nobody knows.
            if !passes {
                self.failed(exchange);
            }
            self.blame(exchange, if whole { Blame::Unanswered } else { Blame::Peer });
            again = match rule {
                Again::Failed => true,
                Again::NotWhole => !whole,
                Again::Unsent => false,
            };
        }
        error.set_retry(again && !is_settled(&error) && self.may_go_on(session, exchange));
        if !stale {
            self.count_failover(exchange, &error);
        }
        error
    }

    /// A request goes on after an attempt without an answer.
    fn count_failover(&self, exchange: &Exchange, error: &Error) {
        if let Some(provider) = exchange.admitted().map(|admitted| &admitted.sent().leg.provider.name)
            && error.retry()
        {
            self.desk.metrics.failovers.with_label_values(&[provider.as_str(), reason(error)]).inc();
        }
    }

    /// An attempt failed without an answer, and its peer is known for it.
    fn failed(&self, exchange: &mut Exchange) {
        if let Some(underway) = exchange.attempt_mut().and_then(|attempt| attempt.underway.as_mut()) {
            underway.failed(Instant::now(), self.desk.jitter());
        }
    }

    /// An attempt failed without an answer, and this is to blame as far as the request is concerned.
    fn blame(&self, exchange: &mut Exchange, blame: Blame) {
        if let Some(admitted) = exchange.admitted_mut() {
            admitted.failed(blame);
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

/// The attempt has its connection.
pub(super) fn connected(ctx: &mut Context, reused: bool) {
    if let Some(attempt) = ctx.exchange.attempt_mut() {
        let now = Instant::now();
        attempt.connected = Some(now);
        attempt.log.reused = reused;
        attempt.log.connect_ms = Some(now.saturating_duration_since(attempt.began));
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
fn peer(addr: SocketAddr, provider: &Provider, timeouts: &Timeouts, body_len: Option<u64>) -> HttpPeer {
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

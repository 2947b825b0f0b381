//! Plan, what was tried and how it went → who is tried next, or that nobody is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use jiff::Timestamp;

use crate::refusal::Refusal;
use crate::stage::route::Plan;
use crate::state::State;
use crate::upstream::Upstream;
use crate::upstream::breaker::Standing;
use crate::upstream::candidates::{self, Blame, Candidate, Tried, View};
use crate::upstream::keys::{retry_after, retry_after_ms};

/// What a request has gone through so far.
#[derive(Debug, Default)]
pub struct Failures {
    tried: Tried,
    /// Routes whose provider has no address.
    unresolved: Vec<usize>,
    /// What the last provider that answered has said.
    said: Option<Said>,
    /// A pooled connection was dead, and its peer was asked again.
    repeated: bool,
}

/// An answer that another one was preferred to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub status: u16,
    pub retry_after: Option<Duration>,
}

/// What an answer's status means for the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It is the answer.
    Final,
    /// The peer cannot serve now.
    Peer,
    /// The key is used up for now.
    Limited,
    /// The key is not good.
    Refused,
    /// The provider does not have the model.
    Deployment,
}

impl Meaning {
    /// `lacks_model`: what the provider's file says of this status.
    pub fn of(status: u16, lacks_model: bool) -> Self {
        match status {
            401..=403 => Self::Refused,
            408 | 500.. => Self::Peer,
            429 => Self::Limited,
            _ if lacks_model => Self::Deployment,
            _ => Self::Final,
        }
    }

    /// What is to blame, where it is not the answer.
    pub fn blame(self) -> Option<Blame> {
        match self {
            Self::Final => None,
            Self::Peer => Some(Blame::Peer),
            Self::Limited | Self::Refused => Some(Blame::Key),
            Self::Deployment => Some(Blame::Deployment),
        }
    }
}

impl Said {
    /// What a provider's head says of when to come back.
    pub fn of(status: u16, headers: &HeaderMap, now: Timestamp) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let ms = text("retry-after-ms").and_then(retry_after_ms);
        Self { status, retry_after: ms.or_else(|| text("retry-after").and_then(|text| retry_after(text, now))) }
    }

    /// What the client is told where nobody else gave an answer.
    pub fn refusal(&self) -> Refusal {
        match self.status {
            401..=403 => Refusal::ProviderAuth,
            status => Refusal::Provider { status, retry_after: self.retry_after },
        }
    }
}

impl Failures {
    /// The attempt failed, and this is to blame.
    pub fn failed(&mut self, candidate: Candidate, blame: Blame) {
        self.tried.failed(candidate, blame);
    }

    /// Whether a peer may be asked again whose pooled connection was dead: once a request, and where it must not be
    /// done twice only if the body had not been sent.
    pub fn may_repeat(&mut self, plan: &Plan, whole: bool) -> bool {
        let is_first = !std::mem::replace(&mut self.repeated, true);
        is_first && !(whole && plan.at_most_once)
    }

    /// Whether nothing has failed yet.
    pub fn is_empty(&self) -> bool {
        self.tried.attempts() == 0 && self.unresolved.is_empty()
    }

    /// Attempts that failed, or were answered with something that another's answer was preferred to.
    pub fn count(&self) -> usize {
        self.tried.attempts()
    }

    /// The provider of a route has no address.
    pub fn unresolved(&mut self, route: usize) {
        self.unresolved.push(route);
    }

    pub fn is_unresolved(&self, route: usize) -> bool {
        self.unresolved.contains(&route)
    }

    /// A provider answered, and somebody else is asked.
    pub fn said(&mut self, said: Said) {
        self.said = Some(said);
    }

    pub fn last_said(&self) -> Option<&Said> {
        self.said.as_ref()
    }

    /// The candidate to try next. `None`: there is none.
    pub fn next(&self, state: &State, plan: &Plan, now: Instant) -> Option<Candidate> {
        candidates::next(&Ways { state, plan, now }, &self.tried)
    }

    /// Whether there may be one. Providers whose names nobody has asked for yet count.
    pub fn may_go_on(&self, state: &State, plan: &Plan, now: Instant) -> bool {
        let unasked = |route: &usize| !self.is_unresolved(*route) && upstream(state, plan, *route).pool_is_empty();
        self.next(state, plan, now).is_some() || (0..plan.routes.len()).any(|route| unasked(&route))
    }
}

/// What is known of the provider of a route.
pub fn upstream(state: &State, plan: &Plan, route: usize) -> Known {
    let name = plan.routes.get(route).map(|leg| leg.provider.name.as_str()).unwrap_or_default();
    Known(state.upstreams.get(name).cloned())
}

/// A provider, if it is one of the config: it always is.
pub struct Known(pub Option<Arc<Upstream>>);

impl Known {
    fn pool_is_empty(&self) -> bool {
        self.0.as_ref().is_some_and(|upstream| upstream.pool.is_empty())
    }
}

/// The ways of a plan, as they stand now.
struct Ways<'a> {
    state: &'a State,
    plan: &'a Plan,
    now: Instant,
}

impl View for Ways<'_> {
    fn routes(&self) -> usize {
        self.plan.routes.len()
    }

    fn provider(&self, route: usize) -> usize {
        let name = |route: usize| self.plan.routes.get(route).map(|leg| &leg.provider.name);
        (0..route).find(|other| name(*other) == name(route)).unwrap_or(route)
    }

    fn provider_standing(&self, _: usize) -> Standing {
        // What a provider's peers have in common is seen at each of them.
        Standing::Ready
    }

    fn keys(&self, route: usize) -> impl Iterator<Item = (usize, Standing)> {
        let keys = upstream(self.state, self.plan, route).0.map(|upstream| upstream.keys(self.now));
        keys.unwrap_or_default().into_iter()
    }

    fn peers(&self, route: usize) -> impl Iterator<Item = (SocketAddr, Standing)> {
        let peers = upstream(self.state, self.plan, route).0.map(|upstream| upstream.peers(self.now));
        peers.unwrap_or_default().into_iter()
    }
}

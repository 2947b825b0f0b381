//! Plan, what was tried and how it went → who is tried next, or that nobody is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use jiff::Timestamp;

use crate::refusal::Refusal;
use crate::stage::route::{Again, Plan};
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

    /// The same for bytes that pass through: any status is an answer, and says nothing of peer and key, as callers choose
    /// what they ask for; but that the key is used up holds for all of them.
    pub fn of_passed(status: u16, again: Again) -> Self {
        match status {
            429 => Self::Limited,
            408 | 500.. if again == Again::Failed => Self::Peer,
            _ => Self::Final,
        }
    }

    /// What it is called in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Final => "none",
            Self::Peer => "status",
            Self::Limited => "limited",
            Self::Refused => "refused",
            Self::Deployment => "deployment",
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
        is_first && !(whole && plan.again == Again::NotWhole)
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

    /// What the client is told: where the last ones gave no answer, an earlier one is worth more to it.
    pub fn or_said(&self, refusal: Refusal) -> Refusal {
        match &self.said {
            Some(said) if refusal.is_of_no_answer() => said.refusal(),
            _ => refusal,
        }
    }

    /// The candidate to try next. `None`: there is none.
    pub fn next(&self, state: &State, plan: &Plan, now: Instant) -> Option<Candidate> {
        candidates::next(&Ways { state, plan, now }, &self.tried)
    }

    /// Whether there may be one. Providers whose names nobody has asked for yet count.
    pub fn may_go_on(&self, state: &State, plan: &Plan, now: Instant) -> bool {
        let is_empty = |route| upstream(state, plan, route).is_some_and(|upstream| upstream.pool.is_empty());
        let unasked = |route: &usize| !self.is_unresolved(*route) && is_empty(*route);
        self.next(state, plan, now).is_some() || (0..plan.routes.len()).any(|route| unasked(&route))
    }
}

/// What is known of the provider of a route.
pub fn upstream<'s>(state: &'s State, plan: &Plan, route: usize) -> Option<&'s Arc<Upstream>> {
    state.upstreams.get(&plan.routes.get(route)?.provider.name)
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
        let keys = upstream(self.state, self.plan, route).map(|upstream| upstream.keys(self.now));
        keys.unwrap_or_default().into_iter()
    }

    fn peers(&self, route: usize) -> impl Iterator<Item = (SocketAddr, Standing)> {
        let peers = upstream(self.state, self.plan, route).map(|upstream| upstream.peers(self.now));
        peers.unwrap_or_default().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_is_to_blame() {
        for (status, lacks_model, want) in [
            (200, false, Meaning::Final),
            (400, false, Meaning::Final),
            (401, false, Meaning::Refused),
            (402, false, Meaning::Refused),
            (403, false, Meaning::Refused),
            (404, true, Meaning::Deployment),
            (404, false, Meaning::Final),
            (408, false, Meaning::Peer),
            (422, false, Meaning::Final),
            (429, false, Meaning::Limited),
            (500, false, Meaning::Peer),
            (529, false, Meaning::Peer),
        ] {
            assert_eq!(Meaning::of(status, lacks_model), want, "{status}");
        }
    }

    #[test]
    fn what_passes_through_says_little_of_anybody() {
        for (status, again, want) in [
            (200, Again::Failed, Meaning::Final),
            (401, Again::Unsent, Meaning::Final),
            (401, Again::Failed, Meaning::Final),
            (403, Again::Failed, Meaning::Final),
            (404, Again::Failed, Meaning::Final),
            (429, Again::Unsent, Meaning::Limited),
            (500, Again::Unsent, Meaning::Final),
            (500, Again::Failed, Meaning::Peer),
            (408, Again::Failed, Meaning::Peer),
        ] {
            assert_eq!(Meaning::of_passed(status, again), want, "{status} {again:?}");
        }
    }

    #[test]
    fn an_earlier_answer_is_told_only_where_there_is_no_later_one() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", http::HeaderValue::from_static("7"));
        let mut failures = Failures::default();
        assert_eq!(failures.or_said(Refusal::UpstreamTimeout), Refusal::UpstreamTimeout, "nobody answered");
        failures.said(Said::of(429, &headers, Timestamp::UNIX_EPOCH));
        let limited = Refusal::Provider { status: 429, retry_after: Some(Duration::from_secs(7)) };
        for (last, want) in [
            (Refusal::UpstreamUnavailable, limited.clone()),
            (Refusal::UpstreamTimeout, limited),
            (Refusal::ProviderAuth, Refusal::ProviderAuth),
            (Refusal::BodyTimeout, Refusal::BodyTimeout),
        ] {
            assert_eq!(failures.or_said(last.clone()), want, "{last:?}");
        }
        headers.insert("retry-after-ms", http::HeaderValue::from_static("1500"));
        let said = Said::of(503, &headers, Timestamp::UNIX_EPOCH);
        assert_eq!(said.retry_after, Some(Duration::from_millis(1500)), "the finer one counts");
        failures.said(Said::of(401, &HeaderMap::new(), Timestamp::UNIX_EPOCH));
        assert_eq!(failures.or_said(Refusal::UpstreamTls), Refusal::ProviderAuth);
    }

    #[test]
    fn a_dead_connection_is_replaced_once_and_not_where_it_may_have_been_alive() {
        let plan = |again| Plan { model: "m".into(), routes: Vec::new(), again };
        for (again, whole, want) in [
            (Again::Failed, true, true),
            (Again::Failed, false, true),
            (Again::NotWhole, false, true),
            (Again::NotWhole, true, false),
        ] {
            let mut failures = Failures::default();
            assert_eq!(failures.may_repeat(&plan(again), whole), want, "{again:?} {whole}");
            assert!(!failures.may_repeat(&plan(again), whole), "only once");
        }
    }
}

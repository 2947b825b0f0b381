//! Who is tried next. A candidate is a route, a key of its provider and a peer of its provider; what is known of each
//! comes from the caller, what this request has learned so far is [`Tried`].
//!
//! To be skipped is a matter of preference: as long as anyone may be tried at all, someone is.

use std::net::SocketAddr;

use super::breaker::Standing;

/// One way to serve a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Its place in the model's list of routes.
    pub route: usize,
    /// Its place in the provider's list of keys.
    pub key: usize,
    pub peer: SocketAddr,
}

/// What a failed attempt was the fault of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// No connection, no TLS, a reset, a timeout, a 5xx.
    Peer,
    /// 401, 402, 403 or 429.
    Key,
    /// 404: the provider does not have the model of this route.
    Deployment,
    /// The peer, which was sent the whole body and did not answer. It may have done the work, so there is one more
    /// attempt at most.
    Unanswered,
}

/// What a request has learned from its attempts; each request begins with the default.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    failures: Vec<(Candidate, Blame)>,
}

/// What is known of the ways to serve a request. Routes are asked for in their order, and only as far as needed.
/// Nothing is remembered from one call to the next, but a route has the same provider in all of them.
pub trait View {
    /// How many routes there are.
    fn routes(&self) -> usize;
    /// The provider a route leads to: any number, as long as it is the same for routes to the same one.
    fn provider(&self, route: usize) -> usize;
    fn provider_standing(&self, route: usize) -> Standing;
    /// The provider's keys, in the order they should be used in.
    fn keys(&self, route: usize) -> impl Iterator<Item = (usize, Standing)>;
    /// The provider's peers, in the order they should be used in.
    fn peers(&self, route: usize) -> impl Iterator<Item = (SocketAddr, Standing)>;
}

/// What is left of a candidate after the failures so far. The order is that of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Chance {
    Fresh,
    /// Its peer has failed on another route: perhaps it is only the other model that is down.
    Doubtful,
    Spent,
}

impl Tried {
    /// The attempt failed, and this is to blame.
    pub fn failed(&mut self, candidate: Candidate, blame: Blame) {
        self.failures.push((candidate, blame));
    }

    /// The number of attempts so far.
    pub fn attempts(&self) -> usize {
        self.failures.len()
    }

    /// Whether an attempt that was not answered has had its one successor.
    fn is_over(&self) -> bool {
        let unanswered = self.failures.iter().position(|(_, blame)| *blame == Blame::Unanswered);
        unanswered.is_some_and(|at| at + 1 < self.failures.len())
    }

    fn chance(&self, view: &impl View, candidate: Candidate) -> Chance {
        let after = |failure: &(Candidate, Blame)| chance_after(view, *failure, candidate);
        self.failures.iter().map(after).max().unwrap_or(Chance::Fresh)
    }
}

/// The candidate to try next: the first route that has one ready, and where none has, the candidate due back first.
/// On one route what needs a probe counts as ready: it is never used again otherwise. What has failed already on
/// another route comes last. `None`: nothing may be tried any more.
pub fn next(view: &impl View, tried: &Tried) -> Option<Candidate> {
    if tried.is_over() {
        return None;
    }
    [Chance::Fresh, Chance::Doubtful].into_iter().find_map(|chance| first_of(view, tried, chance))
}

/// The best candidate of all routes among those with this chance.
fn first_of(view: &impl View, tried: &Tried, chance: Chance) -> Option<Candidate> {
    let mut due: Option<(Standing, Candidate)> = None;
    for route in 0..view.routes() {
        let Some((standing, candidate)) = best_of(view, tried, chance, route) else { continue };
        if !matches!(standing, Standing::Back { .. }) {
            return Some(candidate);
        }
        if due.is_none_or(|(first, _)| standing < first) {
            due = Some((standing, candidate));
        }
    }
    due.map(|(_, candidate)| candidate)
}

/// The best candidate of one route among those with this chance, which is the first among equals.
fn best_of(view: &impl View, tried: &Tried, chance: Chance, route: usize) -> Option<(Standing, Candidate)> {
    let provider = view.provider_standing(route);
    let mut best: Option<(Standing, Candidate)> = None;
    for (key, key_standing) in view.keys(route) {
        for (peer, peer_standing) in view.peers(route) {
            // It stands as its weakest part does, and comes back with the last of them.
            let standing = provider.max(key_standing).max(peer_standing);
            let candidate = Candidate { route, key, peer };
            let is_better = best.is_none_or(|(first, _)| standing < first);
            if is_better && tried.chance(view, candidate) == chance {
                best = Some((standing, candidate));
                if standing == provider {
                    return best; // There is none better on this route.
                }
            }
        }
    }
    best
}

fn chance_after(view: &impl View, (failed, blame): (Candidate, Blame), candidate: Candidate) -> Chance {
    let same_route = failed.route == candidate.route;
    let same_provider = same_route || view.provider(failed.route) == view.provider(candidate.route);
    let same_peer = same_provider && failed.peer == candidate.peer;
    let same_key = same_provider && failed.key == candidate.key;
    match blame {
        // Another key is no new chance for a peer that fails; another model is.
        Blame::Peer | Blame::Unanswered if same_peer && same_route => Chance::Spent,
        Blame::Peer if same_peer => Chance::Doubtful,
        // The one attempt that is left goes to somebody who has less in common with it.
        Blame::Unanswered if same_provider => Chance::Doubtful,
        Blame::Key if same_key => Chance::Spent,
        Blame::Deployment if same_route => Chance::Spent,
        _ => Chance::Fresh,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    const BLAMES: [Blame; 4] = [Blame::Peer, Blame::Key, Blame::Deployment, Blame::Unanswered];

    #[derive(Debug, Clone)]
    struct Provider {
        standing: Standing,
        keys: Vec<Standing>,
        peers: Vec<Standing>,
    }

    #[derive(Debug, Clone)]
    struct Sample {
        providers: Vec<Provider>,
        /// The provider of each route.
        routes: Vec<usize>,
    }

    impl Sample {
        fn of(&self, route: usize) -> &Provider {
            &self.providers[self.routes[route]]
        }

        fn all(&self) -> Vec<Candidate> {
            let mut all = Vec::new();
            for route in 0..self.routes.len() {
                let peers = self.of(route).peers.len();
                let of_key = |key| (0..peers).map(move |at| Candidate { route, key, peer: peer(at) });
                all.extend((0..self.of(route).keys.len()).flat_map(of_key));
            }
            all
        }

        fn standing(&self, candidate: Candidate) -> Standing {
            let provider = self.of(candidate.route);
            let at = usize::from(candidate.peer.port() - 1);
            provider.standing.max(provider.keys[candidate.key]).max(provider.peers[at])
        }
    }

    impl View for Sample {
        fn routes(&self) -> usize {
            self.routes.len()
        }

        fn provider(&self, route: usize) -> usize {
            self.routes[route]
        }

        fn provider_standing(&self, route: usize) -> Standing {
            self.of(route).standing
        }

        fn keys(&self, route: usize) -> impl Iterator<Item = (usize, Standing)> {
            self.of(route).keys.iter().copied().enumerate()
        }

        fn peers(&self, route: usize) -> impl Iterator<Item = (SocketAddr, Standing)> {
            self.of(route).peers.iter().enumerate().map(|(at, standing)| (peer(at), *standing))
        }
    }

    fn peer(at: usize) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], u16::try_from(at + 1).expect("few peers")))
    }

    fn candidate(route: usize, key: usize, at: usize) -> Candidate {
        Candidate { route, key, peer: peer(at) }
    }

    fn provider(standing: Standing, keys: &[Standing], peers: &[Standing]) -> Provider {
        Provider { standing, keys: keys.to_vec(), peers: peers.to_vec() }
    }

    /// Tries whatever comes next, and says what is to blame each time it fails.
    fn run(view: &Sample, mut blame: impl FnMut(Candidate) -> Option<Blame>) -> (Vec<Candidate>, Tried) {
        let (mut order, mut tried) = (Vec::new(), Tried::default());
        while let Some(candidate) = next(view, &tried) {
            order.push(candidate);
            let Some(blame) = blame(candidate) else { break };
            tried.failed(candidate, blame);
            assert_eq!(tried.attempts(), order.len());
        }
        (order, tried)
    }

    #[test]
    fn a_failure_takes_away_what_is_to_blame() {
        use Standing::Ready;
        // Two models of one provider, then another one.
        let two = provider(Ready, &[Ready; 2], &[Ready; 2]);
        let view = Sample { providers: vec![two, provider(Ready, &[Ready], &[Ready])], routes: vec![0, 0, 1] };
        for (blame, want) in [
            (Blame::Peer, &[(0, 0, 0), (0, 0, 1), (2, 0, 0), (1, 0, 0), (1, 0, 1)][..]),
            (Blame::Key, &[(0, 0, 0), (0, 1, 0), (2, 0, 0)]),
            (Blame::Deployment, &[(0, 0, 0), (1, 0, 0), (2, 0, 0)]),
            (Blame::Unanswered, &[(0, 0, 0), (2, 0, 0)]),
        ] {
            let (order, _) = run(&view, |_| Some(blame));
            let want: Vec<_> = want.iter().map(|(route, key, at)| candidate(*route, *key, *at)).collect();
            assert_eq!(order, want, "{blame:?}");
        }
    }

    #[test]
    fn the_only_peer_is_tried_again_for_another_model_but_not_with_another_key() {
        use Standing::Ready;
        let one = provider(Ready, &[Ready; 2], &[Ready]);
        for (routes, want) in [
            (vec![0, 0, 1], vec![candidate(0, 0, 0), candidate(2, 0, 0), candidate(1, 0, 0)]),
            (vec![0], vec![candidate(0, 0, 0)]),
        ] {
            let view = Sample { providers: vec![one.clone(), one.clone()], routes };
            assert_eq!(run(&view, |_| Some(Blame::Peer)).0, want);
        }
    }

    #[test]
    fn the_standing_decides_within_a_route_and_then_between_them() {
        use Standing::{Probe, Ready};
        let back = |seconds| Standing::Back { at: Instant::now() + Duration::from_secs(seconds) };
        let (soon, later) = (back(100), back(200));
        let plain = provider(Ready, &[Ready], &[Ready]);
        for (label, first, second, want) in [
            ("all ready", plain.clone(), plain.clone(), (0, 0, 0)),
            ("a probe in its turn", provider(Ready, &[Ready], &[Probe, Ready]), plain.clone(), (0, 0, 0)),
            ("and only then", provider(Ready, &[Ready], &[Ready, Probe]), plain.clone(), (0, 0, 0)),
            ("a probe before the next route", provider(Probe, &[Ready], &[Ready]), plain.clone(), (0, 0, 0)),
            ("probes in order", provider(Ready, &[Probe; 2], &[Probe; 2]), plain.clone(), (0, 0, 0)),
            ("a key that cools", provider(Ready, &[soon, Ready], &[Ready]), plain.clone(), (0, 1, 0)),
            ("all keys cool", provider(Ready, &[soon, later], &[Ready]), plain.clone(), (1, 0, 0)),
            ("an open provider", provider(later, &[Ready], &[Ready]), plain.clone(), (1, 0, 0)),
            ("no peers", provider(Ready, &[Ready], &[]), plain.clone(), (1, 0, 0)),
            (
                "the last part to come back counts",
                provider(soon, &[soon], &[later]),
                provider(Ready, &[soon], &[Ready]),
                (1, 0, 0),
            ),
            (
                "the earliest of many",
                provider(Ready, &[later, soon], &[later, soon]),
                provider(later, &[soon], &[soon]),
                (0, 1, 1),
            ),
            (
                "due at once, in order",
                provider(soon, &[Ready], &[Ready]),
                provider(soon, &[Ready], &[Ready]),
                (0, 0, 0),
            ),
        ] {
            let view = Sample { providers: vec![first, second], routes: vec![0, 1] };
            let (route, key, at) = want;
            assert_eq!(next(&view, &Tried::default()), Some(candidate(route, key, at)), "{label}");
        }
    }

    #[test]
    fn without_routes_or_peers_there_is_nobody() {
        use Standing::Ready;
        let empty = provider(Ready, &[Ready], &[]);
        for routes in [vec![], vec![0]] {
            assert_eq!(next(&Sample { providers: vec![empty.clone()], routes }, &Tried::default()), None);
        }
    }

    fn any_view(standings: &[Standing]) -> impl Strategy<Value = Sample> + use<> {
        let standing = select(standings.to_vec());
        let provider = (standing.clone(), vec(standing.clone(), 1..4), vec(standing, 1..4));
        let provider = provider.prop_map(|(standing, keys, peers)| Provider { standing, keys, peers });
        (vec(provider, 1..4), vec(any::<Index>(), 1..5)).prop_map(|(providers, routes)| {
            let routes = routes.iter().map(|index| index.index(providers.len())).collect();
            Sample { providers, routes }
        })
    }

    /// Ready, a probe, and several times to be back at.
    fn standings() -> Vec<Standing> {
        let at = Instant::now() + Duration::from_secs(60);
        let backs = (0..4).map(|seconds| Standing::Back { at: at + Duration::from_secs(seconds) });
        [Standing::Ready, Standing::Probe].into_iter().chain(backs).collect()
    }

    fn any_blames() -> impl Strategy<Value = Vec<Blame>> {
        vec(select(&BLAMES[..]), 1..6)
    }

    proptest! {
        #[test]
        fn where_all_are_ready_the_first_route_is_tried_first(view in any_view(&[Standing::Ready])) {
            prop_assert_eq!(next(&view, &Tried::default()), Some(candidate(0, 0, 0)));
            let (order, _) = run(&view, |_| Some(Blame::Deployment));
            let routes: Vec<_> = order.iter().map(|candidate| candidate.route).collect();
            prop_assert_eq!(routes, (0..view.routes.len()).collect::<Vec<_>>());
        }

        #[test]
        fn nobody_is_tried_twice_and_nobody_forgotten(view in any_view(&standings()), blames in any_blames()) {
            let mut blames = blames.into_iter().cycle();
            let (order, tried) = run(&view, |_| blames.next());
            let distinct: BTreeSet<_> = order.iter().map(|one| (one.route, one.key, one.peer)).collect();
            prop_assert_eq!(distinct.len(), order.len());
            let left = |candidate: &Candidate| tried.chance(&view, *candidate) != Chance::Spent;
            prop_assert!(tried.is_over() || !view.all().iter().any(left));
        }

        #[test]
        fn the_best_standing_wins(view in any_view(&standings())) {
            let got = next(&view, &Tried::default()).expect("somebody");
            let all = view.all();
            let is_ready = |one: &&Candidate| !matches!(view.standing(**one), Standing::Back { .. });
            let want = match all.iter().find(is_ready) {
                Some(ready) => all.iter().filter(|one| one.route == ready.route).map(|one| view.standing(*one)).min(),
                None => all.iter().map(|one| view.standing(*one)).min(),
            };
            prop_assert_eq!(Some(view.standing(got)), want);
            let before = all.iter().filter(|one| one.route < got.route).map(|one| view.standing(*one)).min();
            let is_first = match view.standing(got) {
                Standing::Back { .. } => before.is_none_or(|other| other > view.standing(got)),
                _ => before.is_none_or(|other| matches!(other, Standing::Back { .. })),
            };
            prop_assert!(is_first);
        }

        #[test]
        fn what_was_not_answered_is_asked_once_more_and_elsewhere(
            view in any_view(&standings()),
            before in vec(select(&BLAMES[..3]), 0..3),
            after in select(&BLAMES[..]),
        ) {
            let want = before.len() + 2;
            let mut blames = before.into_iter().chain([Blame::Unanswered, after]).chain(std::iter::repeat(Blame::Key));
            let (order, tried) = run(&view, |_| blames.next());
            prop_assert!(order.len() <= want);
            if let [.., first, second] = &order[..] && order.len() == want {
                prop_assert!((first.route, first.peer) != (second.route, second.peer));
            }
            let left = |candidate: &Candidate| tried.chance(&view, *candidate) != Chance::Spent;
            prop_assert!(order.len() == want || !view.all().iter().any(left));
        }

        #[test]
        fn the_one_that_works_is_found(view in any_view(&standings()), good in any::<Index>(), dice in any_blames()) {
            let all = view.all();
            let good = all[good.index(all.len())];
            let is_same = |one: Candidate| view.provider(one.route) == view.provider(good.route);
            // Blames something that is really broken: nothing that the good one stands on.
            let mut dice = dice.into_iter().cycle();
            let blame = |one: Candidate| {
                let honest = |blame: &Blame| match blame {
                    Blame::Peer => !is_same(one) || one.route != good.route || one.peer != good.peer,
                    Blame::Key => !is_same(one) || one.key != good.key,
                    Blame::Deployment => one.route != good.route,
                    Blame::Unanswered => false,
                };
                let wanted = dice.next().filter(honest);
                (one != good).then(|| wanted.or_else(|| BLAMES.into_iter().find(honest))).flatten()
            };
            let (order, _) = run(&view, blame);
            prop_assert_eq!(order.last(), Some(&good));
            prop_assert!(order.len() <= all.len());
        }
    }
}

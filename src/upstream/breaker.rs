//! A circuit breaker: it hears how the attempts at a peer end, and says whether it may be tried next. It knows no network,
//! no clock and no dice: times and randomness are arguments.
//!
//! An attempt is known by the time it began at. What began before the breaker last changed tells of a state that is
//! past, and is not counted: when a peer dies, the requests that still wait for it fail long after it was set aside.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Failures in a row that open it. A peer that fails every fifth time gets there once in four thousand attempts; of
/// one that is gone, five requests hear.
const FAILURES_MAX: u32 = 5;
/// Outcomes that are remembered, to see a peer that fails often but never five times in a row.
const OUTCOMES_MAX: usize = 20;
/// Half of fewer is chance.
const OUTCOMES_MIN: usize = 10;
/// What is older speaks of another day.
const MEMORY: Duration = Duration::from_secs(30);
/// How long it stays open at first: the length of a restart.
const OPEN_FIRST: Duration = Duration::from_secs(1);
/// How long at most: one request in this time is what a peer costs that never comes back.
const OPEN_MAX: Duration = Duration::from_secs(30);
/// A quarter of the pause is added at random, so that many gateways do not come back at once.
const JITTER_PARTS: u32 = 4;
/// A probe that has not ended by then is let go: the next one may start beside it.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// Whether something may be tried, from the best to the worst. What needs a probe is no worse than what is ready: else
/// it would never be used again while something else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It may be tried by one request, which is the probe.
    Probe,
    Ready,
    /// It is set aside until then, and tried only where nothing better is left.
    Back {
        at: Instant,
    },
}

/// What a breaker is called in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

impl State {
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Fed by what happens to requests; one for each peer. The default is closed.
#[derive(Debug, Default)]
pub struct Breaker {
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Closed(Recent),
    Open(Pause),
}

/// How the last attempts ended.
#[derive(Debug, Default)]
struct Recent {
    /// When it closed; `None` where it has never been open.
    since: Option<Instant>,
    failures_in_a_row: u32,
    outcomes: VecDeque<(Instant, Outcome)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Success,
    Failure,
}

/// While nobody, or only a probe, is let through.
#[derive(Debug)]
struct Pause {
    since: Instant,
    until: Instant,
    /// When the probe began that is under way.
    probe: Option<Instant>,
    /// Probes that have failed since it opened.
    probes_failed: u32,
}

impl Breaker {
    /// Whether an attempt may begin now. To be asked under the same lock as [`Breaker::begin`] is called, or several
    /// requests take themselves for the probe.
    pub fn standing(&self, now: Instant) -> Standing {
        match &self.phase {
            Phase::Closed(_) => Standing::Ready,
            Phase::Open(pause) => pause.standing(now),
        }
    }

    /// The state for metrics.
    pub fn state(&self, now: Instant) -> State {
        match &self.phase {
            Phase::Closed(_) => State::Closed,
            Phase::Open(pause) if now < pause.until => State::Open,
            Phase::Open(_) => State::HalfOpen,
        }
    }

    /// An attempt begins; where the breaker is half-open it becomes the probe. `now` is what it is known by when it
    /// ends. An attempt that could not wait, while the breaker is open, is none: its failure was to be expected.
    pub fn begin(&mut self, now: Instant) {
        if let Phase::Open(pause) = &mut self.phase
            && pause.standing(now) == Standing::Probe
        {
            pause.probe = Some(now);
        }
    }

    /// The attempt that began at `began` was answered. One success since the breaker opened closes it.
    pub fn succeeded(&mut self, began: Instant, now: Instant) {
        match &mut self.phase {
            Phase::Closed(recent) if recent.is_about(began) => recent.add(now, Outcome::Success),
            Phase::Open(pause) if pause.since < began => {
                self.phase = Phase::Closed(Recent { since: Some(now), ..Recent::default() });
            }
            Phase::Closed(_) | Phase::Open(_) => {}
        }
    }

    /// The attempt that began at `began` failed, and the peer is to blame. `jitter` is a random number from 0 to 1.
    pub fn failed(&mut self, began: Instant, now: Instant, jitter: f64) {
        match &mut self.phase {
            Phase::Closed(recent) if recent.is_about(began) => {
                recent.add(now, Outcome::Failure);
                if recent.is_bad() {
                    self.phase = Phase::Open(Pause::new(now, 0, jitter));
                }
            }
            Phase::Open(pause) if pause.probe == Some(began) => {
                *pause = Pause::new(now, pause.probes_failed.saturating_add(1), jitter);
            }
            Phase::Closed(_) | Phase::Open(_) => {}
        }
    }

    /// The attempt that began at `began` ended without saying anything of the peer, as when the client has gone: where
    /// it was the probe, another may be.
    pub fn abandoned(&mut self, began: Instant) {
        if let Phase::Open(pause) = &mut self.phase {
            pause.probe = pause.probe.filter(|probe| *probe != began);
        }
    }
}

impl Default for Phase {
    fn default() -> Self {
        Self::Closed(Recent::default())
    }
}

impl Recent {
    fn is_about(&self, began: Instant) -> bool {
        self.since <= Some(began)
    }

    fn add(&mut self, now: Instant, outcome: Outcome) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) > MEMORY;
        while self.outcomes.len() >= OUTCOMES_MAX || self.outcomes.front().is_some_and(|(at, _)| is_old(at)) {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back((now, outcome));
        self.failures_in_a_row = match outcome {
            Outcome::Success => 0,
            Outcome::Failure => self.failures_in_a_row.saturating_add(1),
        };
    }

    fn is_bad(&self) -> bool {
        let seen = self.outcomes.len();
        let failures = self.outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Failure).count();
        self.failures_in_a_row >= FAILURES_MAX || (seen >= OUTCOMES_MIN && failures * 2 >= seen)
    }
}

impl Pause {
    fn new(now: Instant, probes_failed: u32, jitter: f64) -> Self {
        let pause = doubled(OPEN_FIRST, OPEN_MAX, probes_failed);
        Self { since: now, until: now + pause + part(pause / JITTER_PARTS, jitter), probe: None, probes_failed }
    }

    fn standing(&self, now: Instant) -> Standing {
        let at = self.probe.map_or(self.until, |probe| probe + PROBE_MAX);
        if now < at { Standing::Back { at } } else { Standing::Probe }
    }
}

/// `first`, doubled so many times, but never more than `max`.
pub(super) fn doubled(first: Duration, max: Duration, times: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(max)
}

/// From nothing to the whole of `most`. Casts from floats saturate, so that no number is too odd to be one.
fn part(most: Duration, jitter: f64) -> Duration {
    Duration::from_nanos((most.as_nanos() as f64 * jitter) as u64).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const LONGEST: Duration = Duration::from_millis(37_500);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// An attempt for each letter, a millisecond apart: `x` fails, `o` succeeds, `c` is a client that leaves.
    fn after(story: &str, start: Instant) -> (Breaker, Instant) {
        let (mut breaker, mut now) = (Breaker::default(), start);
        for letter in story.chars() {
            now += ms(1);
            breaker.begin(now);
            match letter {
                'x' => breaker.failed(now, now, 0.0),
                'o' => breaker.succeeded(now, now),
                _ => breaker.abandoned(now),
            }
        }
        (breaker, now)
    }

    #[test]
    fn it_opens_by_failures_in_a_row_or_by_their_share() {
        for (story, want) in [
            ("", State::Closed),
            ("xxxx", State::Closed),
            ("xxxxx", State::Open),
            ("xxxxoxxxx", State::Closed),
            ("xxccxxccx", State::Open),
            ("xoxoxoxox", State::Closed),
            ("xoxoxoxoox", State::Open),
            ("ooxoxoxoxox", State::Closed),
            ("ooooooxoxoxoxox", State::Closed),
            ("xoooooooxxxoxxxoxox", State::Closed),
            ("xoooooooxxxoxxxoxoxx", State::Open),
            ("oooooooooooxxoxxxoxxx", State::Closed),
            ("oooooooooooxxoxxxoxxxox", State::Closed),
            ("oooooooooooxxoxxxoxxxoxx", State::Open),
        ] {
            let (breaker, now) = after(story, Instant::now());
            assert_eq!(breaker.state(now), want, "{story}");
        }
    }

    #[test]
    fn what_is_long_past_is_no_part_of_the_share() {
        for (quiet, want) in [(ms(30_000), State::Open), (ms(30_009), State::Closed)] {
            let (mut breaker, now) = after("xoxoxoxoo", Instant::now());
            let later = now + quiet - ms(8);
            breaker.failed(later, later, 0.0);
            assert_eq!(breaker.state(later), want, "after {quiet:?}");
        }
    }

    #[test]
    fn the_pause_doubles_while_probes_fail_and_one_success_ends_it() {
        let (mut breaker, mut now) = after("xxxxx", Instant::now());
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            let at = now + Duration::from_secs(seconds);
            assert_eq!(breaker.standing(at - ms(1)), Standing::Back { at }, "{seconds} s");
            assert_eq!((breaker.standing(at), breaker.state(at)), (Standing::Probe, State::HalfOpen), "{seconds} s");
            now = at + ms(1);
            breaker.begin(at);
            breaker.failed(at, now, 0.0);
        }
        let at = now + OPEN_MAX;
        breaker.begin(at);
        breaker.succeeded(at, at + ms(5));
        now = at + ms(5);
        assert_eq!((breaker.standing(now), breaker.state(now)), (Standing::Ready, State::Closed));
        for _ in 0..FAILURES_MAX {
            assert_eq!(breaker.state(now), State::Closed, "it starts from nothing");
            breaker.failed(now, now, 0.0);
        }
        assert_eq!(breaker.standing(now), Standing::Back { at: now + OPEN_FIRST }, "so does the pause");
    }

    #[test]
    fn a_half_open_breaker_lets_one_through() {
        let (breaker, now) = after("xxxxx", Instant::now());
        let due = now + OPEN_FIRST;
        let lock = std::sync::Mutex::new(breaker);
        let go = || {
            let mut breaker = lock.lock().expect("no panic");
            let standing = breaker.standing(due);
            breaker.begin(due);
            standing
        };
        let standings: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..100).map(|_| go()).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(standings.iter().filter(|standing| **standing == Standing::Probe).count(), 1);
        assert_eq!(standings.len(), 800);
        assert_eq!(lock.lock().expect("no panic").state(due), State::HalfOpen);
    }

    #[test]
    fn a_probe_gives_its_place_back_or_loses_it() {
        let (mut breaker, now) = after("xxxxx", Instant::now());
        let due = now + OPEN_FIRST;
        breaker.begin(due);
        let lost = due + PROBE_MAX;
        assert_eq!(breaker.standing(lost - ms(1)), Standing::Back { at: lost });
        assert_eq!(breaker.standing(lost), Standing::Probe);
        breaker.begin(lost);
        breaker.abandoned(due);
        assert_eq!(breaker.standing(lost), Standing::Back { at: lost + PROBE_MAX }, "it is another's place now");
        breaker.failed(due, lost, 0.0);
        assert_eq!(breaker.standing(lost), Standing::Back { at: lost + PROBE_MAX }, "nor can it fail for the other");
        breaker.abandoned(lost);
        assert_eq!(breaker.standing(lost), Standing::Probe);
        breaker.succeeded(due, lost);
        assert_eq!(breaker.standing(lost), Standing::Ready, "a late answer is an answer");
    }

    #[test]
    fn attempts_of_an_earlier_time_say_nothing() {
        let before = Instant::now();
        let (mut breaker, now) = after("xxxxx", before);
        let open = Standing::Back { at: now + OPEN_FIRST };
        breaker.succeeded(before, now + ms(1));
        breaker.failed(before, now + ms(1), 0.0);
        assert_eq!(breaker.standing(now + ms(1)), open);
        let due = now + OPEN_FIRST;
        breaker.begin(due);
        breaker.failed(before, due, 0.0);
        breaker.abandoned(before);
        assert_eq!(breaker.standing(due), Standing::Back { at: due + PROBE_MAX }, "the probe is still under way");
        breaker.succeeded(due, due + ms(1));
        let later = due + ms(2);
        (0..FAILURES_MAX).for_each(|_| breaker.failed(before, later, 0.0));
        assert_eq!(breaker.standing(later), Standing::Ready);
        (1..FAILURES_MAX).for_each(|_| breaker.failed(later, later, 0.0));
        breaker.succeeded(before, later);
        breaker.failed(later, later, 0.0);
        assert_eq!(breaker.state(later), State::Open, "five in a row, of those that count");
    }

    #[test]
    fn an_attempt_that_could_not_wait_can_only_help() {
        let (mut breaker, now) = after("xxxxx", Instant::now());
        let early = now + ms(10);
        breaker.begin(early);
        breaker.failed(early, early, 0.0);
        assert_eq!(breaker.standing(early), Standing::Back { at: now + OPEN_FIRST });
        breaker.succeeded(early, early);
        assert_eq!(breaker.standing(early), Standing::Ready);
    }

    #[test]
    fn a_peer_that_fails_every_fifth_time_stays_usable() {
        let start = Instant::now();
        let (mut breaker, mut dice, mut refused) = (Breaker::default(), 1_u64, 0);
        let requests: u64 = 100_000;
        for request in 0..requests {
            let now = start + ms(10 * request);
            if matches!(breaker.standing(now), Standing::Back { .. }) {
                refused += 1;
                continue;
            }
            breaker.begin(now);
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match (dice >> 33) % 5 {
                0 => breaker.failed(now, now, 0.5),
                _ => breaker.succeeded(now, now),
            }
        }
        assert!((1..requests / 5).contains(&refused), "{refused} of {requests} went elsewhere");
    }

    #[derive(Debug, Clone)]
    enum Event {
        Passes(u64),
        Begins,
        Succeeds(usize),
        Fails(usize, f64),
        Leaves(usize),
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => (0..40_000_u64).prop_map(Event::Passes),
            3 => Just(Event::Passes(1)),
            9 => Just(Event::Begins),
            1 => (0..4_usize).prop_map(Event::Succeeds),
            9 => (0..4_usize, any::<f64>()).prop_map(|(who, jitter)| Event::Fails(who, jitter)),
            1 => (0..4_usize).prop_map(Event::Leaves),
        ]
    }

    proptest! {
        #[test]
        fn no_history_leaves_it_stuck_or_lets_two_probes_run(events in vec(any_event(), 0..120)) {
            let mut now = Instant::now();
            let (mut breaker, mut running, mut probe) = (Breaker::default(), Vec::new(), None);
            for event in events {
                match event {
                    Event::Passes(millis) => now += ms(millis),
                    Event::Begins => {
                        now += Duration::from_nanos(1);
                        if breaker.standing(now) == Standing::Probe {
                            let other = probe.replace(now).filter(|other| running.contains(other));
                            prop_assert!(other.is_none_or(|other| now >= other + PROBE_MAX));
                        }
                        breaker.begin(now);
                        running.push(now);
                        prop_assert_ne!(breaker.standing(now), Standing::Probe);
                    }
                    Event::Succeeds(who) if who < running.len() => breaker.succeeded(running.swap_remove(who), now),
                    Event::Fails(who, jitter) if who < running.len() => {
                        breaker.failed(running.swap_remove(who), now, jitter);
                    }
                    Event::Leaves(who) if who < running.len() => breaker.abandoned(running.swap_remove(who)),
                    _ => {}
                }
                if breaker.standing(now) == Standing::Ready {
                    probe = None;
                }
                if let Standing::Back { at } = breaker.standing(now) {
                    prop_assert!(at > now && at <= now + LONGEST.max(PROBE_MAX));
                }
                if let Phase::Closed(recent) = &breaker.phase {
                    prop_assert!(recent.outcomes.len() <= OUTCOMES_MAX);
                }
            }
            let is_back = matches!(breaker.standing(now + LONGEST), Standing::Back { .. });
            prop_assert!(!is_back);
        }

        #[test]
        fn the_jitter_adds_a_quarter_at_most(probes_failed: u32, jitter: f64, odd: f64) {
            let now = Instant::now();
            let pause = doubled(OPEN_FIRST, OPEN_MAX, probes_failed);
            for jitter in [jitter, odd, jitter.fract().abs(), 0.0, 1.0, f64::NAN, f64::INFINITY] {
                let until = Pause::new(now, probes_failed, jitter).until;
                prop_assert!(until >= now + pause && until <= now + pause + pause / 4, "{}", jitter);
            }
            prop_assert_eq!(Pause::new(now, probes_failed, 0.0).until, now + pause);
            prop_assert_eq!(Pause::new(now, probes_failed, 1.0).until, now + pause + pause / 4);
        }
    }
}

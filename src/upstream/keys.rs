//! The keys of one provider: which one is used next, and which cool down because the provider limited or refused them.
//! No network, no clock, and no key: they are known by their place in the list.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::TimeZone;

use super::breaker::{Standing, doubled};

/// The pause after a limit for which the provider named none: most count by the second or by the minute.
const LIMITED_FIRST: Duration = Duration::from_secs(1);
const LIMITED_MAX: Duration = Duration::from_secs(60);
/// What a provider may ask for: never so little that we turn in circles, never so much that a slip of its clock
/// takes a key away for a day.
const ASKED_MIN: Duration = Duration::from_millis(100);
const ASKED_MAX: Duration = Duration::from_secs(60 * 60);
/// Where a key was refused an operator has to act, at the provider or in the config; this is how soon it is noticed.
const REFUSED_FIRST: Duration = Duration::from_secs(60);
const REFUSED_MAX: Duration = Duration::from_secs(60 * 60);

/// The forms of an HTTP date: the one that is sent, and two that were (RFC 9110, 5.6.7).
const HTTP_DATES: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// The keys of one provider, by their place in its list.
#[derive(Debug)]
pub struct Keys {
    each: Vec<Key>,
    /// Where the next order starts.
    start: usize,
}

/// Why a key is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Limited,
    Refused,
}

impl Cause {
    pub fn label(self) -> &'static str {
        match self {
            Self::Limited => "limited",
            Self::Refused => "refused",
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Key {
    limited: Cooling,
    refused: Cooling,
    /// When it was last limited or refused.
    since: Option<Instant>,
}

#[derive(Debug, Clone, Default)]
struct Cooling {
    until: Option<Instant>,
    /// How often this happened without a success between.
    times: u32,
}

impl Keys {
    /// So many keys, all ready. A provider that asks for none has one all the same: it, too, can say that it is asked
    /// too often.
    pub fn new(count: usize) -> Self {
        Self { each: vec![Key::default(); count.max(1)], start: 0 }
    }

    /// The keys of a reloaded config: `old_index` says which of these a new one was, and what is known of that stays.
    pub fn reloaded(&self, count: usize, old_index: impl Fn(usize) -> Option<usize>) -> Self {
        let mut keys = Self::new(count);
        for (index, key) in keys.each.iter_mut().enumerate() {
            if let Some(old) = old_index(index).and_then(|old| self.each.get(old)) {
                key.clone_from(old);
            }
        }
        keys
    }

    /// [`Standing::Ready`], or when it is due back.
    pub fn standing(&self, index: usize, now: Instant) -> Standing {
        match self.each.get(index).and_then(Key::until) {
            Some(at) if now < at => Standing::Back { at },
            _ => Standing::Ready,
        }
    }

    /// Why a key is not ready; `None` where it is.
    pub fn cause(&self, index: usize, now: Instant) -> Option<Cause> {
        let key = self.each.get(index)?;
        let cooling = [(&key.refused, Cause::Refused), (&key.limited, Cause::Limited)];
        cooling.into_iter().find_map(|(cooling, cause)| cooling.is_on(now).then_some(cause))
    }

    /// All keys in the order they should be used in: those that are ready, in turn, then the others, the one due back
    /// first before the rest. Nothing is allocated, and what is not asked for is not sorted.
    pub fn order(&mut self, now: Instant) -> Order<'_> {
        let start = self.start;
        // Behind the one that is likely to be used, not one further: else the key behind one that cools down would
        // be the first twice as often as the others.
        let first = Order { keys: self, start, now, last: None }.next();
        self.start = first.map_or(0, |(index, _)| (index + 1) % self.each.len());
        Order { keys: self, start, now, last: None }
    }

    /// The provider limited the key, and said for how long, or did not.
    pub fn limited(&mut self, index: usize, retry_after: Option<Duration>, now: Instant) {
        let Some(key) = self.each.get_mut(index) else { return };
        let pause = key.limited.again(LIMITED_FIRST, LIMITED_MAX, now);
        let asked = retry_after.map(|asked| asked.clamp(ASKED_MIN, ASKED_MAX));
        key.limited.extend(now + asked.unwrap_or(pause));
        key.since = Some(now);
    }

    /// The provider refused the key: 401, 402 or 403.
    pub fn refused(&mut self, index: usize, now: Instant) {
        let Some(key) = self.each.get_mut(index) else { return };
        let pause = key.refused.again(REFUSED_FIRST, REFUSED_MAX, now);
        key.refused.extend(now + pause);
        key.since = Some(now);
    }

    /// The attempt that began at `began` was served, so the key is good, and the pauses start small again. One that
    /// began before the key was last set aside does not know of that: it changes nothing.
    pub fn succeeded(&mut self, index: usize, began: Instant) {
        if let Some(key) = self.each.get_mut(index).filter(|key| key.since <= Some(began)) {
            *key = Key::default();
        }
    }
}

impl Key {
    fn until(&self) -> Option<Instant> {
        self.limited.until.max(self.refused.until)
    }
}

impl Cooling {
    fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Counts, and gives the pause for it. What comes while it cools down is of the same burst: counted each, ten
    /// requests that were under way together would be ten times in a row.
    fn again(&mut self, first: Duration, max: Duration, now: Instant) -> Duration {
        if !self.is_on(now) {
            self.times = self.times.saturating_add(1);
        }
        doubled(first, max, self.times.saturating_sub(1))
    }

    fn extend(&mut self, until: Instant) {
        self.until = self.until.max(Some(until));
    }
}

/// Keys by preference: see [`Keys::order`].
#[derive(Debug, Clone)]
pub struct Order<'a> {
    keys: &'a Keys,
    start: usize,
    now: Instant,
    /// The one that was given last, by its standing and its distance from the start.
    last: Option<(Standing, usize)>,
}

impl Order<'_> {
    fn index(&self, distance: usize) -> usize {
        (self.start + distance) % self.keys.each.len()
    }
}

impl Iterator for Order<'_> {
    type Item = (usize, Standing);

    fn next(&mut self) -> Option<Self::Item> {
        let ranks = (0..self.keys.each.len()).map(|far| (self.keys.standing(self.index(far), self.now), far));
        let (standing, far) = ranks.filter(|rank| self.last < Some(*rank)).min()?;
        self.last = Some((standing, far));
        Some((self.index(far), standing))
    }
}

/// What `Retry-After` says: seconds, of which some send fractions, or a date. A date that is past is no wait at all.
/// `None` where it is neither.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim_ascii();
    decimal(value, 1.0).or_else(|| {
        let wait = http_date(value)?.duration_since(now);
        Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
    })
}

/// What `retry-after-ms` says, which some send beside it: milliseconds. `None` where it is no number.
pub fn retry_after_ms(value: &str) -> Option<Duration> {
    decimal(value.trim_ascii(), 1000.0)
}

/// A decimal number of which so many are a second. More than a [`Duration`] holds is the longest of them.
fn decimal(value: &str, per_second: f64) -> Option<Duration> {
    // `parse` would take signs, exponents, `inf` and `nan` as well.
    let is_plain = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = is_plain.then(|| value.parse().ok()).flatten()?;
    Some(Duration::try_from_secs_f64(number / per_second).unwrap_or(Duration::MAX))
}

fn http_date(value: &str) -> Option<Timestamp> {
    let date = |form| BrokenDownTime::parse(form, value).ok()?.to_datetime().ok();
    TimeZone::UTC.to_timestamp(HTTP_DATES.into_iter().find_map(date)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn first(keys: &mut Keys, now: Instant) -> usize {
        keys.order(now).next().expect("there is always one").0
    }

    #[test]
    fn a_provider_without_keys_has_one_place() {
        let now = Instant::now();
        for count in [0, 1] {
            let mut keys = Keys::new(count);
            assert_eq!(keys.order(now).collect::<Vec<_>>(), [(0, Standing::Ready)]);
            keys.limited(0, None, now);
            assert_eq!(keys.order(now).collect::<Vec<_>>(), [(0, Standing::Back { at: now + LIMITED_FIRST })]);
            keys.limited(1, None, now);
            keys.refused(1, now);
            keys.succeeded(1, now);
            assert_eq!((keys.standing(1, now), keys.cause(1, now)), (Standing::Ready, None), "there is no other");
        }
    }

    #[test]
    fn ready_keys_take_turns_and_the_others_come_when_they_are_due() {
        let now = Instant::now();
        let mut keys = Keys::new(5);
        let firsts: Vec<_> = (0..6).map(|_| first(&mut keys, now)).collect();
        assert_eq!(firsts, [0, 1, 2, 3, 4, 0]);
        keys.limited(1, Some(secs(9)), now);
        keys.limited(2, Some(secs(3)), now);
        let order: Vec<_> = keys.order(now).map(|(index, _)| index).collect();
        assert_eq!(order, [3, 4, 0, 2, 1]);
        let mut uses = [0; 5];
        (0..300).for_each(|_| uses[first(&mut keys, now)] += 1);
        assert_eq!(uses, [100, 0, 0, 100, 100], "the one behind those that cool down is used no more than the others");
        (0..5).for_each(|index| keys.limited(index, Some(secs(20 - index as u64)), now));
        let order: Vec<_> = keys.order(now).map(|(index, _)| index).collect();
        assert_eq!(order, [4, 3, 2, 1, 0], "where none is ready, still all");
    }

    #[test]
    fn a_limit_lasts_as_long_as_the_provider_says_within_reason() {
        for (asked, want) in [
            (Some(secs(7)), secs(7)),
            (Some(Duration::ZERO), ms(100)),
            (Some(Duration::MAX), secs(3600)),
            (None, secs(1)),
        ] {
            let now = Instant::now();
            let mut keys = Keys::new(1);
            keys.limited(0, asked, now);
            assert_eq!(keys.standing(0, now), Standing::Back { at: now + want }, "{asked:?}");
            assert_eq!(keys.standing(0, now + want), Standing::Ready, "{asked:?}");
            keys.limited(0, Some(ms(100)), now);
            assert_eq!(keys.standing(0, now), Standing::Back { at: now + want }, "nor is it cut short");
        }
    }

    #[test]
    fn pauses_double_until_a_success() {
        type Event = fn(&mut Keys, Instant);
        let limited: Event = |keys, now| keys.limited(0, None, now);
        let refused: Event = |keys, now| keys.refused(0, now);
        for (event, cause, pauses) in [
            (limited, Cause::Limited, &[1, 2, 4, 8, 16, 32, 60, 60][..]),
            (refused, Cause::Refused, &[60, 120, 240, 480, 960, 1920, 3600, 3600]),
        ] {
            let (mut keys, mut now) = (Keys::new(1), Instant::now());
            for pause in pauses.iter().map(|pause| secs(*pause)) {
                (0..10).for_each(|_| event(&mut keys, now));
                assert_eq!(keys.standing(0, now), Standing::Back { at: now + pause }, "{cause:?}: a burst is once");
                assert_eq!(keys.cause(0, now), Some(cause));
                now += pause;
                assert_eq!((keys.standing(0, now), keys.cause(0, now)), (Standing::Ready, None));
            }
            keys.succeeded(0, now);
            event(&mut keys, now);
            assert_eq!(keys.standing(0, now), Standing::Back { at: now + secs(pauses[0]) }, "{cause:?}");
        }
    }

    #[test]
    fn only_a_success_that_began_later_brings_a_key_back() {
        let before = Instant::now();
        let (now, after) = (before + ms(1), before + ms(2));
        let mut keys = Keys::new(1);
        keys.refused(0, now);
        keys.limited(0, Some(secs(90)), now);
        keys.succeeded(0, before);
        assert_eq!(keys.standing(0, after), Standing::Back { at: now + secs(90) });
        assert_eq!(keys.cause(0, now), Some(Cause::Refused));
        assert_eq!(keys.cause(0, now + REFUSED_FIRST), Some(Cause::Limited));
        keys.succeeded(0, after);
        assert_eq!(keys.standing(0, after), Standing::Ready);
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_keys_that_stay() {
        let now = Instant::now();
        let mut old = Keys::new(3);
        old.refused(2, now);
        let new = old.reloaded(4, |index| [Some(2), Some(0), None, Some(9)][index]);
        let set_aside: Vec<_> = (0..4).map(|index| new.cause(index, now).is_some()).collect();
        assert_eq!(set_aside, [true, false, false, false]);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:07Z".parse().expect("a time");
        for (value, want) in [
            ("120", Some(secs(120))),
            (" 0 ", Some(secs(0))),
            ("1.5", Some(ms(1500))),
            (".25", Some(ms(250))),
            ("99999999999999999999999", Some(Duration::MAX)),
            (&"9".repeat(400), Some(Duration::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(secs(30))),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(secs(30))),
            ("Sun Nov  6 08:49:37 1994", Some(secs(30))),
            ("Sun Nov 13 08:49:07 1994", Some(secs(7 * 24 * 3600))),
            ("Sun, 06 Nov 1994 08:49:06 GMT", Some(secs(0))),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(secs(0))),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("-1", None),
            ("+1", None),
            ("1e3", None),
            ("inf", None),
            ("nan", None),
            ("12 s", None),
            ("1,5", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Mon, 06 Nov 1994 08:49:37 GMT", None),
            ("Wed, 30 Feb 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
        ] {
            assert_eq!(retry_after(value, now), want, "{value:?}");
        }
        for (value, want) in [("1500", Some(ms(1500))), ("0.5", Some(Duration::from_micros(500))), ("soon", None)] {
            assert_eq!(retry_after_ms(value), want, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_is_too_odd_to_be_read(value: String, near in "[0-9A-Za-z,.: -]{0,32}") {
            for value in [value, near] {
                let _ = (retry_after(&value, Timestamp::UNIX_EPOCH), retry_after_ms(&value));
            }
        }

        #[test]
        fn no_history_leaves_a_key_out_or_loses_one(
            count in 1..6_usize,
            events in vec((0..6_usize, 0..4_u8, 0..90_000_u64), 0..60),
        ) {
            let (mut keys, mut now) = (Keys::new(count), Instant::now());
            for (index, what, millis) in events {
                match what {
                    0 => keys.limited(index, Some(ms(millis)), now),
                    1 => keys.limited(index, None, now),
                    2 => keys.refused(index, now),
                    _ => keys.succeeded(index, now),
                }
                now += ms(millis / 10);
                let order: Vec<_> = keys.order(now).collect();
                prop_assert!(order.is_sorted_by_key(|(_, standing)| *standing));
                let mut indexes: Vec<_> = order.iter().map(|(index, _)| *index).collect();
                indexes.sort_unstable();
                prop_assert_eq!(indexes, (0..count).collect::<Vec<_>>());
            }
            let later = now + REFUSED_MAX.max(ASKED_MAX);
            prop_assert!(keys.order(later).all(|(_, standing)| standing == Standing::Ready));
        }
    }
}

//! One request from its head to its records. Whatever way it ends, it is recorded: the last way out is `Drop`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use prometheus::IntGauge;
use uuid::Uuid;

use crate::metrics::{Metrics, OTHER};
use crate::provider::Provider;
use crate::records::Slot;
use crate::refusal::Refusal;
use crate::stage::authenticate::Caller;
use crate::stage::edit::{Editor, Known};
use crate::stage::failover::Failures;
use crate::stage::inspect::{Call, Task};
use crate::stage::meter::Meter;
use crate::stage::record::{Attempted, Audit, End, Outcome, Request, Served, Usage};
use crate::stage::route::Plan;
use crate::stage::stream::Sent;
use crate::state::State;
use crate::surface::Endpoint;
use crate::units::printable;
use crate::upstream::Underway;
use crate::upstream::candidates::{Blame, Candidate};
use crate::wire::mask::Mask;
use crate::wire::sse::Ends;

/// The per-request context.
pub struct Exchange {
    /// Ours, unique, never the client's choice.
    pub id: Uuid,
    pub arrived: Instant,
    pub ts: Timestamp,
    /// The config the request began with, and ends with.
    pub state: Arc<State>,
    metrics: Arc<Metrics>,
    pub request: Request,
    pub endpoint: Option<Endpoint>,
    pub caller: Option<Caller>,
    pub progress: Progress,
    pub meter: Meter,
    /// Whose clients the answer is for, where it is not OpenAI's.
    pub dialect: Option<&'static dyn Provider>,
    /// What the client was told.
    pub status: Option<u16>,
    /// Room for the records; gone when they are handed over.
    slot: Option<Slot>,
    in_flight: Option<InFlight>,
    ended: bool,
}

/// One question: was it let in?
pub enum Progress {
    /// Nothing is decided yet.
    Arrived,
    /// Every question is answered: no field inside is optional.
    Admitted(Box<Admitted>),
    /// We answered it ourselves, with something other than a refusal.
    Answered,
    Refused(Refusal),
}

/// A request that may be forwarded.
pub struct Admitted {
    pub call: Call,
    pub plan: Plan,
    /// The body, as far as its head and what has been read of it say.
    pub body: Known,
    pub attempts: Vec<Attempt>,
    pub failures: Failures,
}

/// One try at one peer. A second try begins with a fresh one: the body is replayed.
pub struct Attempt {
    pub began: Instant,
    pub connected: Option<Instant>,
    /// Which of the plan's routes it goes.
    pub route: usize,
    /// Who is asked; `None` where there was no address to ask.
    pub candidate: Option<Candidate>,
    pub underway: Option<Underway>,
    pub editor: Editor,
    pub masks: Vec<Mask>,
    /// Watches an answer of events for its last one.
    pub ends: Option<Ends>,
    /// Interim answers seen.
    pub interim: usize,
    pub log: Attempted,
}

impl Admitted {
    pub fn new(call: Call, plan: Plan, body: Known) -> Self {
        Self { call, plan, body, attempts: Vec::new(), failures: Failures::default() }
    }

    /// Where the request was sent last, or would be sent first.
    pub fn sent(&self) -> Sent<'_> {
        let attempt = self.attempts.last();
        let leg = attempt.and_then(|attempt| self.plan.routes.get(attempt.route)).unwrap_or(self.plan.first());
        let key = attempt.and_then(|attempt| leg.provider.keys.get(attempt.candidate?.key));
        Sent { leg, key }
    }

    /// The attempt under way failed, and this is to blame. What it has seen of the form is for the next one.
    pub fn failed(&mut self, blame: Blame) {
        let Some(attempt) = self.attempts.last() else { return };
        self.body.learn(&attempt.editor);
        if let Some(candidate) = attempt.candidate {
            self.failures.failed(candidate, blame);
        }
    }

    /// Whether the client was sent the last event of a stream of them.
    pub fn heard_all(&self) -> bool {
        self.attempts.last().and_then(|attempt| attempt.ends.as_ref()).is_some_and(Ends::over)
    }
}

/// How many of something there are now: requests being served, connections switched.
#[derive(Debug)]
pub struct Load {
    count: AtomicUsize,
    gauge: IntGauge,
}

/// One of them.
pub struct InFlight(Arc<Load>);

impl Load {
    /// `gauge` shows the same.
    pub fn new(gauge: IntGauge) -> Self {
        Self { count: AtomicUsize::new(0), gauge }
    }

    /// How many there are.
    pub fn now(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts one more, if there are fewer than `max`.
    pub fn enter(self: &Arc<Self>, max: usize) -> Option<InFlight> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        self.gauge.inc();
        let entered = InFlight(Arc::clone(self));
        (before < max).then_some(entered)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.gauge.dec();
    }
}

impl Exchange {
    pub fn new(id: Uuid, arrived: Instant, ts: Timestamp, state: Arc<State>, metrics: Arc<Metrics>) -> Self {
        Self {
            id,
            arrived,
            ts,
            state,
            metrics,
            request: Request::default(),
            endpoint: None,
            caller: None,
            progress: Progress::Arrived,
            meter: Meter::default(),
            dialect: None,
            status: None,
            slot: None,
            in_flight: None,
            ended: false,
        }
    }

    /// The id as a header.
    pub fn request_id(&self) -> HeaderValue {
        let mut text = Uuid::encode_buffer();
        HeaderValue::from_str(self.id.hyphenated().encode_lower(&mut text)).unwrap_or(HeaderValue::from_static(""))
    }

    /// From here on the request is counted, and whatever becomes of it is recorded.
    pub fn begin(&mut self, slot: Slot, in_flight: Option<InFlight>) {
        self.slot = Some(slot);
        self.in_flight = in_flight;
    }

    pub fn admitted(&self) -> Option<&Admitted> {
        match &self.progress {
            Progress::Admitted(admitted) => Some(admitted),
            _ => None,
        }
    }

    pub fn admitted_mut(&mut self) -> Option<&mut Admitted> {
        match &mut self.progress {
            Progress::Admitted(admitted) => Some(admitted),
            _ => None,
        }
    }

    /// Whether no valid key came with it: such requests are written down only so often.
    pub fn is_a_strangers(&self) -> bool {
        let refused = matches!(&self.progress, Progress::Refused(refusal) if refusal.is_of_credentials());
        refused || self.caller.is_none()
    }

    /// The attempt that is under way.
    pub fn attempt_mut(&mut self) -> Option<&mut Attempt> {
        self.admitted_mut()?.attempts.last_mut()
    }

    /// The end of the request. `error`: the code of what went wrong. `audited`: false where a flood is not written
    /// down one by one.
    pub fn end(&mut self, end: End, error: Option<&'static str>, now: Instant, audited: bool) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.in_flight = None;
        let outcome = self.outcome(end, now);
        self.measure(end, &outcome);
        let Some(slot) = self.slot.take() else { return };
        let outcome = &outcome;
        let usage = self.served().map(|served| Usage { served, outcome });
        let audit = audited.then(|| {
            let caller = self.caller.as_ref().map(|caller| (caller.key.name.as_str(), caller.spelling));
            let attempts = self.admitted().map(|a| a.attempts.iter().map(|attempt| &attempt.log).collect());
            Audit { request: &self.request, caller, outcome, error, attempts: attempts.unwrap_or_default() }
        });
        slot.write(usage.as_ref(), audit.as_ref());
    }

    fn outcome(&self, end: End, now: Instant) -> Outcome {
        let (bytes_in, bytes_out, first_out) = self.meter.read();
        Outcome {
            ts: self.ts,
            id: self.id,
            attempts: self.admitted().map_or(0, |admitted| admitted.attempts.len()),
            status: self.status,
            end,
            bytes_in,
            bytes_out,
            ttfb: first_out.map(|first| first.saturating_duration_since(self.arrived)),
            duration: now.saturating_duration_since(self.arrived),
        }
    }

    /// A usage record is owed for what was forwarded, and nothing else.
    fn served(&self) -> Option<Served<'_>> {
        let (admitted, caller) = (self.admitted()?, self.caller.as_ref()?);
        if admitted.attempts.is_empty() {
            return None;
        }
        let sent = admitted.sent();
        let form = admitted.attempts.last().and_then(|attempt| attempt.editor.facts()).unwrap_or_default();
        let (input_chars, format, stream) = match &admitted.call.task {
            Task::Speech(speech) => {
                let format = short(speech.format.as_deref().unwrap_or("mp3"));
                (Some(speech.input_chars), Some(format), speech.events)
            }
            Task::Chat(chat) => (None, chat.format.as_deref().map(short), chat.stream),
            Task::Upload(_) => (None, Some(short(form.response_format.as_deref().unwrap_or("json"))), form.stream),
            Task::Pass(pass) => (None, None, pass.upgrade),
        };
        let passes = admitted.call.passes();
        let known = |text| (!passes).then_some(text);
        Some(Served {
            key: &caller.key.name,
            user_path: &caller.user_path,
            workspace: caller.key.workspace.as_deref(),
            op: admitted.call.endpoint.op(),
            path: passes.then_some(self.request.path.as_str()),
            model_asked: known(admitted.call.model.as_str()),
            model: known(admitted.plan.model.as_str()),
            provider: &sent.leg.provider.name,
            provider_model: known(sent.leg.provider_model.as_str()),
            input_chars,
            format,
            stream,
            filename: form.filename,
            file_bytes: form.file_bytes,
            language: form.language.as_deref().map(short),
            timestamp_granularities: form.timestamp_granularities.iter().map(|word| short(word)).collect(),
        })
    }

    fn measure(&self, end: End, outcome: &Outcome) {
        let op = self.endpoint.map_or("none", Endpoint::op);
        let (model, provider) = match self.admitted() {
            Some(admitted) if self.state.is_configured_model(&admitted.plan.model) => {
                (admitted.plan.model.as_str(), admitted.sent().leg.provider.name.as_str())
            }
            Some(admitted) if admitted.call.passes() => ("", admitted.sent().leg.provider.name.as_str()),
            Some(admitted) => (OTHER, admitted.sent().leg.provider.name.as_str()),
            None => ("", ""),
        };
        let class = outcome.status.and_then(|status| StatusCode::from_u16(status).ok()).map_or("none", status_class);
        self.metrics.requests.with_label_values(&[op, model, provider, class, end.label()]).inc();
        self.metrics.duration.with_label_values(&[op]).observe(outcome.duration.as_secs_f64());
        if let (Some(first), Some(Endpoint::Speech), Some(200)) = (outcome.ttfb, self.endpoint, outcome.status) {
            self.metrics.first_audio.with_label_values(&[model, provider]).observe(first.as_secs_f64());
        }
    }
}

/// A client's word, as far as a record keeps it.
fn short(format: &str) -> String {
    const FORMAT_BYTES_MAX: usize = 32;
    printable(format.as_bytes(), FORMAT_BYTES_MAX)
}

fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// A request that nobody ended was cut by a panic in a filter, or by the end of the process.
impl Drop for Exchange {
    fn drop(&mut self) {
        let end = if std::thread::panicking() { End::Panic } else { End::Drained };
        if !self.ended && self.slot.is_some() {
            self.end(end, None, Instant::now(), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Records;
    use crate::stage::testing;

    fn audit_of(name: &str, body: impl FnOnce(Exchange)) -> serde_json::Value {
        let dir = std::env::temp_dir().join(format!("aulos-exchange-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&dir).ok();
        let (records, writer) = Records::open(&dir, 4).expect("opens");
        let metrics = Arc::new(Metrics::new().expect("registers"));
        let load = Arc::new(Load::new(metrics.in_flight.clone()));
        let state = Arc::new(testing::state(""));
        let mut exchange = Exchange::new(Uuid::nil(), Instant::now(), Timestamp::UNIX_EPOCH, state, metrics.clone());
        exchange.begin(records.reserve().expect("room"), load.enter(1));
        assert!(load.enter(1).is_none(), "one is in flight");
        body(exchange);
        assert!(load.enter(1).is_some(), "none is any more");
        assert_eq!(writer.close(), 0);
        let lines = std::fs::read_to_string(dir.join("audit.jsonl")).expect("readable");
        std::fs::remove_dir_all(dir).ok();
        serde_json::from_str(&lines).expect("exactly one record")
    }

    #[test]
    fn a_request_is_recorded_once_however_it_ends() {
        let ended = audit_of("ended", |mut exchange| {
            exchange.status = Some(400);
            exchange.end(End::Refused, Some("invalid_json"), Instant::now(), true);
            exchange.end(End::Complete, None, Instant::now(), true);
        });
        assert_eq!((&ended["end"], &ended["error"]), (&"refused".into(), &"invalid_json".into()));
        let dropped = audit_of("dropped", drop);
        assert_eq!(dropped["end"], "drained");
        let panicked = audit_of("panicked", |exchange| {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _held = exchange;
                std::panic::resume_unwind(Box::new("a filter panics"));
            }));
            assert!(caught.is_err());
        });
        assert_eq!(panicked["end"], "panic");
    }
}

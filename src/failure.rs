//! What Pingora's errors mean here: what the client is told, what the records say, what may be tried again.

use std::time::{Duration, Instant};

use pingora_core::{Error, ErrorSource, ErrorType};

use crate::body::replay::Answered;
use crate::exchange::{Admitted, Exchange, Progress};
use crate::refusal::Refusal;
use crate::stage::edit::Fault;
use crate::stage::record::End;
use crate::tunnel::Over;

/// A refusal on its way through Pingora; [`root`] finds it again.
pub fn refused(refusal: Refusal) -> Box<Error> {
    Error::because(ErrorType::HTTPStatus(refusal.status()), "refused", refusal).into_up()
}

/// A body that cannot go on, on its way through Pingora.
pub fn unsendable(fault: Fault) -> Box<Error> {
    match fault {
        Fault::Refused(refusal) => refused(refusal),
        unkept => Error::because(ErrorType::InternalError, "the body changed", unkept),
    }
}

/// Where a model has to be put into a form that was thought to have one.
pub fn length_unkept(error: &Error) -> Option<u64> {
    match error.root_cause().downcast_ref::<Fault>()? {
        Fault::LengthUnkept { insert_at } => Some(*insert_at),
        Fault::Refused(_) => None,
    }
}

/// Another provider's answer is preferred to this one.
#[derive(Debug, thiserror::Error)]
#[error("the provider answered {0}, and another one is asked")]
struct Preferred(u16);

/// An answer that is not passed on, on its way through Pingora.
pub fn preferred(status: u16) -> Box<Error> {
    let mut error = Error::because(ErrorType::HTTPStatus(status), "another is asked", Preferred(status)).into_up();
    error.set_retry(true);
    error
}

pub fn is_preferred(error: &Error) -> bool {
    error.root_cause().is::<Preferred>()
}

/// Whether an error is about an answer that was judged already: it says what the client is told.
pub fn is_settled(error: &Error) -> bool {
    matches!(root(error), Some(Refusal::ProviderAuth))
}

/// For what cannot be: a phase that Pingora calls before its time.
pub fn internal() -> Box<Error> {
    refused(Refusal::Internal)
}

/// The refusal an error carries.
pub fn root(error: &Error) -> Option<&Refusal> {
    error.root_cause().downcast_ref::<Refusal>()
}

/// A pooled connection that was dead says so at once; one that dies later may have been at work.
const STALE_MAX: Duration = Duration::from_secs(1);

/// Whether an attempt failed because the provider had already closed a pooled connection: nothing of the request was
/// served there, and it may be made again. The error's own mark has to be decided before.
///
/// `connected`: when the attempt had its connection; `interim`: interim answers that were seen.
pub fn was_stale(error: &Error, connected: Option<Instant>, interim: usize, now: Instant) -> bool {
    let at_once = connected.is_some_and(|connected| now.saturating_duration_since(connected) < STALE_MAX);
    error.retry() && at_once && interim == 0 && !heard_something(error)
}

/// Pingora marks a pooled connection that died while its answer was awaited; that one could not even be written to is
/// the same, and less: the request was never complete there.
pub fn mark_unwritten(error: &mut Error, reused: bool) {
    if reused && *error.etype() == ErrorType::WriteError && *error.esource() == ErrorSource::Upstream {
        error.set_retry(true);
    }
}

/// Whether a provider had begun to answer when its connection ended: Pingora marks that as worth a retry all the
/// same, and says only in the error's words how much it had read.
fn heard_something(error: &Error) -> bool {
    let words = error.context.as_ref().map(|context| context.as_str()).unwrap_or_default();
    words.split_once("bytes already read: ").is_some_and(|(_, read)| read.trim() != "0")
}

/// Whether the exchange was over, and only the rest of an upload was cut.
pub fn was_answered(error: &Error) -> bool {
    error.root_cause().is::<Answered>()
}

/// What the client is told. `None`: it is gone.
pub fn told(error: &Error) -> Option<Refusal> {
    if let Some(refusal) = root(error) {
        return Some(refusal.clone());
    }
    match error.esource() {
        ErrorSource::Downstream => None,
        ErrorSource::Upstream => Some(match error.etype() {
            ErrorType::ConnectTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
            | ErrorType::TLSHandshakeTimedout => Refusal::UpstreamTimeout,
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => Refusal::UpstreamTls,
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error | ErrorType::H2Error => Refusal::UpstreamInvalid,
            _ => Refusal::UpstreamUnavailable,
        }),
        ErrorSource::Internal | ErrorSource::Unset => Some(Refusal::Internal),
    }
}

/// Why an attempt failed, as a label.
pub fn reason(error: &Error) -> &'static str {
    if let Some(refusal) = root(error) {
        return refusal.code();
    }
    match error.etype() {
        ErrorType::ConnectTimedout => "connect_timeout",
        ErrorType::ConnectRefused => "connect_refused",
        ErrorType::ConnectNoRoute | ErrorType::ConnectError | ErrorType::ConnectProxyFailure => "connect",
        ErrorType::TLSHandshakeFailure | ErrorType::TLSHandshakeTimedout | ErrorType::InvalidCert => "tls",
        ErrorType::ReadTimedout => "read_timeout",
        ErrorType::WriteTimedout => "write_timeout",
        ErrorType::ConnectionClosed => "closed",
        ErrorType::InvalidHTTPHeader => "invalid_answer",
        _ => "broken",
    }
}

/// How a request ended, and what went wrong.
pub fn ended(exchange: &Exchange, begun: bool, error: Option<&Error>) -> (End, Option<&'static str>) {
    if let Progress::Refused(refusal) = &exchange.progress {
        return (End::Refused, Some(refusal.code()));
    }
    let Some(error) = error.filter(|error| !was_answered(error)) else { return (End::Complete, None) };
    match root(error) {
        Some(Refusal::UpstreamTimeout) => return (End::Timeout, Some("upstream_timeout")),
        // An upload that stops in the middle is one whose client has left; it may have closed one way only.
        Some(Refusal::BodyTruncated) => return (End::ClientGone, Some("client_gone")),
        Some(refusal @ Refusal::BodyTimeout) if begun => return (End::Timeout, Some(refusal.code())),
        Some(refusal) if refusal.is_the_clients() => {
            return (if begun { End::ClientGone } else { End::Refused }, Some(refusal.code()));
        }
        _ => {}
    }
    if *error.esource() == ErrorSource::Downstream {
        // Clients hang up on the last event, and do not wait for the end of the answer behind it.
        let heard_all = exchange.admitted().is_some_and(Admitted::heard_all);
        if heard_all {
            return (End::Complete, None);
        }
        return (End::ClientGone, Some("client_gone"));
    }
    let told = told(error);
    let code = told.as_ref().map(Refusal::code);
    match (begun, told) {
        (true, _) => (End::UpstreamBroken, code),
        (false, Some(Refusal::UpstreamTimeout)) => (End::Timeout, code),
        (false, _) => (End::UpstreamFailed, code),
    }
}

/// How a connection ended that had been switched to another protocol, and what went wrong.
pub fn tunnel_ended(over: Over) -> (End, Option<&'static str>) {
    match over {
        Over::Closed => (End::Complete, None),
        Over::ClientGone => (End::ClientGone, Some("client_gone")),
        Over::ProviderGone => (End::UpstreamBroken, Some("upstream_unavailable")),
        Over::Idle => (End::Timeout, Some("tunnel_idle")),
        Over::Total => (End::Timeout, Some("tunnel_total")),
        Over::Drained => (End::Drained, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_that_was_dead_already_is_stale() {
        let start = Instant::now();
        let soon = start + STALE_MAX / 2;
        for (label, connected, interim, read, marked, now, want) in [
            ("dead at once", Some(start), 0, 0, true, soon, true),
            ("dead later", Some(start), 0, 0, true, start + STALE_MAX, false),
            ("it had begun to answer", Some(start), 0, 17, true, soon, false),
            ("it had said to wait", Some(start), 1, 0, true, soon, false),
            ("not worth it to Pingora", Some(start), 0, 0, false, soon, false),
            ("never connected", None, 0, 0, true, soon, false),
        ] {
            let words = format!("while reading response headers, bytes already read: {read}");
            let mut error = Error::explain(ErrorType::ConnectionClosed, words);
            error.set_retry(marked);
            assert_eq!(was_stale(&error, connected, interim, now), want, "{label}");
        }
    }

    #[test]
    fn a_pooled_connection_that_takes_nothing_is_marked() {
        let up = |kind| Error::explain(kind, "x").into_up();
        for (mut error, reused, want) in [
            (up(ErrorType::WriteError), true, true),
            (up(ErrorType::WriteError), false, false),
            (up(ErrorType::WriteTimedout), true, false),
            (Error::explain(ErrorType::WriteError, "x").into_down(), true, false),
        ] {
            mark_unwritten(&mut error, reused);
            assert_eq!(error.retry(), want, "{error}, reused: {reused}");
        }
    }

    #[test]
    fn how_much_was_heard_is_read_from_pingoras_words() {
        let said = |words: &str| Error::explain(ErrorType::ConnectionClosed, words.to_owned());
        for (words, want) in [
            ("while reading response headers, bytes already read: 0", false),
            ("while reading response headers, bytes already read: 17", true),
            ("something else", false),
        ] {
            assert_eq!(heard_something(&said(words)), want, "{words}");
        }
    }

    #[test]
    fn what_a_client_is_told_follows_from_what_broke() {
        let up = |kind| Error::explain(kind, "x").into_up();
        for (error, want) in [
            (up(ErrorType::ConnectRefused), Some("upstream_unavailable")),
            (up(ErrorType::ConnectTimedout), Some("upstream_timeout")),
            (up(ErrorType::TLSHandshakeFailure), Some("upstream_tls")),
            (up(ErrorType::InvalidHTTPHeader), Some("upstream_invalid_response")),
            (refused(Refusal::ProviderAuth), Some("provider_auth")),
            (refused(Refusal::UpstreamTimeout).into_down(), Some("upstream_timeout")),
            (Error::explain(ErrorType::ConnectionClosed, "x").into_down(), None),
            (Error::explain(ErrorType::InternalError, "x").into_in(), Some("internal_error")),
        ] {
            assert_eq!(told(&error).map(|refusal| refusal.code()), want, "{error}");
        }
    }
}

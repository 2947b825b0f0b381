//! The provider's head → the client's, and what of its answer may not pass.

use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora::http::ResponseHeader;

use crate::config::settings::ProviderKey;
use crate::refusal::Refusal;
use crate::stage::form::Facts;
use crate::stage::hops;
use crate::stage::inspect::{Call, Task};
use crate::stage::route::Leg;
use crate::units::Secret;
use crate::wire::mask::{Mask, cover};

/// Bytes of a JSON or text answer that are looked at for an echoed credential.
const MASKED_BYTES_MAX: usize = 64 * 1024;

const OWN_PREFIX: &str = "x-aulos-";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-aulos-request-id");
const ORIGIN: HeaderName = HeaderName::from_static("x-aulos-origin");
const PROVIDER: HeaderName = HeaderName::from_static("x-aulos-provider");
const MODEL: HeaderName = HeaderName::from_static("x-aulos-model");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-aulos-attempts");
/// Official SDKs obey it. What several candidates could not do is not tried again by them, several times over.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The client's own name for a request, and ours where it has none.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where a request was sent, and with which key.
#[derive(Clone, Copy)]
pub struct Sent<'a> {
    pub leg: &'a Leg,
    pub key: Option<&'a ProviderKey>,
}

impl<'a> Sent<'a> {
    /// What no answer may hold: a provider knows all of its keys.
    fn secrets(&self) -> impl Iterator<Item = &'a str> {
        self.leg.provider.keys.iter().flat_map(|key| &key.spellings).map(Secret::expose)
    }
}

/// What an answer is for, as its headers say it.
pub struct Origin {
    pub request_id: HeaderValue,
    pub attempts: usize,
    /// What the form said, where there was one.
    pub form: Option<Facts>,
}

/// Whether a provider's answer may reach the client. Interim heads are judged by [`interim`]. `passes`: any status does.
pub fn accept(answer: &ResponseHeader, passes: bool) -> Result<(), Refusal> {
    let mut lengths = answer.headers.get_all(header::CONTENT_LENGTH).iter();
    // Pingora takes a repeated length for one, and would pass it on as it is.
    if lengths.next().is_some_and(|length| length.as_bytes().contains(&b',')) || lengths.next().is_some() {
        return Err(Refusal::UpstreamInvalid);
    }
    match answer.status.as_u16() {
        _ if passes => Ok(()),
        401..=403 => Err(Refusal::ProviderAuth),
        // A redirect is never followed, and its `Location` is none of the client's business.
        100..=199 | 300..=399 => Err(Refusal::UpstreamInvalid),
        _ => Ok(()),
    }
}

/// Interim answers are the provider's word to us. One that switches protocols was not asked for.
pub fn interim(answer: &ResponseHeader, seen: usize) -> Result<(), Refusal> {
    /// More than any provider has a reason to send.
    const INTERIM_MAX: usize = 16;
    if answer.status == http::StatusCode::SWITCHING_PROTOCOLS || seen > INTERIM_MAX {
        return Err(Refusal::UpstreamInvalid);
    }
    Ok(())
}

/// Whether a provider has switched to WebSocket, and to nothing else.
pub fn is_switched(answer: &ResponseHeader) -> bool {
    let mut upgrades = answer.headers.get_all(header::UPGRADE).iter();
    let upgrade = upgrades.next().filter(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
    answer.version == Version::HTTP_11
        && !hops::is_framed(&answer.headers)
        && upgrade.is_some()
        && upgrades.next().is_none()
        && hops::is_named(&answer.headers, "upgrade")
}

/// Makes the provider's head into the client's. Like the request's, it is taken apart and put together again.
pub fn head(answer: &mut ResponseHeader, sent: &Sent<'_>, call: &Call, origin: &Origin) {
    let holds_key = |text: &str| sent.secrets().any(|secret| text.contains(secret));
    let reason = answer.get_reason_phrase().filter(|reason| answer.status.canonical_reason() != Some(reason));
    let reason = reason.filter(|reason| !holds_key(reason)).map(str::to_owned);
    let mut parts = take(answer);
    let headers = &mut parts.headers;
    let passed = match &call.task {
        Task::Pass(pass) => pass.kept(parts.status, headers, &sent.leg.provider.base_url),
        _ => HeaderMap::new(),
    };
    hops::strip(headers);
    hops::remove(headers, ends_here);
    headers.extend(passed);
    redact(headers, sent);
    if let Some(media) = content_type(call, origin.form.as_ref())
        && parts.status.is_success()
        && !headers.contains_key(header::CONTENT_TYPE)
    {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    }
    if parts.status.is_server_error() && origin.attempts > 1 {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    headers.entry(X_REQUEST_ID).or_insert_with(|| origin.request_id.clone());
    headers.insert(REQUEST_ID, origin.request_id.clone());
    headers.insert(ORIGIN, HeaderValue::from_static("provider"));
    chosen(headers, sent.leg, origin.attempts);
    *answer = parts.into();
    if reason.is_some() {
        // Only a phrase that Pingora had read itself is set again.
        answer.set_reason_phrase(reason.as_deref()).ok();
    }
}

/// The headers of an answer of our own; `asked`: what was forwarded before it, and how often.
pub fn own(answer: &mut ResponseHeader, request_id: HeaderValue, asked: Option<(&Leg, usize)>) {
    let mut parts = take(answer);
    let headers = &mut parts.headers;
    headers.insert(X_REQUEST_ID, request_id.clone());
    headers.insert(REQUEST_ID, request_id);
    headers.insert(ORIGIN, HeaderValue::from_static("aulos"));
    if let Some((leg, attempts)) = asked {
        if parts.status.is_server_error() && attempts > 1 {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        chosen(headers, leg, attempts);
    }
    *answer = parts.into();
}

/// Says which provider was chosen.
fn chosen(headers: &mut HeaderMap, leg: &Leg, attempts: usize) {
    let named = [(PROVIDER, &leg.provider.name), (MODEL, &leg.provider_model)];
    for (name, text) in named {
        // A model's name may hold what no header can, or not be known: then there is no header.
        if let Ok(value) = HeaderValue::from_str(text)
            && !value.is_empty()
        {
            headers.insert(name, value);
        }
    }
    headers.insert(ATTEMPTS, attempts.into());
}

fn take(answer: &mut ResponseHeader) -> http::response::Parts {
    let (empty, ()) = http::Response::new(()).into_parts();
    std::mem::replace(answer, empty.into()).into()
}

/// The masks for an answer that may hold text of the provider's.
pub fn masks(answer: &ResponseHeader, sent: &Sent<'_>) -> Vec<Mask> {
    let media = answer.headers.get(header::CONTENT_TYPE).map(|media| media.as_bytes().to_ascii_lowercase());
    let names = |media: &[u8], part: &[u8]| memchr::memmem::find(media, part).is_some();
    let is_text = !answer.status.is_success()
        || media.is_some_and(|m| m.starts_with(b"text/") || names(&m, b"json") || names(&m, b"xml"));
    let secrets = sent.secrets().filter(|_| is_text);
    secrets.map(|secret| Mask::new(secret, MASKED_BYTES_MAX)).collect()
}

/// Whether an answer is a stream of events.
pub fn is_events(answer: &ResponseHeader) -> bool {
    let media = answer.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    media.get(..17).is_some_and(|media| media.eq_ignore_ascii_case(b"text/event-stream"))
}

/// Whether a header ends at us, whether or not `Connection` names it, or is one that no gateway may relay.
fn ends_here(name: &str) -> bool {
    name.starts_with(OWN_PREFIX) || matches!(name, "alt-svc" | "location" | "set-cookie")
}

/// Covers the provider's key wherever it stands in a header.
fn redact(headers: &mut HeaderMap, sent: &Sent<'_>) {
    for secret in sent.secrets().map(str::as_bytes) {
        for value in headers.values_mut() {
            if memchr::memmem::find(value.as_bytes(), secret).is_some() {
                let mut covered = value.as_bytes().to_vec();
                cover(&mut covered, secret);
                *value = HeaderValue::from_bytes(&covered).unwrap_or(HeaderValue::from_static(""));
            }
        }
    }
}

/// The type of an answer whose provider did not say: what was asked for.
fn content_type(call: &Call, form: Option<&Facts>) -> Option<&'static str> {
    const EVENTS: &str = "text/event-stream";
    const JSON: &str = "application/json";
    let speech = match &call.task {
        Task::Speech(speech) => speech,
        Task::Pass(_) => return None,
        Task::Chat(chat) => return Some(if chat.stream { EVENTS } else { JSON }),
        Task::Upload(_) => {
            return Some(match form.map(|form| (form.stream, form.response_format.as_deref())) {
                Some((true, _)) => EVENTS,
                Some((false, Some("text" | "srt" | "vtt"))) => "text/plain; charset=utf-8",
                _ => JSON,
            });
        }
    };
    if speech.events {
        return Some(EVENTS);
    }
    Some(match speech.format().unwrap_or("mp3") {
        "mp3" => "audio/mpeg",
        "opus" => "audio/ogg",
        "aac" => "audio/aac",
        "flac" => "audio/flac",
        "wav" => "audio/wav",
        "pcm" => "audio/pcm",
        _ => "application/octet-stream",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::inspect::{Named, call};
    use crate::stage::route::{Asked, Plan, plan};
    use crate::stage::testing;
    use crate::state::State;
    use crate::surface::Endpoint;
    use crate::wire::json::Scanner;

    fn planned() -> Plan {
        let state = State::new(testing::settings(""), true);
        let asked = Asked { model: "openai/tts-1", provider: None, endpoint: Endpoint::Speech };
        plan(&state, &testing::anyone(&state), asked).expect("a route")
    }

    fn sent(plan: &Plan) -> Sent<'_> {
        let leg = plan.first();
        Sent { leg, key: leg.provider.keys.first() }
    }

    fn speech(fields: &str) -> Call {
        let body = format!(r#"{{"model":"openai/tts-1","input":"x","voice":"a"{fields}}}"#);
        let mut scanner = Scanner::new();
        scanner.push(body.as_bytes()).expect("valid");
        call(Endpoint::Speech, Named::default(), body.as_bytes(), &scanner.finish().expect("valid")).expect("readable")
    }

    fn passed(status: u16, headers: &[(&'static str, &'static str)], fields: &str) -> Vec<(String, String)> {
        let mut answer = ResponseHeader::build(status, None).expect("a head");
        for (name, value) in headers {
            answer.append_header(*name, *value).expect("a header");
        }
        let origin = Origin { request_id: HeaderValue::from_static("ID"), attempts: 1, form: None };
        let plan = planned();
        head(&mut answer, &sent(&plan), &speech(fields), &origin);
        let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
        let mut seen: Vec<_> = answer.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        seen.sort_unstable();
        seen
    }

    #[test]
    fn what_ends_at_us_does_not_pass() {
        let got = passed(
            200,
            &[
                ("connection", "X-Secret, content-length, keep-alive"),
                ("x-secret", "1"),
                ("keep-alive", "timeout=5"),
                ("set-cookie", "a=b"),
                ("alt-svc", "h3"),
                ("location", "http://elsewhere"),
                ("x-aulos-origin", "aulos"),
                ("content-length", "5"),
                ("content-type", "audio/mpeg"),
                ("x-request-id", "req_1"),
                ("openai-processing-ms", "12"),
                ("x-echo", "a provider-secret-0123456789 b"),
            ],
            "",
        );
        let want = [
            ("content-length", "5"),
            ("content-type", "audio/mpeg"),
            ("openai-processing-ms", "12"),
            ("x-aulos-attempts", "1"),
            ("x-aulos-model", "tts-1"),
            ("x-aulos-origin", "provider"),
            ("x-aulos-provider", "openai"),
            ("x-aulos-request-id", "ID"),
            ("x-echo", "a ************************** b"),
            ("x-request-id", "req_1"),
        ];
        let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn the_type_is_the_providers_and_else_what_was_asked_for() {
        let kind = |status, headers: &[(&'static str, &'static str)], fields: &str| {
            passed(status, headers, fields).into_iter().find(|(name, _)| name == "content-type").map(|(_, value)| value)
        };
        assert_eq!(kind(200, &[("content-type", "audio/x")], "").as_deref(), Some("audio/x"));
        for (fields, want) in [
            ("", "audio/mpeg"),
            (r#","response_format":"wav""#, "audio/wav"),
            (r#","response_format":"opus""#, "audio/ogg"),
            (r#","response_format":"pcm16""#, "audio/pcm"),
            (r#","response_format":"strange""#, "application/octet-stream"),
            (r#","stream_format":"sse""#, "text/event-stream"),
        ] {
            assert_eq!(kind(200, &[], fields).as_deref(), Some(want), "{fields}");
        }
        assert_eq!(kind(500, &[], ""), None);
    }

    #[test]
    fn some_answers_are_not_the_clients() {
        for (status, want) in [
            (200, None),
            (404, None),
            (429, None),
            (500, None),
            (401, Some("provider_auth")),
            (403, Some("provider_auth")),
            (302, Some("upstream_invalid_response")),
            (101, Some("upstream_invalid_response")),
        ] {
            let answer = ResponseHeader::build(status, None).expect("a head");
            assert_eq!(accept(&answer, false).err().map(|refusal| refusal.code()), want, "{status}");
        }
        for lengths in [&["5, 5"][..], &["5", "5"]] {
            let mut answer = ResponseHeader::build(200, None).expect("a head");
            lengths.iter().for_each(|length| _ = answer.append_header("content-length", *length).expect("a header"));
            assert_eq!(accept(&answer, false).err().map(|refusal| refusal.code()), Some("upstream_invalid_response"));
        }
        let interim_of = |status| ResponseHeader::build(status, None).expect("a head");
        assert!(interim(&interim_of(103), 1).is_ok());
        assert!(interim(&interim_of(103), 17).is_err() && interim(&interim_of(101), 1).is_err());
    }

    #[test]
    fn a_switch_is_one_to_what_was_asked_for() {
        for (version, lines, want) in [
            (Version::HTTP_11, &[("upgrade", "WebSocket"), ("connection", "keep-alive, Upgrade")][..], true),
            (Version::HTTP_10, &[("upgrade", "websocket"), ("connection", "upgrade")], false),
            (Version::HTTP_11, &[("upgrade", "websocket")], false),
            (Version::HTTP_11, &[("connection", "upgrade")], false),
            (Version::HTTP_11, &[("upgrade", "websocket"), ("connection", "upgrade"), ("content-length", "5")], false),
            (Version::HTTP_11, &[("upgrade", "h2c"), ("connection", "upgrade")], false),
            (Version::HTTP_11, &[("upgrade", "websocket, h2c"), ("connection", "upgrade")], false),
            (Version::HTTP_11, &[("upgrade", "websocket"), ("upgrade", "websocket"), ("connection", "upgrade")], false),
        ] {
            let mut answer = ResponseHeader::build(101, None).expect("a head");
            answer.set_version(version);
            lines.iter().for_each(|(name, value)| _ = answer.append_header(*name, *value).expect("a header"));
            assert_eq!(is_switched(&answer), want, "{version:?} {lines:?}");
        }
    }

    #[test]
    fn text_is_masked_and_audio_is_not() {
        let plan = planned();
        for (status, media, want) in [
            (200, Some("audio/mpeg"), false),
            (200, Some("application/json; charset=utf-8"), true),
            (200, Some("text/event-stream"), true),
            (500, Some("text/html"), true),
            (500, None, true),
            (200, None, false),
            (200, Some("application/xml"), true),
            (500, Some("audio/mpeg"), true),
            (404, Some("application/octet-stream"), true),
        ] {
            let mut answer = ResponseHeader::build(status, None).expect("a head");
            if let Some(media) = media {
                answer.insert_header("content-type", media).expect("a header");
            }
            assert_eq!(!masks(&answer, &sent(&plan)).is_empty(), want, "{status} {media:?}");
        }
    }
}

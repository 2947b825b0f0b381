//! Head and body → [`Call`]: which model is meant, and what the later stages need to know of the request.
//!
//! The model comes from the header `x-aulos-model`, the query, the path or the body, in that order. Nothing is
//! changed here: `stage::edit` says which bytes the chosen provider needs different.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use serde::Deserialize;

use crate::catalog::Entry;
use crate::config::settings::Model;
use crate::refusal::{MODEL_BYTES_MAX, Refusal};
use crate::stage::passthrough::Pass;
use crate::surface::{Endpoint, Place, query_values};
use crate::units::printable;
use crate::wire::json::{self, Kind, Member};
use crate::wire::multipart::Boundary;
use crate::wire::splice::Edit;

pub const MODEL_HEADER: HeaderName = HeaderName::from_static("x-aulos-model");
pub const PROVIDER_HEADER: HeaderName = HeaderName::from_static("x-aulos-provider");

/// What is known before the body: the head's word on model and provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    pub model: Option<String>,
    pub provider: Option<String>,
    /// The path named the model: Azure's clients then send any model in the body, and mean the path's.
    pub by_path: bool,
}

/// A request of which enough has been read to say what it asks for.
#[derive(Debug, Clone)]
pub struct Call {
    pub endpoint: Endpoint,
    /// The model as it was asked for.
    pub model: String,
    /// The provider that was asked for.
    pub provider: Option<String>,
    pub task: Task,
}

/// What kind of body a request has.
#[derive(Debug, Clone)]
pub enum Media {
    Json,
    Form(Boundary),
}

/// What the request is about.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    Speech(Speech),
    Chat(Chat),
    Upload(Upload),
    Pass(Pass),
}

/// What is known of an upload before its form has passed.
#[derive(Debug, Clone, PartialEq)]
pub struct Upload {
    pub boundary: Boundary,
    /// The model that the form has to name, if it names one. `None`: it may name any.
    pub agreed: Option<String>,
}

/// The fields of a speech request that are checked or recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Speech {
    /// Code points of `input`.
    pub input_chars: usize,
    /// `None` for a custom voice, `{"id": …}`, which only its provider knows.
    pub voice: Option<String>,
    /// As asked for; `mp3` is meant where it is absent.
    pub format: Option<String>,
    pub speed: Option<f64>,
    pub events: bool,
    pub body: JsonBody,
}

/// The fields of a chat request that are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    pub format: Option<String>,
    pub stream: bool,
    pub body: JsonBody,
}

/// Where a JSON body says what providers want said differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonBody {
    model: InBody,
    /// Where `response_format` stands, if it is spelled as only some providers spell it.
    pcm16: Option<std::ops::Range<usize>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum InBody {
    /// `alone`: nothing else is in the object.
    Absent { insert_at: usize, alone: bool },
    /// `None`: it stands there as `null`.
    There { at: std::ops::Range<usize>, name: Option<String> },
}

/// What may be asked of one model. `None`: nobody here knows, the provider is the authority.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds<'s> {
    pub voices: Option<&'s [String]>,
    pub formats: Option<&'s [String]>,
    pub input_chars_max: Option<usize>,
    pub speed: Option<(f64, f64)>,
}

impl<'s> Bounds<'s> {
    /// What the operator says wins over what the catalog knows.
    pub fn of(model: Option<&'s Model>, known: Option<&'s Entry>) -> Self {
        Self {
            voices: model.and_then(|m| m.voices.as_deref()).or(known.and_then(|k| k.voices.as_deref())),
            formats: model.and_then(|m| m.formats.as_deref()).or(known.and_then(|k| k.formats.as_deref())),
            input_chars_max: model.and_then(|m| m.input_chars_max).or(known.and_then(|k| k.input_chars_max)),
            speed: known.and_then(|k| k.speed),
        }
    }
}

/// Reads the head: whether its body is one that the endpoint takes.
pub fn media(endpoint: Endpoint, headers: &HeaderMap) -> Result<Media, Refusal> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::ContentEncoding);
    }
    let mut types = headers.get_all(header::CONTENT_TYPE).iter().map(|media| media.to_str().unwrap_or_default());
    let first = types.next();
    if endpoint.is_upload() {
        let only = if types.next().is_none() { first.unwrap_or_default() } else { "" };
        return Ok(Media::Form(Boundary::parse(only)?));
    }
    let essence = first.map(|media| media.split(';').next().unwrap_or_default().trim());
    match essence {
        Some(essence) if !essence.eq_ignore_ascii_case("application/json") => {
            Err(Refusal::MediaType("application/json"))
        }
        _ => Ok(Media::Json),
    }
}

/// Reads the head: what it says of the model.
pub fn named(place: &Place, headers: &HeaderMap, query: &str) -> Result<Named, Refusal> {
    let mut model: Option<String> = None;
    let by_header = headers.get_all(MODEL_HEADER).iter().map(|value| value.to_str().unwrap_or_default().to_owned());
    for name in by_header.chain(query_values(query, "model")) {
        let name = valid_model(name)?;
        match &model {
            Some(first) if *first != name => {
                return Err(Refusal::ModelConflict { outside: first.clone(), inside: name });
            }
            _ => model = Some(name),
        }
    }
    let by_path = model.is_none() && place.model.is_some();
    if by_path {
        model = place.model.clone().map(valid_model).transpose()?;
    }
    let mut providers = headers.get_all(PROVIDER_HEADER).iter().map(|value| value.to_str());
    let provider = match (providers.next(), providers.next()) {
        (None, _) => None,
        (Some(Ok(name)), None) => Some(name.to_owned()),
        _ => return Err(Refusal::InvalidValue { param: "x-aulos-provider", reason: "must be one name".into() }),
    };
    Ok(Named { model, provider, by_path })
}

impl Named {
    /// What the form has to say of the model, where the head has named it already.
    fn agreed(&self) -> Option<String> {
        self.model.clone().filter(|_| !self.by_path)
    }
}

/// An upload whose model is known from its head, or from what has passed of its form: `inside`.
pub fn upload(endpoint: Endpoint, named: Named, boundary: Boundary, inside: Option<&str>) -> Result<Call, Refusal> {
    let agreed = named.agreed();
    let model = agree(named.model, inside, named.by_path)?;
    Ok(Call { endpoint, model, provider: named.provider, task: Task::Upload(Upload { boundary, agreed }) })
}

/// One model, of what is said outside and inside the body.
fn agree(outside: Option<String>, inside: Option<&str>, by_path: bool) -> Result<String, Refusal> {
    match (outside, inside) {
        (None, None) => Err(Refusal::MissingField("model")),
        (None, Some(name)) => Ok(name.to_owned()),
        (Some(outside), Some(name)) if *name != outside && !by_path => {
            Err(Refusal::ModelConflict { outside, inside: name.to_owned() })
        }
        (Some(outside), _) => Ok(outside),
    }
}

/// Reads the members of a JSON body that the scanner has accepted.
pub fn call(endpoint: Endpoint, named: Named, body: &[u8], members: &[Member]) -> Result<Call, Refusal> {
    let fields = Fields { body, members };
    // Some providers read names without their case: what they would take for the model or the text stands once.
    let twin = |member: &&Member| {
        ["model", "input"].iter().any(|name| member.key != *name && member.key.eq_ignore_ascii_case(name))
    };
    if let Some(twin) = members.iter().find(twin) {
        return Err(Refusal::DuplicateKey { key: printable(twin.key.as_bytes(), MODEL_BYTES_MAX) });
    }
    let in_body = match members.iter().find(|member| member.key == "model") {
        None => InBody::Absent { insert_at: after_brace(body), alone: members.is_empty() },
        Some(member) if member.kind == Kind::Null => InBody::There { at: member.value.clone(), name: None },
        Some(member) => {
            let name = fields.string(member).ok_or(Refusal::InvalidModel).and_then(valid_model)?;
            InBody::There { at: member.value.clone(), name: Some(name) }
        }
    };
    let inside = match &in_body {
        InBody::There { name, .. } => name.as_ref(),
        InBody::Absent { .. } => None,
    };
    let model = agree(named.model, inside.map(String::as_str), named.by_path)?;
    let body = JsonBody { model: in_body, pcm16: None };
    let task =
        if endpoint == Endpoint::Speech { Task::Speech(fields.speech(body)?) } else { Task::Chat(fields.chat(body)) };
    Ok(Call { endpoint, model, provider: named.provider, task })
}

impl Call {
    /// Refuses what is known not to be possible with the model that was chosen.
    pub fn check(&self, bounds: &Bounds<'_>) -> Result<(), Refusal> {
        let Task::Speech(speech) = &self.task else { return Ok(()) };
        if let Some(max) = bounds.input_chars_max
            && speech.input_chars > max
        {
            let reason = format!("must be at most {max} characters, and has {}", speech.input_chars);
            return Err(Refusal::InvalidValue { param: "input", reason });
        }
        one_of("voice", speech.voice.as_deref(), bounds.voices)?;
        one_of("response_format", speech.format(), bounds.formats)?;
        if let (Some(speed), Some((low, high))) = (speech.speed, bounds.speed)
            && !(low..=high).contains(&speed)
        {
            return Err(Refusal::InvalidValue { param: "speed", reason: format!("must be from {low} to {high}") });
        }
        Ok(())
    }

    /// The JSON body, where it is one.
    pub fn json(&self) -> Option<&JsonBody> {
        match &self.task {
            Task::Speech(speech) => Some(&speech.body),
            Task::Chat(chat) => Some(&chat.body),
            Task::Upload(_) | Task::Pass(_) => None,
        }
    }

    /// Whether its bytes pass through as they are.
    pub fn passes(&self) -> bool {
        matches!(self.task, Task::Pass(_))
    }

    /// Whether the client offers to speak something else than HTTP.
    pub fn upgrades(&self) -> bool {
        matches!(&self.task, Task::Pass(pass) if pass.upgrade)
    }
}

impl JsonBody {
    /// The bytes that a provider which calls the model `name` needs different. `None`: what is said of the model may
    /// stay as it is.
    pub fn edits(&self, name: Option<&str>) -> Vec<Edit> {
        let mut edits: Vec<Edit> = name.and_then(|name| self.model.edit(name)).into_iter().collect();
        if let Some(at) = &self.pcm16 {
            edits.push(Edit { range: at.clone(), with: Bytes::from_static(b"\"pcm\"") });
        }
        edits.sort_by_key(|edit| edit.range.start);
        edits
    }
}

impl InBody {
    fn edit(&self, name: &str) -> Option<Edit> {
        let quoted = serde_json::Value::from(name).to_string();
        match self {
            Self::There { name: Some(there), .. } if there == name => None,
            Self::There { at, .. } => Some(Edit { range: at.clone(), with: quoted.into() }),
            Self::Absent { insert_at, alone } => {
                let comma = if *alone { "" } else { "," };
                let member = format!("\"model\":{quoted}{comma}");
                Some(Edit { range: *insert_at..*insert_at, with: member.into() })
            }
        }
    }
}

impl Speech {
    /// The format under the name providers use: `pcm` and `pcm16` are the same thing.
    pub fn format(&self) -> Option<&str> {
        self.format.as_deref().map(|format| if format == "pcm16" { "pcm" } else { format })
    }
}

/// Where the first member of an object may be put.
fn after_brace(body: &[u8]) -> usize {
    memchr::memchr(b'{', body).map_or(0, |brace| brace + 1)
}

/// A model's name, wherever it came from.
pub fn valid_model(name: String) -> Result<String, Refusal> {
    let fits = !name.trim().is_empty() && name.len() <= MODEL_BYTES_MAX && !name.chars().any(char::is_control);
    if fits { Ok(name) } else { Err(Refusal::InvalidModel) }
}

fn one_of(param: &'static str, asked: Option<&str>, known: Option<&[String]>) -> Result<(), Refusal> {
    match (asked, known) {
        (Some(asked), Some(known)) if !known.iter().any(|known| known == asked) => {
            Err(Refusal::InvalidValue { param, reason: format!("must be one of {}", known.join(", ")) })
        }
        _ => Ok(()),
    }
}

/// The top-level members of one body.
struct Fields<'b> {
    body: &'b [u8],
    members: &'b [Member],
}

impl<'b> Fields<'b> {
    /// A member that is there and not `null`.
    fn find(&self, key: &str) -> Option<&'b Member> {
        self.members.iter().find(|member| member.key == key && member.kind != Kind::Null)
    }

    fn raw(&self, member: &Member) -> &'b [u8] {
        self.body.get(member.value.clone()).unwrap_or_default()
    }

    fn string(&self, member: &Member) -> Option<String> {
        json::text(self.raw(member)).map(std::borrow::Cow::into_owned)
    }

    fn optional_string(&self, key: &'static str) -> Result<Option<String>, Refusal> {
        let Some(member) = self.find(key) else { return Ok(None) };
        let text = self.string(member);
        text.map(Some).ok_or_else(|| Refusal::InvalidValue { param: key, reason: "must be a string".into() })
    }

    fn speech(&self, mut body: JsonBody) -> Result<Speech, Refusal> {
        let input = self.find("input").ok_or(Refusal::MissingField("input"))?;
        let input = json::text(self.raw(input))
            .ok_or_else(|| Refusal::InvalidValue { param: "input", reason: "must be a string of valid text".into() })?;
        if input.trim().is_empty() {
            return Err(Refusal::MissingField("input"));
        }
        let speed = match self.find("speed") {
            None => None,
            Some(member) => Some(number(self.raw(member), member.kind)?),
        };
        let format = self.optional_string("response_format")?;
        if format.as_deref() == Some("pcm16") {
            body.pcm16 = self.find("response_format").map(|member| member.value.clone());
        }
        Ok(Speech {
            input_chars: input.chars().count(),
            voice: self.voice()?,
            format,
            speed,
            events: self.optional_string("stream_format")?.as_deref() == Some("sse"),
            body,
        })
    }

    fn voice(&self) -> Result<Option<String>, Refusal> {
        let member = self.find("voice").ok_or(Refusal::MissingField("voice"))?;
        match member.kind {
            Kind::Object => Ok(None),
            _ => match self.string(member) {
                Some(voice) if voice.trim().is_empty() => Err(Refusal::MissingField("voice")),
                Some(voice) => Ok(Some(voice)),
                None => Err(Refusal::InvalidValue { param: "voice", reason: "must be a string or an object".into() }),
            },
        }
    }

    /// A chat's fields are only recorded: what is odd in them is the provider's to refuse.
    fn chat(&self, body: JsonBody) -> Chat {
        #[derive(Deserialize)]
        struct Audio {
            format: Option<String>,
        }
        let format = self
            .find("audio")
            .and_then(|member| serde_json::from_slice::<Audio>(self.raw(member)).ok())
            .and_then(|audio| audio.format);
        let stream = self.find("stream").is_some_and(|member| self.raw(member) == b"true");
        Chat { format, stream, body }
    }
}

fn number(raw: &[u8], kind: Kind) -> Result<f64, Refusal> {
    let parsed = (kind == Kind::Number).then(|| std::str::from_utf8(raw).ok()?.parse::<f64>().ok()).flatten();
    parsed
        .filter(|number| number.is_finite())
        .ok_or_else(|| Refusal::InvalidValue { param: "speed", reason: "must be a number".into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::json::Scanner;
    use crate::wire::splice::Splice;

    fn place(endpoint: Endpoint, model: Option<&str>) -> Place {
        Place { endpoint, model: model.map(str::to_owned) }
    }

    fn inspect(place: &Place, headers: &HeaderMap, query: &str, body: &str) -> Result<Call, Refusal> {
        let named = named(place, headers, query)?;
        let mut scanner = Scanner::new();
        scanner.push(body.as_bytes()).expect("valid JSON");
        call(place.endpoint, named, body.as_bytes(), &scanner.finish().expect("valid JSON"))
    }

    fn speech(body: &str) -> Result<Call, Refusal> {
        inspect(&place(Endpoint::Speech, None), &HeaderMap::new(), "", body)
    }

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append(name, value.parse().expect("a header value"));
        headers
    }

    #[test]
    fn the_model_is_found_wherever_it_stands() {
        let plain = r#"{"input":"hi","voice":"alloy"}"#;
        let inside = r#"{"input":"hi","voice":"alloy","model":"tts-1"}"#;
        let none = HeaderMap::new();
        let deployment = place(Endpoint::Speech, Some("my-tts"));
        let open = place(Endpoint::Speech, None);
        for (place, headers, query, body, want) in [
            (&open, &none, "", inside, Ok("tts-1")),
            (&open, &none, "", r#"{"mod\u0065l":"tts-1","input":"hi","voice":"a"}"#, Ok("tts-1")),
            (&open, &with("x-aulos-model", "tts-1"), "", plain, Ok("tts-1")),
            (&open, &with("x-aulos-model", "tts-1"), "", inside, Ok("tts-1")),
            (&open, &with("x-aulos-model", "tts-2"), "", inside, Err("model_conflict")),
            (&open, &none, "model=tts-2", inside, Err("model_conflict")),
            (&open, &none, "model=tts-9", plain, Ok("tts-9")),
            (&open, &with("x-aulos-model", "tts-1"), "model=tts-2", plain, Err("model_conflict")),
            (&deployment, &none, "", inside, Ok("my-tts")),
            (&deployment, &none, "", plain, Ok("my-tts")),
            (&deployment, &with("x-aulos-model", "tts-1"), "", inside, Ok("tts-1")),
            (&open, &none, "", plain, Err("missing_required_parameter")),
        ] {
            let got = inspect(place, headers, query, body);
            assert_eq!(got.as_ref().map(|call| call.model.as_str()).map_err(Refusal::code), want, "{query} {body}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, code, param) in [
            (r#"{"model":"a","Model":"b","input":"hi","voice":"a"}"#, "duplicate_key", Some("Model")),
            (r#"{"model":"a","INPUT":"hi","voice":"a"}"#, "duplicate_key", Some("INPUT")),
            (r#"{"model":1,"input":"hi","voice":"a"}"#, "invalid_model", Some("model")),
            (r#"{"model":"","input":"hi","voice":"a"}"#, "invalid_model", Some("model")),
            (r#"{"model":"a\u0000b","input":"hi","voice":"a"}"#, "invalid_model", Some("model")),
            (r#"{"model":"\ud800","input":"hi","voice":"a"}"#, "invalid_model", Some("model")),
            (r#"{"model":"m","voice":"a"}"#, "missing_required_parameter", Some("input")),
            (r#"{"model":"m","input":" \n","voice":"a"}"#, "missing_required_parameter", Some("input")),
            (r#"{"model":"m","input":null,"voice":"a"}"#, "missing_required_parameter", Some("input")),
            (r#"{"model":"m","input":["x"],"voice":"a"}"#, "invalid_value", Some("input")),
            (r#"{"model":"m","input":"x\udc00","voice":"a"}"#, "invalid_value", Some("input")),
            (r#"{"model":"m","input":"x"}"#, "missing_required_parameter", Some("voice")),
            (r#"{"model":"m","input":"x","voice":""}"#, "missing_required_parameter", Some("voice")),
            (r#"{"model":"m","input":"x","voice":7}"#, "invalid_value", Some("voice")),
            (r#"{"model":"m","input":"x","voice":"a","speed":"fast"}"#, "invalid_value", Some("speed")),
            (r#"{"model":"m","input":"x","voice":"a","speed":1e999}"#, "invalid_value", Some("speed")),
            (r#"{"model":"m","input":"x","voice":"a","response_format":1}"#, "invalid_value", Some("response_format")),
        ] {
            let refusal = speech(body).expect_err("refused");
            assert_eq!((refusal.status(), refusal.code(), refusal.param()), (400, code, param), "{body}");
        }
        let long = format!(r#"{{"model":"{}","input":"x","voice":"a"}}"#, "m".repeat(MODEL_BYTES_MAX + 1));
        assert_eq!(speech(&long).expect_err("refused").code(), "invalid_model");
        for (headers, code) in [
            (with("content-encoding", "gzip"), "unsupported_media_type"),
            (with("content-type", "text/plain"), "unsupported_media_type"),
            (with("content-type", "multipart/form-data; boundary=x"), "unsupported_media_type"),
        ] {
            let refusal = media(Endpoint::Speech, &headers).expect_err("refused");
            assert_eq!((refusal.status(), refusal.code()), (415, code));
        }
        assert!(media(Endpoint::Speech, &with("content-type", "Application/JSON; charset=utf-8")).is_ok());
    }

    #[test]
    fn bounds_hold_where_they_are_known() {
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let (voices, formats) = (list(&["alloy"]), list(&["mp3", "pcm"]));
        let known = Bounds {
            voices: Some(&voices),
            formats: Some(&formats),
            input_chars_max: Some(5),
            speed: Some((0.25, 4.0)),
        };
        for (fields, param) in [
            (r#""input":"fünf!","voice":"alloy""#, None),
            (r#""input":"sechs!","voice":"alloy""#, Some("input")),
            (r#""input":"x","voice":"verse""#, Some("voice")),
            (r#""input":"x","voice":{"id":"voice_1"}"#, None),
            (r#""input":"x","voice":"alloy","response_format":"wav""#, Some("response_format")),
            (r#""input":"x","voice":"alloy","response_format":"pcm16""#, None),
            (r#""input":"x","voice":"alloy","speed":4.01"#, Some("speed")),
            (r#""input":"x","voice":"alloy","speed":-1"#, Some("speed")),
            (r#""input":"x","voice":"alloy","speed":0.25"#, None),
        ] {
            let call = speech(&format!(r#"{{"model":"m",{fields}}}"#)).expect("readable");
            let got = call.check(&known);
            assert_eq!(got.as_ref().err().and_then(|refusal| refusal.param()), param, "{fields}");
            assert!(call.check(&Bounds::default()).is_ok(), "{fields}: unknown bounds bind nobody");
        }
    }

    fn edits(call: &Call, name: &str) -> Vec<Edit> {
        call.json().expect("a JSON body").edits(Some(name))
    }

    #[test]
    fn what_the_path_says_need_not_be_said_in_the_body() {
        for body in [r#"{"model":"old","input":"x","voice":"a"}"#, r#"{"input":"x","voice":"a"}"#] {
            let call = inspect(&place(Endpoint::Speech, Some("asked")), &HeaderMap::new(), "", body);
            let edits = call.expect("readable").json().map(|json| json.edits(None));
            assert_eq!(edits, Some(Vec::new()), "{body}");
        }
    }

    #[test]
    fn only_the_bytes_that_must_change_do() {
        for (body, want) in [
            (r#"{"model":"new","input":"x","voice":"a"}"#, r#"{"model":"new","input":"x","voice":"a"}"#),
            (r#"{ "model" : "old" ,"input":"x","voice":"a"}"#, r#"{ "model" : "new" ,"input":"x","voice":"a"}"#),
            (
                r#"{"voice":"a","response_format":"pcm16","input":"x","mod\u0065l":"old"}"#,
                r#"{"voice":"a","response_format":"pcm","input":"x","mod\u0065l":"new"}"#,
            ),
        ] {
            let call = speech(body).expect("readable");
            let got = Splice::new(edits(&call, "new")).push(Bytes::copy_from_slice(body.as_bytes()));
            assert_eq!(std::str::from_utf8(&got), Ok(want));
        }
        let body = r#" {"input":"x","voice":"a"}"#;
        let headers = with("x-aulos-model", "asked");
        let call = inspect(&place(Endpoint::Speech, None), &headers, "", body).expect("readable");
        let got = Splice::new(edits(&call, "a\"b")).push(Bytes::copy_from_slice(body.as_bytes()));
        assert_eq!(&got[..], br#" {"model":"a\"b","input":"x","voice":"a"}"#);
    }

    #[test]
    fn a_chat_is_forwarded_whatever_is_in_it() {
        for (body, stream, format) in [
            (
                r#"{"model":"gpt-audio","messages":[],"stream":true,"audio":{"format":"pcm16","voice":"a"}}"#,
                true,
                Some("pcm16"),
            ),
            (r#"{"model":"gpt-audio","stream":"true","audio":[1]}"#, false, None),
            (r#"{"model":"gpt-audio"}"#, false, None),
        ] {
            let call = inspect(&place(Endpoint::Chat, None), &HeaderMap::new(), "", body).expect("readable");
            let Task::Chat(chat) = &call.task else { unreachable!("it is a chat") };
            assert_eq!((chat.stream, chat.format.as_deref()), (stream, format));
            assert!(edits(&call, "gpt-audio").is_empty());
        }
    }
}

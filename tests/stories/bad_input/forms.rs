//! Forms that are none, or that two parsers could read in two ways.

use serde_json::{Value, json};

use super::{Fate, Want, canary, check, check_audit, echo, fate, only_canaries};
use crate::support::client::find;
use crate::support::form::{BOUNDARY, Form, Framing, TRANSCRIBE, head, noise, small};
use crate::support::{Answer, Conf, Gateway, KEY};

const INVALID: Want<'static> = (400, "invalid_multipart", None);
const AMBIGUOUS: Want<'static> = (400, "ambiguous_model", Some("model"));
const MODEL: Want<'static> = (400, "invalid_model", Some("model"));
const NO_FILE: Want<'static> = (400, "missing_required_parameter", Some("file"));

/// Sends each request. Every one is refused before anybody has heard all of it, and whoever comes next is served.
async fn refuses(rows: impl IntoIterator<Item = (String, Vec<u8>, Want<'static>)>) {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut canaries = 0;
    for (label, request, want) in rows {
        let mut client = gateway.client().await;
        client.send(request).await;
        let answer = client.answer().await;
        if answer.header("x-aulos-provider").is_some() {
            // What was wrong came behind the model: its beginning had gone on already.
            is_cut(&label, &gateway, &answer, want).await;
        } else {
            check(&label, &answer, want);
            check_audit(&label, &gateway, &answer, Some("test")).await;
        }
        canaries += usize::from(fate(&mut client, &answer, &label).await == Fate::Usable);
        canary(&mut gateway.client().await, &label).await;
        canaries += 1;
    }
    only_canaries(&vendor, canaries);
}

/// The answer to a form of which a part had gone on.
async fn is_cut(label: &str, gateway: &Gateway, answer: &Answer, (status, code, param): Want<'_>) {
    assert_eq!(answer.refusal(), (status, code.to_owned()), "{label}: {answer:?}");
    assert_eq!(answer.json()["error"]["param"], param.map_or(Value::Null, Value::from), "{label}");
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{label}");
    let audit = gateway.record_of("audit", answer).await;
    assert_eq!((&audit["end"], &audit["error"]), (&json!("refused"), &json!(code)), "{label}: {audit}");
    assert_eq!(audit["attempts"].as_array().map(Vec::len), Some(1), "{label}: {audit}");
    assert_eq!(audit["attempts"][0]["error"], code, "{label}: the provider is not at fault: {audit}");
}

/// The same for forms, whether or not their length is declared.
async fn refuses_forms(rows: impl IntoIterator<Item = (&'static str, Vec<u8>, Want<'static>)>) {
    refuses(rows.into_iter().flat_map(|(label, form, want)| {
        Framing::BOTH.map(|framing| (format!("{label} {framing:?}"), framing.request(TRANSCRIBE, "", &form), want))
    }))
    .await;
}

/// A request with exactly these header lines for its type.
fn typed(lines: &str) -> Vec<u8> {
    let form = small("openai/whisper-1");
    let head = format!("POST {TRANSCRIBE} HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\n{lines}");
    [format!("{head}Content-Length: {}\r\n\r\n", form.len()).as_bytes(), &form].concat()
}

#[tokio::test]
async fn a_type_that_announces_no_form_is_refused() {
    let form = format!("Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n");
    let other = (415, "unsupported_media_type", None);
    let params = |params: &str| format!("Content-Type: multipart/form-data{params}\r\n");
    let rows = [
        (String::new(), other),
        ("Content-Type: application/json\r\n".into(), other),
        (format!("Content-Type: multipart/mixed; boundary={BOUNDARY}\r\n"), other),
        (format!("Content-Type: multipart/form-data-2; boundary={BOUNDARY}\r\n"), other),
        (format!("Content-Type: application/x-www-form-urlencoded; boundary={BOUNDARY}\r\n"), other),
        (format!("{form}{form}"), other),
        (format!("{form}Content-Encoding: gzip\r\n"), other),
        (format!("Content-Encoding: identity\r\n{form}"), other),
        (params(""), INVALID),
        (params(";"), INVALID),
        (params("; boundary"), INVALID),
        (params("; boundary="), INVALID),
        (params("; boundary=\"\""), INVALID),
        (params(&format!("; boundary={BOUNDARY}; boundary=another")), INVALID),
        (params(&format!("; boundary={BOUNDARY}; Boundary={BOUNDARY}")), INVALID),
        (params(&format!("; x=\"boundary=another\"; boundary={BOUNDARY}")), INVALID),
        (params(&format!("; boundary={}", "b".repeat(71))), INVALID),
        (params(&format!("; boundary*=utf-8''{BOUNDARY}")), INVALID),
        (params(&format!("; boundary={BOUNDARY}; boundary*=utf-8''another")), INVALID),
        (params("; boundary*0=ab; boundary*1=cd"), INVALID),
        (params("; boundary=\"a b \""), INVALID),
        (params("; boundary=\"a\\\"b\""), INVALID),
        (params("; boundary=a@b"), INVALID),
        (params("; boundary=\"open"), INVALID),
        (params(&format!(" boundary={BOUNDARY}")), other),
        (params(&format!("; boundary={BOUNDARY}; charset=utf-16")), INVALID),
    ];
    refuses(rows.map(|(lines, want)| (lines.clone(), typed(&lines), want))).await;
}

/// The other side of the same limits.
#[tokio::test]
async fn a_type_that_is_spelled_otherwise_is_a_form() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for lines in [
        format!("content-type: multipart/form-data;boundary=\"{BOUNDARY}\"\r\n"),
        format!("Content-Type: Multipart/Form-Data; Boundary={BOUNDARY}\r\n"),
        format!("Content-Type: multipart/form-data; charset=utf-8; boundary={BOUNDARY}; x=\"y\"\r\n"),
    ] {
        let answer = gateway.client().await.send(&typed(&lines)).await.answer().await;
        assert_eq!((answer.status, answer.body), (200, small("whisper-1")), "{lines}");
        let sent = vendor.requests().pop().expect("forwarded");
        let media = lines.split_once(": ").map(|(_, value)| value.trim_end());
        assert_eq!(sent.header("content-type"), media, "as it was said");
    }
}

/// A form with its file and its model, and `more` behind them.
fn form(more: impl FnOnce(Form) -> Form) -> Vec<u8> {
    more(Form::new().file("SOUND").field("model", "openai/whisper-1")).close()
}

/// A form with its file, and a part with these lines for its model.
fn model_part(lines: &str) -> Vec<u8> {
    Form::new().file("SOUND").part(lines, "openai/whisper-1").close()
}

fn cut(form: &[u8], before: &[u8], more: usize) -> Vec<u8> {
    form[..find(form, before).expect("there") + more].to_vec()
}

#[tokio::test]
async fn a_form_without_its_end_is_refused() {
    let whole = small("openai/whisper-1");
    let end = whole.len();
    let part = form(|form| form.field("x", "y"));
    refuses_forms([
        ("nothing at all", Vec::new(), INVALID),
        ("one byte", whole[..1].to_vec(), INVALID),
        ("no closing boundary", Form::new().file("SOUND").field("model", "openai/whisper-1").open(), INVALID),
        ("one dash", whole[..end - 3].to_vec(), INVALID),
        ("half a line end", whole[..end - 1].to_vec(), INVALID),
        ("cut in the closing boundary", whole[..end - 12].to_vec(), INVALID),
        ("cut in the sound", cut(&whole, b"SOUND", 3), INVALID),
        ("cut in a head", cut(&part, b"name=\"x\"", 5), INVALID),
        ("cut in a value", cut(&part, b"y\r\n", 1), INVALID),
        ("nothing but an end", Form::new().close(), NO_FILE),
        ("an end that is too short", Form::new().file("SOUND").raw(format!("--{BOUNDARY}-\r\n")).open(), INVALID),
    ])
    .await;
}

#[tokio::test]
async fn bytes_around_a_form_are_refused() {
    let whole = small("openai/whisper-1");
    let before = |bytes: &[u8]| [bytes, &whole].concat();
    let behind = |bytes: &[u8]| [&whole, bytes].concat();
    refuses_forms([
        ("a preamble", before(b"This is a form.\r\n"), INVALID),
        ("a bare LF before it", before(b"\n"), INVALID),
        ("two line ends before it", before(b"\r\n\r\n"), INVALID),
        ("3 MB before it", before(&vec![b'x'; 3_000_000]), INVALID),
        ("an epilogue", behind(b"The end."), INVALID),
        ("three line ends behind it", behind(b"\r\n\r\n"), INVALID),
        ("a NUL behind it", behind(b"\0"), INVALID),
        ("another form behind it", behind(&whole), INVALID),
        ("another boundary's form", Form::new().raw("--another\r\n").close(), INVALID),
    ])
    .await;
}

#[tokio::test]
async fn a_delimiter_that_not_everybody_sees_is_refused() {
    let file = || {
        Form::new().raw(format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n"))
    };
    let model = "Content-Disposition: form-data; name=\"model\"\r\n\r\nopenai/whisper-1\r\n";
    refuses_forms([
        ("behind a bare LF", file().raw(format!("\r\nSOUND\n--{BOUNDARY}\r\n{model}")).close(), AMBIGUOUS),
        (
            "behind a bare LF, twice",
            {
                let twin = format!("\r\nSOUND\n--{BOUNDARY}\r\n{model}\r\n--{BOUNDARY}\r\n{model}");
                file().raw(twin).close()
            },
            AMBIGUOUS,
        ),
        ("right behind a head", file().raw(format!("\r\n--{BOUNDARY}\r\n{model}")).close(), AMBIGUOUS),
        ("with a blank behind it", file().raw(format!("\r\nSOUND\r\n--{BOUNDARY} \r\n{model}")).close(), INVALID),
        ("with a bare LF behind it", file().raw(format!("\r\nSOUND\r\n--{BOUNDARY}\n{model}")).close(), INVALID),
        ("that goes on", file().raw(format!("\r\nSOUND\r\n--{BOUNDARY}0\r\n{model}")).close(), INVALID),
    ])
    .await;
}

#[tokio::test]
async fn a_head_of_a_part_that_is_none_is_refused() {
    let with = |line: &str| model_part(&format!("{line}\r\nContent-Disposition: form-data; name=\"model\""));
    let lines = |count: usize| "X-Many: 1\r\n".repeat(count);
    refuses_forms([
        ("no Content-Disposition", model_part("Content-Type: text/plain"), INVALID),
        ("no line", Form::new().file("SOUND").raw(format!("--{BOUNDARY}\r\n\r\nx\r\n")).close(), INVALID),
        ("another kind", model_part("Content-Disposition: attachment; name=\"model\""), INVALID),
        ("no name", model_part("Content-Disposition: form-data"), INVALID),
        ("a name in a folded line", model_part("Content-Disposition: form-data;\r\n name=\"model\""), INVALID),
        ("an empty name", model_part("Content-Disposition: form-data; name=\"\""), INVALID),
        ("an open quote", model_part("Content-Disposition: form-data; name=\"model"), INVALID),
        ("no semicolon", model_part("Content-Disposition: form-data name=\"model\""), INVALID),
        ("no colon", with("X-Odd"), INVALID),
        ("a blank before the colon", with("X-Odd : 1"), INVALID),
        ("NUL", with("X-Odd: a\0b"), INVALID),
        ("CR", with("X-Odd: a\rb"), INVALID),
        ("a bare LF", with("X-Odd: a\nX-Even: b"), INVALID),
        ("17 lines", with(lines(16).trim_end()), INVALID),
        ("10 000 lines", with(lines(10_000).trim_end()), INVALID),
        ("a line of 20 KB", with(&format!("X-Long: {}", "x".repeat(20_000))), INVALID),
        ("a name of 300 bytes", form(|form| form.field(&"n".repeat(300), "x")), INVALID),
        ("1100 parts", form(|form| (0..1100).fold(form, |form, n| form.field(&n.to_string(), ""))), INVALID),
        (
            "a line of 1 MB that does not end",
            { Form::new().file("SOUND").raw(format!("--{BOUNDARY}\r\nX-Long: {}", "x".repeat(1 << 20))).open() },
            INVALID,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_model_that_can_be_read_in_two_ways_is_refused() {
    let another = |lines: &str| form(|form| form.part(lines, "openai/whisper-2"));
    let twin = |name: &str| another(&format!("Content-Disposition: form-data; name={name}"));
    let only = |params: &str| model_part(&format!("Content-Disposition: form-data; {params}"));
    refuses_forms([
        ("twice", twin("\"model\""), AMBIGUOUS),
        ("twice the same", form(|form| form.field("model", "openai/whisper-1")), AMBIGUOUS),
        ("twice, once without quotes", twin("model"), AMBIGUOUS),
        ("twice, once in capitals", twin("\"MODEL\""), AMBIGUOUS),
        ("twice, once with a capital", twin("\"Model\""), AMBIGUOUS),
        ("twice, once as a list", twin("\"model[]\""), AMBIGUOUS),
        ("twice, once as a member", twin("\"model[name]\""), AMBIGUOUS),
        ("twice, once with a blank", twin("\" model\""), AMBIGUOUS),
        ("twice, once in single quotes", twin("'model'"), AMBIGUOUS),
        ("twice, once as a file", another("Content-Disposition: form-data; name=\"model\"; filename=\"m\""), AMBIGUOUS),
        ("with a capital alone", only("name=\"Model\""), AMBIGUOUS),
        ("as a list alone", only("name=\"model[]\""), AMBIGUOUS),
        ("as a file", only("name=\"model\"; filename=\"model.txt\""), AMBIGUOUS),
        ("with an extended name", only("name*=utf-8''model"), AMBIGUOUS),
        ("with an extended name beside it", only("name=\"x\"; name*=utf-8''model"), AMBIGUOUS),
        ("with two names", only("name=\"model\"; name=\"x\""), AMBIGUOUS),
        ("with two names, one of them not quoted", only("name=\"x\"; name=model"), AMBIGUOUS),
        ("with a name in a quote", only("x=\"; name=model\"; name=\"y\""), AMBIGUOUS),
        ("with an escape", only("name=\"mo\\del\""), AMBIGUOUS),
        ("with an escaped quote", only("name=\"x\\\"; name=\"model\""), AMBIGUOUS),
        ("in a word of RFC 2047", only("name=\"=?utf-8?q?model?=\""), AMBIGUOUS),
        ("in a folded line", model_part("Content-Disposition: form-data; name=\"x\";\r\n name=\"model\""), AMBIGUOUS),
        (
            "in a second Content-Disposition",
            {
                model_part(
                    "Content-Disposition: form-data; name=\"x\"\r\nContent-Disposition: form-data; name=\"model\"",
                )
            },
            AMBIGUOUS,
        ),
        (
            "in a transfer encoding",
            { model_part("Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: base64") },
            AMBIGUOUS,
        ),
        (
            "in UTF-16",
            {
                model_part("Content-Disposition: form-data; name=\"model\"\r\nContent-Type: text/plain; charset=utf-16")
            },
            AMBIGUOUS,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_field_that_is_missing_or_wrong_is_named() {
    let model =
        |model: &[u8]| Form::new().file("SOUND").part("Content-Disposition: form-data; name=\"model\"", model).close();
    let long = "x".repeat(2000);
    refuses_forms([
        ("no file", Form::new().field("model", "openai/whisper-1").close(), NO_FILE),
        ("a file of another name", Form::new().field("model", "openai/whisper-1").field("File", "x").close(), NO_FILE),
        ("no model", Form::new().file("SOUND").close(), (400, "missing_required_parameter", Some("model"))),
        ("an empty model", model(b""), MODEL),
        ("a blank model", model(b" \t "), MODEL),
        ("a model of 300 bytes", model(&[b'm'; 300]), MODEL),
        ("a model of 2 KB", model(&[b'm'; 2000]), MODEL),
        ("a model with a line end", model(b"openai/\r\nwhisper-1"), MODEL),
        ("a model with a NUL", model(b"openai/whisper\0-1"), MODEL),
        ("a model that is not UTF-8", model(b"openai/whisper\xff"), MODEL),
        ("a model that nobody serves", model(b"whisper-1"), (404, "model_not_found", Some("model"))),
        ("a language of 2 KB", form(|form| form.field("language", &long)), (400, "invalid_value", Some("language"))),
        (
            "a format of 2 KB",
            { Form::new().field("response_format", &long).file("SOUND").field("model", "openai/whisper-1").close() },
            (400, "invalid_value", Some("response_format")),
        ),
    ])
    .await;
}

/// A part for a file, with this for its name.
fn named(filename: &[u8], model: &str) -> Vec<u8> {
    let head =
        [format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; ").as_bytes(), filename].concat();
    Form::new().raw(head).raw("\r\n\r\nSOUND\r\n").field("model", model).close()
}

#[tokio::test]
async fn a_name_of_a_file_that_could_be_more_than_a_name_is_refused() {
    let long = format!("filename=\"{}\"", "n".repeat(5000));
    let rows: [(&str, &[u8]); 9] = [
        ("NUL", b"filename=\"a\0.wav\""),
        ("CR", b"filename=\"a\r.wav\""),
        ("LF", b"filename=\"a\n.wav\""),
        ("a line end", b"filename=\"a\r\nX-Evil: 1\r\n.wav\""),
        ("ESC", b"filename=\"a\x1b[31m.wav\""),
        ("5000 bytes", long.as_bytes()),
        ("an escaped NUL", b"filename*=utf-8''a%00.wav"),
        ("an escaped line end", b"filename*=utf-8''a%0d%0aX-Evil:%201"),
        ("no charset", b"filename*=a.wav"),
    ];
    refuses_forms(rows.map(|(label, name)| (label, named(name, "openai/whisper-1"), INVALID))).await;
}

/// No file of that name is ever made, so that it is the provider's business what it makes of it.
#[tokio::test]
async fn any_other_name_of_a_file_passes_as_it_is() {
    let vendor = echo().await;
    let mut gateway = Gateway::spawn(Conf::new().upstream(&vendor).with("[spool]\nmemory_bytes = \"1KiB\"")).await;
    let long = format!("filename=\"{}.wav\"", "n".repeat(900));
    for (name, recorded) in [
        ("filename=\"../../../../tmp/evil.wav\"", "../../../../tmp/evil.wav"),
        ("filename=\"/etc/passwd\"", "/etc/passwd"),
        ("filename=\"C:\\evil\\a.wav\"", "C:\\evil\\a.wav"),
        ("filename=\"a \\\"b\\\".wav\"", "a \"b\".wav"),
        ("filename=a.wav", "a.wav"),
        ("filename=\"\"", ""),
        ("filename=\"; rm -rf /.wav\"", "; rm -rf /.wav"),
        ("filename=\"ü 音 %00.wav\"", "ü 音 %00.wav"),
        ("filename*=utf-8''%e9%9f%b3.wav", "音.wav"),
        ("filename=\"a.wav\"; filename*=utf-8''%e9%9f%b3.wav", "a.wav"),
        (long.as_str(), &long[10..266]),
    ] {
        for framing in Framing::BOTH {
            let mut client = gateway.client().await;
            client.send(framing.request(TRANSCRIBE, "", &named(name.as_bytes(), "openai/whisper-1"))).await;
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.body.clone()), (200, named(name.as_bytes(), "whisper-1")), "{name}");
            let usage = gateway.record_of("usage", &answer).await;
            assert_eq!(usage["filename"], json!(recorded), "{name}: {usage}");
        }
    }
    assert!(gateway.stop().await.success());
    let mut made: Vec<_> = gateway
        .dir
        .join("state")
        .read_dir()
        .expect("there")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    made.sort();
    assert_eq!(made, ["records", "spool"]);
    assert_eq!(gateway.dir.join("state/spool").read_dir().expect("there").count(), 0);
}

/// What is wrong with a form whose beginning has gone on already: its request is cut.
#[tokio::test]
async fn a_form_that_goes_wrong_while_it_passes_never_arrives_whole() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let sound = [b"THE BEGINNING", &noise(300_000)[..]].concat();
    let passing = || Form::new().field("model", "openai/whisper-1").file(&sound);
    let other =
        Form::new().field("model", "openai/whisper-1").part("Content-Disposition: form-data; name=\"x\"", &sound);
    let rows: Vec<(&str, Vec<u8>, Want<'_>)> = vec![
        ("no end", passing().open(), INVALID),
        ("an epilogue", [passing().close(), b"x".to_vec()].concat(), INVALID),
        ("a second model", passing().field("model", "openai/whisper-2").close(), AMBIGUOUS),
        ("a second model in capitals", passing().field("MODEL", "openai/whisper-2").close(), AMBIGUOUS),
        (
            "a delimiter behind a bare LF",
            passing()
                .raw(format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\na\n--{BOUNDARY}\r\n"))
                .close(),
            AMBIGUOUS,
        ),
        ("a NUL in a head", passing().part("Content-Disposition: form-data; name=\"x\0\"", "").close(), INVALID),
        ("1100 parts", (0..1100).fold(passing(), |form, n| form.field(&n.to_string(), "")).close(), INVALID),
        (
            "a language of 2 KB",
            passing().field("language", &"x".repeat(2000)).close(),
            (400, "invalid_value", Some("language")),
        ),
        ("no file", other.close(), NO_FILE),
    ];
    let mut begun = 0;
    for (label, form, want) in rows {
        for framing in Framing::BOTH {
            let label = format!("{label} {framing:?}");
            let mut client = gateway.client().await;
            let (first, rest) = form.split_at(100_000);
            client.send(head(TRANSCRIBE, &framing.line(form.len()))).await;
            client.send(framing.piece(first)).await;
            vendor.hears("THE BEGINNING").await;
            client.send([&framing.piece(rest), framing.end()].concat()).await;
            let answer = client.answer().await;
            begun += 1;
            vendor.closed(begun).await;
            is_cut(&label, &gateway, &answer, want).await;
            canary(&mut gateway.client().await, &label).await;
        }
    }
    only_canaries(&vendor, begun);
}

/// Whatever it says, a form costs the gateway no more memory than another one.
#[tokio::test]
async fn a_form_that_is_all_frame_costs_no_memory() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    canary(&mut gateway.client().await, "its start").await;
    let before = gateway.memory("VmRSS");
    let forms = [
        [&vec![b'x'; 3_000_000][..], &small("x")].concat(),
        (0..40_000).fold(Form::new(), |form, n| form.field(&n.to_string(), "")).close(),
        (0..1000).fold(Form::new(), |form, _| form.field("model[]", &"x".repeat(1000))).close(),
        (0..1000).fold(Form::new(), |form, _| form.field("timestamp_granularities[]", &"x".repeat(1000))).close(),
        model_part(&format!("X-Long: {}", "x".repeat(1 << 20))),
        model_part(&"X-Many: 1\r\n".repeat(10_000)),
        Form::new().file(b"\r\n--".repeat(1_000_000)).close(),
    ];
    for form in &forms {
        for framing in Framing::BOTH {
            let mut client = gateway.client().await;
            client.send(framing.request(TRANSCRIBE, "", form)).await;
            assert_eq!(client.answer().await.status, 400);
        }
    }
    let grown = gateway.memory("VmHWM").saturating_sub(before);
    assert!(grown < 8 << 20, "it grew by {grown} bytes");
    only_canaries(&vendor, 1);
}

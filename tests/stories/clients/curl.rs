//! curl uploads forms: it asks whether it may before it sends a long one, and speaks HTTP/2 where it is offered.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::typist::{Typist, digest};
use crate::support::form::{Framing, TRANSCRIBE, noise};
use crate::support::{Conf, Gateway, KEY, Vendor, http2, soon};

/// More than curl sends without asking.
const LONG_BYTES: usize = 3_000_000;
const MODEL: &str = "model=openai/whisper-1";
/// It would go on without an answer after a second. So patient, a story hangs where none comes.
const PATIENT: [&str; 2] = ["--expect100-timeout", "600"];

/// What curl saw.
#[derive(Debug)]
struct Seen {
    status: u16,
    http: String,
    /// Bytes it sent.
    sent: u64,
    body: String,
    /// What it says of the heads that went and came.
    log: String,
}

impl Seen {
    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
        body["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn was_told_to_go_on(&self) -> bool {
        assert!(self.log.contains("\n> POST "), "it is not as talkative as it was: {}", self.log);
        self.log.contains(" 100 Continue")
    }
}

/// curl with these arguments.
fn command(dir: &Path, key: &str, url: &str, args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--verbose", "--write-out", "\n%{http_code} %{http_version} %{size_upload}"])
        .args(["--header", &format!("Authorization: Bearer {key}")])
        .args(args)
        .arg(url)
        .current_dir(dir)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs curl, which has to get an answer.
async fn curl(dir: &Path, key: &str, url: &str, args: &[&str]) -> Seen {
    let output = soon("curl ends", command(dir, key, url, args).output()).await.expect("curl is there");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {log}");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, told) = text.rsplit_once('\n').expect("it ends with what it was told to write");
    let [status, http, sent] = told.split(' ').collect::<Vec<_>>()[..] else { unreachable!("{told}") };
    Seen {
        status: status.parse().expect("a status"),
        http: http.to_owned(),
        sent: sent.parse().expect("a number"),
        body: body.to_owned(),
        log,
    }
}

/// Puts a recording where curl looks for it, and gives what the provider has to say of it.
fn record(gateway: &Gateway) -> String {
    let sound = noise(LONG_BYTES);
    std::fs::write(gateway.dir.join("speech.wav"), &sound).expect("written");
    digest(&sound)
}

/// Puts a recording there that nobody will hear.
fn record_nothing(gateway: &Gateway, len: u64) {
    std::fs::File::create(gateway.dir.join("speech.wav")).and_then(|file| file.set_len(len)).expect("written");
}

#[tokio::test]
async fn curl_asks_before_a_long_form_and_is_told_to_go_on() {
    let (typist, vendor) = Typist::open().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let heard = record(&gateway);
    let url = format!("http://{}{TRANSCRIBE}", gateway.addr());
    let chunked = ["--header", "Transfer-Encoding: chunked"];
    for (label, framing, asks, want) in [
        ("as it does by itself", &[][..], true, Framing::Declared),
        ("in chunks", &chunked, true, Framing::Chunked),
        ("over HTTP/1.0", &["--http1.0"], false, Framing::Declared),
    ] {
        for form in [["file=@speech.wav", MODEL], [MODEL, "file=@speech.wav"]] {
            let form: Vec<_> = form.iter().flat_map(|field| ["--form", field]).collect();
            let seen = curl(&gateway.dir, KEY, &url, &[&form, framing, &PATIENT].concat()).await;
            assert_eq!(seen.status, 200, "{label}: {seen:?}");
            assert!(seen.body.contains(&heard), "{label}: {seen:?}");
            assert_eq!(
                (seen.log.contains("> Expect: 100-continue"), seen.was_told_to_go_on()),
                (asks, asks),
                "{label}"
            );
            let got = typist.heard().pop().expect("heard");
            assert_eq!((got.field("model"), got.framing), (Some("whisper-1"), want), "{label}");
            assert_eq!((got.file.name.as_deref(), got.file.len), (Some("speech.wav"), LONG_BYTES), "{label}");
        }
    }
    let passed_on = vendor.heads().iter().any(|head| head.header("expect").is_some());
    assert!(!passed_on, "whether it may send is between the client and the gateway");
}

#[tokio::test]
async fn curl_that_asks_first_need_not_send_what_is_refused() {
    let (_typist, vendor) = Typist::open().await;
    let conf = Conf::new().upstream(&vendor).with("[limits]\nupload_body = \"2MiB\"");
    let gateway = Gateway::spawn(conf).await;
    let file = "file=@speech.wav";
    for (label, len, key, query, want) in [
        ("a model that is not there", 2_000_000, KEY, "?model=nothing", (404, "model_not_found")),
        ("a wrong key", 2_000_000, "wrong", "", (401, "invalid_api_key")),
        ("too long", 3_000_000, KEY, "", (413, "request_too_large")),
    ] {
        record_nothing(&gateway, len);
        let url = format!("http://{}{TRANSCRIBE}{query}", gateway.addr());
        let seen = curl(&gateway.dir, key, &url, &[&["--form", file, "--form", MODEL][..], &PATIENT].concat()).await;
        assert_eq!((seen.status, &*seen.code()), want, "{label}");
        assert!(seen.log.contains("> Expect: 100-continue") && !seen.was_told_to_go_on(), "{label}: {}", seen.log);
        assert_eq!(seen.sent, 0, "{label}: it need not have asked");
    }
    assert_eq!(vendor.connections(), 0);
}

#[tokio::test]
async fn curl_uploads_over_http2() {
    let (typist, vendor) = Typist::open().await;
    let conf = Conf::new().upstream(&vendor).with("[limits]\nupload_body = \"4MiB\"");
    let (gateway, _) = http2::spawn(conf).await;
    let addr = &gateway.addrs[1];
    let port = addr.rsplit(':').next().expect("a port");
    let resolve = format!("localhost:{port}:127.0.0.1");
    let tls = ["--http2", "--cacert", "cert.pem", "--resolve", &resolve];
    let url = format!("https://localhost:{port}{TRANSCRIBE}");
    let heard = record(&gateway);
    for form in [["file=@speech.wav", MODEL], [MODEL, "file=@speech.wav"]] {
        let form: Vec<_> = form.iter().flat_map(|field| ["--form", field]).collect();
        let seen = curl(&gateway.dir, KEY, &url, &[&form[..], &tls].concat()).await;
        assert_eq!((seen.status, &*seen.http), (200, "2"), "{seen:?}");
        assert!(seen.body.contains(&heard), "{seen:?}");
        let got = typist.heard().pop().expect("heard");
        assert_eq!((got.field("model"), got.file.len), (Some("whisper-1"), LONG_BYTES));
    }
    for (label, len, key, model, want) in [
        ("a model that is not there", 3_000_000, KEY, "model=nothing", (404, "model_not_found")),
        ("a wrong key", 3_000_000, "wrong", MODEL, (401, "invalid_api_key")),
        ("too long", 30_000_000, KEY, MODEL, (413, "request_too_large")),
    ] {
        record_nothing(&gateway, len);
        let form = ["--form", model, "--form", "file=@speech.wav"];
        let seen = curl(&gateway.dir, key, &url, &[&form[..], &tls].concat()).await;
        assert_eq!((seen.status, &*seen.code(), &*seen.http), (want.0, want.1, "2"), "{label}");
    }
    assert_eq!(typist.heard().len(), 2);
}

/// Whether it is noticed used to be a matter of luck: one try in four failed.
#[tokio::test]
async fn a_curl_that_is_interrupted_while_it_waits_is_missed() {
    const TRIES: usize = 24;
    let vendor = Vendor::start(|_, mut wire| async move {
        wire.gone().await;
        None
    })
    .await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    record(&gateway);
    let url = format!("http://{}{TRANSCRIBE}", gateway.addr());
    for tries in 1..=TRIES {
        let form = ["--form", MODEL, "--form", "file=@speech.wav"];
        let curl = command(&gateway.dir, KEY, &url, &form).stderr(Stdio::null()).spawn().expect("curl is there");
        vendor.received(tries).await;
        drop(curl);
        vendor.closed(tries).await;
    }
    let ends = gateway.recorded("usage", TRIES).await;
    assert!(ends.iter().all(|record| record["end"] == "client_gone"), "{ends:?}");
}

//! Heads: paths and methods that are not served, grammar, hosts, versions, sizes.

use std::collections::BTreeSet;

use super::{
    CHUNKED, Fate, HIDDEN, INVALID, JSON, SPEAK, canary, check, check_audit, chunked, echo, fate, head, only_canaries,
    request,
};
use crate::support::client::{find, post};
use crate::support::{Conf, Gateway, KEY};

#[tokio::test]
async fn an_unknown_path_says_which_base_url_to_set() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (path, hint) in [
        ("/audio/speech", "Set the base URL to `…/v1`."),
        ("/chat/completions", "Set the base URL to `…/v1`."),
        ("/v1/v1/audio/speech", "stands there twice: set the base URL to `…/v1`"),
        ("/v1/audio/speech/audio/speech", "stands there twice"),
        ("/", "Set the base URL of an OpenAI client to `…/v1`; speech is `POST /v1/audio/speech`, transcription"),
        ("/v1", "POST /v1/audio/speech"),
        ("/v1/audio/speech/", "without the slash at the end"),
        ("/V1/audio/speech", "POST /v1/audio/speech"),
        ("//v1/audio/speech", "POST /v1/audio/speech"),
        ("/v1/../v1/audio/speech", "POST /v1/audio/speech"),
        ("/v1/audio%2fspeech", "POST /v1/audio/speech"),
        ("/v1/responses", "POST /v1/audio/speech"),
        ("/openai/deployments//audio/speech", "POST /v1/audio/speech"),
    ] {
        for with_body in [true, false] {
            let mut client = gateway.client().await;
            let first = format!("{} {path} HTTP/1.1", if with_body { "POST" } else { "GET" });
            let sent = if with_body { request(&first, JSON, HIDDEN) } else { head(&first, "") };
            let answer = client.send(&sent).await.answer().await;
            check(path, &answer, (404, "unknown_url", None));
            let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
            assert!(message.contains(hint) && message.contains(&format!("`{path}`")), "{message}");
            let want = if with_body { Fate::Closed } else { Fate::Usable };
            assert_eq!(fate(&mut client, &answer, path).await, want, "{path}");
            assert_eq!(check_audit(path, &gateway, &answer, Some("test")).await["path"], path);
        }
    }
    only_canaries(&vendor, 13);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    for (method, path, allow) in [
        ("GET", "/v1/audio/speech", "POST"),
        ("PUT", "/api/v1/audio/speech", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("post", "/v1/audio/speech", "POST"),
        ("PATCH", "/openai/deployments/x/audio/speech", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tts-1", "GET, HEAD"),
        ("POST", "/v1/audio/voices", "GET, HEAD"),
        ("POST", "/v1/audio/models", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ] {
        for with_body in [true, false] {
            let label = &format!("{method} {path}");
            let mut client = gateway.client().await;
            let first = format!("{label} HTTP/1.1");
            let sent = if with_body { request(&first, JSON, HIDDEN) } else { head(&first, "") };
            let answer = client.send(&sent).await.answer().await;
            check(label, &answer, (405, "method_not_allowed", None));
            assert_eq!(answer.header("allow"), Some(allow), "{label}");
            let want = if with_body { Fate::Closed } else { Fate::Usable };
            assert_eq!(fate(&mut client, &answer, label).await, want, "{label}");
            assert_eq!(check_audit(label, &gateway, &answer, Some("test")).await["method"], method);
        }
    }
    only_canaries(&vendor, 10);
}

/// A head that must be refused: its bytes, and the answer's status and code.
type Bad = (&'static str, Vec<u8>, u16, &'static str);

/// Refused heads are written down ten a second at most: a gateway for every ten.
const AUDITED_AT_ONCE: usize = 10;

/// Sends each head with a request behind it that would be served. Somebody else's requests go on.
async fn refuses_heads(rows: Vec<Bad>) {
    let vendor = echo().await;
    for rows in rows.chunks(AUDITED_AT_ONCE) {
        let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
        let mut other = gateway.client().await;
        for (label, bad, status, code) in rows {
            let mut client = gateway.client().await;
            let sent = [bad, post("/v1/audio/speech", &[], HIDDEN).as_bytes()].concat();
            let answer = client.send(&sent).await.answer().await;
            check(label, &answer, (*status, code, None));
            assert_eq!(answer.header("allow"), (*status == 405).then_some("GET, HEAD, POST"), "{label}");
            assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}");
            let audit = check_audit(label, &gateway, &answer, None).await.to_string();
            assert!(!audit.contains(KEY) && !audit.contains("marker"), "{label}: no values: {audit}");
            canary(&mut other, label).await;
        }
        let codes: BTreeSet<_> = rows.iter().map(|row| row.3).collect();
        for code in codes {
            let count = rows.iter().filter(|row| row.3 == code).count() as u64;
            assert_eq!(gateway.metric(&format!("aulos_head_refusals_total{{code=\"{code}\"}}")).await, count);
        }
    }
    only_canaries(&vendor, rows.len());
}

#[tokio::test]
async fn heads_whose_length_could_be_read_in_two_ways_are_refused() {
    let lines = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nX: y\r\ncontent-length: 0\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 05\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length:\r\n",
        "Content-Length: 5;x\r\n",
        "Content-Length: 18446744073709551621\r\n",
        "Content-Length\t: 5\r\n",
        "Content_Length: 5\r\n",
        "Content-Length:\r\n 5\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Transfer-Encoding: chunked\0\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n",
        "Upgrade: h2c, websocket\r\nTransfer-Encoding: chunked\r\n",
        "Connection: content-length\r\nContent-Length: 5\r\n",
        "Connection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
        "Connection: authorization\r\n",
        "Connection: x-api-key\r\n",
        "Expect: 200-ok\r\nContent-Length: 5\r\n",
    ];
    let mut rows: Vec<Bad> = lines.map(|lines| (lines, head(SPEAK, lines), 400, INVALID)).into();
    let first =
        [("chunks on HTTP/1.0", "POST /v1/audio/speech HTTP/1.0"), ("chunks with GET", "GET /v1/models HTTP/1.1")];
    rows.extend(first.map(|(label, first)| (label, head(first, "Transfer-Encoding: chunked\r\n"), 400, INVALID)));
    refuses_heads(rows).await;
}

#[tokio::test]
async fn heads_that_break_the_grammar_are_refused() {
    let good = String::from_utf8(head(SPEAK, "X-Marker: marker\r\n")).expect("text");
    let with = |line: &str| head(SPEAK, line);
    let first = |line: &str| head(line, "");
    let rows = [
        ("bare LF everywhere", good.replace("\r\n", "\n").into_bytes()),
        ("bare LF after the request line", good.replacen("\r\n", "\n", 1).into_bytes()),
        ("bare LF after a header", with("X-Marker: marker\nX: y\r\n")),
        ("bare LF at the end", good.replace("\r\n\r\n", "\r\n\n").into_bytes()),
        ("two LF at the end", good.replace("\r\n\r\n", "\n\n").into_bytes()),
        ("bare CR in a value", with("X-Marker: mar\rker\r\n")),
        ("bare CR before the end of a line", with("X-Marker: marker\r\r\n")),
        ("bare CR in a name", with("X-\rMarker: marker\r\n")),
        ("NUL in a value", with("X-Marker: mar\0ker\r\n")),
        ("NUL in a name", with("X-\0Marker: marker\r\n")),
        ("NUL in the target", first("POST /v1/audio/speech\0 HTTP/1.1")),
        ("NUL in the method", first("PO\0ST /v1/audio/speech HTTP/1.1")),
        ("DEL in a value", with("X-Marker: mar\x7fker\r\n")),
        ("escape in a value", with("X-Marker: \x1b[31mmarker\r\n")),
        ("a folded line", with("X-Marker: mar\r\n ker\r\n")),
        ("a line folded by a tab", with("X-Marker: mar\r\n\tker\r\n")),
        ("the first line folded", first("POST /v1/audio/speech HTTP/1.1\r\n X-Marker: marker")),
        ("a space before the colon", with("X-Marker : marker\r\n")),
        ("a tab before the colon", with("X-Marker\t: marker\r\n")),
        ("a space in a name", with("X Marker: marker\r\n")),
        ("a header without a colon", with("X-Marker\r\n")),
        ("a header without a name", with(": marker\r\n")),
        ("a name that is not ASCII", with("X-M\u{e4}rker: marker\r\n")),
        ("a name in brackets", with("[X-Marker]: marker\r\n")),
        ("an empty line first", format!("\r\n{good}").into_bytes()),
        ("a bare LF first", format!("\n{good}").into_bytes()),
        ("two spaces", first("POST  /v1/audio/speech HTTP/1.1")),
        ("two spaces before the version", first("POST /v1/audio/speech  HTTP/1.1")),
        ("a tab", first("POST\t/v1/audio/speech\tHTTP/1.1")),
        ("a space at the end", first("POST /v1/audio/speech HTTP/1.1 ")),
        ("a space at the start", first(" POST /v1/audio/speech HTTP/1.1")),
        ("one word", first("POST")),
        ("no target", first("POST  HTTP/1.1")),
        ("a method in brackets", first("PO(ST) /v1/audio/speech HTTP/1.1")),
        ("a method without end", first(&"P".repeat(40))),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("a fragment", first("POST /v1/audio/speech#x HTTP/1.1")),
        ("a target that is not ASCII", first("POST /v1/audio/sp\u{e9}ech HTTP/1.1")),
    ];
    refuses_heads(rows.into_iter().map(|(label, bad)| (label, bad, 400, INVALID)).collect()).await;
}

#[tokio::test]
async fn heads_that_do_not_name_one_host_are_refused() {
    let named = |hosts: &str| format!("{SPEAK}\r\n{hosts}Authorization: Bearer {KEY}\r\n\r\n").into_bytes();
    let target = |target: &str| head(&format!("POST {target} HTTP/1.1"), "");
    let rows = [
        ("none", named("")),
        ("two", named("Host: aulos\r\nHost: other\r\n")),
        ("the same twice", named("Host: aulos\r\nhost: aulos\r\n")),
        ("an empty one", named("Host:\r\n")),
        ("userinfo", named("Host: user@aulos\r\n")),
        ("userinfo with a password", named("Host: user:marker@aulos\r\n")),
        ("a path", named("Host: aulos/v1\r\n")),
        ("a URL", named("Host: http://aulos\r\n")),
        ("a query", named("Host: aulos?x\r\n")),
        ("a list", named("Host: aulos, other\r\n")),
        ("a space", named("Host: au los\r\n")),
        ("a port that is none", named("Host: aulos:x\r\n")),
        ("a port that is too large", named("Host: aulos:65536\r\n")),
        ("brackets around a name", named("Host: [aulos]\r\n")),
        ("the target names another", target("http://other/v1/audio/speech")),
        ("the target names another port", target("http://aulos:81/v1/audio/speech")),
        ("the target names it in capitals", target("http://AULOS/v1/audio/speech")),
        ("the target has userinfo", target("http://user@aulos/v1/audio/speech")),
        ("the target names none", target("http:///v1/audio/speech")),
        ("another scheme", target("ftp://aulos/v1/audio/speech")),
        ("a file", target("file:///etc/passwd")),
    ];
    refuses_heads(rows.into_iter().map(|(label, bad)| (label, bad, 400, INVALID)).collect()).await;
}

#[tokio::test]
async fn methods_targets_and_versions_that_are_not_served_are_refused() {
    let rows = [
        ("TRACE", "TRACE /v1/audio/speech HTTP/1.1", 405, "method_not_allowed"),
        ("trace", "trace / HTTP/1.1", 405, "method_not_allowed"),
        ("CONNECT", "CONNECT aulos:443 HTTP/1.1", 405, "method_not_allowed"),
        ("CONNECT to a path", "CONNECT /v1/audio/speech HTTP/1.1", 405, "method_not_allowed"),
        ("OPTIONS *", "OPTIONS * HTTP/1.1", 400, INVALID),
        ("POST *", "POST * HTTP/1.1", 400, INVALID),
        ("an authority", "POST aulos:80 HTTP/1.1", 400, INVALID),
        ("no slash", "POST v1/audio/speech HTTP/1.1", 400, INVALID),
        ("a query alone", "POST ?model=x HTTP/1.1", 400, INVALID),
        ("HTTP/0.9", "GET /v1/models", 505, "http_version_not_supported"),
        ("HTTP/0.9, said", "GET /v1/models HTTP/0.9", 505, "http_version_not_supported"),
        ("HTTP/2.0", "POST /v1/audio/speech HTTP/2.0", 505, "http_version_not_supported"),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n", 505, "http_version_not_supported"),
        ("HTTP/1.2", "POST /v1/audio/speech HTTP/1.2", 505, "http_version_not_supported"),
        ("HTTP/1.10", "POST /v1/audio/speech HTTP/1.10", 505, "http_version_not_supported"),
        ("http/1.1", "POST /v1/audio/speech http/1.1", 505, "http_version_not_supported"),
        ("another protocol", "POST /v1/audio/speech RTSP/1.0", 505, "http_version_not_supported"),
    ];
    refuses_heads(rows.map(|(label, first, status, code)| (label, head(first, ""), status, code)).into()).await;
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let target = |bytes: usize| head(&format!("POST /v1/audio/speech?{} HTTP/1.1", "m".repeat(bytes)), "");
    let fields =
        |count: usize, bytes: usize| head(SPEAK, &format!("X-M: {}\r\n", "marker".repeat(bytes)).repeat(count));
    let too_large = "headers_too_large";
    refuses_heads(vec![
        ("a target of 9 KiB", target(9 << 10), 414, "target_too_long"),
        ("a target of a byte too much", target((8 << 10) + 1 - "/v1/audio/speech?".len()), 414, "target_too_long"),
        ("a target longer than a head", target(70 << 10), 414, "target_too_long"),
        ("a head of 70 KiB", fields(1, (70 << 10) / 6), 431, too_large),
        ("a head of 70 KiB in 50 lines", fields(50, (70 << 10) / 300), 431, too_large),
        ("101 header lines", fields(99, 0), 431, too_large),
        ("1000 header lines", fields(1000, 0), 431, too_large),
        ("a name of 70 KiB", head(SPEAK, &format!("{}: x\r\n", "m".repeat(70 << 10))), 431, too_large),
        ("a head of 1 MB", fields(1, 1_000_000 / 6), 431, too_large),
    ])
    .await;
}

/// The other side of the same limits.
#[tokio::test]
async fn heads_that_are_just_in_order_are_served() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let body = HIDDEN.replace("hidden", "canary head");
    let query = "q".repeat((8 << 10) - "/v1/audio/speech?".len());
    let rows = [
        ("100 header lines", request(SPEAK, &format!("{JSON}{}", "X-M: y\r\n".repeat(96)), &body)),
        ("60 KiB", request(SPEAK, &format!("{JSON}X-M: {}\r\n", "m".repeat(60 << 10)), &body)),
        ("a target of 8 KiB", request(&format!("POST /v1/audio/speech?{query} HTTP/1.1"), JSON, &body)),
        ("a URL", request("POST http://aulos/v1/audio/speech HTTP/1.1", JSON, &body)),
        ("a URL with its scheme in capitals", request("POST HTTP://aulos/v1/audio/speech HTTP/1.1", JSON, &body)),
        ("HTTP/1.0", request("POST /v1/audio/speech HTTP/1.0", JSON, &body)),
        ("chunks", [head(SPEAK, CHUNKED), chunked(&body, 3)].concat()),
        ("chunks in capitals", [head(SPEAK, "Transfer-Encoding: CHUNKED\r\n"), chunked(&body, 99)].concat()),
        ("no space after the colon", request(SPEAK, "X-M:y\r\ncontent-type:application/json\r\n", &body)),
        ("spaces around a value", request(SPEAK, "X-M: \t y \t\r\n", &body)),
        ("bytes beyond ASCII in a value", request(SPEAK, "X-M: \u{e4}\r\n", &body)),
    ];
    for (label, sent) in &rows {
        let answer = gateway.client().await.send(sent).await.answer().await;
        assert_eq!(answer.status, 200, "{label}: {answer:?}");
        assert_eq!(answer.text(), body.replace("openai/", ""), "{label}");
    }
    only_canaries(&vendor, rows.len());
    assert!(vendor.requests().iter().all(|sent| sent.target.starts_with("/v1/audio/speech")));
}

/// Whatever byte the head lint lets through, no parser behind it answers in our place, and none is changed on the way.
#[tokio::test]
async fn every_byte_that_may_stand_in_a_head_is_answered_by_us() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let body = HIDDEN.replace("hidden", "canary byte");
    for byte in (0x21u8..=0x7e).filter(|byte| *byte != b'#') {
        // Of the others, which no URL has (RFC 3986), each may be refused; but it is we who answer.
        let plain = byte.is_ascii_alphanumeric() || b"-._~:/?[]@!$&'()*+,;=%".contains(&byte);
        let byte = char::from(byte);
        let first = format!("GET /v1/a{byte}b HTTP/1.1");
        let answer = gateway.client().await.send(&head(&first, "")).await.answer().await;
        check(
            &first,
            &answer,
            if plain || answer.status == 404 { (404, "unknown_url", None) } else { (400, INVALID, None) },
        );
        let target = format!("/v1/audio/speech?a{byte}b=a{byte}b");
        let sent = request(&format!("POST {target} HTTP/1.1"), JSON, &body);
        let answer = gateway.client().await.send(&sent).await.answer().await;
        if plain || answer.status == 200 {
            assert_eq!(answer.status, 200, "{target}: {answer:?}");
            assert_eq!(vendor.requests().last().map(|sent| sent.target.clone()), Some(target));
        } else {
            check(&target, &answer, (400, INVALID, None));
        }
    }
    let mut client = gateway.client().await;
    for byte in (0x21u8..=0x7e).filter(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)) {
        let byte = char::from(byte);
        let first = format!("M{byte} /v1/models HTTP/1.1");
        let answer = client.send(&head(&first, "")).await.answer().await;
        check(&first, &answer, (405, "method_not_allowed", None));
        let lines = format!("{JSON}X{byte}Y: y\r\n");
        assert_eq!(client.send(&request(SPEAK, &lines, &body)).await.answer().await.status, 200, "{lines}");
        let name = format!("x{byte}y").to_ascii_lowercase();
        assert_eq!(vendor.requests().last().and_then(|sent| sent.header(&name).map(str::to_owned)), Some("y".into()));
    }
    for byte in (0x20u8..=0xff).filter(|byte| *byte != 0x7f) {
        let mut sent = request(SPEAK, &format!("{JSON}X-Marker: a@b\r\n"), &body);
        let at = find(&sent, b"@").expect("there");
        sent[at] = byte;
        assert_eq!(client.send(&sent).await.answer().await.status, 200, "{byte:#x}");
    }
}

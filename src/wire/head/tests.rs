//! What a head may be, at every byte, and however it is cut.

#[path = "../../../tests/support/desync.rs"]
mod desync;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::FaultKind::{HeadTooLarge, TargetTooLong, UnknownCoding, Version};
use super::*;
use crate::wire::testing::{pieces, same_however_cut};

/// Small enough to be passed in a table.
const SMALL: Limits = Limits { head_bytes_max: 64, fields_max: 2, target_bytes_max: 8 };

/// What a caller does: it reads, and looks at all it has.
fn run(limits: Limits, pieces: &[&[u8]]) -> Result<Option<Head>, Fault> {
    let (mut reader, mut buf) = (Reader::new(limits), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        if let Some(head) = reader.look(&buf)? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

fn look(input: &[u8]) -> Result<Option<Head>, FaultKind> {
    run(Limits::default(), &[input]).map_err(|fault| fault.kind)
}

/// The head of these bytes, however they are cut and whatever follows.
fn good(input: &str) -> Head {
    same_however_cut(input.as_bytes(), |pieces| run(Limits::default(), pieces));
    let head = look(input.as_bytes());
    assert_eq!(look(format!("{input}\0\n body").as_bytes()), head, "what follows a head is not looked at");
    let head = head.ok().flatten();
    assert!(head.is_some(), "{input:?} is refused: {:?}", look(input.as_bytes()));
    head.expect("looked at above")
}

/// The fault of these bytes, however they are cut; their last byte is the one that decides.
fn bad(limits: Limits, input: &[u8]) -> Fault {
    let shown = input.escape_ascii();
    let before = &input[..input.len() - 1];
    assert_eq!(run(limits, &[before]), Ok(None), "before the last byte of {shown}");
    same_however_cut(input, |pieces| run(limits, pieces));
    let fault = run(limits, &[input]).expect_err(&format!("{shown} passed"));
    assert_eq!(run(limits, &[input, b"\r\n\r\n"]), Err(fault.clone()), "with more behind it");
    fault
}

fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

fn post(lines: &str) -> String {
    format!("POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

const CURL: &str = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/7.88.1\r\n\
    Accept: */*\r\nAuthorization: Bearer sk-test\r\nContent-Length: 3000301\r\n\
    Content-Type: multipart/form-data; boundary=------------------------3c92c8ccd006da55\r\n\
    Expect: 100-continue\r\n\r\n";
const PYTHON: &str = "POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept-Encoding: gzip, deflate\r\n\
    Connection: keep-alive\r\nAccept: application/octet-stream\r\nContent-Type: application/json\r\n\
    User-Agent: OpenAI/Python 3.52.0\r\nX-Stainless-Async: false\r\nx-stainless-read-timeout: 600\r\n\
    Authorization: Bearer sk-test\r\nContent-Length: 97\r\n\r\n";
const NODE: &str = "POST /openai/deployments/my-whisper/audio/transcriptions?api-version=2025-04-01 HTTP/1.1\r\n\
    host: localhost:8080\r\nconnection: keep-alive\r\nuser-agent: AzureOpenAI/JS 7.55.0\r\napi-key: az-key\r\n\
    content-type: multipart/form-data; boundary=openai-el27ul22l1\r\naccept-language: *\r\n\
    transfer-encoding: chunked\r\n\r\n";
const WEBSOCKET: &str = "GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\nauthorization: Bearer sk-test\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: BD0mvQ3YOGQm3uI2n2nq1A==\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nHost: [::1]:8443\r\n\r\n";
const AB: &str = "GET /livez HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: 127.0.0.1\r\n\r\n";
const HEADS: [&str; 5] = [CURL, PYTHON, NODE, WEBSOCKET, AB];

#[test]
fn heads_of_real_clients_pass() {
    let plain = |head: &Head| (head.expect_continue, head.close, head.upgrade);
    for (input, target, body, flags) in [
        (CURL, "/v1/audio/transcriptions", Body::Length(3_000_301), (true, false, false)),
        (PYTHON, "/v1/audio/speech", Body::Length(97), (false, false, false)),
        (
            NODE,
            "/openai/deployments/my-whisper/audio/transcriptions?api-version=2025-04-01",
            Body::Chunked,
            (false, false, false),
        ),
        (WEBSOCKET, "/v1/realtime?model=gpt-realtime", Body::None, (false, false, true)),
        (AB, "/livez", Body::None, (false, false, false)),
    ] {
        let head = good(input);
        assert_eq!((&input[head.target.clone()], head.body), (target, body));
        assert_eq!(&input[head.method.clone()], input.split(' ').next().expect("a method"));
        assert_eq!((head.len, plain(&head)), (input.len(), flags), "{input}");
        assert_eq!(head.version_minor == 1, input != AB);
    }
}

#[test]
fn what_is_unusual_and_plain_passes() {
    for lines in [
        "X-Empty:\r\n",
        "X-Spaces: \t \r\n",
        "X-Text:a\tb \u{e9}\r\n",
        "X_User_Path: /team\r\n",
        "!#$%&'*+-.^_`|~09azAZ: tchar\r\n",
        "Connection: , close ,, x-hop\r\n",
        "Connection: close\r\nConnection: Upgrade\r\n",
        "Connection: a, b, c, d, e, f, g, h, i,,\r\n",
        "Connection: a, b, c, d, e\r\nConnection: f, g, h, i\r\n",
        "Content-Length: 0\r\n",
        "Content-Length:\t7 \r\n",
        "Content-Length: 9223372036854775807\r\n",
        "Upgrade: h2c\r\nContent-Length: 0\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 5\r\n",
        "Contents-Length: 1\r\nX-Content-Length: 1\r\nTransfer: x\r\n",
    ] {
        good(&get(lines));
    }
    for target in ["/", "/a?b=c&d", "//", "/~!$&'()*+,;=:@%zz\\^{|}", "http://a/", "HTTPS://a/b?http://c/"] {
        good(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    for method in ["get", "M-SEARCH", "OPTIONS", "TRACES", &"M".repeat(METHOD_BYTES_MAX)] {
        good(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    assert_eq!(good("POST / HTTP/1.0\r\n\r\n").body, Body::None);
    assert_eq!(good(&get("Content-Length: 5\r\n")).body, Body::Length(5), "a GET may have a body of plain length");
    assert_eq!(good(&post("Transfer-Encoding: \tCHUNKED \r\n")).body, Body::Chunked);
}

#[test]
fn it_says_when_the_connection_ends_and_what_the_client_waits_for() {
    for (lines, close) in [
        ("", [true, false]),
        ("Connection: close\r\n", [true, true]),
        ("Connection: x, CLOSE\r\n", [true, true]),
        ("Connection: close, x\r\n", [true, true]),
        ("Connection: keep-alive\r\n", [false, false]),
        ("Connection: keep-alive, x\r\nConnection: y\r\n", [false, false]),
        ("Connection: keep-alive\r\nConnection: close\r\n", [true, true]),
    ] {
        for (minor, close) in (0..).zip(close) {
            let head = good(&format!("GET / HTTP/1.{minor}\r\nHost: a\r\n{lines}\r\n"));
            assert_eq!((head.version_minor, head.close), (minor, close), "{lines} on HTTP/1.{minor}");
        }
    }
    for (minor, wanted) in [(0, false), (1, true)] {
        let lines = "Expect: 100-Continue\r\nUpgrade: x\r\nConnection: upgrade\r\n";
        let head = good(&format!("GET / HTTP/1.{minor}\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!((head.expect_continue, head.upgrade), (wanted, wanted), "HTTP/1.{minor}");
    }
}

/// Each ends with the byte that decides.
const REQUEST_LINES: &[(&[u8], FaultKind)] = &[
    (b"\r", Invalid("an empty line before the request line")),
    (b"\n", Invalid("a LF without its CR")),
    (b" ", Invalid("the method is not a token")),
    (b"\t", Invalid("the method is not a token")),
    (b"G(", Invalid("the method is not a token")),
    (b"GET\t", Invalid("the method is not a token")),
    (b"G\xe9", Invalid("the method is not a token")),
    (b"\x16", Invalid("a control byte")),
    (b"GET\0", Invalid("a control byte")),
    (b"GET\n", Invalid("a LF without its CR")),
    (b"GET\r/", Invalid("a CR without its LF")),
    (b"GET\r\n", Invalid("the request line does not have three parts")),
    (b"MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM", Invalid("the method is too long")),
    (b"GET  ", Invalid("the target is empty")),
    (b"GET \r\n", Invalid("the target is empty")),
    (b"GET /\t", Invalid("the target has a byte that may not stand there")),
    (b"GET /#", Invalid("the target has a byte that may not stand there")),
    (b"GET /\xe9", Invalid("the target has a byte that may not stand there")),
    (b"GET /\0", Invalid("a control byte")),
    (b"GET /\x7f", Invalid("a control byte")),
    (b"GET /\n", Invalid("a LF without its CR")),
    (b"GET /\r ", Invalid("a CR without its LF")),
    (b"GET / HTTP/1.1 ", Invalid("the request line does not have three parts")),
    (b"GET /a b ", Invalid("the request line does not have three parts")),
    (b"GET / HTTP/1.1\t", Invalid("the version has a byte that may not stand there")),
    (b"GET / HTTP/1.1\n", Invalid("a LF without its CR")),
    (b"GET / HTTP/1.1\r\r", Invalid("a CR without its LF")),
    (b"GET /\r\n", Version),
    (b"GET / \r\n", Version),
    (b"GET / HTTP/0.9\r\n", Version),
    (b"GET / HTTP/1.2\r\n", Version),
    (b"GET / HTTP/1.10\r\n", Version),
    (b"GET / HTTP/2.0\r\n", Version),
    (b"GET / http/1.1\r\n", Version),
    (b"GET / HTTP/1.1\\\r\n", Version),
    (b"PRI * HTTP/2.0\r\n", Version),
    (b"TRACE / HTTP/1.1\r\n", FaultKind::Method("TRACE")),
    (b"trace * HTTP/1.1\r\n", FaultKind::Method("TRACE")),
    (b"CONNECT a:443 HTTP/1.0\r\n", FaultKind::Method("CONNECT")),
    (b"OPTIONS * HTTP/1.1\r\n", Invalid("the target is neither a path nor an http URL")),
    (b"GET a:443 HTTP/1.1\r\n", Invalid("the target is neither a path nor an http URL")),
    (b"GET a/b HTTP/1.1\r\n", Invalid("the target is neither a path nor an http URL")),
    (b"GET ?a HTTP/1.1\r\n", Invalid("the target is neither a path nor an http URL")),
    (b"GET ftp://a/ HTTP/1.1\r\n", Invalid("the target is neither a path nor an http URL")),
    (b"GET http:/a/ HTTP/1.1\r\n", Invalid("the target is neither a path nor an http URL")),
    (b"GET http://a HTTP/1.1\r\n", Invalid("the target is neither a path nor an http URL")),
    (b"GET http://a?b HTTP/1.1\r\n", Invalid("the target is neither a path nor an http URL")),
];

#[test]
fn a_request_line_is_refused_at_the_byte_that_is_wrong() {
    for (line, kind) in REQUEST_LINES {
        assert_eq!(bad(Limits::default(), line).kind, *kind, "{}", line.escape_ascii());
    }
}

const COLON: FaultKind = Invalid("a header line without a colon");
const NAME: FaultKind = Invalid("a header name is not a token");
const SPACE: FaultKind = Invalid("a space in a header name or before its colon");
const FOLD: FaultKind = Invalid("a folded header line");
const CONTROL: FaultKind = Invalid("a control byte");
const HOST: FaultKind = Invalid("Host is not a host and perhaps a port");
const LENGTH: FaultKind = Invalid("Content-Length is not one plain number");
const LIKE_LENGTH: FaultKind = Invalid("a header that looks like Content-Length");
const LIKE_CODING: FaultKind = Invalid("a header that looks like Transfer-Encoding");
const BOTH: FaultKind = Invalid(BOTH_FRAMINGS);
const NAMED: FaultKind = Invalid("Connection names a header that must reach the other end");
const TOO_MANY: FaultKind = Invalid("Connection names too many headers");
const EXPECT: FaultKind = Invalid("Expect is not exactly 100-continue");

/// After a good request line and one other header.
const HEADER_LINES: &[(&[u8], FaultKind)] = &[
    (b"\n", Invalid("a LF without its CR")),
    (b"\rA", Invalid("a CR without its LF")),
    (b" ", FOLD),
    (b"\t", FOLD),
    (b":", Invalid("a header without a name")),
    (b"\0", CONTROL),
    (b"\xa0", NAME),
    (b"A\0", CONTROL),
    (b"A\x01", CONTROL),
    (b"A ", SPACE),
    (b"A\t", SPACE),
    (b"A\xff", NAME),
    (b"A(", NAME),
    (b"A\"", NAME),
    (b"A\n", Invalid("a LF without its CR")),
    (b"A\r:", Invalid("a CR without its LF")),
    (b"A\r\n", COLON),
    (b"A: b\0", CONTROL),
    (b"A: b\x0b", CONTROL),
    (b"A: b\x1b", CONTROL),
    (b"A: b\x7f", CONTROL),
    (b"A: b\n", Invalid("a LF without its CR")),
    (b"A: b\rc", Invalid("a CR without its LF")),
    (b"A: b\r\n ", FOLD),
    (b"A: b\r\n\t", FOLD),
    (b"Host: b\r\nHost: b\r\n", Invalid("more than one Host")),
    (b"Content-Length: 1\r\ncontent-length: 1\r\n", Invalid("more than one Content-Length")),
    (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", BOTH),
    (b"Content-Length: 0\r\nTransfer-Encoding: gzip\r\n", BOTH),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", BOTH),
    (b"Transfer-Encoding: chunked\r\nContent-Length: x\r\n", BOTH),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Invalid("more than one Transfer-Encoding")),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", Invalid("more than one Transfer-Encoding")),
    (b"Transfer-Encoding:\r\n", UnknownCoding),
    (b"Transfer-Encoding: identity\r\n", UnknownCoding),
    (b"Transfer-Encoding: xchunked\r\n", UnknownCoding),
    (b"Transfer-Encoding: gzip, chunked\r\n", UnknownCoding),
    (b"Transfer-Encoding: chunked, chunked\r\n", UnknownCoding),
    (b"Transfer-Encoding: chunked,\r\n", UnknownCoding),
    (b"Transfer-Encoding: chunked;q=1\r\n", UnknownCoding),
    (b"Transfer-Encoding: \"chunked\"\r\n", UnknownCoding),
    (b"Transfer-Encoding: \xa0chunked\r\n", UnknownCoding),
    (b"Content_Length: 1\r\n", LIKE_LENGTH),
    (b"content_length: 1\r\n", LIKE_LENGTH),
    (b"Content--Length: 1\r\n", LIKE_LENGTH),
    (b"ContentLength: 1\r\n", LIKE_LENGTH),
    (b"'Content-Length: 1\r\n", LIKE_LENGTH),
    (b"Transfer_Encoding: chunked\r\n", LIKE_CODING),
    (b"TRANSFER_ENCODING: x\r\n", LIKE_CODING),
    (b"Transfer.Encoding: x\r\n", LIKE_CODING),
    (b"Transfer-Encoding_: x\r\n", LIKE_CODING),
    (b"Connection: keep-alive; x\r\n", Invalid("Connection is not a list of names")),
    (b"Connection: a b\r\n", Invalid("Connection is not a list of names")),
    (b"Connection: close, Content-Length\r\n", NAMED),
    (b"Connection: transfer-encoding\r\n", NAMED),
    (b"Connection: HOST\r\n", NAMED),
    (b"Connection: x,authorization\r\n", NAMED),
    (b"Connection: api-key\r\n", NAMED),
    (b"Connection: x-api-key, close\r\n", NAMED),
    (b"Connection: xi-api-key\r\n", NAMED),
    (b"Connection: x-goog-api-key\r\n", NAMED),
    (b"Connection: close\r\nConnection: cookie\r\n", NAMED),
    (b"Connection: x-forwarded-for\r\n", NAMED),
    (b"Connection: close, X-Forwarded-Host\r\n", NAMED),
    (b"Connection: x-forwarded-proto\r\n", NAMED),
    (b"Connection: a, b, c, d, e, f, g, h, i, j\r\n", TOO_MANY),
    (b"Connection: a, b, c, d, e\r\nConnection: f, g, h, i, j\r\n", TOO_MANY),
    (b"Expect:\r\n", EXPECT),
    (b"Expect: y 100-continue\r\n", EXPECT),
    (b"Expect: 100-continue, x\r\n", EXPECT),
    (b"Expect: 100-continue\r\nExpect: 100-continue\r\n", EXPECT),
    (b"\r\n", Invalid("no Host")),
    (b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n", Invalid("Transfer-Encoding with GET or HEAD")),
    (b"Host: a\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n", Invalid("Upgrade with a body")),
];

#[test]
fn a_header_line_is_refused_at_the_byte_that_is_wrong() {
    for (lines, kind) in HEADER_LINES {
        let input = [b"GET / HTTP/1.1\r\nAccept: */*\r\n", *lines].concat();
        assert_eq!(bad(Limits::default(), &input).kind, *kind, "{}", lines.escape_ascii());
    }
}

#[test]
fn what_only_the_whole_head_can_tell_is_told_at_its_end() {
    for (input, kind) in [
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", Invalid("the target names another host than Host")),
        ("GET http://a/ HTTP/1.1\r\nHost: a:80\r\n\r\n", Invalid("the target names another host than Host")),
        ("GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Invalid("the target names another host than Host")),
        ("GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", Invalid("the target names another host than Host")),
        ("GET https://a/ HTTP/1.0\r\n\r\n", Invalid("the target names another host than Host")),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Invalid("Transfer-Encoding on HTTP/1.0")),
        (
            "HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            Invalid("Transfer-Encoding with GET or HEAD"),
        ),
        (
            "POST / HTTP/1.1\r\nUpgrade: x\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            Invalid("Upgrade with a body"),
        ),
    ] {
        assert_eq!(bad(Limits::default(), input.as_bytes()).kind, kind, "{input:?}");
    }
}

#[test]
fn a_host_is_a_host_and_perhaps_a_port() {
    for value in ["a", "A.b-c_d~1", "127.0.0.1:8080", "a:0", "a:65535", "[::1]", "[2001:db8::1]:443", "%41", "a;b=c!"] {
        good(&format!("GET / HTTP/1.1\r\nHost: {value} \r\n\r\n"));
    }
    for value in [
        "",
        ":80",
        "a:",
        "a:b",
        "a:+1",
        "a:65536",
        "a:000080",
        "a:1:2",
        "u@a",
        "u:p@a",
        "a/",
        "a/b",
        "a b",
        "a,b",
        "a?",
        "a\\b",
        "a\u{e9}",
        "%",
        "%4",
        "%4g",
        "[",
        "[]",
        "[::1",
        "[::1]x",
        "[::1]:",
        "[::1%25eth0]",
        "[v1.a]",
        "[1.2.3.4]",
        "::1",
        "\"a\"",
        "<a>",
    ] {
        let input = format!("GET / HTTP/1.1\r\nHost: {value}\r\n");
        assert_eq!(bad(Limits::default(), input.as_bytes()).kind, HOST, "{value:?}");
    }
}

#[test]
fn a_length_is_one_plain_number() {
    for value in [
        "",
        "+1",
        "-1",
        "1,1",
        "1, 1",
        "1 1",
        "1.0",
        "0x1",
        "1a",
        "\"1\"",
        "00",
        "01",
        "1\u{a0}",
        "\u{661}",
        "_1",
        "9223372036854775808",
        "18446744073709551616",
        "99999999999999999999999999",
    ] {
        let input = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {value}\r\n");
        assert_eq!(bad(Limits::default(), input.as_bytes()).kind, LENGTH, "{value:?}");
    }
}

#[test]
fn a_size_is_refused_when_it_is_passed() {
    let line = "GET / HTTP/1.1\r\nHost: a\r\n";
    let full = format!("{line}B: {}\r\n\r\n", "b".repeat(SMALL.head_bytes_max - line.len() - 7));
    assert_eq!(run(SMALL, &[full.as_bytes()]).map(|head| head.map(|head| head.len)), Ok(Some(64)));
    for (input, kind) in [
        ("GET /12345678".to_owned(), TargetTooLong),
        (format!("GET / {}", "V".repeat(58)), HeadTooLarge("too many bytes")),
        (format!("{line}{}", "n".repeat(64 - line.len())), HeadTooLarge("too many bytes")),
        (format!("{line}B: {}", "v".repeat(61 - line.len())), HeadTooLarge("too many bytes")),
        (format!("{line}B: {}\r\n\r", "v".repeat(58 - line.len())), HeadTooLarge("too many bytes")),
        (format!("{line}B: b\r\nC"), HeadTooLarge("too many header lines")),
    ] {
        assert_eq!(bad(SMALL, input.as_bytes()).kind, kind, "{input:?}");
    }
    same_however_cut(full.as_bytes(), |pieces| run(SMALL, pieces));
    assert!(matches!(run(SMALL, &[b"GET /1234567 HTTP/1.1\r\nHost: a\r\nB: b\r\n\r\n"]), Ok(Some(_))));
}

#[test]
fn the_default_limits_are_the_documented_ones() {
    let lines = |count: usize| get(&"A: b\r\n".repeat(count - 1));
    assert!(matches!(look(lines(100).as_bytes()), Ok(Some(_))));
    assert_eq!(look(lines(101).as_bytes()), Err(HeadTooLarge("too many header lines")));
    let target = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(len - 1));
    assert!(matches!(look(target(8192).as_bytes()), Ok(Some(_))));
    assert_eq!(look(target(8193).as_bytes()), Err(TargetTooLong));
    let head = |len: usize| get(&format!("A: {}\r\n", "b".repeat(len - get("A: \r\n").len())));
    assert!(matches!(look(head(65_536).as_bytes()), Ok(Some(_))));
    assert_eq!(look(head(65_537).as_bytes()), Err(HeadTooLarge("too many bytes")));
    assert_eq!(look(&vec![b'x'; 70_000]), Err(Invalid("the method is too long")));
}

#[test]
fn a_fault_names_what_was_clean() {
    for (input, method, target) in [
        ("GE(", None, None),
        ("GET /\t", Some("GET"), None),
        ("GET /a\r\n", Some("GET"), Some("/a")),
        ("GET /a HTTP/3.0\r\n", Some("GET"), Some("/a")),
        ("TRACE /a HTTP/1.1\r\n", Some("TRACE"), Some("/a")),
        ("OPTIONS * HTTP/1.1\r\n", Some("OPTIONS"), Some("*")),
        ("POST /a?b HTTP/1.1\r\n\n", Some("POST"), Some("/a?b")),
    ] {
        let fault = bad(Limits::default(), input.as_bytes());
        let shown = (fault.method.map(|range| &input[range]), fault.target.map(|range| &input[range]));
        assert_eq!(shown, (method, target), "{input:?}");
    }
}

#[test]
fn no_byte_is_looked_at_twice() {
    let input = get(&"Accept: some text that goes on\r\n".repeat(90));
    let mut reader = Reader::new(Limits::default());
    for end in 0..input.len() {
        assert_eq!(reader.look(&input.as_bytes()[..end]), Ok(None));
        assert_eq!(reader.at, end, "it has looked at everything, so the next look begins there");
    }
    assert!(matches!(reader.look(input.as_bytes()), Ok(Some(_))));
}

/// One change to a head: what a prober tries, at any place or at the start of any line.
#[derive(Debug, Clone)]
enum Change {
    Put(Index, &'static [u8]),
    Line(Index, &'static [u8]),
    Byte(Index, u8),
    Drop(Index),
}

fn changes() -> impl Strategy<Value = Change> {
    let bits: &[&[u8]] = &[b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b"\0", b"_", b"\xa0", b"0", b"\r\n\r\n"];
    let lines: &[&[u8]] = &[
        b"Content-Length: 5\r\n",
        b"content-length: 5, 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"Host: b\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: x\r\n",
        b"Connection: close\r\n",
        b"X-Other: text\r\n",
        b" folded\r\n",
        b"\r\n",
    ];
    prop_oneof![
        (any::<Index>(), select(bits)).prop_map(|(at, bits)| Change::Put(at, bits)),
        (any::<Index>(), select(lines)).prop_map(|(at, line)| Change::Line(at, line)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        any::<Index>().prop_map(Change::Drop),
    ]
}

fn changed(head: &str, changes: &[Change]) -> Vec<u8> {
    let mut bytes = head.as_bytes().to_vec();
    for change in changes {
        let (Change::Put(at, _) | Change::Line(at, _) | Change::Byte(at, _) | Change::Drop(at)) = change;
        let at = at.index(bytes.len());
        match change {
            Change::Put(_, bits) => drop(bytes.splice(at..at, bits.iter().copied())),
            Change::Line(_, line) => {
                let start = bytes[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |lf| lf + 1);
                drop(bytes.splice(start..start, line.iter().copied()));
            }
            Change::Byte(_, byte) => bytes[at] = *byte,
            Change::Drop(_) => drop(bytes.remove(at)),
        }
    }
    bytes
}

/// Reads an accepted head again, another way: split into lines, all of them at once.
fn reread(input: &[u8], head: &Head) {
    // A char a byte: the rules are about bytes.
    let text: String = input[..head.len].iter().map(|&byte| char::from(byte)).collect();
    let end = input.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    assert_eq!(end.map(|at| at + 4), Some(head.len), "the first empty line ends it");
    let text = text.strip_suffix("\r\n\r\n").expect("ends in an empty line");
    let mut lines = text.split("\r\n");
    let parts: Vec<_> = lines.next().expect("a request line").split(' ').collect();
    assert_eq!(parts, [&text[..head.method.end], parts[1], &format!("HTTP/1.{}", head.version_minor)]);
    assert_eq!(input[head.target.clone()], *parts[1].as_bytes());
    assert!(parts[1].starts_with('/') || parts[1].to_ascii_lowercase().starts_with("http"), "{parts:?}");
    let fields: Vec<(String, &str)> = lines
        .map(|line| line.split_once(':').expect("a colon"))
        .map(|(name, value)| (name.to_ascii_lowercase().replace('_', "-"), value.trim_matches([' ', '\t'])))
        .collect();
    for (name, value) in &fields {
        assert!(!name.is_empty() && !name.contains([' ', '\t']) && name.is_ascii(), "{name:?}");
        assert!(!value.contains(|char: char| char.is_ascii_control() && char != '\t'), "{value:?}");
    }
    let all = |name: &str| fields.iter().filter(|field| field.0 == name).map(|field| field.1).collect::<Vec<_>>();
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    match head.body {
        Body::None => assert_eq!((lengths.len(), codings.len()), (0, 0)),
        Body::Length(length) => assert_eq!((lengths, codings), (vec![&*length.to_string()], vec![])),
        Body::Chunked => assert_eq!((lengths.len(), codings.join("+").to_lowercase().as_str()), (0, "chunked")),
    }
    let (hosts, host_min) = (all("host"), usize::from(head.version_minor));
    assert!((host_min..=1).contains(&hosts.len()) && !hosts.contains(&""), "{hosts:?}");
}

proptest! {
    #[test]
    fn any_bytes_get_one_verdict(input in vec(any::<u8>(), 0..200), sizes in vec(0usize..9, 0..9)) {
        let whole = run(Limits::default(), &[&input]);
        prop_assert_eq!(run(Limits::default(), &pieces(&input, &sizes)), whole);
    }

    #[test]
    fn a_changed_head_gets_one_verdict_and_a_good_one_is_good(
        head in select(&HEADS[..]), changes in vec(changes(), 0..4), sizes in vec(0usize..40, 0..9),
        small in any::<bool>(),
    ) {
        let limits = if small { SMALL } else { Limits::default() };
        let input = changed(head, &changes);
        let whole = run(limits, &[&input]);
        prop_assert_eq!(&run(limits, &pieces(&input, &sizes)), &whole);
        prop_assert_eq!(&run(limits, &pieces(&input, &[])), &whole);
        if let Ok(Some(head)) = whole {
            reread(&input, &head);
        }
    }
}

/// The vectors leave Host out, which alone would be a fault: the lint has to find the other one.
fn raw(case: &desync::Case) -> Vec<u8> {
    let version: &[&[u8]] = if case.version.is_empty() { &[] } else { &[b" ", &case.version] };
    let mut raw = [&[&case.method[..], b" ", &case.uri], version, &[b"\r\n"]].concat().concat();
    if !case.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"host")) {
        raw.extend_from_slice(b"Host: localhost\r\n");
    }
    for (name, value) in &case.headers {
        raw.extend([&name[..], b": ", value, b"\r\n"].concat());
    }
    raw.extend_from_slice(b"\r\n");
    raw
}

/// Called ambiguous there, accepted here: (name, why).
const LOOSER: [(&str, &str); 3] = [
    ("Get with a body and Content-Length", BODY_OF_GET),
    ("Head with a body and Content-Length", BODY_OF_GET),
    ("Has a CL in GET", BODY_OF_GET),
];
const BODY_OF_GET: &str = "its length is plain (RFC 9112 §6.3), and a passthrough passes what is plain";

/// Called compliant there, refused here: (name, why).
const STRICTER: [(&str, &str); 10] = [
    ("Different Transfer-Encoding headers", CODINGS),
    ("Different Transfer-Encoding headers combined", CODINGS),
    ("Transfer-Encoding with a param: chunked;custom_param", CODINGS),
    ("Correct TE OK", CODINGS),
    ("Transfer-Encoding: identity and chunked OK", CODINGS),
    ("Multiple transfer encoding headers in a single request OK", CODINGS),
    ("TE with custom parameters OK", CODINGS),
    ("Compliant URL", "a target has no fragment (RFC 9112 §3.2)"),
    ("International in URI", "a target is ASCII (RFC 3986 §2)"),
    ("Empty URI", "a target is not empty (RFC 9112 §3.2)"),
];
const CODINGS: &str = "codings that are not undone here would be lost or hidden on the way: chunked alone";

#[test]
fn every_vector_gets_the_verdict_it_should() {
    let cases = desync::cases();
    let (mut refused, mut accepted) = (0, 0);
    for case in &cases {
        let raw = raw(case);
        let verdict = look(&raw);
        let shown = format!("{}: {verdict:?}\n{}", case.name, raw.escape_ascii());
        let listed = |table: &[(&str, &str)]| table.iter().any(|(name, _)| *name == case.name);
        let wanted = match case.tier.as_str() {
            "Ambiguous" | "Severe" => listed(&LOOSER),
            // Deviations that others put up with; of these only a length of 0 is none.
            "Acceptable" => case.reason == "GetHeadZeroContentLength",
            tier => {
                assert_eq!(tier, "Compliant", "{}", case.name);
                !listed(&STRICTER)
            }
        };
        if wanted {
            let len = verdict.as_ref().ok().and_then(Option::as_ref).map(|head| head.len);
            assert_eq!(len, Some(raw.len()), "{shown}");
            accepted += 1;
        } else {
            assert!(verdict.is_err(), "{shown}");
            refused += 1;
        }
        same_however_cut(&raw, |pieces| run(Limits::default(), pieces));
    }
    let counts = ["Compliant", "Acceptable", "Ambiguous", "Severe"]
        .map(|tier| (tier, cases.iter().filter(|case| case.tier == tier).count()));
    println!("{} vectors {counts:?}: {accepted} accepted, {refused} refused", cases.len());
    for (name, why) in LOOSER.iter().chain(&STRICTER) {
        assert!(cases.iter().any(|case| case.name == *name), "no vector is called {name:?} any more");
        println!("differs: {name}: {why}");
    }
    assert!(counts.iter().all(|(_, count)| *count > 0));
}

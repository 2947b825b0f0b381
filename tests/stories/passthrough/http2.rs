//! What is refused of an HTTP/1 head is refused over HTTP/2, which has other ways to say it.

use http::{Method, Request};
use serde_json::json;

use super::{PATH, conf, echo};
use crate::support::gateway::scratch;
use crate::support::http2::{Http2, KNOWN, LISTEN, issue};
use crate::support::{Gateway, KEY};

const INVALID: (u16, &str) = (400, "invalid_request");
const NOT_ALLOWED: (u16, &str) = (405, "method_not_allowed");

/// A method, headers and a body, and what is said of them.
type Row<'r> = (&'r str, &'r [(&'r str, &'r str)], &'r str, (u16, &'r str));

fn head(method: &str, authority: &str, headers: &[(&str, &str)]) -> Request<()> {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let head = Request::builder().method(method).uri(format!("https://{authority}{PATH}")).header(KNOWN.0, KNOWN.1);
    headers.iter().fold(head, |head, (name, value)| head.header(*name, *value)).body(()).expect("a head")
}

#[tokio::test]
async fn what_another_server_may_understand_otherwise_is_refused() {
    let vendor = echo().await;
    let dir = scratch();
    let certificate = issue(&dir);
    let gateway = Gateway::spawn_in(&dir, conf(&vendor).listen(LISTEN)).await;
    let mut client = Http2::connect(&gateway, &certificate).await;
    let long = "X".repeat(1000);
    let rows: &[Row<'_>] = &[
        // Methods are case-sensitive, but not everyone behind us may know.
        ("trace", &[], "", NOT_ALLOWED),
        ("Trace", &[], "", NOT_ALLOWED),
        ("TRACE", &[], "", NOT_ALLOWED),
        ("connect", &[], "", NOT_ALLOWED),
        ("cOnnect", &[], "", NOT_ALLOWED),
        (&long, &[], "", INVALID),
        // Names that some servers fold into the one that counts.
        ("POST", &[("transfer_encoding", "chunked")], "hello", INVALID),
        ("POST", &[("transfer.encoding", "chunked")], "hello", INVALID),
        ("POST", &[("content_length", "0")], "hello", INVALID),
        ("POST", &[("content_length", "5"), ("content-length", "5")], "hello", INVALID),
        // Lengths.
        ("POST", &[("content-length", "5"), ("content-length", "5")], "hello", INVALID),
        ("POST", &[("content-length", "05")], "hello", INVALID),
        ("GET", &[], "GET /admin HTTP/1.1\r\nHost: x\r\n\r\n", INVALID),
    ];
    for (method, headers, body, want) in rows {
        let label = format!("{} {headers:?} {body:?}", &method[..method.len().min(8)]);
        let answer = client.ask(head(method, "localhost", headers), body).await;
        assert_eq!(answer.refusal(), (want.0, want.1.to_owned()), "{label}: {answer:?}");
        assert_eq!(answer.header("x-aulos-origin"), Some("aulos"), "{label}");
    }
    // A refusal of a HEAD has no body to tell its code.
    let answer = client.ask(head("HEAD", "localhost", &[]), "hello").await;
    assert_eq!((answer.status, answer.header("x-aulos-origin")), (400, Some("aulos")), "{answer:?}");
    // Who is asked: this is refused before it is a request, and so without a record.
    for authority in ["user@localhost", "user:secret@localhost", "localhost@evil.example"] {
        assert_eq!(client.ask(head("GET", authority, &[]), "").await.status, 400, "{authority}");
    }
    assert_eq!(vendor.connections(), 0, "nothing went up");
    // Of refusals without a key only so many are recorded.
    let audits = gateway.recorded("audit", 5).await;
    assert!(audits.iter().all(|audit| audit["end"] == "refused" && audit["attempts"] == json!([])), "{audits:?}");
    // The connection is as good as it was.
    for (method, headers, body) in
        [("GET", &[][..], ""), ("POST", &[("content-length", "5")][..], "hello"), ("POST", &[][..], "hello")]
    {
        let answer = client.ask(head(method, "localhost", headers), body).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "{method} {headers:?}");
    }
    assert!(vendor.requests().iter().all(|sent| !format!("{sent:?}").contains(KEY)));
}

//! Requests hidden in requests: whatever a body's framing says, the provider is sent one request, in plain framing.

#[expect(clippy::duplicate_mod, reason = "the stories of bad input read the same vectors")]
#[path = "../../support/desync.rs"]
mod desync;

use super::{PATH, ask, conf, echo, sized};
use crate::support::chunks::tricks;
use crate::support::client::find;
use crate::support::vendor::Received;
use crate::support::{Client, Gateway, KEY, Vendor};

/// A request that is in order, on a connection that should be.
async fn canary(client: &mut Client, label: &str) {
    let body = format!("canary {label}");
    let request = String::from_utf8(sized(&format!("POST {PATH}"), "", &body)).expect("text");
    client.send(request.replacen("Connection: close\r\n", "", 1)).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text()), (200, body), "{label}: everyone gets their own answer");
}

/// Would be served, if it were ever taken for a request.
fn hidden() -> String {
    format!(
        "POST /p/openai/v1/hidden HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 0\r\n\r\n"
    )
}

fn nothing_hidden(vendor: &Vendor) {
    let hidden: Vec<_> = vendor.heads().into_iter().filter(|sent| sent.target.contains("hidden")).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

/// A body that nobody reads must not become the next request.
#[tokio::test]
async fn what_follows_a_refusal_is_not_the_next_request() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let wrong = |request: Vec<u8>| String::from_utf8(request).expect("text").replacen(KEY, "wrong", 1).into_bytes();
    let keep = |request: Vec<u8>| {
        String::from_utf8(request).expect("text").replacen("Connection: close\r\n", "", 1).into_bytes()
    };
    let chunks = format!("{:x}\r\n{}\r\n0\r\n\r\n", hidden().len(), hidden());
    for (label, sent, status) in [
        ("401", wrong(sized(&format!("POST {PATH}"), "", hidden())), 401),
        ("401 in chunks", wrong(ask(&format!("POST {PATH}"), "Transfer-Encoding: chunked\r\n", &chunks)), 401),
        ("400", sized("POST /p/openai/v1/../x", "", hidden()), 400),
        ("404", sized("POST /p/nobody/x", "", hidden()), 404),
        ("404 in chunks", ask("POST /p/nobody/x", "Transfer-Encoding: chunked\r\n", &chunks), 404),
    ] {
        let mut client = gateway.client().await;
        let answer = client.send(keep(sent)).await.finish().await.answer().await;
        assert_eq!(answer.status, status, "{label}: {answer:?}");
        let rest = client.rest().await;
        assert!(rest.is_empty(), "{label}: a second answer: {}", rest.escape_ascii());
        canary(&mut gateway.client().await, label).await;
    }
    nothing_hidden(&vendor);
}

/// A body that its provider answers without reading it must not become the next request either.
#[tokio::test]
async fn what_a_provider_leaves_unread_is_not_the_next_request() {
    let vendor = Vendor::early(|head, mut wire| async move {
        if head.target.contains("early") {
            wire.answer("413 Too Large", "text/plain", "no").await;
            wire.linger().await;
            return None;
        }
        let request = wire.whole(head).await?;
        wire.answer("200 OK", "text/plain", &request.body).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for length in [hidden().len(), hidden().len() + 100_000] {
        let mut client = gateway.client().await;
        let request = ask("POST /p/openai/v1/early", &format!("Content-Length: {length}\r\n"), "");
        client.send(String::from_utf8(request).expect("text").replacen("Connection: close\r\n", "", 1)).await;
        assert_eq!(client.answer().await.status, 413);
        client.send(hidden()).await.finish().await;
        let rest = client.rest().await;
        assert!(rest.is_empty(), "{}", rest.escape_ascii());
        canary(&mut gateway.client().await, "after it").await;
    }
    nothing_hidden(&vendor);
}

/// Whatever Pingora's parser of chunks takes, the provider is sent one request in plain framing.
#[tokio::test]
async fn tricks_with_chunks_never_make_a_second_request() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let more = ("a request behind no size", format!("\r\n{}", hidden()));
    let rows = tricks(BODY, &hidden()).into_iter().chain([more]);
    for (label, body) in rows {
        for more in ["", "Idempotency-Key: 1\r\n"] {
            let mut client = gateway.client().await;
            let lines = format!("{more}Transfer-Encoding: chunked\r\n");
            let said = client.send(ask(&format!("POST {PATH}"), &lines, &body)).await.finish().await.rest().await;
            let answers = memchr::memmem::find_iter(&said, "x-aulos-request-id").count();
            assert!(answers <= 1, "{label}: {}", said.escape_ascii());
            canary(&mut gateway.client().await, label).await;
        }
    }
    nothing_hidden(&vendor);
    // Whole or not, what arrived began as one of these bodies.
    let is_known = |body: &[u8]| {
        body.starts_with(b"canary ") || BODY.as_bytes().starts_with(body) || body.starts_with(BODY.as_bytes())
    };
    assert!(vendor.requests().iter().all(|sent| is_known(&sent.body)), "{:?}", vendor.requests());
    let framings = vendor.heads().into_iter().filter(|sent| sent.header("content-length").is_some());
    assert!(framings.into_iter().all(|sent| sent.header("transfer-encoding").is_none()));
}

const BODY: &str = "a body of its own, and of some length";

#[tokio::test]
async fn trailers_of_http_1_are_dropped() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let chunks = "2\r\nhi\r\n0\r\nX-Marker: marker\r\nAuthorization: Bearer other\r\nContent-Length: 9\r\n\r\n";
    let request = ask(&format!("POST {PATH}"), "Trailer: X-Marker\r\nTransfer-Encoding: chunked\r\n", chunks);
    let answer = gateway.client().await.send(request).await.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "hi"), "{answer:?}");
    let sent = vendor.requests().pop().expect("sent");
    assert!(["x-marker", "trailer", "content-length"].iter().all(|name| sent.header(name).is_none()), "{sent:?}");
}

/// An upload that its client leaves is never whole at the provider.
#[tokio::test]
async fn an_upload_that_is_cut_is_never_whole() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for (n, (lines, body)) in [
        ("Content-Length: 100\r\n", "begun"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nbegun\r\n"),
        ("Transfer-Encoding: chunked\r\n", "9\r\nbegun"),
        ("Idempotency-Key: 1\r\nContent-Length: 100\r\n", "begun"),
        ("Idempotency-Key: 1\r\nTransfer-Encoding: chunked\r\n", "5\r\nbegun\r\n0\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = gateway.client().await;
        client.send(ask(&format!("POST {PATH}"), lines, body)).await;
        vendor.hears("begun").await;
        drop(client);
        vendor.closed(n + 1).await;
        let usage = gateway.recorded("usage", n + 1).await.pop().expect("recorded");
        assert_eq!((&usage["end"], &usage["bytes_in"]), (&"client_gone".into(), &5.into()), "{lines}{body}: {usage}");
    }
    assert!(vendor.requests().is_empty(), "{:?}", vendor.requests());
}

/// Where the crate says that what follows the head may be read in two ways.
fn is_ambiguous(vector: &desync::Case) -> bool {
    ["Ambiguous", "Severe"].contains(&vector.tier.as_str())
}

fn head(vector: &desync::Case, target: &[u8]) -> Vec<u8> {
    let mut head = [&vector.method[..], b" ", target, b" ", &vector.version, b"\r\n"].concat();
    if !vector.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"host")) {
        head.extend_from_slice(b"Host: aulos\r\n");
    }
    head.extend_from_slice(format!("Authorization: Bearer {KEY}\r\n").as_bytes());
    head.extend(vector.headers.iter().flat_map(|(name, value)| [&name[..], b": ", value, b"\r\n"].concat()));
    [&head[..], b"\r\n"].concat()
}

/// Here every body is as good as another: what is not refused for its head goes up, and nothing of what follows it.
#[tokio::test]
async fn no_vector_of_the_desync_guardian_hides_a_request() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let mut other = gateway.client().await;
    let vectors = desync::cases();
    let ambiguous: Vec<_> = vectors.iter().filter(|vector| is_ambiguous(vector)).collect();
    assert!(ambiguous.len() > 80, "{}", ambiguous.len());
    for vector in &ambiguous {
        let below = [b"/p/openai", &vector.uri[..]].concat();
        for target in [PATH.as_bytes(), &below] {
            let mut sent = head(vector, target);
            sent.extend_from_slice(b"0\r\n\r\n");
            sent.extend_from_slice(hidden().as_bytes());
            let mut client = gateway.client().await;
            let said = client.send(&sent).await.finish().await.rest().await.to_ascii_lowercase();
            let shown =
                format!("{} ({}): {}\n{}", vector.name, vector.reason, sent.escape_ascii(), said.escape_ascii());
            let answers = |status: &[u8]| memchr::memmem::find_iter(&said, status).count();
            let (served, refused) = (answers(b"http/1.1 200"), answers(b"http/1.1 4") + answers(b"http/1.1 5"));
            assert!(served <= 1 && refused <= 1, "{served} served, {refused} refused: {shown}");
        }
        canary(&mut other, &vector.name).await;
    }
    nothing_hidden(&vendor);
    // A GET with a plain length is no riddle to us: what it declares is its body, and no more.
    let (canaries, passed): (Vec<_>, Vec<_>) =
        vendor.requests().into_iter().partition(|sent| find(&sent.body, b"canary ") == Some(0));
    assert_eq!(canaries.len(), ambiguous.len());
    let is_plain = |sent: &Received| ["GET", "HEAD"].contains(&sent.method.as_str()) && sent.body.len() < 1024;
    assert!(passed.len() < ambiguous.len() / 2 && passed.iter().all(is_plain), "{passed:#?}");
}

//! Headers that some providers obey instead of the request line, and bodies that some do not read.

use super::{PATH, ask, conf, raw};
use crate::support::{Client, Gateway, KEY, Vendor};

/// A vendor that has the same short answer to everything, HEAD too.
async fn short() -> Vendor {
    Vendor::start(|_, mut wire| async move {
        wire.answer("200 OK", "text/plain", "").await;
        Some(wire)
    })
    .await
}

/// Rules are about the path that is asked for, and accounts are the operator's choice.
#[tokio::test]
async fn what_replaces_path_host_or_account_does_not_go_up() {
    let vendor = short().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    let lines = [
        "X-Original-URL: /v1/admin/keys",
        "X-Original-Url: /v1/admin/keys",
        "X-Rewrite-URL: /v1/admin/keys",
        "X-Original-Host: evil.example",
        "X-Host: evil.example",
        "X-Goog-User-Project: their-project",
    ];
    for (count, line) in lines.into_iter().enumerate() {
        let answer = raw(&gateway, ask(&format!("GET {PATH}"), &format!("{line}\r\nX-Stays: 1\r\n"), "")).await;
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        let sent = vendor.received(count + 1).await.pop().expect("sent");
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        assert_eq!((sent.header(&name), sent.header("x-stays")), (None, Some("1")), "{line}: {sent:?}");
    }
}

/// A browser says there which page it comes from, with its query: our client's key may be in it.
#[tokio::test]
async fn the_query_of_the_page_before_does_not_go_up() {
    let vendor = short().await;
    let gateway = Gateway::spawn(conf(&vendor)).await;
    for (count, (referer, passes)) in [
        (format!("https://aulos.example{PATH}?key={KEY}"), false),
        (format!("{PATH}?a=1&token={KEY}"), false),
        ("https://page.example/x?y".to_owned(), false),
        ("https://page.example/?".to_owned(), false),
        ("https://page.example/x".to_owned(), true),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = raw(&gateway, ask(&format!("GET {PATH}"), &format!("Referer: {referer}\r\n"), "")).await;
        assert_eq!(answer.status, 200, "{referer}: {answer:?}");
        let sent = vendor.received(count + 1).await.pop().expect("sent");
        let up = sent.header("referer");
        assert!(up.is_none_or(|up| !up.contains('?')), "{referer}: {up:?}");
        assert!(!passes || up == Some(&referer), "{referer}: {up:?}");
        assert!(!format!("{sent:?}").contains(KEY), "{referer}: {sent:?}");
    }
}

/// A server that does not read the body of a GET takes it for the next request, whose answer would be another client's:
/// its connection is not used again. The client's is.
#[tokio::test]
async fn after_a_body_that_a_provider_may_not_read_its_connection_is_not_used_again() {
    for (method, has_body, closes) in [
        ("GET", true, true),
        ("HEAD", true, true),
        ("DELETE", true, true),
        ("OPTIONS", true, true),
        ("GET", false, false),
        ("DELETE", false, false),
        ("POST", true, false),
        ("PUT", true, false),
        ("PATCH", true, false),
    ] {
        let label = format!("{method}, body: {has_body}");
        let vendor = short().await;
        let gateway = Gateway::spawn(conf(&vendor)).await;
        let mut client = Client::connect(gateway.addr()).await;
        let hidden = "GET /admin/keys HTTP/1.1\r\nHost: x\r\n\r\n";
        let (length, body) =
            if has_body { (format!("Content-Length: {}\r\n", hidden.len()), hidden) } else { (String::new(), "") };
        for _ in 0..2 {
            let head = format!("{method} {PATH} HTTP/1.1\r\nHost: aulos\r\nX-Api-Key: {KEY}\r\n{length}\r\n{body}");
            let answer = client.send(head).await.answer().await;
            assert_eq!((answer.status, answer.complete), (200, true), "{label}: {answer:?}");
            assert!(answer.header("connection").is_none_or(|value| !value.contains("close")), "{label}");
        }
        let sent = vendor.received(2).await;
        for sent in &sent {
            let says = sent.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            assert_eq!((says, sent.text().as_str()), (closes, body), "{label}: {sent:?}");
        }
        assert_eq!(sent[0].connection != sent[1].connection, closes, "{label}");
    }
}

//! No key is seen where it does not belong, wherever it came in and whoever repeats it.

use std::fs;
use std::path::Path;

use super::{AGREED, REALTIME, asking, bare, conf, saying};
use crate::support::{Gateway, KEY, PROVIDER_KEY};

/// Everything the gateway has written below a folder.
fn written(dir: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            text.push_str(&written(&path));
        } else {
            text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
        }
    }
    text
}

#[tokio::test]
async fn no_key_of_a_handshake_is_seen_in_answers_logs_records_or_metrics() {
    let echo = format!("X-Echo: {PROVIDER_KEY}\r\nSec-WebSocket-Protocol: {PROVIDER_KEY}\r\n\r\n");
    let json = format!(r#"{{"error":"{PROVIDER_KEY}"}}"#);
    let declined = |status: &str| {
        format!(
            "HTTP/1.1 {status} {PROVIDER_KEY}\r\nContent-Type: application/json\r\nX-Echo: Bearer {PROVIDER_KEY}\r\n\
                 Content-Length: {}\r\n\r\n{json}",
            json.len()
        )
    };
    let requests = [
        asking(REALTIME, ""),
        bare(&format!("{REALTIME}&key={KEY}"), ""),
        bare(REALTIME, &format!("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{KEY}\r\n")),
        bare(REALTIME, &format!("Sec-WebSocket-Protocol: token, {KEY}\r\n")),
        // Mistakes, which are logged and recorded too.
        bare(&format!("/p/openai/../x?token={KEY}"), ""),
        bare(&format!("/p/{KEY}/x?token={KEY}"), "").replace(&format!("/p/{KEY}"), "/p/nobody"),
        asking(&format!("{REALTIME}&key={KEY}wrong"), ""),
        bare(&format!("{REALTIME}&key={KEY}#x"), ""),
        asking(REALTIME, "Content-Length: 7\r\n"),
    ];
    for said in [
        AGREED.replace("\r\n\r\n", &format!("\r\n{echo}")),
        declined("401"),
        declined("500"),
        format!("HTTP/1.1 101 {PROVIDER_KEY}\r\n\r\n"),
        format!("garbage {PROVIDER_KEY}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{PROVIDER_KEY}\r\n\r\n"),
        String::new(),
    ] {
        let vendor = saying(said).await;
        let mut gateway = Gateway::spawn(conf(vendor.port).env("RUST_LOG", "debug")).await;
        for request in &requests {
            let mut client = gateway.client().await;
            client.send(request).await.sees("\r\n\r\n").await;
            let heard = client.finish().await.rest().await;
            let heard = String::from_utf8_lossy(&heard).into_owned();
            assert!(heard.starts_with("HTTP/1.1 "), "{heard}");
            assert!(!heard.contains(PROVIDER_KEY), "{heard}");
            assert!(!heard.contains(KEY), "{heard}");
        }
        let audits = gateway.recorded("audit", requests.len()).await;
        assert!(audits.iter().any(|record| record["auth"] == "sub_protocol"), "{audits:?}");
        let metrics = gateway.admin("/metrics").await.text();
        assert!(gateway.stop().await.success());
        let seen = [metrics, gateway.log(), written(&gateway.dir.join("state"))].concat();
        for secret in [KEY, PROVIDER_KEY] {
            assert!(
                !seen.contains(secret),
                "{secret} in {}",
                seen.lines().find(|line| line.contains(secret)).unwrap_or("")
            );
        }
    }
}

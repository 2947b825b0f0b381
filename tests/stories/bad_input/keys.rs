//! Keys: their spellings, their mistakes, and what each may use.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::json;

use super::{
    Fate, HIDDEN, JSON, SPEAK, Want, asking, check, check_audit, echo, fate, only_canaries,
    only_the_vendors_credential, request,
};
use crate::support::{Conf, Gateway, KEY, PROVIDER_KEY, sha256, until};

fn keys() -> String {
    [
        ("test", KEY, ""),
        ("other", "other", ""),
        ("off", "off", "disabled = true"),
        ("few", "few", "allow = [\"house\"]"),
    ]
    .into_iter()
    .chain([("old", "old", "expires = \"2020-01-01T00:00:00Z\"")])
    .map(|(name, key, more)| format!("[keys.{name}]\nsha256 = \"{}\"\n{more}\n", sha256(key)))
    .collect()
}

const BAD_KEY: Want<'static> = (401, "invalid_api_key", None);

#[tokio::test]
async fn every_spelling_of_a_key_is_understood_and_none_goes_to_the_vendor() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys(&keys())).await;
    let rows = [
        ("Authorization: Bearer KEY\r\n", "bearer"),
        ("authorization: bearer KEY\r\n", "bearer"),
        ("Authorization: BEARER   KEY \r\n", "bearer"),
        ("Authorization: Token KEY\r\n", "token"),
        ("Authorization: KEY\r\n", "authorization"),
        ("Api-Key: KEY\r\n", "api-key"),
        ("X-Api-Key: KEY\r\n", "x-api-key"),
        ("xi-api-key: KEY\r\n", "xi-api-key"),
        ("x-goog-api-key: KEY\r\n", "x-goog-api-key"),
        ("Authorization: Bearer KEY\r\nX-Api-Key: KEY\r\napi-key: KEY\r\nX-API-Key: KEY\r\n", "bearer"),
    ];
    for (lines, spelling) in rows {
        let body = HIDDEN.replace("hidden", "canary spelling");
        let answer = gateway.client().await.send(&asking(&lines.replace("KEY", KEY), &body)).await.answer().await;
        assert_eq!(answer.status, 200, "{lines}: {answer:?}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["key"], &audit["auth"]), (&"test".into(), &spelling.into()), "{lines}");
    }
    let sent = vendor.requests();
    assert_eq!(sent.len(), rows.len());
    sent.iter().for_each(only_the_vendors_credential);
}

#[tokio::test]
async fn every_mistake_with_a_key_has_one_answer() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys(&keys())).await;
    let rows = [
        ("none", ""),
        ("an empty one", "Authorization: Bearer \r\n"),
        ("an empty header", "Authorization:\r\n"),
        ("a scheme alone", "Authorization: Bearer\r\n"),
        ("other letters", "Authorization: Bearer OMX_live_test_key\r\n"),
        ("one byte off", "Authorization: Bearer omx_live_test_kez\r\n"),
        ("one byte short", "Authorization: Bearer omx_live_test_ke\r\n"),
        ("one byte more", "Authorization: Bearer KEY2\r\n"),
        ("quoted", "Authorization: Bearer \"KEY\"\r\n"),
        ("a list", "Authorization: Bearer KEY, Bearer KEY\r\n"),
        ("another scheme", "Authorization: Basic KEY\r\n"),
        ("a digest of it", "Authorization: Bearer SHA\r\n"),
        ("the vendor's", "Authorization: Bearer PROVIDER\r\n"),
        ("in a cookie", "Cookie: authorization=KEY; api-key=KEY\r\n"),
        ("in a proxy's header", "Proxy-Authorization: Bearer KEY\r\n"),
        ("two that differ", "Authorization: Bearer KEY\r\nX-Api-Key: other\r\n"),
        ("a good one, then a bad one", "Authorization: Bearer KEY\r\nAuthorization: Bearer wrong\r\n"),
        ("a bad one, then a good one", "Authorization: Bearer wrong\r\nAuthorization: Bearer KEY\r\n"),
        ("a good one beside an empty one", "Authorization: Bearer KEY\r\nApi-Key:\r\n"),
        ("other spelling of the user path", "X-GoModel-User-Path: /\r\n"),
    ];
    let query = ["key", "token", "api-key", "api_key", "access_token", "%6bey"];
    let mut refused = 0;
    let provided =
        |lines: &str| lines.replace("KEY", KEY).replace("SHA", &sha256(KEY)).replace("PROVIDER", PROVIDER_KEY);
    let by_header = rows.map(|(label, lines)| (label, asking(&provided(lines), HIDDEN)));
    let by_query = query.map(|name| {
        let first = format!("POST /v1/audio/speech?{name}={KEY} HTTP/1.1");
        (name, String::from_utf8_lossy(&asking("", HIDDEN)).replace(SPEAK, &first).into_bytes())
    });
    let both = query.map(|name| (name, request(&format!("POST /v1/audio/speech?{name}={KEY} HTTP/1.1"), JSON, HIDDEN)));
    for (label, sent) in by_header.into_iter().chain(by_query).chain(both) {
        let mut client = gateway.client().await;
        let answer = client.send(&sent).await.answer().await;
        check(label, &answer, BAD_KEY);
        assert_eq!(fate(&mut client, &answer, label).await, Fate::Closed, "{label}: its body was not read");
        refused += 1;
    }
    only_canaries(&vendor, 0);
    assert_eq!(gateway.metric("aulos_credential_refusals_total").await, refused);
    let unrecorded = gateway.metric("aulos_unrecorded_refusals_total").await;
    let written = usize::try_from(refused - unrecorded).expect("a small number");
    let audits = gateway.recorded("audit", written).await;
    assert_eq!(audits.len(), written, "each is written down or counted");
    assert!(audits.iter().all(|audit| audit["error"] == "invalid_api_key" && audit["status"] == 401));
}

#[tokio::test]
async fn unknown_expired_and_disabled_keys_are_told_the_same() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor).keys(&keys())).await;
    let mut told = BTreeSet::new();
    let mut known = Vec::new();
    for (key, name) in [("unknown", None), ("old", Some("old")), ("off", Some("off"))] {
        let mut client = gateway.client().await;
        let get = format!("GET /v1/models HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer {key}\r\n\r\n");
        let answer = client.send(get.as_bytes()).await.answer().await;
        check(key, &answer, BAD_KEY);
        assert_eq!(fate(&mut client, &answer, key).await, Fate::Usable, "{key}");
        let audit = gateway.record_of("audit", &answer).await;
        assert_eq!((&audit["status"], &audit["end"]), (&401.into(), &"refused".into()), "{key}");
        known.push((name, audit["key"].as_str().map(str::to_owned)));
        let headers: Vec<_> =
            answer.headers.iter().filter(|(name, _)| !name.ends_with("-id") && name != "date").collect();
        told.insert(format!("{headers:?}{}", answer.text()));
    }
    assert_eq!(told.len(), 1, "{told:?}");
    for (want, audited) in known {
        assert_eq!(audited.as_deref(), want, "the operator sees whose key it was");
    }
}

#[tokio::test]
async fn a_key_may_use_what_it_may_use() {
    let vendor = echo().await;
    let house = "[models.house]\nroutes = [\"openai/tts-1\"]\n[paths.\"/closed\"]\nallow = [\"openai/other\"]\n";
    let second = format!("[providers.second]\nkind = \"openai\"\nbase_url = \"{}\"\n", vendor.base_url());
    let conf = Conf::new().upstream(&vendor).keys(&keys()).with(house);
    let gateway = Gateway::spawn(conf.with(&format!("{second}keys = [\"${{PROVIDER_KEY}}\"]\n"))).await;
    let mut served = 0;
    let denied = (403, "model_access_denied", Some("model"));
    for (label, lines, model, want) in [
        ("another model", "Api-Key: few\r\n", "openai/tts-1", Some(denied)),
        ("by header", "Api-Key: few\r\nX-Aulos-Provider: openai\r\n", "tts-1", Some(denied)),
        ("its own, elsewhere", "Api-Key: few\r\nX-Aulos-Provider: second\r\n", "house", Some(denied)),
        ("its own, elsewhere by prefix", "Api-Key: few\r\n", "second/house", Some(denied)),
        ("its path", "Api-Key: other\r\nX-Aulos-User-Path: /closed/a\r\n", "house", Some(denied)),
        ("a model that is not there", "Api-Key: few\r\n", "tts-9", Some((404, "model_not_found", Some("model")))),
        ("no path", "Api-Key: few\r\nX-Aulos-User-Path: /a/../b\r\n", "house", Some((400, "invalid_user_path", None))),
        ("its own", "Api-Key: few\r\n", "house", None),
        ("its own, where it is", "Api-Key: few\r\nX-Aulos-Provider: openai\r\n", "house", None),
        ("another path", "Api-Key: other\r\nX-Aulos-User-Path: /closed-not\r\n", "house", None),
    ] {
        let mut client = gateway.client().await;
        let body = json!({ "model": model, "input": "canary access", "voice": "alloy" }).to_string();
        let answer = client.send(&asking(lines, &body)).await.answer().await;
        let Some(want) = want else {
            assert_eq!(answer.status, 200, "{label}: {answer:?}");
            served += 1;
            continue;
        };
        check(label, &answer, want);
        let key = if lines.contains("other") { "other" } else { "few" };
        check_audit(label, &gateway, &answer, Some(key)).await;
        fate(&mut client, &answer, label).await;
    }
    let forwarded = vendor.requests().iter().filter(|sent| sent.text().contains("canary access")).count();
    assert_eq!(forwarded, served, "what was denied was not forwarded");
}

#[tokio::test]
async fn a_flood_of_strangers_is_counted_and_not_all_written_down() {
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let get = b"GET /v1/models HTTP/1.1\r\nHost: aulos\r\nAuthorization: Bearer wrong\r\n\r\n";
    let (began, mut client) = (Instant::now(), gateway.client().await);
    for _ in 0..200 {
        assert_eq!(client.send(get).await.answer().await.status, 401, "the connection is kept");
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).expect("a short while") + 2;
    let good = gateway.get("/v1/models").await;
    assert_eq!(gateway.record_of("audit", &good).await["status"], 200, "who is known is always written down");
    let unrecorded = gateway.metric("aulos_unrecorded_refusals_total").await;
    let strangers = gateway.records("audit").iter().filter(|audit| audit["status"] == 401).count();
    assert!((10..=10 * seconds).contains(&strangers), "{strangers} in fewer than {seconds} s");
    assert_eq!(gateway.metric("aulos_credential_refusals_total").await, 200);
    assert_eq!(unrecorded, 200 - strangers as u64, "what is not written down is counted");
}

/// That nothing is there is said to everybody; how much a stranger makes us write is bounded all the same.
#[tokio::test]
async fn a_flood_of_wrong_paths_is_written_down_for_those_with_a_key() {
    const FLOOD: usize = 200;
    let vendor = echo().await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let get = |lines: &str| format!("GET /v1/elsewhere HTTP/1.1\r\nHost: aulos\r\n{lines}\r\n");
    let (began, mut client) = (Instant::now(), gateway.client().await);
    for lines in [String::new(), format!("Authorization: Bearer {KEY}\r\n")] {
        for _ in 0..FLOOD {
            let answer = client.send(get(&lines).as_bytes()).await.answer().await;
            assert_eq!(answer.refusal(), (404, "unknown_url".to_owned()), "{lines}");
        }
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).expect("a short while") + 2;
    let of = |key: Option<&str>| gateway.records("audit").iter().filter(|audit| audit["key"].as_str() == key).count();
    until("every record of the known", || (of(Some("test")) == FLOOD).then_some(())).await;
    let strangers = of(None);
    assert!((10..=10 * seconds).contains(&strangers), "{strangers} in fewer than {seconds} s");
    let unrecorded = gateway.metric("aulos_unrecorded_refusals_total").await;
    assert_eq!(unrecorded, (FLOOD - strangers) as u64, "what is not written down is counted");
}

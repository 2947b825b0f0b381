//! A request goes in, speech comes out.

use super::support::client::post;
use super::support::{Conf, Gateway, PROVIDER_KEY, Vendor};

#[tokio::test]
async fn speech_comes_out_and_is_recorded() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let conf = Conf::new().upstream(&vendor).with("[aliases]\n\"tts-1\" = \"openai/gpt-4o-mini-tts\"");
    let mut gateway = Gateway::spawn(conf).await;
    let body = r#"{ "voice":"alloy", "model" : "tts-1", "input":"Hëllo" , "x":[1,{"y":null}]}"#;
    let answer = gateway.post("/v1/audio/speech", body).await;
    assert_eq!((answer.status, answer.body.as_slice(), answer.complete), (200, &b"SOUND"[..], true));
    assert_eq!(answer.header("content-type"), Some("audio/mpeg"));
    assert_eq!(answer.header("content-length"), Some("5"));
    assert_eq!(answer.header("x-aulos-origin"), Some("provider"));
    let sent = &vendor.received(1).await[0];
    assert_eq!((sent.method.as_str(), sent.target.as_str()), ("POST", "/v1/audio/speech"));
    assert_eq!(sent.text(), body.replace("tts-1", "gpt-4o-mini-tts"), "only the model's name is another");
    assert_eq!(sent.header("content-length"), Some(sent.body.len().to_string().as_str()));
    assert_eq!(sent.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
    assert!(gateway.stop().await.success());
    let (usage, audit) = (gateway.records("usage"), gateway.records("audit"));
    assert_eq!((usage.len(), audit.len()), (1, 1));
    assert_eq!(usage[0]["id"].as_str(), answer.header("x-aulos-request-id"));
    assert_eq!((&usage[0]["model_asked"], &usage[0]["bytes_out"]), (&"tts-1".into(), &5.into()));
    assert_eq!((&audit[0]["end"], &audit[0]["status"]), (&"complete".into(), &200.into()));
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let vendor = Vendor::speech("audio/mpeg", b"SOUND").await;
    let gateway = Gateway::spawn(Conf::new().upstream(&vendor)).await;
    let mut client = gateway.client().await;
    for _ in 0..3 {
        let request = post("/v1/audio/speech", &[], super::support::gateway::SPEECH);
        assert_eq!(client.send(request.as_bytes()).await.answer().await.status, 200);
    }
    assert_eq!(vendor.received(3).await[2].connection, 0, "the connection to the vendor is used again");
}

//! What is written down of it: every attempt, and the one that served.

use serde_json::{Value, json};

use super::{Kind, ask, good, is_served, nobody, provider, saying};
use crate::support::{Conf, Gateway};

#[tokio::test]
async fn each_attempt_is_told() {
    let ((_nobody, port), limited, good) = (nobody(), saying("429 Too Many").await, good().await);
    let ports = [("a", port), ("b", limited.port), ("c", good.port)];
    let conf =
        ports.iter().fold(Conf::new(), |conf, (name, port)| conf.with(&provider(name, *port, &["PROVIDER_KEY"])));
    let conf = conf.with("[models.house]\nroutes = [\"a/m1\", \"b/m2\", \"c/m3\"]\n[aliases]\nshort = \"house\"");
    let gateway = Gateway::spawn(conf).await;
    let answer = ask(&gateway, Kind::Speech, "short", "x").await;
    is_served(&answer, Kind::Speech, "third");
    let told = ["provider", "model", "attempts"].map(|name| answer.header(&format!("x-aulos-{name}")));
    assert_eq!(told, ["c", "m3", "3"].map(Some));
    let audit = gateway.record_of("audit", &answer).await;
    let of = |name: &str| -> Vec<Value> { (0..3).map(|n| audit["attempts"][n][name].clone()).collect() };
    assert_eq!(audit["attempts"].as_array().map(Vec::len), Some(3), "{audit}");
    assert_eq!(of("peer"), ports.map(|(_, port)| json!(format!("127.0.0.1:{port}"))), "{audit}");
    assert_eq!(of("error"), [json!("connect_refused"), Value::Null, Value::Null], "{audit}");
    assert_eq!(of("status"), [Value::Null, json!(429), json!(200)], "{audit}");
    for name in ["connect_ms", "ttfb_ms"] {
        let known: Vec<bool> = of(name).iter().map(Value::is_number).collect();
        assert_eq!(known, [false, true, true], "{name}: {audit}");
    }
    let usage = gateway.record_of("usage", &answer).await;
    let of = ["model_asked", "model", "provider", "provider_model", "attempts", "status", "end"];
    let want = [json!("short"), json!("house"), json!("c"), json!("m3"), json!(3), json!(200), json!("complete")];
    assert_eq!(of.map(|name| usage[name].clone()), want, "{usage}");
    gateway.metric_is("aulos_failovers_total{provider=\"b\",reason=\"limited\"}", 1).await;
    gateway.metric_is("aulos_upstream_errors_total{provider=\"a\",reason=\"connect_refused\"}", 1).await;
    let metrics = gateway.admin("/metrics").await.text();
    assert!(metrics.contains("aulos_failovers_total{provider=\"a\","), "whoever fails without an answer counts too");
}

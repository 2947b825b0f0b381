//! A new config in the middle of it: what was learned stays with what stays.

use super::{Kind, ask, attempts, is_served, key_of, limiting, provider};
use crate::support::{Conf, Gateway};

const KEYS: [&str; 3] = ["sk-first-0123456789", "sk-second-0123456789", "sk-third-0123456789"];

#[tokio::test]
async fn a_key_that_stays_goes_on_resting_wherever_it_stands() {
    for status in ["429 Too Many\r\nRetry-After: 100", "401 Unauthorized"] {
        let vendor = limiting(&KEYS[..1], status).await;
        let conf = |keys: &[&str]| {
            let env = KEYS.iter().zip(["FIRST", "SECOND", "THIRD"]);
            let conf = env.fold(Conf::new(), |conf, (key, name)| conf.env(name, key));
            conf.with(&provider("many", vendor.port, keys))
        };
        let gateway = Gateway::spawn(conf(&["FIRST", "SECOND"])).await;
        let answer = ask(&gateway, Kind::Speech, "many/m", "x").await;
        assert_eq!(attempts(&gateway, &answer).await.len(), 2, "{status}");
        let reloads = [&["FIRST", "SECOND"][..], &["THIRD", "FIRST"], &["FIRST", "THIRD", "SECOND"]];
        for (n, keys) in (1..).zip(reloads) {
            gateway.rewrite(&conf(keys));
            gateway.signal("HUP");
            gateway.metric_is("aulos_config_reloads_total{result=\"ok\"}", n).await;
            for _ in 0..keys.len() {
                let answer = ask(&gateway, Kind::Speech, "many/m", "x").await;
                is_served(&answer, Kind::Speech, status);
                assert_eq!(attempts(&gateway, &answer).await.len(), 1, "{status}, {keys:?}");
            }
        }
        let asked = vendor.requests().iter().filter(|request| key_of(request) == KEYS[0]).count();
        assert_eq!(asked, 1, "{status}");
    }
}

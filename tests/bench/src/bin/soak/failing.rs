//! Providers that fail, and clients that do not hear of it. The first of two providers fails every fifth request: that
//! costs the slowest requests little, and none is lost. One of two replicas is killed under load: none is lost either,
//! and when it is back it is asked again.

use crate::finding::Finding;
use aulos_bench::contender::Contender;
use aulos_bench::load::{Load, Run, Shot};
use aulos_bench::rig::{Provider, Rig};
use aulos_bench::speech::Speech;
use aulos_bench::stats::Spread;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const FIGURE: &str = "failing";
const CLIENTS: usize = 16;
/// Of the two models in turn, so that a machine with a bad minute is hard on both.
const ROUNDS: usize = 3;
const WARM: Duration = Duration::from_millis(300);
const ROUND: Duration = Duration::from_secs(2);
const FAILS_EVERY: u64 = 5;
/// With fewer the 99th percentile may have missed them.
const FAULTS_MIN: f64 = 100.0;
const P99_RATIO_MAX: f64 = 2.0;
const P99_MORE_MS_MAX: f64 = 20.0;

/// Not where the clients' and the gateway's own ports are: none of them can be in the way of a replica that comes back.
const REPLICA_ADDRESS: &str = "127.0.0.2:0";
const REPLICA_LOAD: Duration = Duration::from_secs(18);
const BOTH_UP: Duration = Duration::from_secs(2);
/// Time enough for the breaker, and for one probe that fails.
const ONE_DOWN: Duration = Duration::from_secs(5);
/// Time enough for the breaker's next pause and the next probe; the load outlasts it.
const BACK_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) async fn run(rig: &Rig) -> io::Result<Vec<Finding>> {
    let mut findings = failing_first(rig).await?;
    findings.extend(killed_replica(rig).await?);
    Ok(findings)
}

/// The same load on two models, whose first providers differ in nothing but that one fails.
async fn failing_first(rig: &Rig) -> io::Result<Vec<Finding>> {
    let any = || "127.0.0.1:0".to_owned();
    let failing = rig.start_provider("failing", &[any(), FAILS_EVERY.to_string()])?;
    let second = rig.start_provider("second", &[any()])?;
    let conf = [
        provider("failing", failing.address, ""),
        provider("second", second.address, ""),
        model("steady", &["openai", "second"]),
        model("shaky", &["failing", "second"]),
    ];
    let gateway = Contender::aulos_with(&conf.concat(), rig).await?;
    let (mut steady, mut shaky) = (Series::default(), Series::default());
    for _ in 0..ROUNDS {
        steady.add(&load(&gateway, "steady", WARM, ROUND).run(None).await?);
        shaky.add(&load(&gateway, "shaky", WARM, ROUND).run(None).await?);
    }
    let faults = failing.asked().await? / FAILS_EVERY;
    let (healthy_ms, p99_ms) = (steady.p99_ms()?, shaky.p99_ms()?);
    let what = format!("first provider fails 1 in {FAILS_EVERY}");
    let p99 = format!("{what}: p99, {healthy_ms:.2} ms with a healthy one");
    // As precise as it is printed.
    let p99_max_ms = ((healthy_ms * P99_RATIO_MAX + P99_MORE_MS_MAX) * 100.0).round() / 100.0;
    Ok(vec![
        Finding::at_most(FIGURE, p99, p99_ms, p99_max_ms, "ms"),
        Finding::none(FIGURE, format!("{what}: failed requests, of about {:.0}", shaky.served), shaky.errors),
        Finding::none(
            FIGURE,
            format!("healthy providers: failed requests, of about {:.0}", steady.served),
            steady.errors,
        ),
        Finding::at_least(FIGURE, format!("{what}: how often it did"), faults as f64, FAULTS_MIN, "×"),
    ])
}

async fn killed_replica(rig: &Rig) -> io::Result<Vec<Finding>> {
    let any = || [REPLICA_ADDRESS.to_owned()];
    let (first, second) = (rig.start_provider("replica-1", &any())?, rig.start_provider("replica-2", &any())?);
    let peers = format!("peers = [\"{}\", \"{}\"]\n", first.address, second.address);
    let conf = provider("replicas", first.address, &peers) + &model("replicated", &["replicas"]);
    let gateway = Contender::aulos_with(&conf, rig).await?;
    let load = load(&gateway, "replicated", Duration::ZERO, REPLICA_LOAD);
    // It is kept for as long as the load lasts.
    let (run, (_replica, back)) = tokio::try_join!(load.run(None), kill_and_return(rig, first))?;
    let what = "1 of 2 replicas killed and back";
    let asked = format!("{what}: until it is asked again");
    Ok(vec![
        Finding::none(FIGURE, format!("{what}: failed requests, of about {:.0}", run.served), run.errors),
        Finding::at_most(FIGURE, asked, back, BACK_MAX.as_secs_f64(), "s"),
    ])
}

/// Ends a replica under load and starts it again where it was. The seconds are those until it was asked, without end if
/// it was not.
async fn kill_and_return(rig: &Rig, replica: Provider) -> io::Result<(Provider, f64)> {
    sleep(BOTH_UP).await;
    if replica.asked().await? == 0 {
        return Err(io::Error::other("the replica to be killed was never asked"));
    }
    let address = replica.address;
    // Sends SIGKILL.
    drop(replica);
    sleep(ONE_DOWN).await;
    let replica = rig.start_provider("replica-1", &[address.to_string()])?;
    let began = Instant::now();
    while began.elapsed() < BACK_MAX {
        if replica.asked().await? > 0 {
            let seconds = began.elapsed().as_secs_f64();
            return Ok((replica, seconds));
        }
        sleep(LOOK_EVERY).await;
    }
    Ok((replica, f64::INFINITY))
}

fn load(gateway: &Contender, model: &str, warm: Duration, length: Duration) -> Load {
    let shot = Shot::of_model(Speech::Small, model);
    Load { target: gateway.address, shot, connections: CLIENTS, warm, length }
}

fn provider(name: &str, address: SocketAddr, more: &str) -> String {
    format!(
        "\n[providers.{name}]\nkind = \"openai\"\nbase_url = \"http://{address}/v1\"\n\
         keys = [\"${{BENCH_PROVIDER_KEY}}\"]\n{more}"
    )
}

fn model(name: &str, providers: &[&str]) -> String {
    let routes: Vec<_> = providers.iter().map(|provider| format!("\"{provider}/tts-1\"")).collect();
    format!("\n[models.{name}]\nroutes = [{}]\n", routes.join(", "))
}

/// What the rounds of one model have shown.
#[derive(Default)]
struct Series {
    p99s_ms: Vec<f64>,
    served: f64,
    errors: u64,
}

impl Series {
    fn add(&mut self, run: &Run) {
        self.p99s_ms.push(run.latency(0.99) / 1e3);
        self.served += run.served;
        self.errors += run.errors;
    }

    /// The median of the rounds.
    fn p99_ms(&self) -> io::Result<f64> {
        Spread::of(&self.p99s_ms).map(|spread| spread.median).ok_or_else(|| io::Error::other("there was no round"))
    }
}

//! A vendor that agrees and speaks in one breath, a thousand times: nothing is lost, and nothing is cut.

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{AGREED, BINARY, CLOSE, Line, MASK, NORMAL, asking, conf, frame, noise, same};
use crate::support::{Gateway, soon};

const UPGRADES: usize = 1000;
const AT_ONCE: usize = 8;

/// What each side says in the `n`th tunnel: frames of several sizes, up to more than a buffer on the way holds.
fn said(n: usize, down: bool) -> Vec<u8> {
    let mask = if down { None } else { MASK };
    let sizes = [n % 126, 1 + n * 7 % 3000, [0, 70_000, 20_000, 17][(n + usize::from(down)) % 4], n % 2];
    let frames = sizes.iter().enumerate().map(|(at, &size)| {
        let payload = noise(n * 16 + at * 2 + usize::from(down), size);
        frame(BINARY, &payload, mask)
    });
    frames.flatten().collect()
}

fn goodbye(down: bool) -> Vec<u8> {
    frame(CLOSE, &NORMAL, if down { None } else { MASK })
}

/// A vendor that sends its first frames with its 101, and tells what it heard in which tunnel.
async fn eager(heard: mpsc::UnboundedSender<(usize, Vec<u8>)>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).ok();
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut line = Line::over(stream);
                let request = line.asked().await.expect("a request");
                let number = request.target.rsplit('=').next().and_then(|n| n.parse().ok());
                let n: usize = number.expect("a number in the target");
                let (up, down) = (said(n, false).len() + goodbye(false).len(), said(n, true));
                let (first, rest) = down.split_at(down.len() / 2);
                line.send([AGREED.as_bytes(), first].concat()).await;
                let mut all = line.exchange(rest, up).await;
                line.send(goodbye(true)).await;
                line.finish().await;
                all.extend(line.rest().await);
                heard.send((n, all)).ok();
            });
        }
    });
    port
}

/// The client of the `n`th tunnel.
async fn visit(mut line: Line, n: usize) {
    let (up, down) = ([said(n, false), goodbye(false)].concat(), [said(n, true), goodbye(true)].concat());
    // All of it with the head, a few bytes, or nothing.
    let (at_once, later) = up.split_at([up.len(), 7, 0, 0][n % 4]);
    let head = asking(&format!("/p/openai/v1/realtime?n={n}"), "");
    line.send([head.as_bytes(), at_once].concat()).await;
    let answer = line.answer().await;
    assert_eq!(answer.status, 101, "{n}: {answer:?}");
    let heard = line.exchange(later, down.len()).await;
    same(&heard, &down, &format!("down {n}"));
    assert!(line.rest().await.is_empty(), "{n}: nothing behind the Close");
}

#[tokio::test]
async fn a_thousand_upgrades_that_are_answered_at_once_lose_nothing() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let port = eager(heard).await;
    let mut gateway = Gateway::spawn(conf(port)).await;
    let mut visits = JoinSet::new();
    for n in 0..UPGRADES {
        if visits.len() == AT_ONCE {
            visits.join_next().await.expect("one runs").expect("a tunnel in order");
        }
        visits.spawn(visit(Line::connect(&gateway).await, n));
    }
    while let Some(visit) = visits.join_next().await {
        visit.expect("a tunnel in order");
    }
    for _ in 0..UPGRADES {
        let (n, all) = soon("what the vendor heard", hears.recv()).await.expect("it listens");
        same(&all, &[said(n, false), goodbye(false)].concat(), &format!("up {n}"));
    }
    assert!(gateway.stop().await.success());
    let usage = gateway.records("usage");
    assert_eq!(usage.len(), UPGRADES);
    let total = |down| (0..UPGRADES).map(|n| said(n, down).len() + goodbye(down).len()).sum::<usize>() as u64;
    let recorded = |name: &str| usage.iter().filter_map(|record| record[name].as_u64()).sum::<u64>();
    assert_eq!((recorded("bytes_in"), recorded("bytes_out")), (total(false), total(true)));
    assert!(usage.iter().all(|record| record["end"] == "complete" && record["status"] == 101), "none was cut");
}

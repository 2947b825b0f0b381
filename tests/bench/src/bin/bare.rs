//! What Pingora costs by itself: a proxy that picks its one upstream and reads `model` out of the JSON body, as
//! any gateway of this kind must, and does nothing else. A form it passes on as it comes, without a look into it, and
//! so what is meant for the provider's own API, an upgrade to WebSocket with it.
//! The base that our own code is measured against.
//!
//! ```text
//! bare UPSTREAM [THREADS]
//! ```

use async_trait::async_trait;
use aulos_bench::rig::free_address;
use aulos_bench::speech::PASSED;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use serde::Deserialize;
use std::io;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Bare {
    peer: HttpPeer,
}

#[derive(Deserialize)]
struct Asked {
    model: String,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = Option<Asked>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    async fn request_filter(&self, session: &mut Session, asked: &mut Self::CTX) -> Result<bool> {
        let downstream = session.as_mut();
        let head = downstream.req_header();
        let kind = head.headers.get("content-type");
        let is_form = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"multipart/"));
        if is_form || head.uri.path().starts_with(PASSED) {
            return Ok(false);
        }
        // Pingora replays what was read early, up to 64 KiB, if it was told to keep it.
        downstream.enable_retry_buffering();
        let mut body = Vec::new();
        while let Some(bytes) = downstream.read_request_body().await? {
            body.extend_from_slice(&bytes);
        }
        *asked = Some(serde_json::from_slice(&body).or_err(ErrorType::HTTPStatus(400), "not a request for speech")?);
        Ok(false)
    }

    async fn upstream_peer(&self, _session: &mut Session, asked: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        match asked {
            Some(Asked { model }) if model.is_empty() => Err(Error::explain(ErrorType::HTTPStatus(400), "no model")),
            _ => Ok(Box::new(self.peer.clone())),
        }
    }
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let upstream = args.next().ok_or_else(|| io::Error::other("usage: bare UPSTREAM [THREADS]"))?;
    let threads = args.next().map_or(Ok(1), |threads| threads.parse()).map_err(io::Error::other)?;
    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads, ..ServerConf::default() });
    server.bootstrap();
    let bare = Bare { peer: HttpPeer::new(upstream.as_str(), false, String::new()) };
    let mut service = http_proxy_service(&server.configuration, bare);
    let address = free_address()?.to_string();
    service.add_tcp(&address);
    server.add_service(service);
    println!("listening on http://{address}");
    server.run_forever()
}

//! Certificates that can be changed while they are in use.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora_core::listeners::tls::TlsSettings;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::settings::{Listener, Tls};

/// The certificate of one listener.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// The certificates of all listeners, in their order; `None` for one in clear text.
#[derive(Debug, Default)]
pub struct Certificates(Vec<(SocketAddr, Option<Arc<Current>>)>);

impl Certificates {
    /// Reads every certificate. An error names the file.
    pub fn load(listeners: &[Listener]) -> Result<Self, String> {
        let current = |tls: &Tls| Ok::<_, String>(Arc::new(Current(ArcSwap::from_pointee(read(tls)?))));
        let all = listeners.iter().map(|listener| Ok((listener.addr, listener.tls.as_ref().map(current).transpose()?)));
        Ok(Self(all.collect::<Result<_, String>>()?))
    }

    /// Reads them again, all before any is changed.
    pub fn reload(&self, listeners: &[Listener]) -> Result<(), String> {
        let mut fresh = Vec::new();
        for ((addr, current), listener) in self.0.iter().zip(listeners) {
            // The sockets stay as they are: a certificate is read again where its listener still stands in its place.
            if let (Some(current), Some(tls), true) = (current, &listener.tls, listener.addr == *addr) {
                fresh.push((current, read(tls)?));
            }
        }
        for (current, key) in fresh {
            current.0.store(Arc::new(key));
        }
        Ok(())
    }

    /// What Pingora needs to listen at the listener in this place, if it is encrypted.
    pub fn settings(&self, place: usize, listener: &Listener) -> Result<Option<TlsSettings>, String> {
        let (Some(tls), Some((_, Some(current)))) = (&listener.tls, self.0.get(place)) else { return Ok(None) };
        let text = |path: &Path| path.display().to_string();
        let mut settings =
            TlsSettings::intermediate(&text(&tls.cert), &text(&tls.key)).map_err(|error| error.to_string())?;
        settings.set_cert_resolver(Arc::clone(current) as Arc<dyn ResolvesServerCert>);
        if tls.h2 {
            settings.enable_h2();
        }
        Ok(Some(settings))
    }
}

fn read(tls: &Tls) -> Result<CertifiedKey, String> {
    let of = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&tls.cert).and_then(Iterator::collect).map_err(|error| of(&tls.cert, &error))?;
    if chain.is_empty() {
        return Err(of(&tls.cert, &"there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| of(&tls.key, &error))?;
    let key = any_supported_type(&key).map_err(|error| of(&tls.key, &error))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| of(&tls.key, &format!("it does not fit the certificate: {error}")))?;
    Ok(certified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn listener(dir: &Path) -> Listener {
        let tls = Tls { cert: dir.join("cert.pem"), key: dir.join("key.pem"), h2: true };
        Listener { addr: SocketAddr::from(([127, 0, 0, 1], 443)), tls: Some(tls) }
    }

    fn issue(dir: &Path) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        std::fs::write(dir.join("cert.pem"), made.cert.pem()).expect("written");
        std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("aulos-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("made");
        dir
    }

    #[test]
    fn a_certificate_changes_whole_or_not_at_all() {
        let dir = scratch("reload");
        issue(&dir);
        let listeners = [listener(&dir)];
        let certificates = Certificates::load(&listeners).expect("loads");
        let current = || certificates.0[0].1.as_ref().expect("encrypted").0.load_full();
        let first = current();
        issue(&dir);
        certificates.reload(&listeners).expect("reloads");
        let second = current();
        assert_ne!(first.cert, second.cert);
        std::fs::write(dir.join("key.pem"), "no key").expect("written");
        let error = certificates.reload(&listeners).expect_err("refused");
        assert!(error.contains("key.pem"), "{error}");
        assert_eq!(current().cert, second.cert);
        std::fs::remove_dir_all(dir).ok();
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = scratch("mismatch");
        issue(&dir);
        let old = std::fs::read(dir.join("key.pem")).expect("readable");
        issue(&dir);
        std::fs::write(dir.join("key.pem"), old).expect("written");
        assert!(Certificates::load(&[listener(&dir)]).expect_err("refused").contains("does not fit"));
        std::fs::remove_dir_all(dir).ok();
    }
}

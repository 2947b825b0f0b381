//! Sockets are bound by us, before anything else starts: an address that cannot be had is an error at once, and
//! port 0 says which port it became.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;

use pingora_core::server::{Fds, ListenFds};

/// Bound sockets, and the addresses they have.
#[derive(Default)]
pub struct Sockets {
    bound: HashMap<String, TcpListener>,
}

impl Sockets {
    /// Binds `addr` and gives the address it became.
    pub fn bind(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(addr).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => ": something listens there already",
                io::ErrorKind::PermissionDenied => ": ports below 1024 need CAP_NET_BIND_SERVICE",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}{hint}"))
        })?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        self.bound.insert(addr.to_string(), listener);
        Ok(addr)
    }

    /// Hands the sockets over, in the form Pingora takes them in.
    pub fn into_fds(self) -> ListenFds {
        let fds = Fds::new();
        let table: ListenFds = Arc::new(fds.into());
        for (addr, listener) in self.bound {
            table.lock().add(addr, listener.into_raw_fd());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_taken_is_an_error_that_names_it() {
        let mut sockets = Sockets::default();
        let addr = sockets.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        assert_ne!(addr.port(), 0);
        let error = sockets.bind(addr).expect_err("taken").to_string();
        assert!(error.contains(&addr.to_string()) && error.contains("listens there already"), "{error}");
    }
}

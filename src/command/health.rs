//! `countersign health`: whether the gateway that runs with a configuration is ready, for those that watch containers.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use super::{CONFIGURATION, FINE, NEGATIVE, UNAVAILABLE, loaded, say, say_error};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most of an answer that is read.
const LIMIT_BYTES: u64 = 64 * 1024;

pub(super) fn run(config: Option<PathBuf>) -> u8 {
    let config = match loaded(config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let Some(address) = config.operations else {
        say_error("error: there is no [operations] in the configuration, and so nobody to ask; write its `address`\n");
        return CONFIGURATION;
    };
    match asked(reachable(address)) {
        Ok(answer) => {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            say(body);
            if head.split(' ').nth(1) == Some("200") { FINE } else { NEGATIVE }
        }
        Err(error) => {
            say_error(&format!("error: nobody answers on {address}: {error}; does the gateway run?\n"));
            UNAVAILABLE
        }
    }
}

fn asked(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(LIMIT_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Where one reaches who listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    SocketAddr::new(ip, address.port())
}

//! The addresses of a server: looked up by its name, kept for a while, and never those that no route should lead to.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// How long a look-up that failed is not repeated.
const FAILURE_LASTS: Duration = Duration::from_secs(1);

const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
/// Of Amazon, twice, Google, Oracle and Scaleway.
const METADATA_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// Whether an address is one where machines get their credentials, so that no route should lead there.
pub fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || METADATA_V6.contains(&v6)
                || embedded(v6).is_some_and(|v4| is_link_local(v4.into()))
        }
    }
}

/// The IPv4 address in one of NAT64's (RFC 6052, RFC 8215), of 6to4 (RFC 3056), or one that is translated (RFC 2765) or
/// IPv4-compatible.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = Ipv4Addr::from_bits(u32::try_from(address.to_bits() & u128::from(u32::MAX)).ok()?);
    let segments = address.segments();
    let [.., high, _] = segments;
    if let [0x2002, first, second, ..] = segments {
        return Some(Ipv4Addr::from_bits(u32::from(first) << 16 | u32::from(second)));
    }
    let nat64 = segments.starts_with(&[0x64, 0xff9b, 0, 0, 0, 0]) || segments.starts_with(&[0x64, 0xff9b, 1]);
    let translated = segments.starts_with(&[0, 0, 0, 0, 0xffff, 0]);
    let compatible = segments.starts_with(&[0; 6]) && high != 0;
    (nat64 || translated || compatible).then_some(last)
}

/// The addresses of one server, shared by all who dial it.
///
/// They are good for `lasts`, and looked up anew in the background from half of it on while they are asked for, so that
/// a change is followed without anyone waiting. A name that can no longer be looked up is dialled where it was last
/// until then.
#[derive(Debug)]
pub(super) struct Addresses {
    host: Box<str>,
    port: u16,
    lasts: Duration,
    allows_link_local: bool,
    looking: AtomicBool,
    known: watch::Sender<Known>,
}

#[derive(Debug, Default)]
struct Known {
    found: Option<(Instant, Arc<[SocketAddr]>)>,
    failed: Option<(Instant, Failure)>,
}

/// Why a name has no address that may be dialled.
#[derive(Clone, Debug)]
struct Failure(Arc<str>);

impl Addresses {
    /// Of `host`, a name or an address without brackets, at `port`.
    pub(super) fn new(host: &str, port: u16, lasts: Duration, allows_link_local: bool) -> Arc<Self> {
        let known = watch::Sender::new(Known::default());
        Arc::new(Self { host: host.into(), port, lasts, allows_link_local, looking: AtomicBool::new(false), known })
    }

    /// The addresses to dial, at least one, in the order of the resolver.
    ///
    /// # Errors
    /// That the name is unknown or its addresses are forbidden. It waits for as long as the resolver does: the caller
    /// has a deadline.
    pub(super) async fn find(self: &Arc<Self>) -> io::Result<Arc<[SocketAddr]>> {
        let mut changes = self.known.subscribe();
        loop {
            {
                let known = changes.borrow_and_update();
                let now = Instant::now();
                let found = known.found.as_ref().filter(|(at, _)| now - *at < self.lasts);
                let failed = known.failed.as_ref().filter(|(at, _)| now - *at < FAILURE_LASTS);
                match (found, failed) {
                    (Some((at, addresses)), failed) => {
                        if now - *at >= self.lasts / 2 && failed.is_none() {
                            self.look_up();
                        }
                        return Ok(Arc::clone(addresses));
                    }
                    (None, Some((_, failure))) => return Err(io::Error::other(failure.clone())),
                    (None, None) => self.look_up(),
                }
            }
            changes.changed().await.map_err(io::Error::other)?;
        }
    }

    /// Whether a kept connection to `address` still leads to the server, as far as is known. It counts as asking for the
    /// addresses, so that a change is followed although nothing is dialled.
    pub(super) fn holds(self: &Arc<Self>, address: SocketAddr) -> bool {
        let known = self.known.borrow();
        let Some((at, addresses)) = &known.found else { return false };
        let age = at.elapsed();
        if age >= self.lasts / 2 && known.failed.as_ref().is_none_or(|(at, _)| at.elapsed() >= FAILURE_LASTS) {
            self.look_up();
        }
        age < self.lasts && addresses.contains(&address)
    }

    /// Begins a look-up, if none is under way. It goes on when those who wait for it give up.
    fn look_up(self: &Arc<Self>) {
        if self.looking.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let looked_up = this.asked().await;
            this.looking.store(false, Ordering::Relaxed);
            let now = Instant::now();
            this.known.send_modify(|known| match looked_up {
                Ok(addresses) => *known = Known { found: Some((now, addresses)), failed: None },
                Err(failure) => known.failed = Some((now, failure)),
            });
        });
    }

    async fn asked(&self) -> Result<Arc<[SocketAddr]>, Failure> {
        let looked_up = tokio::net::lookup_host((&*self.host, self.port)).await;
        let addresses: Vec<_> = looked_up.map_err(|error| Failure(error.to_string().into()))?.collect();
        if addresses.is_empty() {
            return Err(Failure("the name has no address".into()));
        }
        if !self.allows_link_local && addresses.iter().any(|address| is_link_local(address.ip())) {
            return Err(Failure("the name leads to a link-local or metadata address".into()));
        }
        Ok(addresses.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_are_known_in_every_spelling() {
        for bad in [
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.1.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::ffff:0:169.254.169.254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "::a9fe:a9fe",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
        ] {
            assert!(is_link_local(bad.parse().unwrap()), "{bad}");
        }
        for good in
            ["127.0.0.1", "10.0.0.1", "fd00::1", "::1", "2002:a00:1::1", "64:ff9b:1::a00:1", "169.253.0.1", "192.0.0.1"]
        {
            assert!(!is_link_local(good.parse().unwrap()), "{good}");
        }
    }

    #[tokio::test]
    async fn a_forbidden_address_is_not_dialled_unless_allowed() {
        let lasts = Duration::from_secs(30);
        assert!(Addresses::new("169.254.169.254", 80, lasts, false).find().await.is_err());
        assert_eq!(Addresses::new("169.254.169.254", 80, lasts, true).find().await.unwrap().len(), 1);
        assert_eq!(Addresses::new("127.0.0.1", 80, lasts, false).find().await.unwrap().len(), 1);
    }
}

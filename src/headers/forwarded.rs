//! Whom a request is from, where proxies of ours stand between.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

use super::FORWARDED_FOR;

/// Elements of a list of addresses that are looked at.
const MOST_ELEMENTS: usize = 32;

/// Ranges of addresses whose word on others' addresses is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

/// Whom a request is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// IPv4 is written as IPv4.
    pub address: IpAddr,
    /// `None` where a proxy does not tell it.
    pub port: Option<u16>,
    /// The address as it is told to upstreams and in the log. Printing it costs a hundredth of a request, so that it is
    /// done once for a connection.
    text: HeaderValue,
}

impl Client {
    /// At `address`.
    pub fn new(address: IpAddr, port: Option<u16>) -> Self {
        let address = address.to_canonical();
        let text = HeaderValue::try_from(address.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self { address, port, text }
    }

    /// The address as text, without a port.
    pub fn text(&self) -> &HeaderValue {
        &self.text
    }
}

impl From<SocketAddr> for Client {
    fn from(peer: SocketAddr) -> Self {
        Self::new(peer.ip(), Some(peer.port()))
    }
}

impl Proxies {
    /// Those in any of `ranges`, of which none is of IPv4 addresses written as IPv6.
    pub fn new(ranges: Vec<IpNet>) -> Self {
        Self(ranges)
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|range| range.contains(&address))
    }

    /// The client of a request that came from `peer` with `headers`: the peer, unless it is one of these. Then it is
    /// the last address of all `X-Forwarded-For` fields together that is none of these, for each of them appended whom
    /// it was asked by; the first, if all are. What is no address ends the search, and so do too many.
    pub fn client(&self, peer: &Client, headers: &HeaderMap) -> Client {
        if self.0.is_empty() || !self.contains(peer.address) {
            return peer.clone();
        }
        let mut last = None;
        let fields = headers.get_all(FORWARDED_FOR).iter().rev();
        let elements = fields.flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
        for address in elements.take(MOST_ELEMENTS).map_while(element) {
            last = Some(address);
            if !self.contains(address) {
                break;
            }
        }
        last.map_or_else(|| peer.clone(), |address| Client::new(address, None))
    }
}

/// An address, which some proxies write with a port.
fn element(bytes: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(bytes).ok()?.trim_matches([' ', '\t']);
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    let address = text.parse().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, fields: &[&str]) -> (String, Option<u16>) {
        let ranges = ["10.0.0.0/8", "192.0.2.7/32", "2001:db8:1::/48", "::1/128"];
        let proxies = Proxies::new(ranges.map(|range| range.parse().unwrap()).to_vec());
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(FORWARDED_FOR, http::HeaderValue::from_bytes(field.as_bytes()).unwrap());
        }
        let client = proxies.client(&Client::from(peer.parse::<SocketAddr>().unwrap()), &headers);
        assert_eq!(client.text().to_str().unwrap(), client.address.to_string());
        (client.address.to_string(), client.port)
    }

    #[test]
    fn a_peer_that_is_no_proxy_is_the_client_whatever_it_says() {
        for fields in [&[][..], &["198.51.100.1"], &["198.51.100.1, 10.0.0.1"]] {
            assert_eq!(client("203.0.113.9:5", fields), ("203.0.113.9".into(), Some(5)));
            assert_eq!(client("[::ffff:203.0.113.9]:5", fields), ("203.0.113.9".into(), Some(5)));
        }
    }

    #[test]
    fn behind_proxies_the_last_address_that_is_none_of_theirs_counts() {
        let long = format!("198.51.100.1{}", ", 10.0.0.3".repeat(40));
        for (fields, expected) in [
            (&["198.51.100.1"][..], "198.51.100.1"),
            (&["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
            (&["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
            (&["6.6.6.6, 198.51.100.1 ,\t10.1.2.3"], "198.51.100.1"),
            (&["6.6.6.6, 198.51.100.1", "192.0.2.7", "10.1.2.3"], "198.51.100.1"),
            (&["6.6.6.6, 192.0.2.8"], "192.0.2.8"),
            // All are proxies.
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // IPv6, IPv4 written so, and ports.
            (&["2001:db8::9"], "2001:db8::9"),
            (&["2001:db8::9, 2001:db8:1::5, ::1"], "2001:db8::9"),
            (&["6.6.6.6, ::ffff:198.51.100.1, ::ffff:10.0.0.1"], "198.51.100.1"),
            (&["198.51.100.1:4711"], "198.51.100.1"),
            (&["[2001:db8::9]:4711"], "2001:db8::9"),
            (&["[2001:db8::9]"], "2001:db8::9"),
            // What is no address ends the search at the last good one.
            (&["198.51.100.1, unknown"], "10.0.0.1"),
            (&["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["198.51.100.1,, 10.0.0.2"], "10.0.0.2"),
            (&["198.51.100.1, 010.0.0.2"], "10.0.0.1"),
            (&["198.51.100.1, fe80::1%eth0"], "10.0.0.1"),
            (&["198.51.100.1, \u{661}0.0.0.1"], "10.0.0.1"),
            (&["198.51.100.1, 10.0.0.2 10.0.0.3"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&[" , "], "10.0.0.1"),
            (&[&long], "10.0.0.3"),
        ] {
            let port = (expected == "10.0.0.1").then_some(5);
            assert_eq!(client("10.0.0.1:5", fields), (expected.into(), port), "{fields:?}");
        }
        assert_eq!(client("[::ffff:10.0.0.1]:5", &["198.51.100.1"]).0, "198.51.100.1");
        assert_eq!(client("[2001:db8:1::1]:5", &["198.51.100.1"]).0, "198.51.100.1");
    }
}

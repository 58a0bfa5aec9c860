//! Ranges of addresses that are believed.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::section::Item;
use crate::headers::Proxies;

const EXAMPLE: &str = "[\"10.0.0.5\", \"10.1.0.0/16\", \"::1\"]";
/// The shortest prefixes that no warning is given of: those of the largest private ranges.
const WIDE_V4: u8 = 8;
const WIDE_V6: u8 = 7;
/// The bits of IPv6 behind which IPv4 is written.
const MAPPED: u8 = 96;

/// The proxies that `item` lists, as addresses and ranges of them.
pub(super) fn proxies(item: &Item<'_>) -> Option<Proxies> {
    let mut ranges = Vec::new();
    let mut complete = true;
    for item in &item.list_or_empty(EXAMPLE)? {
        let range = item.text().and_then(|text| range(item, text));
        complete &= range.is_some();
        ranges.extend(range);
    }
    complete.then(|| Proxies::new(ranges))
}

fn range(item: &Item<'_>, text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let Some(range) = text.parse::<IpNet>().ok().or_else(address) else {
        let suggestion = format!("write addresses and ranges of them: {EXAMPLE}");
        item.error(&format!("{} is no address and no range of them", item.shown(text)), Some(&suggestion));
        return None;
    };
    if range != range.trunc() {
        let suggestion = format!("write {} for the range, or {} for the address alone", range.trunc(), range.addr());
        item.error("the address has bits behind the range's prefix", item_suggestion(item, &suggestion));
        return None;
    }
    let range = canonical(range);
    let (bits, wide) = match range {
        IpNet::V4(_) => (range.prefix_len(), WIDE_V4),
        IpNet::V6(_) => (range.prefix_len(), WIDE_V6),
    };
    if bits == 0 {
        let suggestion =
            "list the proxies that the gateway is reached through; a client whom nobody vouches for must not be one";
        item.error("everybody is in this range, and everybody could then choose an address", Some(suggestion));
        return None;
    }
    if bits < wide {
        item.warn("this range is wider than any private one: whoever has an address in it can write any other into the log, and take others' share of limits");
    }
    Some(range)
}

/// A suggestion that repeats the value, unless that came from the environment, of which nothing is shown.
fn item_suggestion<'s>(item: &Item<'_>, suggestion: &'s str) -> Option<&'s str> {
    (!item.is_from_environment()).then_some(suggestion)
}

/// A range of IPv4 addresses written as IPv6 as one of IPv4 addresses.
fn canonical(range: IpNet) -> IpNet {
    let IpNet::V6(v6) = range else { return range };
    let Some(v4) = v6.addr().to_ipv4_mapped() else { return range };
    let bits = v6.prefix_len().checked_sub(MAPPED);
    bits.and_then(|bits| Ipv4Net::new(v4, bits).ok()).map_or(range, IpNet::from)
}

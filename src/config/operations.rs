//! Where health and metrics are told.

use std::net::{IpAddr, SocketAddr};

use super::section::Section;

/// The address, if there is to be such a listener; `Some(None)`: none.
#[expect(clippy::option_option, reason = "left out, wrong and right are three things")]
pub(super) fn operations(root: &Section<'_>, listener: Option<SocketAddr>) -> Option<Option<SocketAddr>> {
    const EXAMPLE: &str = "address = \"127.0.0.1:9080\"";
    let Some(item) = root.item("operations") else { return Some(None) };
    let section = item.section("operations")?;
    let item = section.required("address", EXAMPLE)?;
    let text = item.text()?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        let suggestion = format!("write an IP address and a port: {EXAMPLE}");
        item.error(&format!("{} is not an address to listen on", item.shown(text)), Some(&suggestion));
        return None;
    };
    if listener.is_some_and(|listener| overlap(listener, address)) {
        item.error("this is where requests come in", Some("give health and metrics a port of their own"));
        return None;
    }
    if !is_inside(address.ip()) {
        item.warn(
            "whoever reaches this address reads the names of routes, upstreams and apps, without a password: see to it that \
             only those who run the gateway do",
        );
    }
    Some(Some(address))
}

/// Whether both cannot be listened on. Port 0 is a free one each time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && same
}

/// Whether only this machine or a private network leads there.
fn is_inside(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

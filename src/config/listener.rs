//! Where requests come in: address, certificate, names.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::{
    Listener, SourceKind, certificate,
    mask::quoted,
    proxies, reference,
    section::{Item, Section},
};
use crate::{headers::Proxies, tls};

/// A certificate chain and its key, as rustls takes them.
pub(super) type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

const PRIVATE: &str = "browsers do not let the Stripe Dashboard, a public page, call a private address (Local Network \
    Access; Chrome and Edge from 142, Firefox from 153): the connection opens and no request follows. Give the gateway a public \
    address, or set the browsers' policy LocalNetworkAccessIpAddressSpaceOverrides";

/// The listener, where it is described without a mistake.
pub(super) fn listener(root: &Section<'_>) -> Option<Listener> {
    let item = root.required("listener", "a table `[listener]` with `address`, `certificate` and `private_key`")?;
    let section = item.section("listener")?;
    let address = section.required("address", "address = \"0.0.0.0:8443\"").and_then(|item| address(&item));
    let certificate = section.required("certificate", "certificate = \"certs/gateway.pem\"");
    let key = section.required("private_key", "private_key = \"certs/gateway.key\"");
    let mut leaf = None;
    let certified = pair(certificate.as_ref(), key.as_ref()).and_then(|(chain, private)| {
        leaf = chain.first().cloned();
        let certified = tls::certified_key(chain, private);
        report(key.as_ref()?, certified, "write the key that the certificate was issued for")
    });
    let names = match section.item("names") {
        None => Some(Vec::new()),
        Some(item) => names(&item, address.is_some_and(|address| is_private(address.ip()))),
    };
    let known = |name| section.item(name).map_or_else(|| Some(Proxies::default()), |item| proxies::proxies(&item));
    let (trusted_proxies, proxy_protocol) = (known("trusted_proxies"), known("proxy_protocol"));
    if let (Some(leaf), Some(item)) = (&leaf, section.item("names")) {
        warn_of_uncovered(&item, leaf);
    }
    Some(Listener {
        address: address?,
        certificates: Arc::new(certified?),
        names: names?,
        trusted_proxies: trusted_proxies?,
        proxy_protocol: proxy_protocol?,
    })
}

/// Warns of each name that the certificate is not for.
fn warn_of_uncovered(names: &Item<'_>, leaf: &CertificateDer<'static>) {
    let Ok(certificate) = rustls::server::ParsedCertificate::try_from(leaf) else { return };
    for item in names.list_or_empty("names").unwrap_or_default() {
        let name = item.as_text().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let Ok(name) = ServerName::try_from(name) else { continue };
        if rustls::client::verify_server_name(&certificate, &name).is_err() {
            item.warn("the listener's certificate is not for this name: browsers refuse the connection");
        }
    }
}

/// Reads a certificate and its key, both or with a report of what is wrong with either.
pub(super) fn pair(certificate: Option<&Item<'_>>, key: Option<&Item<'_>>) -> Option<Pair> {
    let chain = certificate.and_then(|item| {
        let path = path(item)?;
        let chain = report(item, tls::certificates(&path), "name a PEM file with the chain, leaf first");
        chain.inspect(|chain| certificate::warn_of_expiry(item, &path, chain))
    });
    let private = key.and_then(|item| {
        let path = path(item)?;
        let private = report(item, tls::private_key(&path), "name a PEM file with the key, PKCS#8, PKCS#1 or SEC1");
        private.inspect(|_| {
            reference::warn_of_readers(item, &path, &format!("private key {}", quoted(&path.to_string_lossy())));
        })
    });
    Some((chain?, private?))
}

/// The file that `item` names.
pub(super) fn path(item: &Item<'_>) -> Option<PathBuf> {
    let path = item.context.file(item.text()?);
    item.context.note_source(item, SourceKind::Certificate, &path);
    Some(path)
}

/// The value, or a report of why the file that `item` names cannot be used.
pub(super) fn report<T>(item: &Item<'_>, result: Result<T, tls::Error>, suggestion: &str) -> Option<T> {
    result
        .map_err(|error| {
            let path = item.context.file(item.as_text().unwrap_or_default());
            let named =
                if item.is_from_environment() { "the file".to_owned() } else { quoted(&path.to_string_lossy()) };
            item.error(&format!("{named} {error}"), Some(suggestion));
        })
        .ok()
}

fn address(item: &Item<'_>) -> Option<SocketAddr> {
    const EXAMPLE: &str = "write an IP address and a port: \"0.0.0.0:8443\", \"[::]:8443\"";
    let text = item.text()?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        item.error(&format!("{} is not an address to listen on", item.shown(text)), Some(EXAMPLE));
        return None;
    };
    if is_private(address.ip()) {
        item.warn(PRIVATE);
    }
    Some(address)
}

/// Whether a browser counts the address as local. Unspecified ones say nothing on how the gateway is reached.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = matches!(v4.octets(), [100, 64..=127, _, _]);
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// The names; private ones are warned of, unless the address `was_warned_of` already.
fn names(item: &Item<'_>, was_warned_of: bool) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut complete = true;
    for item in &item.list_or_empty("names = [\"gateway.example.com\"]")? {
        let name = item.text().and_then(|text| {
            let name = text.to_ascii_lowercase();
            let bare = name.trim_start_matches('[').trim_end_matches(']');
            if ServerName::try_from(bare).is_err() || name.ends_with('.') {
                item.error(
                    &format!("{} is not a host name", item.shown(text)),
                    Some("write the name alone, without scheme, port or wildcard: \"gateway.example.com\""),
                );
                return None;
            }
            let private = bare.parse().is_ok_and(is_private);
            let private =
                private || bare == "localhost" || [".local", ".localhost"].iter().any(|end| bare.ends_with(end));
            if private && !was_warned_of {
                item.warn(PRIVATE);
            }
            Some(name)
        });
        complete &= name.is_some();
        names.extend(name);
    }
    complete.then_some(names)
}

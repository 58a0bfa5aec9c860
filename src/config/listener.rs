//! Where requests come in: address, certificates, names.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::{
    Listener, SourceKind, certificate,
    mask::{looks_secret, quoted},
    obtained, proxies, reference,
    section::{Item, Section},
};
use crate::{
    acme,
    headers::Proxies,
    tls::{self, Certificate, Certificates, Origin},
};

/// A certificate chain and its key, as rustls takes them.
pub(super) type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

const PRIVATE: &str = "browsers do not let the Stripe Dashboard, a public page, call a private address (Local Network \
    Access; Chrome and Edge from 142, Firefox from 153): the connection opens and no request follows. Give the gateway a public \
    address, or set the browsers' policy LocalNetworkAccessIpAddressSpaceOverrides";

/// The listener and, where its certificate is to be obtained, from whom; both where they are described without a mistake.
/// `state` is where what was obtained is kept.
pub(super) fn listener(root: &Section<'_>, state: Option<&Path>) -> Option<(Listener, Option<acme::Settings>)> {
    let acme = root.item("acme");
    let item = root.required("listener", "a table `[listener]` with `address`, `certificate` and `private_key`");
    let Some(section) = item.and_then(|item| item.section("listener")) else {
        // Its own mistakes are told all the same.
        acme.and_then(|acme| obtained::acme(&acme, None, None, state?));
        return None;
    };
    let address = section.required("address", "address = \"0.0.0.0:8443\"").and_then(|item| address(&item));
    let names = match section.item("names") {
        None => Some(Vec::new()),
        Some(item) => names(&item, address.is_some_and(|address| is_private(address.ip()))),
    };
    let own = match &acme {
        None => own(&section).map(|own| (own, None)),
        Some(acme) => {
            refuse_beside_acme(&section);
            let settings = obtained::acme(acme, section.item("names").as_ref(), address, state?);
            settings.and_then(|settings| Some((obtained::own(acme, &settings)?, Some(settings))))
        }
    };
    let more = section.item("certificates").map_or_else(|| Some(Vec::new()), |item| more(&item));
    let client_ca = section.item("client_ca").map_or(Some(None), |item| client_ca(&item).map(Some));
    let known = |name| section.item(name).map_or_else(|| Some(Proxies::default()), |item| proxies::proxies(&item));
    let (trusted_proxies, proxy_protocol) = (known("trusted_proxies"), known("proxy_protocol"));
    let ((own, acme), more) = (own?, more?);
    warn_of_shared_names(&section, &own, &more);
    let certificates = Certificates::new(own, more);
    if let Some(item) = section.item("names").filter(|_| acme.is_none()) {
        warn_of_uncovered(&item, &certificates);
    }
    let listener = Listener {
        address: address?,
        certificates,
        client_ca: client_ca?,
        names: names?,
        trusted_proxies: trusted_proxies?,
        proxy_protocol: proxy_protocol?,
    };
    Some((listener, acme))
}

/// The listener's own certificate, from its files.
fn own(section: &Section<'_>) -> Option<Certificate> {
    const OR: &str = "or an [acme] table in place of both";
    let certificate = section.required("certificate", &format!("certificate = \"certs/gateway.pem\", {OR}"));
    let key = section.required("private_key", &format!("private_key = \"certs/gateway.key\", {OR}"));
    certified(certificate.as_ref(), key.as_ref())
}

/// Those for further names.
fn more(item: &Item<'_>) -> Option<Vec<Certificate>> {
    let mut more = Vec::new();
    let mut complete = true;
    for item in &item.list_or_empty("[[listener.certificates]] with `certificate` and `private_key`")? {
        let certificate = item.section("listener.certificates").and_then(|section| {
            let certificate = section.required("certificate", "certificate = \"certs/other.pem\"");
            let key = section.required("private_key", "private_key = \"certs/other.key\"");
            certified(certificate.as_ref(), key.as_ref())
        });
        complete &= certificate.is_some();
        more.extend(certificate);
    }
    complete.then_some(more)
}

fn certified(certificate: Option<&Item<'_>>, key: Option<&Item<'_>>) -> Option<Certificate> {
    let (chain, private) = pair(certificate, key)?;
    match Certificate::new(chain, private, Origin::Files) {
        Err(error @ tls::Error::Unclear) => {
            report(certificate?, Err(error), "name a PEM file with the chain, leaf first")
        }
        certified => report(key?, certified, "write the key that the certificate was issued for"),
    }
}

/// The authorities of whose certificates a client must have one.
fn client_ca(item: &Item<'_>) -> Option<Arc<RootCertStore>> {
    item.warn(
        "browsers send no certificate with the Dashboard's calls, which fail then: this is for a proxy in front, or other \
         programs, that have one",
    );
    let authorities = tls::authorities(&path(item)?);
    report(item, authorities, "name a PEM file with the authority's certificates").map(Arc::new)
}

fn refuse_beside_acme(section: &Section<'_>) {
    for name in ["certificate", "private_key"] {
        if let Some(item) = section.item(name) {
            let message = format!("`{name}` contradicts [acme], which obtains the listener's certificate");
            let suggestion = "keep one of the two; certificates for further names go into [[listener.certificates]]";
            item.key_error(&message, Some(suggestion));
        }
    }
}

/// Warns of each certificate that is for a name of an earlier one, which is the one that is served.
fn warn_of_shared_names(section: &Section<'_>, own: &Certificate, more: &[Certificate]) {
    let items = section.item("certificates").and_then(|item| item.list_or_empty("")).unwrap_or_default();
    let mut known: HashMap<&str, String> =
        own.names().iter().map(|name| (name.as_str(), "the listener's own".to_owned())).collect();
    for (item, certificate) in items.iter().zip(more) {
        let place = item.child("certificate").unwrap_or_else(|| item.clone());
        for name in certificate.names() {
            if let Some(first) = known.get(name.as_str()) {
                place.warn(&format!("this certificate is for {}, as is {first}, which is served for it", quoted(name)));
            } else {
                known.insert(name, format!("that of line {}", place.line()));
            }
        }
    }
}

/// Warns of each name that no certificate is for.
fn warn_of_uncovered(names: &Item<'_>, certificates: &Certificates) {
    for item in names.list_or_empty("names").unwrap_or_default() {
        let name = item.as_text().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if ServerName::try_from(name.as_str()).is_err() || certificates.iter().any(|one| one.covers(&name)) {
            continue;
        }
        item.warn(if certificates.iter().count() == 1 {
            "the listener's certificate is not for this name: browsers refuse the connection"
        } else {
            "none of the listener's certificates is for this name: browsers refuse the connection"
        });
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
    let address = socket_address(item, "0.0.0.0:8443")?;
    if is_private(address.ip()) {
        item.warn(PRIVATE);
    }
    Some(address)
}

/// An address to listen on, such as `example`.
pub(super) fn socket_address(item: &Item<'_>, example: &str) -> Option<SocketAddr> {
    let text = item.text()?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        let port = example.rsplit(':').next().unwrap_or_default();
        let suggestion = format!("write an IP address and a port: \"{example}\", \"[::]:{port}\"");
        item.error(&format!("{} is not an address to listen on", item.shown(text)), Some(&suggestion));
        return None;
    };
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
            // A secret would be a name or none by its length, which must not show.
            if looks_secret(text) || ServerName::try_from(bare).is_err() || name.ends_with('.') {
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

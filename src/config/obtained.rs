//! Certificates that are obtained by ACME.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use http::Uri;

use super::{
    listener::{path, report, socket_address},
    section::{Item, Section},
};
use crate::{
    acme::{self, Challenge, Patience, Settings},
    tls::{self, Certificate},
};

const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// From whom a certificate is obtained, for the listener's `names`, and kept below `state`.
pub(super) fn acme(
    item: &Item<'_>,
    names: Option<&Item<'_>>,
    address: Option<SocketAddr>,
    state: &Path,
) -> Option<Settings> {
    let section = item.section("acme")?;
    let directory = section.item("directory").map_or_else(|| Some(DIRECTORY.to_owned()), |item| directory(&item));
    let contact = section.item("contact").map_or_else(|| Some(Vec::new()), |item| contact(&item));
    let terms = section
        .required("accept_terms", "accept_terms = true, which agrees to the terms of service of the authority")
        .and_then(|item| is_accepted(&item));
    let challenge = challenge(&section, address);
    let directory_ca = match section.item("directory_ca") {
        None => trusts_system(item).then_some(None),
        Some(item) => path(&item).and_then(|path| {
            let roots = tls::certificates(&path);
            let roots = report(&item, roots, "name a PEM file with the certificates of the server's authority")?;
            report(&item, tls::client(Some(roots.clone()), None), "name the authority of the server itself")?;
            Some(Some(roots))
        }),
    };
    let names = asked_for(item, names);
    terms?;
    Some(Settings {
        directory: directory?,
        directory_ca: directory_ca?,
        contact: contact?,
        challenge: challenge?,
        names: names?,
        folder: state.join("acme"),
        patience: Patience::default(),
    })
}

/// What was obtained before for any of the names, or what stands in for it.
pub(super) fn own(item: &Item<'_>, settings: &Settings) -> Option<Certificate> {
    match acme::stored(&settings.folder, &settings.directory) {
        Ok(Some(stored)) if settings.names.iter().any(|name| stored.covers(name)) => return Some(stored),
        Ok(_) => {}
        Err(error) => item.warn(&format!("the certificate that was obtained before {error}: another is asked for")),
    }
    let standing_in = Certificate::standing_in(&settings.names, item.context.now);
    report(item, standing_in, "write names that a certificate can have")
}

fn directory(item: &Item<'_>) -> Option<String> {
    let text = item.text()?;
    let is_https = text.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
    if !is_https {
        item.error(
            &format!("{} is not the directory of an ACME server", item.shown(text)),
            Some(&format!("write its URL, which begins with https://: \"{DIRECTORY}\"")),
        );
    }
    is_https.then(|| text.to_owned())
}

fn contact(item: &Item<'_>) -> Option<Vec<String>> {
    const EXAMPLE: &str = "contact = [\"mailto:it@example.com\"]";
    let mut contact = Vec::new();
    let mut complete = true;
    for item in &item.list_or_empty(EXAMPLE)? {
        let address = item.text().filter(|text| {
            let is_mail = text.strip_prefix("mailto:").is_some_and(|address| {
                address.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
            });
            if !is_mail {
                item.error(&format!("{} is not a contact", item.shown(text)), Some(&format!("write {EXAMPLE}")));
            }
            is_mail
        });
        complete &= address.is_some();
        contact.extend(address.map(str::to_owned));
    }
    complete.then_some(contact)
}

fn is_accepted(item: &Item<'_>) -> Option<()> {
    let accepted = item.flag()?;
    if !accepted {
        item.error(
            "no certificate is issued without agreeing to the authority's terms of service",
            Some("read them, and write accept_terms = true; or use `certificate` and `private_key`"),
        );
    }
    accepted.then_some(())
}

fn challenge(section: &Section<'_>, listener: Option<SocketAddr>) -> Option<Challenge> {
    let item = section.required("challenge", "challenge = \"tls-alpn-01\", or \"http-01\" with http_address")?;
    let http_address = section.item("http_address");
    match item.text()? {
        "tls-alpn-01" => {
            if let Some(http_address) = http_address {
                http_address.key_error(
                    "`http_address` has no effect with \"tls-alpn-01\", which the listener answers",
                    Some("remove it, or write challenge = \"http-01\""),
                );
                return None;
            }
            Some(Challenge::TlsAlpn01)
        }
        "http-01" => {
            let item =
                section.required("http_address", "http_address = \"0.0.0.0:80\", where challenges are answered")?;
            let address = socket_address(&item, "0.0.0.0:80")?;
            if Some(address) == listener && address.port() != 0 {
                item.error(
                    "this is the listener's own address",
                    Some("write another port; the server asks at port 80"),
                );
                return None;
            }
            Some(Challenge::Http01 { address })
        }
        other => {
            item.error(
                &format!("{} is no challenge that can be answered", item.shown(other)),
                Some("write \"tls-alpn-01\", or \"http-01\" with http_address"),
            );
            None
        }
    }
}

/// Whether this system knows authorities by which a server can be trusted.
fn trusts_system(item: &Item<'_>) -> bool {
    let trust = tls::client(None, None);
    if let Err(error) = &trust {
        item.error(
            &format!("the certificate authorities of this system: {error}"),
            Some("install the system's ca-certificates, or name an authority as `directory_ca`"),
        );
    }
    trust.is_ok()
}

/// The names to ask for, in lower case. Those that are none were reported as the listener's.
fn asked_for(acme: &Item<'_>, names: Option<&Item<'_>>) -> Option<Vec<String>> {
    let items = names.and_then(|item| item.list_or_empty("names")).unwrap_or_default();
    if items.is_empty() {
        acme.error(
            "[acme] does not know for which names to ask",
            Some("write names = [\"gateway.example.com\"] in [listener]"),
        );
        return None;
    }
    let mut asked = Vec::new();
    let mut complete = true;
    for item in &items {
        let text = item.as_text()?;
        if text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            item.error(
                "a certificate is obtained for names, not for addresses",
                Some("remove it, or use `certificate` and `private_key` in place of [acme]"),
            );
            complete = false;
        }
        let name = text.to_ascii_lowercase();
        if !asked.contains(&name) {
            asked.push(name);
        }
    }
    complete.then_some(asked)
}

//! Certificates that are not valid, or not for long.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{Scrutiny, section::Item};
use crate::tls::Leaf;

/// How long before its end a certificate is warned of.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// Warns if the first certificate of a chain is not valid now, or not for long.
/// An expired one is refused where it would take the place of another.
pub(super) fn warn_of_expiry(item: &Item<'_>, path: &Path, chain: &[CertificateDer<'static>]) {
    let Some(leaf) = chain.first().and_then(Leaf::read) else { return };
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let now = item.context.now.duration_since(UNIX_EPOCH).map_or(0, seconds);
    let day =
        |at: i64| OffsetDateTime::from_unix_timestamp(at).map_or_else(|_| "?".to_owned(), |at| at.date().to_string());
    if now > leaf.not_after {
        let text = format!("this certificate expired on {}: every client refuses it", day(leaf.not_after));
        match item.context.scrutiny {
            Scrutiny::Reload(in_force) if !in_force.has(&item.path, path) => {
                item.error(&text, Some("name one that is valid; the one in force stays until then"));
            }
            Scrutiny::Reload(_) | Scrutiny::Files | Scrutiny::Names => item.warn(&text),
        }
    } else if now < leaf.not_before {
        item.warn(&format!("this certificate is not valid before {}: every client refuses it", day(leaf.not_before)));
    } else if leaf.not_after - now < seconds(SOON) {
        item.warn(&format!("this certificate expires on {}: then every client refuses it", day(leaf.not_after)));
    }
}

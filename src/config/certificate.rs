//! Certificates that are not valid, or not for long.

use std::time::{Duration, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::section::Item;
use crate::tls::Leaf;

/// How long before its end a certificate is warned of.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// Warns if the first certificate of a chain is not valid now, or not for long.
pub(super) fn warn_of_expiry(item: &Item<'_>, chain: &[CertificateDer<'static>]) {
    let Some(leaf) = chain.first().and_then(Leaf::read) else { return };
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let now = item.context.now.duration_since(UNIX_EPOCH).map_or(0, seconds);
    let day =
        |at: i64| OffsetDateTime::from_unix_timestamp(at).map_or_else(|_| "?".to_owned(), |at| at.date().to_string());
    if now > leaf.not_after {
        item.warn(&format!("this certificate expired on {}: every client refuses it", day(leaf.not_after)));
    } else if now < leaf.not_before {
        item.warn(&format!("this certificate is not valid before {}: every client refuses it", day(leaf.not_before)));
    } else if leaf.not_after - now < seconds(SOON) {
        item.warn(&format!("this certificate expires on {}: then every client refuses it", day(leaf.not_after)));
    }
}

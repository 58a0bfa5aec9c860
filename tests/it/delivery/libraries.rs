//! A service's own verification: Stripe's libraries, and TLS.
//!
//! Without node or the libraries this is skipped, unless `COUNTERSIGN_REQUIRE_NODE=1` makes that a failure.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use countersign::{delivery::Destination, inbox::Arrived, upstream::Tls};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::bench::{Bench, SECRET, answer, arrived, destination, failing_first, numbers};
use crate::{
    certificates::Authority,
    support::{find, header},
};

const ANOTHER: &str = "whsec_another_secret_0123456789";

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/webhook")
}

/// What a program that verifies makes of these deliveries, each an event's id or an error.
fn verified(program: &mut Command, deliveries: &[Value]) -> Vec<String> {
    let mut child = program.current_dir(tests()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input = serde_json::to_vec(deliveries).unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn stripe_node_and_stripe_python_verify_what_is_delivered_hours_later_too() {
    let has = |path: &str| tests().join(path).exists();
    if !(has("node_modules/stripe") && has("python/stripe")) {
        assert!(std::env::var_os("COUNTERSIGN_REQUIRE_NODE").is_none(), "run .ci/test, which installs the libraries");
        eprintln!("SKIPPED: no stripe-node or stripe-python here; .ci/test installs them");
        return;
    }
    let hours_ago = SystemTime::now() - Duration::from_secs(5 * 3600);
    let created = hours_ago.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let body = format!(
        "{{\n  \"id\": \"evt_late\",\n  \"object\": \"event\",\n  \"created\": {created},\n  \"livemode\": true,\n  \"type\": \"invoice.paid\",\n  \"data\": {{\"object\": {{\"id\": \"in_1\", \"object\": \"invoice\", \"description\": \"\u{fc}\\u00e9 \u{1f980}\"}}}}\n}}"
    );
    let service = failing_first(vec![answer(500, "")]);
    let retry = countersign::delivery::Retry {
        // So that both attempts are signed in seconds of their own.
        first: Duration::from_millis(1500),
        longest: Duration::from_millis(1500),
        give_up: Duration::from_secs(24 * 3600),
    };
    let bench = Bench::to(vec![Destination { retry, ..destination("orders", &service) }]);
    let event = arrived("evt_late", Some("in_1"), &["orders"]);
    bench.accept_as(Arrived { body: Bytes::from(body), received: hours_ago, ..event });
    bench.until("orders", |figures| figures.delivered == 1);
    assert_eq!(numbers(&service), [1, 2]);
    let got: Vec<(Vec<u8>, String)> = service
        .requests()
        .iter()
        .map(|request| {
            let end = find(request, b"\r\n\r\n").unwrap() + 4;
            let head = String::from_utf8_lossy(&request[..end]).into_owned();
            (request[end..].to_vec(), header(&head, "stripe-signature").unwrap().to_owned())
        })
        .collect();
    assert_ne!(got[0].1, got[1].1, "each attempt is signed anew");
    let delivery = |body: &[u8], header: &str, secret: &str| json!({ "body": STANDARD.encode(body), "header": header, "secret": secret });
    let mut deliveries: Vec<Value> = got.iter().map(|(body, header)| delivery(body, header, SECRET)).collect();
    let (body, header) = &got[1];
    deliveries.push(delivery(body, header, ANOTHER));
    deliveries.push(delivery(&[body, &b" "[..]].concat(), header, SECRET));
    let node = verified(Command::new("node").arg("verify.mjs"), &deliveries);
    let refused = "StripeSignatureVerificationError";
    assert_eq!(node, ["evt_late", "evt_late", refused, refused]);
    let python = verified(Command::new("python3").arg("verify.py").env("PYTHONPATH", "python"), &deliveries);
    let refused = "SignatureVerificationError";
    assert_eq!(python, ["evt_late", "evt_late", refused, refused]);
}

/// A certificate of this authority for `name`, and its key.
fn issued(authority: &Authority, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let (certificate, key) = authority.issue(&[name], (2020, 2090));
    (vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

/// A service's side that asks for a certificate of `authority`, and shows one.
pub(super) fn demanding(authority: &Authority) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = countersign::tls::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let (chain, key) = issued(authority, "orders.test");
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap()
}

/// Our side that trusts `authority`, and shows a certificate of another.
pub(super) fn tls(authority: &Authority, ours: Option<&Authority>) -> Tls {
    let roots = vec![CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()];
    let ours = ours.map(|authority| issued(authority, "gateway.test"));
    Tls { config: Arc::new(countersign::tls::client(Some(roots), ours).unwrap()), digest: [0; 32] }
}

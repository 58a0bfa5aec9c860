//! The configuration as an administrator meets it: what loads, what is refused and how it is told, what is never shown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use countersign::config::{self, Config, Environment, Errors, Scrutiny};

#[path = "config/checked.rs"]
mod checked;
#[path = "config/documents.rs"]
mod documents;
#[path = "config/environment.rs"]
mod environment;
#[path = "config/refused.rs"]
mod refused;
#[path = "config/secrets.rs"]
mod secrets;
#[path = "config/told.rs"]
mod told;
#[path = "config/warned.rs"]
mod warned;
#[path = "config/webhooks.rs"]
mod webhooks;

const SECRET: &str = "absec_0123456789abcdef";

/// A file without mistakes; the cases change one thing in it.
const GOOD: &str = r#"version = 1

[listener]
address = "0.0.0.0:8443"
certificate = "certs/gateway.pem"
private_key = "certs/gateway.key"

[apps.shipping]
secrets = [{ file = "secrets/shipping.absec" }]
accounts = ["acct_1JSkf6FRwUQjTSJE"]

[upstreams.orders]
servers = ["http://10.0.4.7:8080", "http://10.0.4.8:8080"]

[[routes]]
path = "/shipping/orders/"
app = "shipping"
upstream = "orders"
signed = "body"
"#;

/// Certificates are costly to make and alike for all tests: one pair and one for a foreign key.
static PEMS: LazyLock<[(String, String); 2]> = LazyLock::new(|| [pem(GATEWAY, 2090), pem(GATEWAY, 2021)]);
static OTHER: LazyLock<(String, String)> = LazyLock::new(|| pem(&["other.example.com", "*.apps.example.com"], 2090));

const GATEWAY: &[&str] = &["gateway.example.com"];

fn pem(names: &[&str], until: i32) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A folder with everything that the files of these tests name.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let [(certificate, key), (old, foreign)] = &*PEMS;
        for name in ["gateway", "client", "internal-ca", "clients-ca"] {
            folder.put(&format!("certs/{name}.pem"), certificate);
            folder.put(&format!("certs/{name}.key"), key);
        }
        let (other, other_key) = &*OTHER;
        folder.put("certs/other.pem", other);
        folder.put("certs/other.key", other_key);
        folder.put("certs/old.pem", old);
        folder.put("certs/foreign.key", foreign);
        folder.put("secrets/shipping.absec", SECRET);
        folder.put("secrets/reports.absec", "absec_of_the_reports");
        folder.put("secrets/orders.authorization", "Bearer of good news");
        folder.put("credentials/reports.absec", "absec_of_the_reports");
        folder.put("credentials/orders.token", "token");
        folder.put("secrets/billing.whsec", "whsec_of_stripe");
        folder.put("secrets/billing-internal.whsec", "whsec_of_billing");
        folder.put("credentials/mail.whsec", "whsec_of_mail");
        folder.put("credentials/test.whsec", "whsec_of_tests");
        folder
            .put("secrets/inbox.url", "postgres://countersign:password@db.intranet/countersign?sslmode=verify-full\n");
        folder.put("stripe-addresses.txt", "# Stripe\n192.0.2.7\n2001:db8::/32\n\n");
        folder
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn environment(&self, more: &[(&str, &str)]) -> Environment {
        let credentials = self.0.path().join("credentials").to_string_lossy().into_owned();
        let mut all = vec![
            ("CREDENTIALS_DIRECTORY".to_owned(), credentials),
            ("SHIPPING_ABSEC_NEXT".to_owned(), "absec_next".to_owned()),
            ("BILLING_WHSEC_NEXT".to_owned(), "whsec_next".to_owned()),
            ("LEDGER_WHSEC".to_owned(), "whsec_of_the_ledger".to_owned()),
            ("ORDERS_KEY".to_owned(), "key of the orders".to_owned()),
        ];
        all.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        all.into_iter().collect()
    }

    fn load(&self, text: impl AsRef<[u8]>, more: &[(&str, &str)]) -> Result<Config, Errors> {
        let path = self.put("countersign.toml", text);
        config::load(&path, &self.environment(more), now(), Scrutiny::Files)
    }

    fn errors(&self, text: impl AsRef<[u8]>) -> Errors {
        self.load(text, &[]).expect_err("a mistake")
    }

    fn warnings(&self, text: &str) -> Vec<(String, Option<usize>, String)> {
        let config = self.load(text, &[]).unwrap_or_else(|errors| panic!("{errors}"));
        config.warnings.into_iter().map(|warning| (warning.key, warning.line, warning.text)).collect()
    }
}

/// 2026-08-01.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_542_400)
}

fn changed(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

/// The line and column, from 1, at which `part` begins in `text`.
fn place_of(text: &str, part: &str) -> (usize, usize) {
    let at = text.find(part).unwrap_or_else(|| panic!("{part}"));
    let line = text[..at].rsplit('\n').next().unwrap();
    (1 + text[..at].matches('\n').count(), 1 + line.chars().count())
}

fn repository(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn ten_thousand_routes_load_in_time() {
    let folder = Folder::new();
    let mut text = GOOD.to_owned();
    text.extend((0..10_000).map(|place| {
        format!("[[routes]]\npath = \"/r/{place}/\"\napp = \"shipping\"\nupstream = \"http://host{place}:80\"\n")
    }));
    let began = Instant::now();
    let config = folder.load(&text, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    println!("10,000 routes: {:?}", began.elapsed());
    assert_eq!(config.routes.iter().count(), 10_001);
    // Far from what a look-up of each against each would take, even unoptimised on a busy machine.
    assert!(began.elapsed() < Duration::from_secs(20));
    let wrong = text.replace("app = \"shipping\"\nupstream = \"http", "ap = \"shipping\"\nupstream = \"ftp");
    let began = Instant::now();
    let errors = folder.errors(wrong);
    println!("30,000 errors: {:?}", began.elapsed());
    assert_eq!(errors.len(), 30_000);
    assert!(began.elapsed() < Duration::from_secs(60));
}

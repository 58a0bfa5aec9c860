//! What is allowed, but should be known.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use countersign::config::{self, Scrutiny};

use super::{Folder, GOOD, changed};

#[test]
fn risks_are_warned_of_with_their_key_and_line() {
    let folder = Folder::new();
    assert_eq!(folder.warnings(GOOD), []);
    for (from, to, key, line, risk) in [
        ("/shipping/orders/", "/", "routes.0.path", 16, "every path"),
        ("/shipping/orders/", "/orders/*", "routes.0.path", 16, "stands for itself"),
        (
            "signed = \"body\"",
            "signed = \"body\"\n[[routes]]\npath=\"/shipping/orders/a\"\napp=\"shipping\"\nupstream=\"orders\"\nusers=[\"usr_a\"]\n",
            "routes.1.path",
            21,
            "with a slash behind it",
        ),
        ("signed = \"body\"", "signed = \"identity\"", "routes.0.signed", 19, "POST with signed"),
        ("signed = \"body\"", "methods = [\"PUT\"]", "routes.0.methods", 19, "PUT with signed"),
        (", \"http://10.0.4.8:8080\"", "", "upstreams.orders.servers.0", 13, "one server"),
        (
            "\"orders\"",
            "\"orders\"\n[[routes]]\npath=\"/b\"\napp=\"shipping\"\nupstream=\"http://b\"\n",
            "routes.1.upstream",
            22,
            "one server",
        ),
        (
            "signed = \"body\"",
            "signed = \"body\"\nmethods = [\"DELETE\"]",
            "routes.0.methods",
            20,
            "DELETE with signed",
        ),
        (
            "signed = \"body\"",
            "signed = \"body\"\nroles = [\"admin\"]\nmethods = [\"GET\", \"POST\"]",
            "routes.0.methods",
            21,
            "GET on a route with `roles`",
        ),
        ("\n\n[apps", "\nnames = [\"other.example.com\"]\n[apps", "listener.names.0", 7, "not for this name"),
        ("0.0.0.0", "10.1.2.3", "listener.address", 4, "Local Network"),
        ("0.0.0.0", "127.0.0.1", "listener.address", 4, "LocalNetworkAccessIpAddressSpaceOverrides"),
        ("0.0.0.0", "100.64.0.1", "listener.address", 4, "Local Network"),
        ("0.0.0.0", "[fd00::1]", "listener.address", 4, "Local Network"),
        ("\n\n[apps", "\ntrusted_proxies = [\"0.0.0.0/1\"]\n[apps", "listener.trusted_proxies.0", 7, "any private one"),
        ("\n\n[apps", "\nproxy_protocol = [\"::/3\"]\n[apps", "listener.proxy_protocol.0", 7, "any private one"),
        ("\n\n[apps", "\nnames = [\"gateway.local\"]\n[apps", "listener.names.0", 7, "Local Network"),
        (
            "accounts = [\"acct_1JSkf6FRwUQjTSJE\"]",
            "unsafe_any_account = true",
            "apps.shipping.unsafe_any_account",
            10,
            "any Stripe account",
        ),
        (
            "[apps.shipping]",
            "[apps.shipping]\nunsafe_tolerance = \"1h\"",
            "apps.shipping.unsafe_tolerance",
            9,
            "repeated",
        ),
        (
            "[apps.shipping]",
            "[apps.shipping]\nallow_account_only = true",
            "apps.shipping.allow_account_only",
            9,
            "no user",
        ),
        (
            "[upstreams.orders]",
            "[upstreams.orders]\nunsafe_link_local = true",
            "upstreams.orders.unsafe_link_local",
            13,
            "credentials",
        ),
        ("\"orders\"", "\"http://b\"", "upstreams.orders", 12, "no route uses the upstream `orders`"),
        (
            "[upstreams",
            "[apps.other]\nsecrets = [{ file = \"secrets/reports.absec\" }]\naccounts = [\"acct_1\"]\n[upstreams",
            "apps.other",
            12,
            "no route uses the app `other`",
        ),
        (
            "[upstreams",
            "[apps.other]\nsecrets = [{ file = \"secrets/shipping.absec\" }]\naccounts = [\"acct_1\"]\n[upstreams",
            "apps.other.secrets",
            13,
            "same secret",
        ),
    ] {
        let warnings = folder.warnings(&changed(from, to));
        let found = warnings.iter().any(|(k, l, text)| k == key && *l == Some(line) && text.contains(risk));
        assert!(found, "{to}: {warnings:?}");
    }
}

#[test]
fn certificates_that_are_no_help_are_warned_of() {
    let folder = Folder::new();
    let more = |certificates: &[&str]| {
        let tables = certificates.iter().map(|name| {
            format!(
                "[[listener.certificates]]\ncertificate = \"certs/{name}.pem\"\nprivate_key = \"certs/{name}.key\"\n"
            )
        });
        let tables: String = tables.collect();
        folder.warnings(&changed("[apps", &format!("{tables}\n[apps")))
    };
    assert_eq!(more(&["other"]), []);
    let warnings = more(&["other", "client", "other"]);
    let told: Vec<_> = warnings.iter().map(|(key, line, text)| (key.as_str(), line.unwrap(), text.as_str())).collect();
    let same =
        |name: &str, first: &str| format!("this certificate is for `{name}`, as is {first}, which is served for it");
    let expected = [
        ("listener.certificates.1.certificate", 12, same("gateway.example.com", "the listener's own")),
        ("listener.certificates.2.certificate", 15, same("other.example.com", "that of line 9")),
        ("listener.certificates.2.certificate", 15, same("*.apps.example.com", "that of line 9")),
    ];
    let expected: Vec<_> = expected.iter().map(|(key, line, text)| (*key, *line, text.as_str())).collect();
    assert_eq!(told, expected);

    let names = "names = [\"a.apps.example.com\", \"gateway.example.com\", \"none.example.com\"]\n";
    let text = changed(
        "[apps",
        &format!(
            "{names}[[listener.certificates]]\ncertificate = \"certs/other.pem\"\nprivate_key = \"certs/other.key\"\n[apps"
        ),
    );
    let warnings = folder.warnings(&text);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].0 == "listener.names.2" && warnings[0].2.contains("none of the listener's"), "{warnings:?}");

    let warnings = folder.warnings(&changed("[apps", "client_ca = \"certs/clients-ca.pem\"\n[apps"));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].0 == "listener.client_ca" && warnings[0].2.contains("browsers send no"), "{warnings:?}");
}

#[test]
fn what_acme_left_is_used_if_it_can_be() {
    let folder = Folder::new();
    let acme = "[acme]\naccept_terms = true\nchallenge = \"tls-alpn-01\"\ndirectory_ca = \"certs/internal-ca.pem\"\n";
    let pair = "certificate = \"certs/gateway.pem\"\nprivate_key = \"certs/gateway.key\"\n";
    let with = |names: &str| changed(pair, &format!("names = [{names}]\n{acme}"));
    let read = |name: &str| fs::read_to_string(folder.0.path().join(name)).unwrap();
    let kept = format!("{}{}", read("certs/gateway.key"), read("certs/gateway.pem"));
    folder.put("state/acme/certificate.pem", &kept);
    let is_standing_in = |names: &str| {
        let config = folder.load(with(names), &[]).unwrap_or_else(|errors| panic!("{errors}"));
        (config.listener.certificates.is_standing_in(), config.warnings.len())
    };
    assert_eq!(is_standing_in("\"gateway.example.com\""), (false, 0));
    assert_eq!(is_standing_in("\"new.example.com\", \"gateway.example.com\""), (false, 0));
    assert_eq!(is_standing_in("\"new.example.com\""), (true, 0));
    folder.put("state/acme/certificate.pem", format!("{}{}", read("certs/foreign.key"), read("certs/gateway.pem")));
    assert_eq!(is_standing_in("\"gateway.example.com\""), (true, 1));
    let warnings = folder.warnings(&with("\"gateway.example.com\""));
    assert!(warnings[0].0 == "acme" && warnings[0].2.contains("another is asked for"), "{warnings:?}");
}

#[test]
fn unprotected_files_and_old_certificates_are_warned_of() {
    let folder = Folder::new();
    let open =
        |name: &str, mode| fs::set_permissions(folder.0.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    open("secrets/shipping.absec", 0o644);
    open("certs/gateway.key", 0o640);
    let warnings = folder.warnings(GOOD);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].0 == "listener.private_key" && warnings[0].2.contains("mode 640"), "{warnings:?}");
    assert!(warnings[1].0 == "apps.shipping.secrets.0.file" && warnings[1].2.contains("mode 644"), "{warnings:?}");
    let old = folder.warnings(&GOOD.replace("gateway.pem", "old.pem").replace("gateway.key", "foreign.key"));
    assert!(old[0].0 == "listener.certificate" && old[0].2.contains("expired on 2021-01-01"), "{old:?}");
    let at = |days: u64| {
        let environment = folder.environment(&[]);
        let path = folder.put("countersign.toml", GOOD);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * days);
        config::load(&path, &environment, now, Scrutiny::Files).unwrap().warnings
    };
    let last = 43_830; // 2090-01-01
    assert!(at(last - 13).iter().any(|warning| warning.text.contains("expires on 2090-01-01")));
    assert!(!at(last - 15).iter().any(|warning| warning.text.contains("expires on")));
    assert!(at(100).iter().any(|warning| warning.text.contains("not valid before 2020-01-01")));
}

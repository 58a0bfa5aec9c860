//! What the environment sets.

use std::time::Duration;

use countersign::config::{AccessLog, Place};

use super::{Folder, GOOD, changed};

#[test]
fn the_environment_overrides_the_file() {
    let folder = Folder::new();
    let config = folder
        .load(
            changed("[apps.shipping]", "[limits]\ndrain = \"1s\"\n[apps.shipping]"),
            &[
                ("COUNTERSIGN_LISTENER__ADDRESS", "127.0.0.1:0"),
                ("COUNTERSIGN_LISTENER__NAMES", "a.example.com, B.example.com"),
                ("COUNTERSIGN_STATE_DIRECTORY", "0012"),
                ("COUNTERSIGN_LIMITS__DRAIN", "45s"),
                ("COUNTERSIGN_LIMITS__CONNECTIONS", "0012"),
                ("COUNTERSIGN_LIMITS__HEAD_BYTES", "65536"),
                ("COUNTERSIGN_LOG__ACCESS", "12"),
                ("COUNTERSIGN_APPS__SHIPPING__ALLOW_ACCOUNT_ONLY", "true"),
                ("COUNTERSIGN_UPSTREAMS__ORDERS__SERVERS", "http://a:1,http://b:2"),
                // Not configuration: the log filter, and what Kubernetes sets for a service of that name.
                ("COUNTERSIGN_LOG", "debug"),
                ("COUNTERSIGN_PORT", "tcp://10.0.0.1:443"),
                ("COUNTERSIGN_SERVICE_HOST", "10.0.0.1"),
            ],
        )
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.listener.address, "127.0.0.1:0".parse().unwrap());
    assert_eq!(config.listener.names, ["a.example.com", "b.example.com"]);
    assert!(config.state_directory.ends_with("0012"));
    assert_eq!(config.limits.drain, Duration::from_secs(45));
    assert_eq!((config.limits.connections, config.limits.head_bytes), (12, 65536));
    assert!(matches!(&config.access_log, AccessLog::File(path) if path.ends_with("12")));
    assert_eq!(config.upstreams[0].servers[1].to_string(), "http://b:2");
}

#[test]
fn a_wrong_variable_is_named_and_its_value_never_shown() {
    let folder = Folder::new();
    for (variable, suggestion) in [
        ("COUNTERSIGN_LISTENER__ADRESS", "did you mean `COUNTERSIGN_LISTENER__ADDRESS`?"),
        ("COUNTERSIGN_APPS__SHIPING__TOLERANCE", "did you mean `COUNTERSIGN_APPS__SHIPPING__TOLERANCE`?"),
        ("COUNTERSIGN_UPSTREAMS__BILLING__SERVERS", "must be in the file"),
        ("COUNTERSIGN_RATE__RETENTION", "COUNTERSIGN_LISTENER__ADDRESS"),
        ("COUNTERSIGN_AUDIT__ON_ERROR", "write \"refuse\""),
        ("COUNTERSIGN_LISTENER", "COUNTERSIGN_LISTENER__…"),
        ("COUNTERSIGN_ROUTES__0__PATH", "write it in the file"),
        ("COUNTERSIGN_APPS__SHIPPING__SECRETS", "secrets = [{ env"),
        ("COUNTERSIGN_APPS__SHIPPING__SECRETS__0__FILE", "secrets = [{ env"),
        ("COUNTERSIGN_LIMITS__DRAIN", "30s"),
        ("COUNTERSIGN_LIMITS__HEADERS", "1 to 10000"),
        ("COUNTERSIGN_LIMITS__HEAD_BYTES", "64KiB"),
        ("COUNTERSIGN_LISTENER__ADDRESS", "an IP address"),
        ("COUNTERSIGN_LISTENER__CERTIFICATE", "PEM"),
        ("COUNTERSIGN_LISTENER__PRIVATE_KEY", "PEM"),
        ("COUNTERSIGN_LISTENER__NAMES", "gateway.example.com"),
        ("COUNTERSIGN_APPS__SHIPPING__ACCOUNTS", "acct_"),
        ("COUNTERSIGN_APPS__SHIPPING__TOLERANCE", "5m"),
        ("COUNTERSIGN_UPSTREAMS__ORDERS__SERVERS", "http://"),
        ("COUNTERSIGN_UPSTREAMS__ORDERS__MAX_QUEUED", "0 to"),
    ] {
        let errors = folder.load(GOOD, &[(variable, "hunter2 swordfish")]).expect_err(variable);
        let text = errors.to_string();
        let only = errors.iter().next().unwrap();
        assert_eq!((errors.len(), &only.place), (1, &Place::Variable(variable.to_owned())), "{text}");
        assert!(only.suggestion.as_ref().is_some_and(|text| text.contains(suggestion)), "{text}");
        assert!(text.contains(&format!("  --> environment variable {variable}\n")), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("swordfish"), "{text}");
    }
    let environment = folder.environment(&[("COUNTERSIGN_LIMITS__DRAIN", "hunter2")]);
    assert!(!format!("{environment:?}").contains("hunter2"));
}

#[test]
fn the_hash_tells_configurations_apart() {
    let folder = Folder::new();
    let hash = |text: &str, more: &[(&str, &str)]| folder.load(text, more).unwrap().hash;
    let plain = hash(GOOD, &[]);
    assert_eq!(plain.len(), 64);
    assert_eq!(plain, hash(GOOD, &[("PATH", "/bin"), ("COUNTERSIGN_PORT", "1")]));
    assert_ne!(plain, hash(&format!("{GOOD}\n"), &[]));
    let set = hash(GOOD, &[("COUNTERSIGN_LIMITS__DRAIN", "31s")]);
    assert_ne!(plain, set);
    assert_ne!(set, hash(GOOD, &[("COUNTERSIGN_LIMITS__DRAIN", "32s")]));
}

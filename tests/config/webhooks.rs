//! Webhooks and their inbox, as they are written.

use std::time::Duration;

use countersign::{
    command::check,
    inbox::Store,
    webhook::{Event, Livemode, Mode},
};

use super::{Folder, GOOD, SECRET, changed, place_of};

/// Only webhooks.
const GOOD_WEBHOOKS: &str = r#"version = 1

[listener]
address = "0.0.0.0:8443"
certificate = "certs/gateway.pem"
private_key = "certs/gateway.key"

[[webhooks]]
path = "/stripe/events"
secrets = [{ file = "secrets/billing.whsec" }]

[[webhooks.deliver]]
name = "billing"
to = "http://billing.intranet:3000/stripe?x=1"
secret = { file = "secrets/billing-internal.whsec" }

[inbox]
retention = "30d"
"#;

fn event(kind: &str, account: &str) -> Event {
    let account = if account.is_empty() { String::new() } else { format!(r#","account":"{account}""#) };
    Event::read(format!(r#"{{"id":"evt_1","type":"{kind}","livemode":true{account}}}"#).as_bytes()).unwrap()
}

#[test]
fn what_is_left_out_has_its_default() {
    let folder = Folder::new();
    let config = folder.load(GOOD_WEBHOOKS, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let webhook = config.webhooks.iter().next().unwrap();
    assert_eq!((webhook.livemode, webhook.body_limit_bytes), (Livemode::Only(true), 1 << 20));
    assert!(webhook.accounts.is_none() && webhook.sources.is_none() && webhook.keys.len() == 1);
    assert!(matches!(&webhook.mode, Mode::Inbox(interests) if interests.len() == 1));
    let [billing] = config.destinations.as_slice() else { panic!() };
    assert_eq!((&*billing.name, billing.target.as_str()), ("billing", "/stripe?x=1"));
    assert_eq!((billing.timeout, billing.concurrency, billing.ordered), (Duration::from_secs(10), 4, false));
    let retry = billing.retry;
    let seconds = [retry.first, retry.longest, retry.give_up].map(|time| time.as_secs());
    assert_eq!(seconds, [1, 3600, 3 * 86_400]);
    let inbox = &config.inbox;
    assert!(matches!(inbox.store, Store::Sqlite));
    assert_eq!(inbox.retention, Duration::from_secs(30 * 86_400));
    assert_eq!(config.warnings, []);
    assert!(config.keeps_events() && !folder.load(GOOD, &[]).unwrap().keeps_events());
}

#[test]
fn what_is_written_is_what_is_meant() {
    let folder = Folder::new();
    folder.put("addresses", "192.0.2.0/24\n");
    let text = GOOD_WEBHOOKS
        .replace("[[webhooks.deliver]]", "livemode = \"any\"\naccounts = [\"acct_1\", \"self\"]\nsources.file = \"addresses\"\n\n[[webhooks.deliver]]\ntypes = [\"invoice.*\", \"charge.failed\"]\naccounts = [\"acct_1\"]")
        .replace("[inbox]", "[[webhooks.deliver]]\nname = \"all\"\nto = \"https://all\"\n\n[inbox]");
    let config = folder.load(text, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let webhook = config.webhooks.iter().next().unwrap();
    assert_eq!(webhook.livemode, Livemode::Any);
    assert!(webhook.takes_from(Some("192.0.2.9".parse().unwrap())));
    assert!(webhook.takes_from(Some("::ffff:192.0.2.9".parse().unwrap())));
    assert!(!webhook.takes_from(Some("198.51.100.1".parse().unwrap())) && !webhook.takes_from(None));
    let destinations =
        |kind, account| webhook.destinations(&event(kind, account)).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(destinations("invoice.paid", "acct_1"), ["billing", "all"]);
    assert_eq!(destinations("charge.failed", "acct_1"), ["billing", "all"]);
    assert_eq!(destinations("charge.paid", "acct_1"), ["all"]);
    assert_eq!(destinations("invoice.paid", ""), ["all"]);
    assert!(webhook.drops(&event("a", "acct_1")).is_none() && webhook.drops(&event("a", "")).is_none());
    assert!(webhook.drops(&event("a", "acct_2")).is_some());
}

#[test]
fn each_mistake_is_told_at_its_place() {
    let folder = Folder::new();
    folder.put("secrets/app", SECRET);
    folder.put("secrets/same", "whsec_of_stripe");
    folder.put("secrets/line", "whsec_of_stripe\n");
    folder.put("addresses/none", "# none\n");
    folder.put("addresses/wrong", "192.0.2.1\nnowhere\n");
    folder.put("url/far", "postgres://u:0123456789abcdef@db.intranet/c?sslmode=disable");
    folder.put("url/none", "0123456789abcdef");
    folder.put("url/part", "postgres://db.intranet/");
    folder.load(GOOD_WEBHOOKS, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    for (from, to, part, message, suggestion) in [
        ("/stripe/events\"", "/stripe/\"", "\"/stripe/\"", "ends with a slash", "exactly one path"),
        ("/stripe/events\"", "/a/../b\"", "\"/a/../b\"", "is not a path", "literally"),
        ("/stripe/events\"", "https://x/y\"", "\"https://x/y\"", "is not a path", "the path alone"),
        ("billing.whsec", "app", "\"secrets/app", "an app's signing secret", "Webhooks"),
        ("billing.whsec", "line", "\"secrets/line", "white space", "printf"),
        (
            "\"secrets/billing.whsec\" }",
            "\"secrets/billing.whsec\" }, { file = \"secrets/same\" }",
            "{ file = \"secrets/same",
            "has already",
            "differs",
        ),
        ("path =", "livemode = \"yes\"\npath =", "\"yes\"", "neither true, false", "\"any\""),
        ("path =", "accounts = [\"cus_1\"]\npath =", "\"cus_1\"", "not an account id", "\"self\""),
        ("path =", "accounts = []\npath =", "[]\npath", "is empty", "accounts ="),
        ("path =", "mode = \"queue\"\npath =", "\"queue\"", "is no mode", "\"direct\""),
        ("path =", "body_limit = \"33MiB\"\npath =", "\"33MiB\"", "out of range", "32MiB"),
        (
            "[inbox]",
            "[limits]\nbuffered_bytes = \"8MiB\"\nbuffered_bytes_per_address = \"8MiB\"\n[[webhooks]]\npath = \"/b\"\nbody_limit = \"9MiB\"\n\
             secrets = [{ file = \"secrets/billing.whsec\" }]\ndeliver = [{ name = \"b\", to = \"http://b\" }]\n[inbox]",
            "\"9MiB\"",
            "does not fit",
            "[limits]",
        ),
        ("path =", "sources = { file = \"nowhere\" }\npath =", "\"nowhere\"", "cannot be read", "one a line"),
        (
            "path =",
            "sources = { file = \"addresses/none\" }\npath =",
            "\"addresses/none\"",
            "lists no address",
            "one address",
        ),
        (
            "path =",
            "sources = { file = \"addresses/wrong\" }\npath =",
            "\"addresses/wrong\"",
            "on its line 2",
            "one address",
        ),
        ("http://billing.intranet:3000/stripe?x=1", "billing:3000", "\"billing:3000\"", "is not a URL", "http://"),
        ("http://billing", "h2c://billing", "\"h2c://", "another scheme", "http://"),
        ("http://billing.intranet:3000", "http://u:p@billing", "\"http://u:p@", "has a user", ""),
        ("billing.intranet:3000", "169.254.169.254", "\"http://169", "link-local", "not delivered"),
        ("?x=1", "?x=1#y", "\"http://", "fragment", "URL"),
        ("name = \"billing\"\n", "", "[[webhooks.deliver]]", "`name` is missing in this destination", "name = "),
        ("\"billing\"", "\"bill ing\"", "name = \"bill", "no usable name", "letters"),
        ("billing-internal.whsec", "app", "\"secrets/app", "an app's signing secret", "openssl rand"),
        (
            "[[webhooks.deliver]]",
            "mode = \"direct\"\n[[webhooks.deliver]]\nretry = { first = \"2s\" }",
            "retry = {",
            "no effect in direct",
            "remove",
        ),
        (
            "[inbox]",
            "[[webhooks.deliver]]\nname = \"billing\"\nto = \"http://b\"\n[inbox]",
            "\"billing\"\nto = \"http://b\"",
            "is called `billing` as well",
            "another",
        ),
        (
            "[inbox]",
            "[inbox]\npostgres = { file = \"url/far\" }",
            "\"url/far\"",
            "in the clear to another machine",
            "sslmode=require",
        ),
        ("[inbox]", "[inbox]\npostgres = { file = \"url/none\" }", "\"url/none\"", "no URL", "postgres://"),
        (
            "[inbox]",
            "[inbox]\npostgres = { file = \"url/part\" }",
            "\"url/part\"",
            "no database or no user",
            "postgres://",
        ),
        ("[inbox]", "[inbox]\npostgres_ca = \"certs/internal-ca.pem\"", "postgres_ca", "no effect without", "remove"),
        ("\"30d\"", "\"1s\"", "\"1s\"", "out of range", "1h"),
    ] {
        let text = GOOD_WEBHOOKS.replacen(from, to, 1);
        assert_ne!(text, GOOD_WEBHOOKS, "{from}");
        assert_refused(&folder, &text, part, message, suggestion);
    }
}

#[test]
fn each_mistake_in_a_destination_is_told_at_its_place() {
    let folder = Folder::new();
    let deliver = |more: &str| format!("name = \"billing\"\n{more}");
    for (more, part, message, suggestion) in [
        ("types = [\"invoice*\"]", "\"invoice*\"", "no type of events", "invoice.*"),
        ("types = [\"*\"]", "\"*\"", "no type of events", "leave `types` out"),
        ("timeout = \"1ms\"", "\"1ms\"", "out of range", "10ms"),
        ("concurrency = 0", "0\nto =", "out of range", "1 to 1000"),
        ("retry = { first = \"1ms\" }", "\"1ms\"", "out of range", "10ms"),
        ("retry = { first = \"2h\" }", "\"2h\"", "`longest` is shorter", "grow"),
        ("ca = \"certs/internal-ca.pem\"", "ca = ", "no effect", "https://"),
        ("ordered = \"yes\"", "\"yes\"", "true or false", "without quotes"),
        ("sekret = 1", "sekret", "unknown key", "did you mean `secret`?"),
    ] {
        let text = GOOD_WEBHOOKS.replacen("name = \"billing\"", &deliver(more), 1);
        assert_refused(&folder, &text, part, message, suggestion);
    }
}

#[test]
fn a_path_is_a_route_s_or_a_webhook_s_and_there_must_be_either() {
    let folder = Folder::new();
    let same = GOOD.to_owned()
        + GOOD_WEBHOOKS.split_once("[[webhooks]]").map(|(_, rest)| "[[webhooks]]".to_owned() + rest).unwrap().as_str();
    let same = same.replace("/stripe/events", "/shipping/x").replace("/shipping/orders/", "/shipping/x");
    assert_refused(&folder, &same, "\"/shipping/x\"\nsecrets", "is the path of a route", "another");
    let neither = GOOD_WEBHOOKS.split_once("[[webhooks]]").unwrap().0;
    let errors = folder.errors(neither).to_string();
    assert!(errors.contains("`routes` is missing") && errors.contains("`apps` is missing"), "{errors}");
}

fn assert_refused(folder: &Folder, text: &str, part: &str, message: &str, suggestion: &str) {
    let errors = folder.errors(text);
    let place = place_of(text, part);
    assert_eq!(errors.len(), 1, "{text}\n{errors}");
    let only = errors.iter().next().unwrap();
    assert_eq!((only.line(), only.column()), (Some(place.0), Some(place.1)), "{text}\n{errors}");
    assert!(only.message.contains(message), "{errors}");
    assert!(only.suggestion.as_ref().is_some_and(|text| text.contains(suggestion)), "{errors}");
    assert!(!errors.to_string().contains("0123456789abcdef"), "{errors}");
}

#[test]
fn risks_are_warned_of() {
    let folder = Folder::new();
    folder.put("url", "postgres://u:p@db.intranet/c?sslmode=disable");
    for (from, to, key, risk) in [
        ("secret = { file = \"secrets/billing-internal.whsec\" }\n", "", "webhooks.0.deliver.0.to", "not signed"),
        (
            "[inbox]",
            "[inbox]\nunsafe_plain_postgres = true\npostgres = { file = \"url\" }",
            "inbox.unsafe_plain_postgres",
            "in the clear",
        ),
        ("[[webhooks.deliver]]", "mode = \"direct\"\n[[webhooks.deliver]]", "inbox", "no effect"),
    ] {
        let warnings = folder.warnings(&GOOD_WEBHOOKS.replacen(from, to, 1));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].0 == key && warnings[0].2.contains(risk), "{warnings:?}");
    }
}

#[test]
fn a_connection_to_a_database_is_plain_only_where_that_is_safe_or_wished() {
    let folder = Folder::new();
    for (url, more, is_plain) in [
        ("postgres://u:p@127.0.0.1/c", "", true),
        ("postgres://u:p@%2Frun%2Fpostgresql/c", "", true),
        ("postgres://u:p@localhost/c?sslmode=require", "postgres_ca = \"certs/internal-ca.pem\"", false),
        ("postgres://u:p@db.intranet/c", "postgres_ca = \"certs/internal-ca.pem\"", false),
        ("postgres://u:p@127.0.0.1/c", "postgres_ca = \"certs/internal-ca.pem\"", false),
        ("postgres://u:p@db.intranet/c", "unsafe_plain_postgres = true", true),
        (
            "postgres://u:p@db.intranet,127.0.0.1/c?sslmode=verify-full",
            "postgres_ca = \"certs/internal-ca.pem\"",
            false,
        ),
    ] {
        folder.put("url", url);
        let text = GOOD_WEBHOOKS.replace("[inbox]", &format!("[inbox]\npostgres = {{ file = \"url\" }}\n{more}"));
        let config = folder.load(text, &[]).unwrap_or_else(|errors| panic!("{errors}"));
        let Store::Postgres(database) = config.inbox.store else { panic!() };
        assert_eq!(database.reach().tls.is_none(), is_plain, "{url} {more}");
        assert!(!format!("{database:?}").contains("u:p"));
    }
}

#[test]
fn check_shows_a_line_for_each_destination() {
    let folder = Folder::new();
    let text = GOOD_WEBHOOKS.replace("[inbox]", "types = [\"invoice.*\", \"charge.failed\"]\n[[webhooks]]\npath = \"/direct\"\nmode = \"direct\"\nlivemode = false\naccounts = [\"self\"]\nsecrets = [{ file = \"secrets/billing.whsec\" }]\ndeliver = [{ name = \"now\", to = \"https://now\" }]\n[inbox]");
    let path = folder.put("countersign.toml", text);
    let run = |format| {
        let mut out = Vec::new();
        assert_eq!(check::run(&path, false, format, &folder.environment(&[]), &mut out, &mut Vec::new()), 0);
        String::from_utf8(out).unwrap()
    };
    let text = run(check::Format::Text);
    let lines: Vec<_> =
        text.lines().take(3).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        [
            "WEBHOOK LIVEMODE ACCOUNTS MODE DESTINATION TYPES SIGNED TO",
            "/stripe/events true any inbox billing invoice.*, charge.failed yes http://billing.intranet:3000/stripe",
            "/direct false 1 direct now all no https://now/",
        ]
    );
    assert!(text.contains("CERTIFICATE"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&run(check::Format::Json)).unwrap();
    assert_eq!(json["webhooks"][1]["accounts"], serde_json::json!(["self"]));
    assert_eq!(json["webhooks"][0]["types"], serde_json::json!(["invoice.*", "charge.failed"]));
}

#[test]
fn a_reload_names_webhooks_by_path_and_destinations_by_name() {
    let folder = Folder::new();
    let load = |text: &str| folder.load(text, &[]).unwrap().outline;
    let before = load(GOOD_WEBHOOKS);
    let told = |text: &str| before.changes(&load(text)).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told(&GOOD_WEBHOOKS.replace("?x=1", "")), ["changed webhooks.\"/stripe/events\".deliver.billing.to"]);
    assert_eq!(
        told(&changed("version = 1", "version = 1")).iter().filter(|change| change.contains("webhooks")).count(),
        1
    );
}

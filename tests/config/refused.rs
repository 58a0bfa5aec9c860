//! Each mistake, with the place at which it is told and what is suggested.

use super::{Folder, GOOD, SECRET, changed, place_of};

/// What is changed in [`GOOD`], into what, the part at which the one error stands, and parts of its message and
/// suggestion.
type Case = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// PEM with something in it that is no certificate.
const BROKEN: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

fn assert_each_is_refused(cases: &[Case]) {
    let folder = Folder::new();
    folder.put("secrets/whsec", "whsec_0123456789abcdef");
    folder.put("secrets/sk", "sk_live_0123456789abcdef");
    folder.put("secrets/empty", "");
    folder.put("secrets/line", format!("{SECRET}\n"));
    folder.put("secrets/other", "0123456789abcdef");
    folder.put("secrets/same", SECRET);
    folder.put("secrets/binary", [0xff, 0xfe]);
    folder.put("certs/empty.pem", "");
    folder.put("certs/broken.pem", BROKEN);
    folder.load(GOOD, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    for (from, to, part, message, suggestion) in cases {
        let text = changed(from, to);
        let errors = folder.errors(&text);
        let (line, column) = place_of(&text, part);
        assert_eq!(errors.len(), 1, "{to}\n{errors}");
        let only = errors.iter().next().unwrap();
        assert_eq!((only.line(), only.column()), (Some(line), Some(column)), "{to}\n{errors}");
        assert!(only.message.contains(message), "{to}\n{errors}");
        assert!(only.suggestion.as_ref().is_some_and(|text| text.contains(suggestion)), "{to}\n{errors}");
        assert!(!errors.to_string().contains("0123456789abcdef"), "{to}\n{errors}");
    }
}

#[test]
fn keys_and_types_are_checked() {
    assert_each_is_refused(&[
        ("version = 1", "version = 1\nrate = 1", "rate", "unknown key `rate`", "does not have `rate` yet"),
        ("version = 1", "version = 1\naudit.on_error = \"stop\"", "\"stop\"", "no way to go on", "\"refuse\""),
        ("version = 1", "version = 1\naudit.checkpoint = { lines = 0 }", "0 }", "out of range", "1 to 1000000"),
        ("version = 1", "version = 1\naudit.checkpoint = { every = \"2h\" }", "\"2h\"", "out of range", "1s to 1h"),
        ("version = 1", "version = 1\naudit.segment = { size = 100 }", "100", "out of range", "64KiB"),
        ("version = 1", "version = 1\naudit.segment = { evry = \"1d\" }", "evry", "unknown key", "`every`"),
        ("version = 1", "version = 1\nzzz = 1", "zzz", "unknown key `zzz`", "known here: `version`"),
        ("version = 1", "version = 2", "2", "not known", "version = 1"),
        ("version = 1", "version = \"1\"", "\"1\"", "expected a whole number, found a string", "without quotes"),
        ("version = 1", "# nothing", "# nothing", "`version` is missing", "version = 1"),
        (
            "[apps.shipping]",
            "[apps.shipping]\ntolerence = \"5m\"",
            "tolerence",
            "unknown key",
            "did you mean `tolerance`?",
        ),
        ("app = \"shipping\"", "app = \"shipping\"\ntolerance = \"5m\"", "tolerance", "unknown key", "[apps.NAME]"),
        (
            "app = \"shipping\"",
            "app = \"shipping\"\nreplay = true",
            "replay",
            "unknown key",
            "does not have `replay` yet",
        ),
        ("upstream = \"orders\"", "upstream = \"orders\"\nresponse_timeout = 30", "30", "found a number", "\"30s\""),
        ("upstream = \"orders\"", "upstream = \"orders\"\nbody_limit = 1.5", "1.5", "found a fraction", "1MiB"),
        (
            "upstream = \"orders\"",
            "upstream = \"orders\"\nmethods = \"GET\"",
            "\"GET\"",
            "expected a list",
            "methods = [",
        ),
        ("upstream = \"orders\"", "upstream = \"orders\"\nmethods = []", "[]", "empty", "write methods = "),
        ("upstream = \"orders\"", "upstream = \"orders\"\nroles = [1]", "1]", "expected a string", "in quotes"),
        ("[apps.shipping]", "[log]\naccess = 1979-05-27\n[apps.shipping]", "1979", "found a date", "in quotes"),
        ("[apps.shipping]", "[limits]\nconnections = 0\n[apps.shipping]", "0\n[apps", "out of range", "1 to 1000000"),
        ("[apps.shipping]", "[limits]\ndrain = \"0s\"\n[apps.shipping]", "\"0s\"", "out of range", "1ms to 1d"),
        (
            "[apps.shipping]",
            "[limits]\ndrain = \"9999999999999d\"\n[apps.shipping]",
            "\"9999",
            "out of range",
            "1ms to 1d",
        ),
        ("[apps.shipping]", "[limits]\nhead_bytes = \"1KB\"\n[apps.shipping]", "\"1KB\"", "not a size", "64KiB"),
        (
            "[apps.shipping]",
            "[limits]\nhead_bytes = \"1KiB\"\n[apps.shipping]",
            "\"1KiB\"",
            "out of range",
            "8KiB to 1MiB",
        ),
        (
            "[apps.shipping]",
            "[limits]\nbody_bytes = \"512MiB\"\n[apps.shipping]",
            "\"512MiB\"",
            "does not fit",
            "buffered_bytes",
        ),
        (
            "[apps.shipping]",
            "[limits]\nbody_bytes = \"65MiB\"\n[apps.shipping]",
            "\"65MiB\"",
            "does not fit into `buffered_bytes_per_address`",
            "buffered_bytes_per_address",
        ),
        (
            "[apps.shipping]",
            "[limits]\nconnections_per_address = 0\n[apps.shipping]",
            "0\n[apps",
            "out of range",
            "1 to 1000000",
        ),
        ("[apps.shipping]", "[limits]\nidle_timeout = \"75\"\n[apps.shipping]", "\"75\"", "not a duration", "unit"),
        ("[apps.shipping]", "[log]\naccess = \"stderr\"\n[apps.shipping]", "\"stderr\"", "stderr", "stdout"),
        (
            "[apps.shipping]",
            "[limits]\nbody_bytes = 99999999999999999999\n[apps.shipping]",
            "9999",
            "out of range",
            "1B to 1GiB",
        ),
    ]);
}

#[test]
fn missing_tables_are_told() {
    let folder = Folder::new();
    let told = |text: &str| folder.errors(text).iter().map(|problem| problem.message.clone()).collect::<Vec<_>>();
    assert_eq!(
        told(""),
        ["`version` is missing", "`listener` is missing", "`apps` is missing", "`routes` is missing"]
            .map(str::to_owned)
    );
    let text = "version = 1\nroutes = []\n[apps]\n[listener]\n";
    let errors = folder.errors(text);
    let lines: Vec<_> = errors.iter().map(|problem| (problem.line().unwrap(), problem.message.as_str())).collect();
    assert_eq!(
        lines,
        [
            (2, "there is no route"),
            (3, "there is no app"),
            (4, "`address` is missing in [listener]"),
            (4, "`certificate` is missing in [listener]"),
            (4, "`private_key` is missing in [listener]"),
        ]
    );
}

#[test]
fn the_listener_is_checked() {
    assert_each_is_refused(&[
        ("\"0.0.0.0:8443\"", "\"localhost:8443\"", "\"localhost", "not an address", "0.0.0.0:8443"),
        ("\"0.0.0.0:8443\"", "\"0.0.0.0\"", "\"0.0.0.0\"", "not an address", "a port"),
        ("certs/gateway.pem", "certs/none.pem", "\"certs/none", "cannot be read: no such file", "chain"),
        ("certs/gateway.pem", "certs/empty.pem", "\"certs/empty", "no PEM certificate", "chain"),
        ("certs/gateway.key", "certs/gateway.pem", "\"certs/gateway.pem\"\n\n", "no PEM private key", "PKCS#8"),
        (
            "certs/gateway.key",
            "certs/foreign.key",
            "\"certs/foreign",
            "not the private key of the certificate",
            "issued for",
        ),
        ("[apps", "names = [\"https://a.b\"]\n[apps", "\"https", "not a host name", "gateway.example.com"),
        ("[apps", "names = [\"*.a.b\"]\n[apps", "\"*", "not a host name", "wildcard"),
        ("[apps", "trusted_proxies = [\"10.0.0.1/33\"]\n[apps", "\"10.", "no address and no range", "10.1.0.0/16"),
        ("[apps", "trusted_proxies = [\"::1\", \"proxy\"]\n[apps", "\"proxy", "no address and no range", "\"::1\""),
        ("[apps", "trusted_proxies = [\"10.0.0.5/8\"]\n[apps", "\"10.", "bits behind", "write 10.0.0.0/8"),
        ("[apps", "trusted_proxies = [\"0.0.0.0/0\"]\n[apps", "\"0.0.0.0/0", "everybody", "list the proxies"),
        ("[apps", "trusted_proxies = [\"::ffff:0:0/96\"]\n[apps", "\"::ffff", "everybody", "list the proxies"),
        ("[apps", "proxy_protocol = [\"::/0\"]\n[apps", "\"::/0", "everybody", "list the proxies"),
        ("[apps", "proxy_protocol = \"10.0.0.5\"\n[apps", "\"10.", "expected a list", "10.1.0.0/16"),
    ]);
}

#[test]
fn apps_are_checked() {
    const SECRETS: &str = "secrets = [{ file = \"secrets/shipping.absec\" }]";
    const ACCOUNTS: &str = "accounts = [\"acct_1JSkf6FRwUQjTSJE\"]";
    assert_each_is_refused(&[
        (ACCOUNTS, "", "[apps.shipping]", "`accounts` is missing in [apps.shipping]", "only says that some account"),
        (ACCOUNTS, "accounts = []", "[]", "empty", "acct_"),
        (ACCOUNTS, "accounts = [\"usr_1\"]", "\"usr_1\"", "not an account id", "`acct_`"),
        (
            "[apps.shipping]",
            "[apps.shipping]\nunsafe_any_account = true",
            "unsafe_any",
            "contradicts `accounts`",
            "line 11",
        ),
        (ACCOUNTS, "unsafe_any_account = \"yes\"", "\"yes\"", "expected true or false", "without quotes"),
        ("[apps.shipping]", "[apps.shipping]\ntolerance = \"11m\"", "\"11m\"", "at most 10m", "unsafe_tolerance"),
        ("[apps.shipping]", "[apps.shipping]\ntolerance = \"10ms\"", "\"10ms\"", "out of range", "1s to"),
        (
            "[apps.shipping]",
            "[apps.shipping]\ntolerance = \"5m\"\nunsafe_tolerance = \"1h\"",
            "unsafe_tolerance",
            "contradicts `tolerance`",
            "line 9",
        ),
        (SECRETS, "", "[apps.shipping]", "`secrets` is missing in [apps.shipping]", "{ file ="),
        (SECRETS, "secrets = []", "[]", "empty", "{ file ="),
        (SECRETS, "secrets = [{ }]", "{ }", "says not where", "{ env ="),
        (SECRETS, "secrets = [{ fil = \"x\" }]", "fil = ", "unknown key `fil`", "did you mean `file`?"),
        (SECRETS, "secrets = [{ file = \"x\", env = \"Y\" }]", "env =", "one source", "keep one"),
        (SECRETS, "secrets = [\"absec_0123456789abcdef\"]", "\"absec", "not written into", "roll it"),
        (SECRETS, "secrets = \"0123456789abcdef\"", "\"0123", "not written into", "{ file ="),
        (
            SECRETS,
            "secrets = [{ file = \"secrets/none\" }]",
            "\"secrets/none",
            "cannot be read: no such file",
            "put the",
        ),
        (SECRETS, "secrets = [{ file = \"secrets/whsec\" }]", "\"secrets/whsec", "webhook endpoint's", "Dashboard"),
        (SECRETS, "secrets = [{ file = \"secrets/sk\" }]", "\"secrets/sk", "API key", "Dashboard"),
        (SECRETS, "secrets = [{ file = \"secrets/empty\" }]", "\"secrets/empty", "empty", "copy"),
        (SECRETS, "secrets = [{ file = \"secrets/line\" }]", "\"secrets/line", "white space", "printf"),
        (SECRETS, "secrets = [{ file = \"secrets/other\" }]", "\"secrets/other", "begins with absec_", "Dashboard"),
        (SECRETS, "secrets = [{ file = \"secrets/binary\" }]", "\"secrets/binary", "not text", "ASCII"),
        (SECRETS, "secrets = [{ env = \"NOT_SET\" }]", "\"NOT_SET", "`NOT_SET` is not set", "set it"),
        (SECRETS, "secrets = [{ credential = \"none\" }]", "\"none", "cannot be read", "LoadCredential"),
        (SECRETS, "secrets = [{ credential = \"../a\" }]", "\"../a", "not a name", "without a path"),
        (
            SECRETS,
            "secrets = [{ file = \"secrets/shipping.absec\" }, { file = \"secrets/same\" }]",
            "\"secrets/same",
            "has already",
            "remove one",
        ),
        (
            SECRETS,
            "secrets = [{ file = \"secrets/shipping.absec\" }, { env = \"SHIPPING_ABSEC_NEXT\" }, { file = \"secrets/reports.absec\" }]",
            "{ file = \"secrets/reports",
            "two while",
            "remove",
        ),
        (
            "[upstreams",
            "[apps.\"a b\"]\nsecrets = [{ file = \"secrets/reports.absec\" }]\naccounts = [\"acct_1\"]\n[upstreams",
            "\"a b\"",
            "no usable name",
            "letters",
        ),
    ]);
}

#[test]
fn upstreams_are_checked() {
    const SERVERS: &str = "servers = [\"http://10.0.4.7:8080\", \"http://10.0.4.8:8080\"]";
    const HTTPS: &str = "servers = [\"https://a:1\", \"https://b:1\"]\n";
    assert_eq!(HTTPS.lines().count(), 1);
    assert_each_is_refused(&[
        (SERVERS, "", "[upstreams.orders]", "`servers` is missing", "servers ="),
        (SERVERS, "servers = []", "[]", "empty", "http://"),
        (SERVERS, "servers = [\"orders:80\", \"http://b\"]", "\"orders:80", "not a URL", "http://orders.intranet:8080"),
        (SERVERS, "servers = [\"http://a\", \"http://b/api\"]", "\"http://b/", "has a path", "upstream_path"),
        (SERVERS, "servers = [\"http://a\", \"http://b/\"]", "\"http://b/", "has a path", "upstream_path"),
        (SERVERS, "servers = [\"http://a\", \"http://u:0123456789abcdef@b\"]", "\"http://u", "has a user", "secret"),
        (SERVERS, "servers = [\"http://a\", \"http://b?q\"]", "\"http://b", "query", "remove"),
        (SERVERS, "servers = [\"http://a\", \"ftp://b\"]", "\"ftp", "scheme", "https://"),
        (SERVERS, "servers = [\"http://a\", \"http://b:x\"]", "\"http://b", "port", "65535"),
        (
            SERVERS,
            "servers = [\"http://a\", \"http://169.254.169.254\"]",
            "\"http://169",
            "link-local",
            "unsafe_link_local",
        ),
        (SERVERS, "servers = [\"http://a\", \"http://[fe80::1]\"]", "\"http://[", "link-local", "unsafe_link_local"),
        (
            SERVERS,
            "servers = [\"http://a\", \"http://metadata.google.internal\"]",
            "\"http://m",
            "metadata",
            "unsafe_link",
        ),
        (SERVERS, "servers = [\"http://a\", \"unix:orders.sock\"]", "\"unix", "socket", "unix:/run/"),
        ("[upstreams.orders]", "[upstreams.orders]\nhealth = \"/h\"", "\"/h", "expected a table", "health = {"),
        ("[upstreams.orders]", "[upstreams.orders]\nhealth = {}", "{}", "`path` is missing", "/healthz"),
        (
            "[upstreams.orders]",
            "[upstreams.orders]\nhealth = { path = \"healthz\" }",
            "\"healthz",
            "is not a path",
            "begins with a slash",
        ),
        (
            "[upstreams.orders]",
            "[upstreams.orders]\nhealth = { path = \"/h\", unhealthy = 0 }",
            "0 }",
            "out of range",
            "1 to 100",
        ),
        ("[upstreams.orders]", "[upstreams.orders]\nretry_budget = 101", "101", "out of range", "0 to 100"),
        ("[upstreams.orders]", "[upstreams.orders]\nmax_in_flight = 0", "0\nserv", "out of range", "1 to 1000000"),
        ("[upstreams.orders]", "[upstreams.orders]\nconnect_timeout = \"2d\"", "\"2d\"", "out of range", "1ms to 1d"),
        ("[upstreams.orders]", "[upstreams.orders]\nca = \"certs/internal-ca.pem\"", "ca =", "no effect", "https://"),
        (
            SERVERS,
            "servers = [\"https://a\", \"https://b\"]\nca = \"certs/none\"",
            "\"certs/none",
            "cannot be read",
            "PEM",
        ),
        (
            SERVERS,
            "servers = [\"https://a\", \"https://b\"]\nca = \"certs/internal-ca.pem\"\nclient_key = \"certs/client.key\"",
            "client_key",
            "no `client_certificate`",
            "both",
        ),
        (
            SERVERS,
            "servers = [\"https://a\", \"https://b\"]\nca = \"certs/internal-ca.pem\"\nclient_certificate = \"certs/client.pem\"\n\
             client_key = \"certs/foreign.key\"",
            "\"certs/foreign",
            "not the private key",
            "issued for",
        ),
        (
            SERVERS,
            "servers = [\"https://a\", \"https://b\"]\nca = \"certs/internal-ca.pem\"\nserver_name = \"a b\"",
            "\"a b\"",
            "not a host name",
            "certificate",
        ),
    ]);
}

#[test]
fn routes_are_checked() {
    const PATH: &str = "path = \"/shipping/orders/\"";
    const APP: &str = "app = \"shipping\"";
    const UPSTREAM: &str = "upstream = \"orders\"";
    assert_each_is_refused(&[
        (PATH, "", "[[routes]]", "`path` is missing in this route", "path ="),
        (PATH, "path = \"orders\"", "\"orders\"\napp", "does not begin with a slash", "`/`"),
        (PATH, "path = \"/a/../b\"", "\"/a/", "dot segment", "literally"),
        (PATH, "path = \"http://a/b\"", "\"http://a/b", "is not a path", "the path alone"),
        (
            UPSTREAM,
            "upstream = \"h2c://orders:80\"\nwebsocket = true",
            "true",
            "cannot be opened over h2c",
            "http:// or https://",
        ),
        (APP, "", "[[routes]]", "`app` is missing in this route", "app ="),
        (APP, "app = \"shiping\"", "\"shiping\"", "no app is called `shiping`", "did you mean `shipping`?"),
        (APP, "app = \"invoices\"", "\"invoices\"", "no app is called", "known apps: `shipping`"),
        (UPSTREAM, "", "[[routes]]", "`upstream` is missing in this route", "upstream ="),
        (UPSTREAM, "upstream = \"order\"", "\"order\"", "no upstream is called `order`", "did you mean `orders`?"),
        (UPSTREAM, "upstream = \"orders.intranet:80\"", "\"orders.in", "no upstream is called", "http://"),
        (UPSTREAM, "upstream = \"http://a/api\"", "\"http://a", "has a path in it", "upstream_path"),
        (UPSTREAM, "upstream = \"http://169.254.169.254\"", "\"http://169", "link-local", "unsafe_link_local"),
        (UPSTREAM, "upstream = \"orders\"\nupstream_path = \"api\"", "\"api\"", "not a path", "`/`"),
        (UPSTREAM, "upstream = \"orders\"\nmethods = [\"get\"]", "\"get\"", "not in capitals", "\"GET\""),
        (UPSTREAM, "upstream = \"orders\"\nmethods = [\"G T\"]", "\"G T\"", "not a method", "methods ="),
        (UPSTREAM, "upstream = \"orders\"\nmethods = [\"OPTIONS\"]", "\"OPTIONS\"", "cannot be", "preflights"),
        (UPSTREAM, "upstream = \"orders\"\nmethods = [\"CONNECT\"]", "\"CONNECT\"", "cannot be", "tunnel"),
        (UPSTREAM, "upstream = \"orders\"\nmethods = [\"TRACE\"]", "\"TRACE\"", "cannot be", "echoes"),
        (UPSTREAM, "upstream = \"orders\"\nroles = [\"a,b\"]", "\"a,b\"", "not an id", "role id"),
        (UPSTREAM, "upstream = \"orders\"\nusers = [\"acct_1\"]", "\"acct_1\"", "not an id", "usr_"),
        ("signed = \"body\"", "signed = \"request\"", "\"request\"", "not what a signature can cover", "\"body\""),
        (UPSTREAM, "upstream = \"orders\"\nbody_limit = \"1GiB\"", "\"1GiB\"", "does not fit", "buffered_bytes"),
        (UPSTREAM, "upstream = \"orders\"\nbody_limit = 0", "0\nsigned", "out of range", "1B to 1TiB"),
        (
            "signed = \"body\"",
            "signed = \"body\"\n[[routes]]\npath = \"/shipping/%6frders/\"\napp = \"shipping\"\nupstream = \"orders\"",
            "\"/shipping/%6f",
            "escapes a letter",
            "literally",
        ),
        (
            "signed = \"body\"",
            "signed = \"body\"\n\n[[routes]]\napp = \"shipping\"\nupstream = \"orders\"\n  path = '/shipping/orders/'",
            "'/shipping",
            "is the same as the one on line 16",
            "remove one",
        ),
    ]);
}

#[test]
fn header_edits_are_checked() {
    const AT: &str = "signed = \"body\"";
    assert_each_is_refused(&[
        (AT, "request_headers = { set = { Host = \"a\" } }", "Host", "not for a route to edit", "the upstream's own"),
        (AT, "request_headers = { set = { Countersign-User = \"a\" } }", "Counter", "not for a route", "proven"),
        (AT, "request_headers = { set = { countersign_user = \"a\" } }", "counter", "not for a route", "proven"),
        (AT, "request_headers = { remove = [\"X-Forwarded-For\"] }", "\"X-For", "not for a route", "connection"),
        (AT, "request_headers = { remove = [\"X-Request-Id\"] }", "\"X-Req", "not for a route", "logs"),
        (AT, "request_headers = { remove = [\"Connection\"] }", "\"Conn", "not for a route", "one connection"),
        (AT, "request_headers = { set = { Content-Length = \"1\" } }", "Content", "not for a route", "smuggled"),
        (AT, "request_headers = { set = { Stripe-Signature = \"1\" } }", "Stripe", "not for a route", "Countersign-"),
        (
            AT,
            "response_headers = { set = { Access-Control-Allow-Origin = \"*\" } }",
            "Access",
            "not for a route",
            "gateway's own",
        ),
        (AT, "response_headers = { set = { \"a b\" = \"1\" } }", "\"a b\"", "not a header name", "hyphens"),
        (AT, "response_headers = { set = { X-A = \"1\", x-a = \"2\" } }", "x-a", "edited twice", "keep one"),
        (AT, "response_headers = { set = { X-A = 1 } }", "1 }", "expected a string, found a number", "quotes"),
        (AT, "response_headers = { set = { X-A = \"a\\nb\" } }", "\"a\\n", "holds a character", "ASCII"),
        (AT, "response_headers = { set = { X-A = \"é\" } }", "\"é", "holds a character", "ASCII"),
        (AT, "response_headers = { secret = { } }", "secret = { }", "unknown key `secret`", "[routes.request_headers]"),
        (AT, "response_headers = { remove = [] }", "[] }", "empty", "remove ="),
        (
            AT,
            "request_headers = { set = { Authorization = \"Bearer 0123456789abcdef\" } }",
            "\"Bearer",
            "holds a secret",
            "secret = { Authorization",
        ),
        (
            AT,
            "request_headers = { set = { X-Key = \"sk_live_0123456789abcdef\" } }",
            "\"sk_",
            "holds a secret",
            "secret = {",
        ),
        (
            AT,
            "request_headers = { secret = { X-Key = \"0123456789abcdef\" } }",
            "\"0123",
            "not written into",
            "{ file =",
        ),
        (
            AT,
            "request_headers = { secret = { X-Key = { file = \"secrets/line\" } } }",
            "\"secrets/line",
            "line feed",
            "printf",
        ),
        (
            AT,
            "request_headers = { secret = { X-Key = { file = \"secrets/empty\" } } }",
            "\"secrets/empty",
            "is empty",
            "whole",
        ),
    ]);
}

const PAIR: &str = "certificate = \"certs/gateway.pem\"\nprivate_key = \"certs/gateway.key\"\n";
const OTHER: &str = "[[listener.certificates]]\ncertificate = \"certs/other.pem\"\nprivate_key = \"certs/other.key\"\n";

/// Cases whose listener has its certificate by ACME: what is changed in the table, and in the listener's names.
fn by_acme(acme: &str, names: &str) -> String {
    changed(PAIR, &format!("{names}\n[acme]\n{acme}\n"))
}

#[test]
fn certificates_are_checked() {
    assert_each_is_refused(&[
        ("private_key = \"certs/gateway.key\"", "", "[listener]", "`private_key` is missing", "or an [acme] table"),
        ("certificate = \"certs/gateway.pem\"", "", "[listener]", "`certificate` is missing", "or an [acme] table"),
        ("[apps", "client_ca = \"certs/none.pem\"\n[apps", "\"certs/none", "no such file", "authority's certificates"),
        ("[apps", "client_ca = \"certs/empty.pem\"\n[apps", "\"certs/empty", "no PEM certificate", "authority"),
        (
            "[apps",
            "client_ca = \"certs/gateway.key\"\n[apps",
            "\"certs/gateway.key\"\n[apps",
            "no PEM cert",
            "authority",
        ),
        (
            "[apps",
            "client_ca = \"certs/broken.pem\"\n[apps",
            "\"certs/broken",
            "no certificate of a known form",
            "authority",
        ),
        (
            "[apps",
            "certificates = \"certs/other.pem\"\n[apps",
            "\"certs/other",
            "expected a list",
            "[[listener.certificates]]",
        ),
    ]);
    let folder = Folder::new();
    folder.put("certs/broken.pem", BROKEN);
    for (from, to, message, suggestion) in [
        ("private_key = \"certs/other.key\"\n", "", "`private_key` is missing in this certificate", "certs/other.key"),
        ("certificate = \"certs/other.pem\"\n", "", "`certificate` is missing in this certificate", "certs/other.pem"),
        ("certs/other.key", "certs/foreign.key", "not the private key of the certificate", "issued for"),
        ("certs/other.pem", "certs/none.pem", "no such file", "leaf first"),
        ("certs/other.pem", "certs/broken.pem", "no certificate of a known form", "leaf first"),
        ("certs/other.key", "certs/other.key\"\nnames = [\"a\"]\na = \"", "unknown key", "[listener]"),
    ] {
        let text = changed("[apps", &format!("{}[apps", OTHER.replacen(from, to, 1)));
        let errors = folder.errors(&text);
        let found = errors.iter().any(|problem| {
            problem.message.contains(message)
                && problem.suggestion.as_ref().is_some_and(|text| text.contains(suggestion))
        });
        assert!(found, "{to}\n{errors}");
    }
}

#[test]
fn a_certificate_by_acme_is_checked() {
    const NAMES: &str = "names = [\"gateway.example.com\"]";
    const GOOD_ACME: &str =
        "accept_terms = true\nchallenge = \"tls-alpn-01\"\ndirectory_ca = \"certs/internal-ca.pem\"";
    const ALPN: &str = "challenge = \"tls-alpn-01\"";
    let folder = Folder::new();
    let good = folder.load(by_acme(GOOD_ACME, NAMES), &[]).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(good.listener.certificates.is_standing_in());
    assert_eq!(good.acme.unwrap().names, ["gateway.example.com"]);
    for (from, to, part, message, suggestion) in [
        ("accept_terms = true", "", "[acme]", "`accept_terms` is missing in [acme]", "accept_terms = true"),
        ("= true", "= false", "false", "without agreeing", "accept_terms = true"),
        ("= true", "= \"yes\"", "\"yes\"", "expected true or false", "without quotes"),
        (ALPN, "", "[acme]", "`challenge` is missing", "http-01"),
        (ALPN, "challenge = \"dns-01\"", "\"dns-01\"", "no challenge that can be answered", "tls-alpn-01"),
        (ALPN, "challenge = \"http-01\"", "[acme]", "`http_address` is missing", "0.0.0.0:80"),
        (ALPN, "challenge = \"http-01\"\nhttp_address = \"80\"", "\"80\"", "not an address", "0.0.0.0:80"),
        (
            ALPN,
            "challenge = \"http-01\"\nhttp_address = \"0.0.0.0:8443\"",
            "\"0.0.0.0:8443\"\nd",
            "own address",
            "port",
        ),
        (
            ALPN,
            "challenge = \"tls-alpn-01\"\nhttp_address = \"0.0.0.0:80\"",
            "http_address",
            "`http_address` has no effect",
            "http-01",
        ),
        (
            ALPN,
            "challenge = \"tls-alpn-01\"\ndirectory = \"http://ca\"",
            "\"http://ca",
            "not the directory",
            "https://",
        ),
        (ALPN, "challenge = \"tls-alpn-01\"\ndirectory = \"ca\"", "\"ca\"", "not the directory", "https://"),
        (ALPN, "challenge = \"tls-alpn-01\"\ncontact = [\"it@example.com\"]", "\"it@", "not a contact", "mailto:"),
        (ALPN, "challenge = \"tls-alpn-01\"\ncontact = [\"mailto:it\"]", "\"mailto:it", "not a contact", "mailto:"),
        (ALPN, "challenge = \"tls-alpn-01\"\nemail = \"it\"", "email", "unknown key", "known here"),
        ("certs/internal-ca.pem", "certs/none.pem", "\"certs/none", "no such file", "server's authority"),
        ("certs/internal-ca.pem", "certs/gateway.key", "\"certs/gateway.key\"", "no PEM certificate", "authority"),
    ] {
        assert!(GOOD_ACME.contains(from), "{from}");
        assert_one(&folder, &by_acme(&GOOD_ACME.replacen(from, to, 1), NAMES), part, message, suggestion);
    }
    for (names, part, message, suggestion) in [
        ("", "[acme]", "for which names", "names = ["),
        ("names = []", "[acme]", "for which names", "names = ["),
        ("names = [\"a.test\", \"192.0.2.1\"]", "\"192.0.2.1\"", "not for addresses", "in place of [acme]"),
        ("names = [\"[2001:db8::1]\"]", "\"[2001", "not for addresses", "in place of [acme]"),
        ("names = [\"*.a.test\"]", "\"*.a.test\"", "not a host name", "wildcard"),
    ] {
        assert_one(&folder, &by_acme(GOOD_ACME, names), part, message, suggestion);
    }
    for half in PAIR.lines() {
        let text = by_acme(GOOD_ACME, &format!("{NAMES}\n{half}"));
        assert_one(&folder, &text, half.split(' ').next().unwrap(), "contradicts [acme]", "[[listener.certificates]]");
    }
    // Both of a pair are told.
    assert_eq!(folder.errors(by_acme(GOOD_ACME, &format!("{NAMES}\n{PAIR}"))).len(), 2);
}

fn assert_one(folder: &Folder, text: &str, part: &str, message: &str, suggestion: &str) {
    let errors = folder.errors(text);
    assert_eq!(errors.len(), 1, "{text}\n{errors}");
    let only = errors.iter().next().unwrap();
    let (line, column) = place_of(text, part);
    assert_eq!((only.line(), only.column()), (Some(line), Some(column)), "{text}\n{errors}");
    assert!(only.message.contains(message), "{text}\n{errors}");
    assert!(only.suggestion.as_ref().is_some_and(|text| text.contains(suggestion)), "{text}\n{errors}");
}

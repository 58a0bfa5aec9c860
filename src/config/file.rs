//! The keys of the configuration file, as they are written.
//!
//! `NAME` stands for a name that the administrator chooses; a list of tables, such as `[[routes]]`, is written like a
//! table. Whatever is not listed here is an unknown key.

/// A key that may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The whole name, from the top, with dots.
    pub path: &'static str,
    pub kind: Kind,
    pub default: Absent,
}

/// What a key's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Table,
    /// A table whose keys are names of the administrator's choice.
    Names,
    /// A list of tables.
    Tables,
    Text,
    Texts,
    Count,
    Flag,
    Duration,
    Size,
}

/// What holds where a key is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It must not be left out.
    Required,
    /// Nothing stands in its place.
    Nothing,
    /// As one would write it, in TOML.
    Value(&'static str),
}

use Absent::{Nothing, Required, Value};
use Kind::{Count, Duration, Flag, Names, Size, Table, Tables, Text, Texts};

/// Every key there is.
pub const KEYS: &[Key] = &[
    key("version", Count, Required),
    key("state_directory", Text, Value("\"state\"")),
    key("listener", Table, Required),
    key("listener.address", Text, Required),
    key("listener.certificate", Text, Nothing),
    key("listener.private_key", Text, Nothing),
    key("listener.certificates", Tables, Nothing),
    key("listener.certificates.certificate", Text, Required),
    key("listener.certificates.private_key", Text, Required),
    key("listener.client_ca", Text, Nothing),
    key("listener.trusted_proxies", Texts, Value("[]")),
    key("listener.proxy_protocol", Texts, Value("[]")),
    key("listener.names", Texts, Value("[]")),
    key("operations", Table, Nothing),
    key("operations.address", Text, Required),
    key("acme", Table, Nothing),
    key("acme.directory", Text, Value("\"https://acme-v02.api.letsencrypt.org/directory\"")),
    key("acme.contact", Texts, Nothing),
    key("acme.accept_terms", Flag, Required),
    key("acme.challenge", Text, Required),
    key("acme.http_address", Text, Nothing),
    key("acme.directory_ca", Text, Nothing),
    key("apps", Names, Nothing),
    key("apps.NAME", Table, Nothing),
    key("apps.NAME.secrets", Tables, Required),
    key("apps.NAME.secrets.file", Text, Nothing),
    key("apps.NAME.secrets.env", Text, Nothing),
    key("apps.NAME.secrets.credential", Text, Nothing),
    key("apps.NAME.accounts", Texts, Nothing),
    key("apps.NAME.unsafe_any_account", Flag, Value("false")),
    key("apps.NAME.tolerance", Duration, Value("\"5m\"")),
    key("apps.NAME.unsafe_tolerance", Duration, Nothing),
    key("apps.NAME.allow_account_only", Flag, Value("false")),
    key("upstreams", Names, Nothing),
    key("upstreams.NAME", Table, Nothing),
    key("upstreams.NAME.servers", Texts, Required),
    key("upstreams.NAME.connect_timeout", Duration, Value("\"3s\"")),
    key("upstreams.NAME.response_timeout", Duration, Value("\"30s\"")),
    key("upstreams.NAME.idle_timeout", Duration, Value("\"60s\"")),
    key("upstreams.NAME.max_in_flight", Count, Value("1024")),
    key("upstreams.NAME.max_queued", Count, Value("1024")),
    key("upstreams.NAME.queue_timeout", Duration, Value("\"3s\"")),
    key("upstreams.NAME.dns_ttl", Duration, Value("\"30s\"")),
    key("upstreams.NAME.health", Table, Nothing),
    key("upstreams.NAME.health.path", Text, Required),
    key("upstreams.NAME.health.every", Duration, Value("\"10s\"")),
    key("upstreams.NAME.health.timeout", Duration, Value("\"2s\"")),
    key("upstreams.NAME.health.healthy", Count, Value("2")),
    key("upstreams.NAME.health.unhealthy", Count, Value("3")),
    key("upstreams.NAME.eject_after", Count, Value("5")),
    key("upstreams.NAME.eject_for", Duration, Value("\"10s\"")),
    key("upstreams.NAME.retry_budget", Count, Value("20")),
    key("upstreams.NAME.ca", Text, Nothing),
    key("upstreams.NAME.client_certificate", Text, Nothing),
    key("upstreams.NAME.client_key", Text, Nothing),
    key("upstreams.NAME.server_name", Text, Nothing),
    key("upstreams.NAME.unsafe_link_local", Flag, Value("false")),
    key("routes", Tables, Nothing),
    key("routes.path", Text, Required),
    key("routes.app", Text, Required),
    key("routes.upstream", Text, Required),
    key("routes.upstream_path", Text, Nothing),
    key("routes.methods", Texts, Value("[\"GET\", \"HEAD\", \"POST\"]")),
    key("routes.roles", Texts, Nothing),
    key("routes.users", Texts, Nothing),
    key("routes.signed", Text, Value("\"identity\"")),
    key("routes.body_limit", Size, Nothing),
    key("routes.response_timeout", Duration, Nothing),
    key("routes.websocket", Flag, Value("false")),
    key("routes.request_headers", Table, Nothing),
    key("routes.request_headers.set", Names, Nothing),
    key("routes.request_headers.set.NAME", Text, Nothing),
    key("routes.request_headers.secret", Names, Nothing),
    key("routes.request_headers.secret.NAME", Table, Nothing),
    key("routes.request_headers.secret.NAME.file", Text, Nothing),
    key("routes.request_headers.secret.NAME.env", Text, Nothing),
    key("routes.request_headers.secret.NAME.credential", Text, Nothing),
    key("routes.request_headers.remove", Texts, Nothing),
    key("routes.response_headers", Table, Nothing),
    key("routes.response_headers.set", Names, Nothing),
    key("routes.response_headers.set.NAME", Text, Nothing),
    key("routes.response_headers.remove", Texts, Nothing),
    key("webhooks", Tables, Nothing),
    key("webhooks.path", Text, Required),
    key("webhooks.secrets", Tables, Required),
    key("webhooks.secrets.file", Text, Nothing),
    key("webhooks.secrets.env", Text, Nothing),
    key("webhooks.secrets.credential", Text, Nothing),
    key("webhooks.livemode", Flag, Value("true")),
    key("webhooks.accounts", Texts, Nothing),
    key("webhooks.body_limit", Size, Value("\"1MiB\"")),
    key("webhooks.sources", Table, Nothing),
    key("webhooks.sources.file", Text, Required),
    key("webhooks.mode", Text, Value("\"inbox\"")),
    key("webhooks.deliver", Tables, Required),
    key("webhooks.deliver.name", Text, Required),
    key("webhooks.deliver.to", Text, Required),
    key("webhooks.deliver.types", Texts, Nothing),
    key("webhooks.deliver.accounts", Texts, Nothing),
    key("webhooks.deliver.secret", Table, Nothing),
    key("webhooks.deliver.secret.file", Text, Nothing),
    key("webhooks.deliver.secret.env", Text, Nothing),
    key("webhooks.deliver.secret.credential", Text, Nothing),
    key("webhooks.deliver.timeout", Duration, Value("\"10s\"")),
    key("webhooks.deliver.concurrency", Count, Value("4")),
    key("webhooks.deliver.ordered", Flag, Value("false")),
    key("webhooks.deliver.retry", Table, Nothing),
    key("webhooks.deliver.retry.first", Duration, Value("\"1s\"")),
    key("webhooks.deliver.retry.longest", Duration, Value("\"1h\"")),
    key("webhooks.deliver.retry.give_up", Duration, Value("\"3d\"")),
    key("webhooks.deliver.ca", Text, Nothing),
    key("webhooks.deliver.client_certificate", Text, Nothing),
    key("webhooks.deliver.client_key", Text, Nothing),
    key("webhooks.deliver.server_name", Text, Nothing),
    key("inbox", Table, Nothing),
    key("inbox.postgres", Table, Nothing),
    key("inbox.postgres.file", Text, Nothing),
    key("inbox.postgres.env", Text, Nothing),
    key("inbox.postgres.credential", Text, Nothing),
    key("inbox.postgres_ca", Text, Nothing),
    key("inbox.unsafe_plain_postgres", Flag, Value("false")),
    key("inbox.retention", Duration, Value("\"30d\"")),
    key("log", Table, Nothing),
    key("log.access", Text, Value("\"stdout\"")),
    key("audit", Table, Nothing),
    key("audit.on_error", Text, Value("\"refuse\"")),
    key("audit.checkpoint", Table, Nothing),
    key("audit.checkpoint.lines", Count, Value("1000")),
    key("audit.checkpoint.every", Duration, Value("\"10s\"")),
    key("audit.segment", Table, Nothing),
    key("audit.segment.size", Size, Value("\"64MiB\"")),
    key("audit.segment.every", Duration, Value("\"1d\"")),
    key("limits", Table, Nothing),
    key("limits.connections", Count, Value("20000")),
    key("limits.connections_per_address", Count, Nothing),
    key("limits.head_bytes", Size, Value("\"32KiB\"")),
    key("limits.headers", Count, Value("100")),
    key("limits.handshake_timeout", Duration, Value("\"10s\"")),
    key("limits.head_timeout", Duration, Value("\"10s\"")),
    key("limits.body_bytes", Size, Value("\"1MiB\"")),
    key("limits.body_timeout", Duration, Value("\"30s\"")),
    key("limits.stream_bytes", Size, Value("\"16MiB\"")),
    key("limits.stream_rate", Size, Value("\"1KiB\"")),
    key("limits.stream_window", Duration, Value("\"30s\"")),
    key("limits.discard_bytes", Size, Value("\"16MiB\"")),
    key("limits.discard_timeout", Duration, Value("\"10s\"")),
    key("limits.idle_timeout", Duration, Value("\"75s\"")),
    key("limits.write_timeout", Duration, Value("\"30s\"")),
    key("limits.streams", Count, Value("100")),
    key("limits.drain", Duration, Value("\"30s\"")),
    key("limits.drain_delay", Duration, Value("\"0s\"")),
    key("limits.exchange_timeout", Duration, Value("\"1d\"")),
    key("limits.buffered_bytes_per_address", Size, Value("\"64MiB\"")),
    key("limits.websocket_age", Duration, Value("\"1h\"")),
    key("limits.websocket_idle_timeout", Duration, Value("\"5m\"")),
    key("limits.buffered_bytes", Size, Value("\"256MiB\"")),
];

/// Keys that belong to parts of the design which this version does not have.
pub(super) const LATER: &[&str] = &["rate", "replay"];

/// The names that may stand in the table `path`, empty for the document itself.
pub(super) fn names_in(path: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(move |key| {
        let (table, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        (table == path).then_some(name)
    })
}

/// The key of that whole name.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The one of `names` that was probably meant by `name`.
pub(super) fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let lower = name.to_lowercase();
    names
        .map(|known| (strsim::osa_distance(&lower, &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= 3 && distance * 3 <= known.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

const fn key(path: &'static str, kind: Kind, default: Absent) -> Key {
    Key { path, kind, default }
}

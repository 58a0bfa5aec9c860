//! What the environment says of traces, in the variables that OpenTelemetry has for it.
//!
//! What cannot be followed is told and left out, for traces are no reason not to start. Values are not told: keys of
//! collectors stand in them.
//!
//! Source: OpenTelemetry, <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/> and
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.

use std::{path::Path, str::FromStr, time::Duration};

use http::{
    HeaderName, HeaderValue, Uri,
    uri::{PathAndQuery, Scheme},
};
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

use super::Sampler;
use crate::{
    agent::{Agent, Ours},
    tls, version,
};

/// Where traces go, and which.
#[derive(Debug)]
pub struct Settings {
    pub(super) endpoint: Uri,
    pub(super) agent: Agent,
    /// How long one batch may take.
    pub(super) timeout: Duration,
    pub(super) sampler: Sampler,
    pub(super) resource: Resource,
    pub(super) queue: Queue,
}

/// How spans wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    /// Spans that wait at the most; those beyond are dropped.
    pub(super) spans: usize,
    /// Spans that are sent at once; as soon as there are so many, or after `delay`.
    pub(super) batch: usize,
    pub(super) delay: Duration,
}

/// Something in the environment that is not followed: which variable, and what is done instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub variable: &'static str,
    pub text: String,
}

const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const COMPRESSIONS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"];
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
const TIMEOUTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
const AUTHORITIES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
const CERTIFICATES: [&str; 2] =
    ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"];
const KEYS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"];
const SERVICE: &str = "OTEL_SERVICE_NAME";
const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
const QUEUE: &str = "OTEL_BSP_MAX_QUEUE_SIZE";
const BATCH: &str = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE";
const DELAY: &str = "OTEL_BSP_SCHEDULE_DELAY";
const EXPORT_TIMEOUT: &str = "OTEL_BSP_EXPORT_TIMEOUT";

/// What is appended to an endpoint of all signals.
const PATH: &str = "/v1/traces";
/// The most that is given room for, whatever the environment asks: some hundred megabytes.
const MOST_SPANS: usize = 100_000;
const OFF: &str = "no traces are sent";

impl Settings {
    /// What `var` says, which gives a variable's value; `None` where no traces are asked for, or none can be sent. Beside
    /// it stands what of the environment is not followed.
    pub fn read<'v>(var: impl Fn(&str) -> Option<&'v str>) -> (Option<Self>, Vec<Warning>) {
        let mut reader = Reader { var, warnings: Vec::new() };
        let settings = reader.settings();
        (settings, reader.warnings)
    }

    /// Where traces go, without what a URL may have before its host and behind it.
    pub fn collector(&self) -> String {
        let scheme = self.endpoint.scheme_str().unwrap_or_default();
        let host = self.endpoint.host().unwrap_or_default();
        let port = self.endpoint.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port}")
    }
}

struct Reader<F> {
    var: F,
    warnings: Vec<Warning>,
}

impl<'v, F: Fn(&str) -> Option<&'v str>> Reader<F> {
    fn settings(&mut self) -> Option<Settings> {
        let (variable, text) = self.first(&ENDPOINTS)?;
        if self.one(DISABLED).is_some_and(|text| text.eq_ignore_ascii_case("true")) || !self.is_exported() {
            return None;
        }
        let Some(endpoint) = endpoint(text, variable != ENDPOINTS[0]) else {
            self.warn(variable, format!("is no URL that begins with http:// or https://; {OFF}"));
            return None;
        };
        if endpoint.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            let text = "has a user or a password, which are not sent; put them into OTEL_EXPORTER_OTLP_HEADERS";
            self.warn(variable, text.to_owned());
        }
        let agent = if endpoint.scheme() == Some(&Scheme::HTTP) { Agent::Clear } else { self.agent(variable)? };
        self.look_at_protocol();
        self.look_at_headers();
        let timeout = self.milliseconds(&TIMEOUTS, 10_000).min(self.milliseconds(&[EXPORT_TIMEOUT], 30_000));
        let (sampler, resource, queue) = (self.sampler(), self.resource(), self.queue());
        Some(Settings { endpoint, agent, timeout, sampler, resource, queue })
    }

    /// Whether spans go to a collector by the protocol that is spoken here.
    fn is_exported(&mut self) -> bool {
        let Some(named) = self.one(EXPORTER) else { return true };
        let others: Vec<_> = named.split(',').map(str::trim).filter(|name| *name != "otlp").collect();
        let is_exported = named.split(',').any(|name| name.trim() == "otlp");
        if others.iter().any(|name| *name != "none") {
            let text = if is_exported {
                "names more than `otlp`, which alone is followed".to_owned()
            } else {
                format!("names neither `otlp` nor `none`; {OFF}")
            };
            self.warn(EXPORTER, text);
        }
        is_exported
    }

    /// How an `https://` collector is asked. Without what was meant to prove it nothing is sent at all.
    fn agent(&mut self, endpoint: &'static str) -> Option<Agent> {
        let roots = match self.first(&AUTHORITIES) {
            Some((variable, path)) => Some(self.usable(variable, tls::certificates(Path::new(path)))?),
            None => None,
        };
        let ours: Option<Ours> = match (self.first(&CERTIFICATES), self.first(&KEYS)) {
            (Some((certificate, chain)), Some((key, path))) => {
                let chain = self.usable(certificate, tls::certificates(Path::new(chain)))?;
                Some((chain, self.usable(key, tls::private_key(Path::new(path)))?))
            }
            (Some((variable, _)), None) | (None, Some((variable, _))) => {
                self.warn(variable, format!("is the half of a certificate and its key; {OFF}"));
                return None;
            }
            (None, None) => None,
        };
        self.usable(endpoint, Agent::tls(roots, ours))
    }

    fn usable<T>(&mut self, variable: &'static str, made: Result<T, tls::Error>) -> Option<T> {
        made.map_err(|error| self.warn(variable, format!("what it asks for {error}; {OFF}"))).ok()
    }

    fn look_at_protocol(&mut self) {
        if let Some((variable, _)) = self.first(&PROTOCOLS).filter(|(_, text)| *text != "http/protobuf") {
            self.warn(variable, "traces are sent as `http/protobuf` whatever it says".to_owned());
        }
        if let Some((variable, _)) = self.first(&COMPRESSIONS).filter(|(_, text)| *text != "none") {
            self.warn(variable, "traces are sent without compression".to_owned());
        }
    }

    /// They are read again by the exporter, which leaves out in silence what is none.
    fn look_at_headers(&mut self) {
        let Some((variable, text)) = self.first(&HEADERS) else { return };
        let is_header = |entry: &str| {
            entry.split_once('=').is_some_and(|(name, value)| {
                HeaderName::from_str(name.trim()).is_ok() && HeaderValue::from_str(&decoded(value.trim())).is_ok()
            })
        };
        let wrong = text.split_terminator(',').filter(|entry| !is_header(entry)).count();
        if wrong > 0 {
            let text = format!("{wrong} of its entries are no `name=value` that a header can be, and are left out");
            self.warn(variable, text);
        }
    }

    fn sampler(&mut self) -> Sampler {
        let Some(name) = self.one(SAMPLER) else { return Sampler::default() };
        let Some((sampler, is_wrong)) = Sampler::named(name, self.one(SAMPLER_ARGUMENT)) else {
            self.warn(SAMPLER, "names no sampler that is known here; `parentbased_always_on` is taken".to_owned());
            return Sampler::default();
        };
        if is_wrong {
            self.warn(SAMPLER_ARGUMENT, "is no share from 0 to 1; all traces are recorded".to_owned());
        }
        sampler
    }

    fn resource(&mut self) -> Resource {
        let entries: Vec<_> = self.one(ATTRIBUTES).unwrap_or_default().split_terminator(',').collect();
        let pairs: Vec<_> = entries.iter().filter_map(|entry| entry.split_once('=')).collect();
        if pairs.len() < entries.len() {
            self.warn(ATTRIBUTES, "has entries that are no `name=value`; they are left out".to_owned());
        }
        let attributes = pairs.iter().map(|(name, value)| KeyValue::new(name.trim().to_owned(), decoded(value.trim())));
        let builder = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "countersign"),
                KeyValue::new("service.version", version::RELEASE),
                KeyValue::new("telemetry.sdk.language", "rust"),
                KeyValue::new("telemetry.sdk.name", "opentelemetry"),
            ])
            .with_attributes(attributes);
        match self.one(SERVICE) {
            Some(name) => builder.with_service_name(name.to_owned()).build(),
            None => builder.build(),
        }
    }

    fn queue(&mut self) -> Queue {
        let spans = self.count(QUEUE, 2048);
        let batch = self.count(BATCH, 512).min(spans);
        Queue { spans, batch, delay: self.milliseconds(&[DELAY], 5_000) }
    }

    fn count(&mut self, variable: &'static str, default: usize) -> usize {
        let Some(text) = self.one(variable) else { return default };
        let count = text.parse().ok().filter(|count| (1..=MOST_SPANS).contains(count));
        count.unwrap_or_else(|| {
            self.warn(variable, format!("is no number from 1 to {MOST_SPANS}; {default} is taken"));
            default
        })
    }

    fn milliseconds(&mut self, variables: &[&'static str], default: u64) -> Duration {
        let Some((variable, text)) = self.first(variables) else { return Duration::from_millis(default) };
        let count = text.parse().ok().filter(|count| *count > 0).unwrap_or_else(|| {
            self.warn(variable, format!("is no number of milliseconds above 0; {default} is taken"));
            default
        });
        Duration::from_millis(count)
    }

    /// An empty variable is one that is not set.
    fn one(&self, variable: &str) -> Option<&'v str> {
        (self.var)(variable).map(str::trim).filter(|text| !text.is_empty())
    }

    fn first(&self, variables: &[&'static str]) -> Option<(&'static str, &'v str)> {
        variables.iter().find_map(|variable| Some((*variable, self.one(variable)?)))
    }

    fn warn(&mut self, variable: &'static str, text: String) {
        self.warnings.push(Warning { variable, text });
    }
}

/// The URL that is asked; that of all signals is told the path of this one.
fn endpoint(text: &str, is_of_all: bool) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    if ![Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme()) || uri.host()?.is_empty() {
        return None;
    }
    if !is_of_all {
        return Some(uri);
    }
    let mut parts = uri.into_parts();
    let path = parts.path_and_query.as_ref().map_or("", PathAndQuery::path).trim_end_matches('/');
    parts.path_and_query = Some(format!("{path}{PATH}").parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// `text` with its percent-encoding undone, as far as it is one.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        let code = code.filter(|code| *first == b'%' && code.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = tail.get(if byte.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    fn read(vars: &[(&'static str, &'static str)]) -> (Option<Settings>, Vec<Warning>) {
        Settings::read(|name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
    }

    fn good(vars: &[(&'static str, &'static str)]) -> Settings {
        let (settings, warnings) = read(vars);
        assert_eq!(warnings, [], "{vars:?}");
        settings.unwrap()
    }

    #[test]
    fn without_an_endpoint_or_where_it_is_forbidden_no_traces_are_sent() {
        for vars in [
            &[][..],
            &[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_EXPORTER", "otlp")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[AT, ("OTEL_SDK_DISABLED", "TRUE")],
            &[AT, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            let (settings, warnings) = read(vars);
            assert!(settings.is_none() && warnings.is_empty(), "{vars:?} {warnings:?}");
        }
        assert!(read(&[AT, ("OTEL_SDK_DISABLED", "false")]).0.is_some());
    }

    #[test]
    fn the_endpoint_of_all_signals_is_told_the_path_and_that_of_traces_is_taken_as_it_is() {
        for (url, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("http://collector/otlp/", "http://collector/otlp/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(good(&[(ENDPOINTS[1], url)]).endpoint.to_string(), expected);
        }
        let both = good(&[AT, (ENDPOINTS[0], "http://other/x?y=1")]);
        assert_eq!(both.endpoint.to_string(), "http://other/x?y=1");
        assert!(matches!(good(&[(ENDPOINTS[1], "http://collector")]).agent, Agent::Clear));
    }

    #[test]
    fn what_is_not_followed_is_told_by_its_variable_and_without_its_value() {
        let none = (Duration::from_secs(10), Duration::from_secs(5), 2048, 512);
        for (variable, value, sends) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector-secret:4318", false),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://secret", false),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@collector", true),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret", true),
            ("OTEL_EXPORTER_OTLP_HEADERS", "good=secret,b@d=secret", true),
            ("OTEL_EXPORTER_OTLP_HEADERS", "name=secret%0A", true),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "secret", true),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip-secret", true),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "secret", true),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-5 secret", true),
            ("OTEL_BSP_SCHEDULE_DELAY", "0", true),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0", true),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "99999999999", true),
            ("OTEL_TRACES_SAMPLER", "secret", true),
            ("OTEL_TRACES_EXPORTER", "secret", false),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,secret", true),
        ] {
            let (settings, warnings) = read(&[(variable, value), AT]);
            let [warning] = &warnings[..] else { panic!("{variable} {value} {warnings:?}") };
            assert_eq!((warning.variable, settings.is_some()), (variable, sends), "{value}");
            assert!(!warning.text.contains("secret"), "{warning:?}");
            if let Some(Settings { timeout, queue, .. }) = settings {
                assert_eq!((timeout, queue.delay, queue.spans, queue.batch), none, "{variable}");
            }
        }
    }

    #[test]
    fn a_collector_whose_authority_cannot_be_read_is_sent_nothing() {
        let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector");
        for variable in ["OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_KEY"] {
            let (settings, warnings) = read(&[at, (variable, "/nowhere/ca.pem")]);
            assert!(settings.is_none() && warnings.len() == 1, "{warnings:?}");
            assert_eq!(warnings[0].variable, variable);
        }
    }

    #[test]
    fn numbers_and_names_are_taken() {
        let settings = good(&[
            AT,
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "200"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment.name=a%20b%2Cc"),
        ]);
        let Queue { spans, batch, delay } = settings.queue;
        assert_eq!((settings.timeout.as_millis(), spans, batch, delay.as_millis()), (200, 100, 100, 50));
        let of = |name: &'static str| settings.resource.get(&name.into()).unwrap().to_string();
        assert_eq!((of("service.name"), of("deployment.environment.name")), ("other".into(), "a b,c".into()));
        let named = good(&[AT, ("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other")]);
        assert_eq!(named.resource.get(&"service.name".into()).unwrap().to_string(), "mine");
        assert_eq!(good(&[AT]).resource.get(&"service.name".into()).unwrap().to_string(), "countersign");
        assert_eq!(good(&[AT, ("OTEL_BSP_EXPORT_TIMEOUT", "70")]).timeout.as_millis(), 70);
    }
}

//! What the gateway counts, as Prometheus reads it.
//!
//! Source: `OpenMetrics` 1.0, <https://prometheus.io/docs/specs/om/open_metrics_spec/>. Every label's value is of the
//! configuration or a word of ours, so that a stranger cannot make new series.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{Observed, process};
use crate::{
    delivery::Gauge,
    inbox::Condition,
    reload::Standing,
    server::{self, House, Spoken},
    tally::{Histogram, Tally},
    tls::Expiry,
    version,
    webhook::Outcome,
};

/// What [`text`] is.
pub(super) const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// All metrics; of a gateway that has not started, those of the process.
///
/// # Errors
/// None that is known: text can be written.
pub(super) fn text(observed: Option<&Observed>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process));
    if let Some(observed) = observed {
        registry.register_collector(Box::new(Gateway::of(observed)));
    }
    let mut text = String::with_capacity(16 * 1024);
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Of the process, and which program it is.
#[derive(Debug)]
struct Process;

/// Of a gateway that runs.
#[derive(Debug)]
struct Gateway {
    house: Arc<House>,
    mail: Option<(Arc<Condition>, Gauge)>,
    standing: Standing,
}

/// A sample's labels and its value.
type Sample<const N: usize, T> = ([(&'static str, String); N], T);

/// Writes the families of one scrape.
struct Families<'e>(DescriptorEncoder<'e>);

impl Families<'_> {
    fn gauges<const N: usize, T: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = Sample<N, T>>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            // Of no labels it would write the brackets.
            if N == 0 { family.encode_gauge(&value) } else { family.encode_family(&labels)?.encode_gauge(&value) }
        })
    }

    fn counters<const N: usize, T: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = Sample<N, T>>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            if N == 0 {
                family.encode_counter::<NoLabelSet, T, u64>(&value, None)
            } else {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, T, u64>(&value, None)
            }
        })
    }

    fn histograms<'h, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample<N, &'h Histogram>>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        samples.into_iter().try_for_each(|(labels, histogram)| {
            let buckets = histogram.buckets();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = histogram.sum();
            if N == 0 {
                family.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            } else {
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            }
        })
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&'static str, String)]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        let labels = [("version", version::RELEASE.to_owned()), ("commit", version::COMMIT.to_owned())];
        families.info("countersign_build", "The program that runs", &labels)?;
        let process::Process {
            cpu_seconds,
            resident_bytes,
            virtual_bytes,
            open_descriptors,
            most_descriptors,
            threads,
        } = process::figures();
        let one = |value: Option<u64>| value.map(|value| ([], value));
        let (seconds, bytes) = (Some(&Unit::Seconds), Some(&Unit::Bytes));
        families.counters("process_cpu", "CPU time of the process", seconds, cpu_seconds.map(|value| ([], value)))?;
        families.gauges("process_resident_memory", "Memory in use", bytes, one(resident_bytes))?;
        families.gauges("process_virtual_memory", "Address space", bytes, one(virtual_bytes))?;
        families.gauges("process_open_fds", "File descriptors that are open", None, one(open_descriptors))?;
        families.gauges("process_max_fds", "File descriptors that may be open", None, one(most_descriptors))?;
        families.gauges("process_threads", "Threads", None, one(threads))
    }
}

impl Gateway {
    fn of(observed: &Observed) -> Self {
        let (house, mail) = (Arc::clone(&observed.house), observed.mail.clone());
        Self { house, mail, standing: observed.status.standing() }
    }

    fn requests(&self, families: &mut Families<'_>) -> fmt::Result {
        let (routes, webhooks) = (self.house.routes(), self.house.webhooks());
        let tallies: Vec<(String, Arc<Tally>)> = routes
            .iter()
            .map(|route| (route.pattern.as_str().to_owned(), route.tally.load_full()))
            .chain(webhooks.iter().map(|webhook| (webhook.path.as_str().to_owned(), webhook.tally.load_full())))
            .chain([(String::new(), Arc::clone(self.house.unrouted()))])
            .collect();
        let cases = tallies.iter().flat_map(|(route, tally)| {
            tally.cases().into_iter().map(move |(case, count)| {
                let (decision, reason) = (case.decision.to_owned(), case.reason.to_owned());
                ([("route", route.clone()), ("decision", decision), ("reason", reason)], count)
            })
        });
        families.counters("countersign_requests", "Requests, each in exactly one series", None, cases)?;
        let classes = tallies.iter().flat_map(|(route, tally)| {
            tally
                .classes()
                .map(move |(class, count)| ([("route", route.clone()), ("class", format!("{class}xx"))], count))
        });
        families.counters(
            "countersign_responses",
            "Answers by class of status; 4xx includes clients that left",
            None,
            classes,
        )?;
        let own = tallies.iter().filter(|(_, tally)| !tally.cases().is_empty());
        let own = own.map(|(route, tally)| ([("route", route.clone())], &tally.own_time));
        families.histograms("countersign_gateway", "Time to an answer's head, less the upstream's share", own)
    }

    fn upstreams(&self, families: &mut Families<'_>) -> fmt::Result {
        let upstreams = self.house.upstreams();
        let times =
            upstreams.iter().map(|upstream| ([("upstream", upstream.name().to_string())], upstream.answer_time()));
        families.histograms("countersign_upstream", "Time to the first byte of an upstream's answer", times)?;
        let figures: Vec<_> = upstreams.iter().map(|upstream| (upstream.name(), upstream.figures())).collect();
        let servers = || {
            figures.iter().flat_map(|(name, (servers, _))| {
                servers.iter().map(move |(server, figures)| {
                    ([("upstream", name.to_string()), ("server", server.to_string())], figures)
                })
            })
        };
        let up = servers().map(|(labels, figures)| (labels, u64::from(figures.is_up)));
        families.gauges("countersign_upstream_up", "Whether requests go to the server", None, up)?;
        let in_flight = servers().map(|(labels, figures)| (labels, figures.in_flight as u64));
        families.gauges("countersign_upstream_in_flight", "Requests that the server has", None, in_flight)?;
        let queued = figures.iter().map(|(name, (_, queued))| ([("upstream", name.to_string())], *queued as u64));
        families.gauges("countersign_upstream_queued", "Requests that wait for a place", None, queued)
    }

    fn connections(&self, families: &mut Families<'_>) -> fmt::Result {
        let traffic = self.house.traffic();
        let open = Spoken::ALL.map(|spoken| ([("protocol", spoken.as_str().to_owned())], traffic.open(spoken)));
        families.gauges("countersign_connections", "Connections of clients that are open", None, open)?;
        let outcomes = server::Outcome::ALL
            .map(|outcome| ([("outcome", outcome.as_str().to_owned())], traffic.handshakes(outcome)));
        families.counters("countersign_handshakes", "TLS handshakes with clients", None, outcomes)?;
        let hits = self.house.hits().iter().map(|(limit, count)| ([("limit", limit.to_owned())], count));
        families.counters("countersign_limit_hits", "How often a limit held", None, hits)
    }

    fn secrets(&self, families: &mut Families<'_>) -> fmt::Result {
        let uses: Vec<_> = self
            .house
            .apps()
            .into_iter()
            .flat_map(|(app, uses)| {
                (1..)
                    .zip(uses)
                    .map(move |(place, uses): (usize, _)| ([("app", app.clone()), ("secret", place.to_string())], uses))
            })
            .collect();
        let counts = uses.iter().map(|(labels, uses)| (labels.clone(), uses.count()));
        families.counters(
            "countersign_secret_uses",
            "Signatures that the secret made, stale ones too",
            None,
            counts,
        )?;
        let last = uses.iter().filter_map(|(labels, uses)| Some((labels.clone(), uses.last()?)));
        let help = "When it last did";
        families.gauges("countersign_secret_last_use_timestamp", help, Some(&Unit::Seconds), last)
    }

    fn webhooks(&self, families: &mut Families<'_>) -> fmt::Result {
        let webhooks = self.house.webhooks();
        if webhooks.is_empty() {
            return Ok(());
        }
        let outcomes = webhooks.iter().flat_map(|webhook| {
            let path = webhook.path.as_str();
            let of = move |(outcome, count): (Outcome, u64)| {
                ([("webhook", path.to_owned()), ("outcome", outcome.as_str().to_owned())], count)
            };
            webhook.outcomes.load().iter().filter(|(_, count)| *count > 0).map(of).collect::<Vec<_>>()
        });
        families.counters(
            "countersign_webhook_events",
            "Requests for a webhook by what became of them",
            None,
            outcomes,
        )?;
        let uses: Vec<_> = self
            .house
            .webhook_secrets()
            .into_iter()
            .flat_map(|(webhook, uses)| {
                (1..).zip(uses).map(move |(place, uses): (usize, _)| {
                    ([("webhook", webhook.clone()), ("secret", place.to_string())], uses)
                })
            })
            .collect();
        let counts = uses.iter().map(|(labels, uses)| (labels.clone(), uses.count()));
        let help = "Signatures that the secret made, stale ones too";
        families.counters("countersign_webhook_secret_uses", help, None, counts)?;
        let last = uses.iter().filter_map(|(labels, uses)| Some((labels.clone(), uses.last()?)));
        let (help, unit) = ("When it last did", Some(&Unit::Seconds));
        families.gauges("countersign_webhook_secret_last_use_timestamp", help, unit, last)
    }

    fn deliveries(&self, families: &mut Families<'_>) -> fmt::Result {
        let Some((condition, gauge)) = &self.mail else { return Ok(()) };
        let durable = "Time until an event is durable";
        families.histograms("countersign_inbox_commit", durable, [([], &condition.commit_time)])?;
        let figures = gauge.figures();
        let attempts = figures.attempts.iter().map(|(destination, outcome, count)| {
            ([("destination", destination.to_string()), ("outcome", outcome.as_str().to_owned())], *count)
        });
        families.counters("countersign_delivery_attempts", "Attempts to deliver an event", None, attempts)?;
        let Some(held) = figures.deliveries else { return Ok(()) };
        let states = held.iter().flat_map(|of| {
            let counts = [
                ("pending", of.pending),
                ("delivering", of.delivering),
                ("delivered", of.delivered),
                ("dead", of.dead),
                ("discarded", of.discarded),
            ];
            let labels = |state: &str| [("destination", of.destination.clone()), ("state", state.to_owned())];
            counts.map(|(state, count)| (labels(state), count))
        });
        families.gauges("countersign_deliveries", "Deliveries that the inbox holds, by state", None, states)?;
        let now = SystemTime::now();
        let ages = held.iter().map(|of| {
            let age = of.oldest_pending.map_or(0, |since| now.duration_since(since).unwrap_or_default().as_secs());
            ([("destination", of.destination.clone())], age)
        });
        let told = "Age of the oldest event that is not delivered yet";
        families.gauges("countersign_delivery_oldest_pending", told, Some(&Unit::Seconds), ages)
    }

    fn certificates(&self, families: &mut Families<'_>) -> fmt::Result {
        // Of two with one name the earlier end is told.
        let mut ends = BTreeMap::new();
        for Expiry { name, not_after } in self.house.resolver().current().expiries() {
            let end = ends.entry(name).or_insert(not_after);
            *end = not_after.min(*end);
        }
        let ends = ends.into_iter().map(|(name, end)| ([("name", name)], end));
        let help = "Until when the certificate is valid";
        families.gauges("countersign_certificate_expiry_timestamp", help, Some(&Unit::Seconds), ends)
    }

    fn configuration(&self, families: &mut Families<'_>) -> fmt::Result {
        families.info("countersign_config", "The configuration in force", &[("hash", self.standing.config.clone())])?;
        let is_good = u64::from(self.standing.refused.is_none());
        let help = "Whether the configuration that was read last is in force";
        families.gauges("countersign_config_last_reload_successful", help, None, [([], is_good)])?;
        let since = self.standing.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (help, unit) = ("When the configuration was put in force", Some(&Unit::Seconds));
        families.gauges("countersign_config_last_reload_success_timestamp", help, unit, [([], since)])
    }

    fn logs(&self, families: &mut Families<'_>) -> fmt::Result {
        let dropped = self.house.dropped_lines();
        families.counters(
            "countersign_log_dropped",
            "Lines of the access log that were lost",
            None,
            [([], dropped)],
        )?;
        let help = "Spans that were lost: too many waited, or the collector did not take them";
        families.counters("countersign_trace_spans_dropped", help, None, [([], self.house.dropped_spans())])?;
        let Some(audit) = self.house.audit() else { return Ok(()) };
        let sequence = audit.head().sequence;
        let written = sequence.saturating_sub(audit.began_at());
        families.counters("countersign_audit_records", "Records written since the start", None, [([], written)])?;
        families.gauges("countersign_audit_sequence", "The number of the last record", None, [([], sequence)])?;
        let failing = u64::from(audit.is_failing());
        families.gauges("countersign_audit_failing", "Whether nothing can be recorded", None, [([], failing)])
    }
}

impl Collector for Gateway {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.requests(&mut families)?;
        self.upstreams(&mut families)?;
        self.connections(&mut families)?;
        self.secrets(&mut families)?;
        self.webhooks(&mut families)?;
        self.deliveries(&mut families)?;
        self.certificates(&mut families)?;
        self.configuration(&mut families)?;
        self.logs(&mut families)
    }
}

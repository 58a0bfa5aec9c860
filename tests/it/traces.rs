//! Traces, as a collector gets them, and that one which is gone or broken costs nobody anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    process::Stdio,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message as _;

use crate::{
    commands::{Folder, Running, countersign, free_port},
    documents::repository,
    streams::head_now,
    support::{ACCOUNT, Client, SECRET, USER, Upstream, client_config, find, header},
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A gateway that runs with these variables.
struct Lab {
    folder: Folder,
    running: Running,
}

impl Lab {
    fn new(upstream: &str, variables: &[(&str, &str)]) -> Self {
        Self::with(upstream, "", variables, |text| text)
    }

    fn to(collector: &Upstream, upstream: &str, more: &str) -> Self {
        let origin = collector.origin();
        Self::with(
            upstream,
            more,
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", &origin), ("OTEL_BSP_SCHEDULE_DELAY", "20")],
            |text| text,
        )
    }

    fn with(upstream: &str, more: &str, variables: &[(&str, &str)], edit: impl FnOnce(String) -> String) -> Self {
        let folder = Folder::new(upstream, &format!("{more}[log]\naccess = \"access.jsonl\"\n"));
        let file = folder.file("countersign.toml");
        fs::write(&file, edit(fs::read_to_string(&file).unwrap())).unwrap();
        let mut command = countersign();
        command.args(["run", "--config", &file]).stdout(Stdio::null()).stderr(Stdio::piped());
        command.envs(variables.iter().copied());
        let running = folder.started(&mut command);
        Self { folder, running }
    }

    fn client(&self) -> Client {
        let tls = client_config(&self.folder.folder.path().join("cert.pem"), &[b"http/1.1"]).into();
        Client::to(([127, 0, 0, 1], self.folder.port).into(), &tls)
    }

    fn ask(&self, request: impl AsRef<[u8]>) -> u16 {
        let mut client = self.client();
        client.send(request);
        client.answer().status
    }

    /// The names of its threads.
    fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.running.0.id())).unwrap().flatten();
        tasks
            .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
            .map(|name| name.trim().into())
            .collect()
    }

    /// The lines of its access log, once there are `count` of them.
    fn access_log(&self, count: usize) -> Vec<serde_json::Value> {
        let text =
            until(|| fs::read_to_string(self.folder.file("access.jsonl")).ok(), |text| text.lines().count() == count);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// What `look` finds, once it is what is waited for.
fn until<T: std::fmt::Debug>(look: impl Fn() -> Option<T>, is_there: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = look();
        if found.as_ref().is_some_and(&is_there) {
            return found.unwrap();
        }
        assert!(Instant::now() < deadline, "{found:#?}");
        std::thread::yield_now();
    }
}

/// Takes spans, and says that it did.
fn collector() -> Upstream {
    Upstream::answering(|_| {
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n".to_vec()
    })
}

/// What a collector was sent.
fn sent(collector: &Upstream) -> Vec<ExportTraceServiceRequest> {
    let body = |request: &Vec<u8>| {
        let head = find(request, b"\r\n\r\n").unwrap() + 4;
        ExportTraceServiceRequest::decode(&request[head..]).unwrap()
    };
    collector.requests().iter().map(body).collect()
}

/// The spans that came, once there are `count` of them.
fn spans(collector: &Upstream, count: usize) -> Vec<Span> {
    let all = || {
        let resources = sent(collector).into_iter().flat_map(|request| request.resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect::<Vec<_>>()
    };
    let spans = until(|| Some(all()), |spans| spans.len() >= count);
    assert_eq!(spans.len(), count, "{spans:#?}");
    spans
}

fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind == kind as i32).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.as_str(), text(attribute))).collect()
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32)
}

/// The attributes that the reference says spans of this kind have.
fn described(kind: &str) -> BTreeSet<String> {
    let page = repository("docs/reference/traces.md");
    let (_, table) = page.split_once("| attribute | span |").unwrap();
    let cells = table.lines().map(|line| line.split(" | ").collect::<Vec<_>>());
    let rows = cells.filter(|cells| cells.len() == 3 && ["both", kind].contains(&cells[1]));
    rows.flat_map(|cells| cells[0].split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn a_flood_that_the_access_log_thins_out_is_thinned_out_in_traces() {
    let collector = collector();
    let lab = Lab::to(&collector, &Upstream::ok().origin(), "");
    let (flood, part) = (1000, 50);
    let mut client = lab.client();
    for _ in 0..flood / part {
        client.send("GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n".repeat(part));
        for _ in 0..part {
            assert_eq!(client.answer().status, 401);
        }
    }
    let told = |line: &serde_json::Value| line["countersign.omitted"].as_u64().unwrap_or(1);
    let text = until(
        || fs::read_to_string(lab.folder.file("access.jsonl")).ok(),
        |text| {
            let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
            lines.map(|line| told(&line)).sum::<u64>() == flood as u64
        },
    );
    let lines = text.lines().filter(|line| line.contains("countersign.trace_id")).count();
    assert!(lines < flood, "it was no flood");
    spans(&collector, lines);
    lab.running.drained();
    spans(&collector, lines);
}

/// What the upstream was told of the trace, request by request: trace, span, flags.
fn told(upstream: &Upstream) -> Vec<Vec<String>> {
    let one = |request: Vec<u8>| {
        let head = String::from_utf8_lossy(&request).into_owned();
        header(&head, "traceparent").unwrap().split('-').skip(1).map(str::to_owned).collect()
    };
    upstream.requests().into_iter().map(one).collect()
}

#[test]
fn a_permitted_request_is_two_spans_and_the_service_is_told_the_inner_one() {
    let (upstream, collector) = (Upstream::ok(), collector());
    let origin = collector.origin();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", origin.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=sesame,x-other=a%20b"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let lab = Lab::new(&upstream.origin(), &variables);
    assert_eq!(lab.ask(head_now("GET", "/a/b?query=value", "User-Agent: browser\r\n")), 200);
    let spans = spans(&collector, 2);
    let (own, asking) = (of_kind(&spans, SpanKind::Server)[0], of_kind(&spans, SpanKind::Client)[0]);
    let ids = |span: &Span| (hex(&span.trace_id), hex(&span.span_id), hex(&span.parent_span_id));
    let (trace, own_id, own_parent) = ids(own);
    let (asking_trace, asking_id, asking_parent) = ids(asking);
    assert_eq!((own_parent.as_str(), &asking_trace, &asking_parent), ("", &trace, &own_id));
    assert_eq!(told(&upstream), [[trace.as_str(), &asking_id, "01"]]);
    assert!(own.start_time_unix_nano <= asking.start_time_unix_nano);
    assert!(
        asking.start_time_unix_nano < asking.end_time_unix_nano && asking.end_time_unix_nano <= own.end_time_unix_nano
    );
    assert!(!is_error(own) && !is_error(asking));
    assert_eq!((own.name.as_str(), asking.name.as_str()), ("GET /", "GET"));
    let id = lab.access_log(1)[0]["countersign.request_id"].as_str().unwrap().to_owned();
    let expected = [
        ("countersign.app", "test"),
        ("countersign.complete", "true"),
        ("countersign.decision", "permitted"),
        ("countersign.request_id", &id),
        ("http.request.body.size", "0"),
        ("http.request.method", "GET"),
        ("http.response.body.size", "2"),
        ("http.response.status_code", "200"),
        ("http.route", "/"),
        ("network.protocol.version", "1.1"),
        ("url.path", "/a/b"),
        ("url.scheme", "https"),
    ];
    assert_eq!(texts(&own.attributes), expected.map(|(name, value)| (name, value.to_owned())).into());
    let asked = texts(&asking.attributes);
    assert_eq!(asked["url.full"], format!("{}/a/b", upstream.origin()));
    assert_eq!((&*asked["server.address"], &*asked["http.response.status_code"]), ("127.0.0.1", "200"));
    assert_eq!(lab.access_log(1)[0]["countersign.trace_id"], trace.as_str());

    let request = String::from_utf8_lossy(&collector.requests()[0]).into_owned();
    assert!(request.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(&request, "content-type"), Some("application/x-protobuf"));
    assert_eq!((header(&request, "x-key"), header(&request, "x-other")), (Some("sesame"), Some("a b")));
    for hidden in ["query", "value", USER, ACCOUNT, SECRET, "browser"] {
        assert!(!request.contains(hidden), "{hidden}");
    }
    let resource = sent(&collector)[0].resource_spans[0].resource.clone().unwrap();
    let resource = texts(&resource.attributes);
    assert_eq!((&*resource["service.name"], &*resource["deployment.environment.name"]), ("countersign", "test"));
    let said = lab.running.drained();
    assert!(said.contains(&origin) && !said.contains("sesame"), "{said}");
}

#[test]
fn a_refused_request_is_one_span_with_its_reason() {
    let (upstream, collector) = (Upstream::ok(), collector());
    let lab = Lab::to(&collector, &upstream.origin(), "");
    let good = head_now("GET", "/a", "");
    let preflight =
        "OPTIONS /x HTTP/1.1\r\nHost: gw.test\r\nOrigin: null\r\nAccess-Control-Request-Method: POST\r\n\r\n";
    for (request, status) in [
        (good.replace(USER, "usr_Another"), 401),
        (head_now("POST", "/admin/x", "Content-Length: 0\r\n"), 403),
        ("FORGED /a HTTP/1.1\r\nHost: gw.test\r\n\r\n".to_owned(), 405),
        (preflight.to_owned(), 204),
    ] {
        assert_eq!(lab.ask(&request), status, "{request}");
    }
    let spans = spans(&collector, 4);
    let mut seen: Vec<_> = spans
        .iter()
        .map(|span| {
            assert_eq!(span.kind, SpanKind::Server as i32);
            assert!(!is_error(span) && span.parent_span_id.is_empty());
            let texts = texts(&span.attributes);
            let reason = texts.get("countersign.reason").cloned().unwrap_or_default();
            (span.name.clone(), texts["http.request.method"].clone(), texts["countersign.decision"].clone(), reason)
        })
        .collect();
    seen.sort();
    let expected = [
        ("GET /", "GET", "refused", "signature_mismatch"),
        ("HTTP /", "_OTHER", "refused", "method_not_allowed"),
        ("OPTIONS", "OPTIONS", "preflight", ""),
        ("POST /admin/", "POST", "refused", "role_missing"),
    ];
    let expected = expected.map(|(a, b, c, d)| (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned()));
    assert_eq!(seen, expected);
    let traces: BTreeSet<_> = spans.iter().map(|span| span.trace_id.clone()).collect();
    assert_eq!((traces.len(), upstream.requests().len()), (4, 0));
}

#[test]
fn what_fails_behind_the_gateway_is_marked_in_both_spans() {
    let upstream = Upstream::answering(|_| b"HTTP/1.1 500 Sorry\r\nContent-Length: 0\r\n\r\n".to_vec());
    let silent = Upstream::serving(|_, _| true);
    let route = |path: &str, upstream: &str| {
        format!("[[routes]]\npath = \"{path}\"\napp = \"test\"\nupstream = \"{upstream}\"\n")
    };
    let more = format!(
        "{}{}",
        route("/dead/", &format!("http://127.0.0.1:{}", free_port())),
        route("/silent/", &silent.origin())
    );
    let collector = collector();
    let lab = Lab::to(&collector, &upstream.origin(), &more);
    assert_eq!(lab.ask(head_now("GET", "/a", "")), 500);
    assert_eq!(lab.ask(head_now("GET", "/dead/", "")), 502);
    // One that leaves before it is answered.
    let mut client = lab.client();
    client.send(head_now("GET", "/silent/", ""));
    until(|| Some(silent.requests()), |requests| requests.len() == 1);
    drop(client);
    let spans = spans(&collector, 6);
    let failures = |kind| {
        let failure = |span: &Span| {
            let texts = texts(&span.attributes);
            let of = |name| texts.get(name).cloned().unwrap_or_default();
            (of("http.response.status_code"), of("error.type"), is_error(span))
        };
        let mut failures: Vec<_> = of_kind(&spans, kind).into_iter().map(failure).collect();
        failures.sort();
        failures
    };
    let expected =
        |rows: [(&str, &str, bool); 3]| rows.map(|(status, kind, error)| (status.to_owned(), kind.to_owned(), error));
    for (kind, name) in [(SpanKind::Server, "server"), (SpanKind::Client, "client")] {
        let all =
            of_kind(&spans, kind).into_iter().flat_map(|span| texts(&span.attributes).into_keys().map(str::to_owned));
        assert_eq!(all.collect::<BTreeSet<_>>(), described(name));
    }
    let own = expected([("499", "", false), ("500", "500", true), ("502", "upstream_unreachable", true)]);
    assert_eq!(failures(SpanKind::Server), own);
    let asking = expected([("", "client_gone", true), ("", "upstream_unreachable", true), ("500", "500", true)]);
    assert_eq!(failures(SpanKind::Client), asking);
}

#[test]
fn a_strangers_trace_is_not_joined_and_a_trusted_proxys_is() {
    let [_, trace, parent, _] = PARENT.split('-').collect::<Vec<_>>()[..] else { unreachable!() };
    for is_trusted in [false, true] {
        let (upstream, collector) = (Upstream::ok(), collector());
        let trust =
            format!("[listener]\ntrusted_proxies = [\"{}\"]\n", if is_trusted { "127.0.0.0/8" } else { "10.0.0.0/8" });
        let origin = collector.origin();
        let variables = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", origin.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "20")];
        let lab = Lab::with(&upstream.origin(), "", &variables, |text| text.replace("[listener]\n", &trust));
        let said = |value: &str| head_now("GET", "/a", &format!("traceparent: {value}\r\ntracestate: a=b\r\n"));
        assert_eq!(lab.ask(said(PARENT)), 200);
        let spans = spans(&collector, 2);
        let own = of_kind(&spans, SpanKind::Server)[0];
        assert_eq!(hex(&own.trace_id) == trace, is_trusted);
        assert_eq!(hex(&own.parent_span_id), if is_trusted { parent } else { "" });
        assert_eq!(told(&upstream)[0][0], hex(&own.trace_id));
        assert_ne!(told(&upstream)[0][1], parent);
        assert!(
            collector.requests()[0].starts_with(b"POST / HTTP/1.1\r\n"),
            "the endpoint of traces is taken as it is"
        );
        if is_trusted {
            // One that is not recorded there is not recorded here, and the service is told so.
            assert_eq!(lab.ask(said(&PARENT.replace("-01", "-00"))), 200);
            assert_eq!(lab.ask(said("nonsense")), 200);
            let spans = self::spans(&collector, 4);
            assert_eq!(spans.iter().filter(|span| hex(&span.trace_id) == trace).count(), 2);
            let told = told(&upstream);
            assert_eq!((told[1][0].as_str(), told[1][2].as_str()), (trace, "00"));
            assert!(told[2][0] != trace && told[2][2] == "01", "{told:?}");
            assert_eq!(lab.access_log(3)[1].get("countersign.trace_id"), None);
        }
    }
}

#[test]
fn nothing_is_sent_unless_it_is_asked_for() {
    let collector = collector();
    let origin = collector.origin();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", origin.as_str());
    let quick = ("OTEL_BSP_SCHEDULE_DELAY", "1");
    for variables in [
        &[quick][..],
        &[quick, endpoint, ("OTEL_SDK_DISABLED", "true")],
        &[quick, endpoint, ("OTEL_TRACES_EXPORTER", "none")],
        &[quick, ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense")],
    ] {
        let upstream = Upstream::ok();
        let lab = Lab::new(&upstream.origin(), variables);
        assert_eq!(lab.ask(head_now("GET", "/a", &format!("traceparent: {PARENT}\r\n"))), 200);
        assert!(!lab.threads().iter().any(|name| name == "traces"), "{variables:?}");
        assert_eq!(told(&upstream)[0][2], "00", "a new trace that nobody records");
        assert_eq!(lab.access_log(1)[0].get("countersign.trace_id"), None);
        let said = lab.running.drained();
        assert_eq!(said.contains("OTEL_"), variables.contains(&("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense")), "{said}");
    }
    let lab = Lab::new(&Upstream::ok().origin(), &[quick, endpoint, ("OTEL_TRACES_SAMPLER", "always_off")]);
    assert_eq!(lab.ask("GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n"), 401);
    assert!(lab.threads().iter().any(|name| name == "traces"), "the name by which it would be known");
    lab.running.drained();
    assert!(collector.requests().is_empty());
}

#[test]
fn a_collector_that_is_gone_or_broken_costs_spans_and_no_request() {
    let gone = format!("http://127.0.0.1:{}", free_port());
    let hanging = Upstream::raw(|stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let failing = Upstream::answering(|_| b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec());
    let closing = Upstream::raw(|stream| {
        let _ = stream.write_all(b"nonsense");
    });
    let endless = Upstream::raw(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    for endpoint in [gone, hanging.origin(), failing.origin(), closing.origin(), endless.origin()] {
        let (lab, operations) = asked_often(&endpoint, "300");
        let lost = until(|| Some(dropped(operations)), |lost| *lost >= 400);
        assert_eq!(lost, 400, "{endpoint}");
        let said = lab.running.drained();
        let warnings: Vec<_> = said.lines().filter(|line| line.contains("spans are lost")).collect();
        assert_eq!(warnings.len(), 1, "{said}");
        assert!(!said.contains("sesame") && !said.contains("panicked"), "{said}");
    }
    // One that is waited for until the end of the day: up to fifty spans are with it, and fifty wait.
    let (_lab, operations) = asked_often(&hanging.origin(), "86400000");
    let lost = until(|| Some(dropped(operations)), |lost| *lost >= 300);
    assert!(lost < 350, "{lost}");
}

/// A gateway that has answered two hundred requests, and its operations listener.
fn asked_often(collector: &str, timeout: &str) -> (Lab, u16) {
    let operations = free_port();
    let upstream = Upstream::ok();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=sesame"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", timeout),
        ("OTEL_BSP_EXPORT_TIMEOUT", timeout),
        ("OTEL_BSP_SCHEDULE_DELAY", "5"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "50"),
    ];
    let more = format!("[operations]\naddress = \"127.0.0.1:{operations}\"\n");
    let lab = Lab::with(&upstream.origin(), &more, &variables, |text| text);
    let mut client = lab.client();
    let began = Instant::now();
    for _ in 0..200 {
        client.send(head_now("GET", "/a", ""));
        assert_eq!(client.answer().status, 200, "{collector}");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{collector}: {:?}", began.elapsed());
    (lab, operations)
}

/// Spans that the gateway with this operations listener has lost.
fn dropped(operations: u16) -> u64 {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", operations)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("countersign_trace_spans_dropped_total "));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_drain_sends_the_last_spans_and_does_not_wait_for_a_collector_that_hangs() {
    let slow = [("OTEL_BSP_SCHEDULE_DELAY", "600000"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")];
    let (upstream, collector) = (Upstream::ok(), collector());
    let origin = collector.origin();
    let lab = Lab::new(&upstream.origin(), &[slow[0], slow[1], ("OTEL_EXPORTER_OTLP_ENDPOINT", &origin)]);
    assert_eq!(lab.ask(head_now("GET", "/a", "")), 200);
    assert!(collector.requests().is_empty());
    let said = lab.running.drained();
    assert!(!said.contains("spans"), "{said}");
    spans(&collector, 2);

    let hanging = Upstream::raw(|stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let origin = hanging.origin();
    let lab = Lab::new(&upstream.origin(), &[slow[0], slow[1], ("OTEL_EXPORTER_OTLP_ENDPOINT", &origin)]);
    assert_eq!(lab.ask(head_now("GET", "/a", "")), 200);
    let began = Instant::now();
    let said = lab.running.drained();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(said.contains("the last spans were not sent"), "{said}");
}

#[test]
fn a_collector_behind_tls_proves_itself_by_its_authority() {
    let folder = Folder::new("http://127.0.0.1:1", "");
    let (certificate, key) = (folder.file("cert.pem"), folder.file("key.pem"));
    let collector = Upstream::tls(certificate.as_ref(), key.as_ref());
    let origin = collector.origin().replace("http://", "https://");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", origin.as_str());
    let quick = ("OTEL_BSP_SCHEDULE_DELAY", "5");
    let upstream = Upstream::ok();
    let lab = Lab::new(&upstream.origin(), &[endpoint, quick, ("OTEL_EXPORTER_OTLP_CERTIFICATE", &certificate)]);
    assert_eq!(lab.ask(head_now("GET", "/a", "")), 200);
    spans(&collector, 2);
    drop(lab);
    // Another authority: nothing is told.
    let other = Folder::new("http://127.0.0.1:1", "");
    let other = other.file("cert.pem");
    let variables =
        [endpoint, quick, ("OTEL_EXPORTER_OTLP_CERTIFICATE", &other), ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")];
    let lab = Lab::new(&upstream.origin(), &variables);
    assert_eq!(lab.ask(head_now("GET", "/a", "")), 200);
    let said = lab.running.drained();
    assert!(said.contains("spans are lost") && said.contains("certificate"), "{said}");
    spans(&collector, 2);
}

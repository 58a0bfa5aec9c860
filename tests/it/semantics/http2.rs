//! Requests over HTTP/2, frame by frame.

use super::{
    Arrived, Case, Reaches, Seen, Tape, Told,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Outcome, PADDED, PING, PRIORITY, PUSH_PROMISE,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, block, exchange, frame,
    },
    run,
};
use crate::support::{ACCOUNT, Gateway, USER, identity_payload, signature};

/// Frames, and the number of the stream whose outcome counts.
type Sent = Case<Vec<u8>>;
type Field = (Vec<u8>, Vec<u8>);

const NEXT: u32 = 101;

fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Field {
    (name.as_ref().to_vec(), value.as_ref().to_vec())
}

fn fields(method: &str, path: &str) -> Vec<Field> {
    vec![
        field(":method", method),
        field(":scheme", "https"),
        field(":authority", "gw.test"),
        field(":path", path),
        field("stripe-signature", signature(&identity_payload())),
        field("stripe-user-id", USER),
        field("stripe-account-id", ACCOUNT),
    ]
}

fn with(more: &[(&str, &str)]) -> Vec<Field> {
    let mut fields = fields("GET", "/a");
    fields.extend(more.iter().map(|(name, value)| field(name, value)));
    fields
}

fn instead(name: &str, value: &str) -> Vec<Field> {
    let mut fields = fields("GET", "/a");
    let place = fields.iter().position(|(other, _)| other == name.as_bytes()).unwrap();
    fields[place].1 = value.as_bytes().to_vec();
    fields
}

fn without(name: &str) -> Vec<Field> {
    fields("GET", "/a").into_iter().filter(|(other, _)| other != name.as_bytes()).collect()
}

/// A request without a body, whole in one frame.
fn head(fields: &[Field]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields.iter().map(|(name, value)| (name, value))))
}

/// The head of an upload with these fields more.
fn upload(more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = fields("POST", "/a");
    fields.push(field("content-type", "application/octet-stream"));
    fields.extend(more.iter().map(|(name, value)| field(name, value)));
    frame(HEADERS, END_HEADERS, 1, &block(fields.iter().map(|(name, value)| (name, value))))
}

/// The head of a request whose body is verified, and its body.
fn verified(more: &[(&str, &str)]) -> (Vec<u8>, String) {
    let body = identity_payload();
    let mut fields = vec![
        field(":method", "POST"),
        field(":scheme", "https"),
        field(":authority", "gw.test"),
        field(":path", "/a"),
        field("stripe-signature", signature(&body)),
        field("content-type", "application/json"),
    ];
    fields.extend(more.iter().map(|(name, value)| field(name, value)));
    (frame(HEADERS, END_HEADERS, 1, &block(fields.iter().map(|(name, value)| (name, value)))), body)
}

fn told(name: &'static str, rules: &'static [u8], sent: Vec<u8>, status: u16, code: &str) -> Sent {
    let told = Told::Then(vec![(status, code.to_owned())]);
    Case { name, rules, sent, told, reaches: Reaches::Nothing }
}

fn reset(name: &'static str, rules: &'static [u8], sent: Vec<u8>) -> Sent {
    Case { name, rules, sent, told: Told::Reset, reaches: Reaches::Nothing }
}

fn closed(name: &'static str, rules: &'static [u8], sent: Vec<u8>) -> Sent {
    Case { name, rules, sent, told: Told::ThenClosed(Vec::new()), reaches: Reaches::Nothing }
}

fn passes(
    name: &'static str,
    rules: &'static [u8],
    sent: Vec<u8>,
    arrived: Arrived,
    never: &'static [&'static str],
) -> Sent {
    let reaches = Reaches::Only { requests: vec![arrived], never };
    Case { name, rules, sent, told: Told::Then(vec![(200, String::new())]), reaches }
}

/// Sends a case on stream 1 and, in the same bytes, a good request on another stream.
fn send(gateway: &Gateway, case: &Sent) -> Seen {
    let next = block(fields("GET", "/next"));
    let next = frame(HEADERS, END_STREAM | END_HEADERS, NEXT, &next);
    let (outcomes, ended) = exchange(gateway, &[&case.sent[..], &next].concat(), &[1, NEXT]);
    let served = matches!(outcomes.get(&NEXT), Some(Outcome::Answered(200, _)));
    let told = match outcomes.get(&1) {
        Some(Outcome::Answered(status, body)) => {
            let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
            vec![(*status, problem["code"].as_str().unwrap_or_default().to_owned())]
        }
        Some(Outcome::Reset) if !ended => {
            return Seen { told: Told::Reset, next: served.then(|| Arrived::new("GET /next", &[])) };
        }
        Some(Outcome::Reset) | None => Vec::new(),
    };
    let told = if ended { Told::ThenClosed(told) } else { Told::Then(told) };
    Seen { told, next: served.then(|| Arrived::new("GET /next", &[])) }
}

fn run_all(cases: &[Sent]) {
    let tape = Tape::start();
    let gateway = Gateway::with(&tape.route());
    run(cases, &gateway, &tape, send);
}

/// Holds rules 2 and 11.
#[test]
fn a_field_that_http2_does_not_have_ends_its_stream() {
    let raw = |name: &[u8], value: &[u8]| {
        let mut fields = fields("GET", "/a");
        fields.push(field(name, value));
        head(&fields)
    };
    let mut cases: Vec<_> = [
        ("connection", &[("connection", "close")][..]),
        ("connection that names ours", &[("connection", "countersign-user")]),
        ("keep-alive", &[("keep-alive", "timeout=5")]),
        ("proxy-connection", &[("proxy-connection", "keep-alive")]),
        ("transfer-encoding: chunked", &[("transfer-encoding", "chunked")]),
        ("transfer-encoding: identity", &[("transfer-encoding", "identity")]),
        ("transfer-encoding beside a length", &[("transfer-encoding", "chunked"), ("content-length", "0")]),
        ("upgrade", &[("upgrade", "websocket")]),
        ("te: gzip", &[("te", "gzip")]),
        ("te: trailers and more", &[("te", "trailers, chunked")]),
        ("a pseudo-header behind", &[(":path", "/smuggled")]),
        ("a second method", &[(":method", "POST")]),
        ("a second scheme", &[(":scheme", "http")]),
        ("a second authority", &[(":authority", "other.test")]),
        ("a second path", &[(":path", "/a")]),
        ("a pseudo-header of answers", &[(":status", "200")]),
    ]
    .into_iter()
    .map(|(name, more)| reset(name, &[2, 11], head(&with(more))))
    .collect();
    for (name, key, value) in [
        ("capitals", "Countersign-User", "usr_F"),
        ("one capital", "x-A", "y"),
        ("a pseudo-header that is none", ":version", "HTTP/1.1"),
        ("a pseudo-header of our name", ":countersign-user", "usr_F"),
        ("a pseudo-header without a name", ":", "x"),
        ("a line end in a value", "x", "y\r\ncountersign-user: usr_F"),
        ("a line feed in a value", "x", "y\ncountersign-user: usr_F"),
        ("a carriage return in a value", "x", "y\rz"),
        ("a NUL in a value", "x", "y\0z"),
        ("a DEL in a value", "x", "y\x7fz"),
        ("a request in a value", "x", "y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: gw.test\r\n\r\n"),
        ("a line end in a name", "x: y\r\ncountersign-user", "usr_F"),
        ("a colon in a name", "countersign-user: usr_F\r\nx", "y"),
        ("a colon behind a name", "countersign-user:", "usr_F"),
        ("a space in a name", "countersign-user ", "usr_F"),
        ("a NUL in a name", "countersign-user\0", "usr_F"),
        ("a tab in a name", "\tcountersign-user", "usr_F"),
        ("no name", "", "usr_F"),
        ("a letter of another script in a name", "\u{441}ountersign-user", "usr_F"),
    ] {
        cases.push(closed(name, &[1, 11], raw(key.as_bytes(), value.as_bytes())));
    }
    for (name, fields) in [
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("a path with a line end", instead(":path", "/a HTTP/1.1\r\nhost: other.test\r\nx: ")),
        ("a path with a space", instead(":path", "/a HTTP/1.1")),
        ("a path with a NUL", instead(":path", "/a\0")),
        ("a path with a tab", instead(":path", "/a\tb")),
        ("an empty path", instead(":path", "")),
        ("an authority with a line end", instead(":authority", "gw.test\r\nx: y")),
        ("an authority with a space", instead(":authority", "gw.test x")),
        ("an authority with a path", instead(":authority", "gw.test/x")),
        ("a scheme with a line end", instead(":scheme", "https\r\nx: y")),
        ("a scheme with a URL", instead(":scheme", "https://other.test/x?")),
        ("an authority with an escape", instead(":authority", "gw%2etest")),
        ("a scheme with a colon", instead(":scheme", "https:")),
    ] {
        cases.push(reset(name, &[2, 8, 11], head(&fields)));
    }
    for (name, method) in [
        ("a method with a request", "GET /a HTTP/1.1\r\nx: y\r\n\r\nGET"),
        ("a method with a line end", "GET\r\n"),
        ("an empty method", ""),
    ] {
        cases.push(closed(name, &[2, 11], head(&instead(":method", method))));
    }
    let pseudo_last = {
        let good = fields("GET", "/a");
        [&good[4..], &good[..4]].concat()
    };
    cases.push(reset("pseudo-headers behind the others", &[11], head(&pseudo_last)));
    run_all(&cases);
}

/// Holds rules 2, 4, 8 and 11.
#[test]
fn what_the_library_takes_over_http2_and_the_gateway_does_not_is_refused() {
    let cases: Vec<_> = [
        ("another host", with(&[("host", "other.test")]), 400, "request_malformed"),
        ("the host with another port", with(&[("host", "gw.test:444")]), 400, "request_malformed"),
        ("the host twice", with(&[("host", "gw.test"), ("host", "gw.test")]), 400, "request_malformed"),
        ("an empty host", with(&[("host", "")]), 400, "request_malformed"),
        ("a user in the authority", instead(":authority", "other@gw.test"), 400, "request_malformed"),
        ("a port of 17 bits", instead(":authority", "gw.test:65536"), 400, "request_malformed"),
        ("a port without a number", instead(":authority", "gw.test:"), 400, "request_malformed"),
        ("a wildcard", instead(":authority", "*"), 400, "request_malformed"),
        ("neither authority nor host", without(":authority"), 400, "request_malformed"),
        ("a query without a path", instead(":path", "?a=b"), 400, "request_malformed"),
        (
            "a host in the authority's place",
            [without(":authority"), vec![field("host", "gw.test")]].concat(),
            400,
            "request_malformed",
        ),
        ("an empty scheme", instead(":scheme", ""), 400, "request_malformed"),
        ("another scheme", instead(":scheme", "ftp"), 400, "request_malformed"),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "0")]), 400, "request_malformed"),
        ("an empty segment", instead(":path", "//a"), 400, "path_ambiguous"),
        ("a dot segment", instead(":path", "/a/../b"), 400, "path_ambiguous"),
        ("an escaped dot segment", instead(":path", "/a/%2e%2e/b"), 400, "path_ambiguous"),
        ("a dot segment with a parameter", instead(":path", "/a/..;/b"), 400, "path_ambiguous"),
        ("a parameter without a name", instead(":path", "/;/a"), 400, "path_ambiguous"),
        ("an escaped slash", instead(":path", "/a%2fb"), 400, "path_ambiguous"),
        ("an escaped backslash", instead(":path", "/a%5cb"), 400, "path_ambiguous"),
        ("an escaped line end", instead(":path", "/a%0d%0ab"), 400, "path_ambiguous"),
        ("a percent sign, escaped", instead(":path", "/a%252e"), 400, "path_ambiguous"),
        ("bytes that are no text", instead(":path", "/a%c0%ae"), 400, "path_ambiguous"),
        ("a full-width dot", instead(":path", "/%ef%bc%8e%ef%bc%8e/b"), 400, "path_ambiguous"),
        ("letters of another alphabet in a query", instead(":path", "/a?\u{e9}"), 400, "path_ambiguous"),
        ("a star", instead(":path", "*"), 400, "path_ambiguous"),
        ("a TRACE", instead(":method", "TRACE"), 405, "method_not_allowed"),
        ("an OPTIONS", instead(":method", "OPTIONS"), 405, "method_not_allowed"),
        ("a method of no route", instead(":method", "DELETE"), 405, "method_not_allowed"),
        ("a method in small letters", instead(":method", "get"), 405, "method_not_allowed"),
        ("the method of the preface", instead(":method", "PRI"), 405, "method_not_allowed"),
        ("no signature", without("stripe-signature"), 401, "signature_missing"),
        ("a second signature", with(&[("stripe-signature", "t=1,v1=x")]), 401, "signature_malformed"),
        ("a second user", with(&[("stripe-user-id", "usr_F")]), 401, "identity_conflict"),
        ("a second user under X", with(&[("x-stripe-user-id", "usr_F")]), 401, "identity_conflict"),
        ("a second user in the query", instead(":path", "/a?user_id=usr_F"), 401, "identity_conflict"),
    ]
    .into_iter()
    .map(|(name, fields, status, code)| told(name, &[2, 4, 8, 11], head(&fields), status, code))
    .collect();
    run_all(&cases);
}

/// Holds rules 1, 4 and 11.
#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn what_passes_over_http2_is_written_anew() {
    let got = |fields: &[&str]| Arrived::new("GET /a", fields);
    let octets = "content-type: application/octet-stream";
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let inner = "GET /smuggled HTTP/1.1\r\nHost: gw.test\r\n\r\n";
    let length = inner.len().to_string();
    let split = block(fields("GET", "/a"));
    let (left, right) = split.split_at(40);
    let cases = [
        passes("a plain request", &[1], head(&with(&[("x-a", "y")])), got(&["x-a: y"]), &[":method", ":path"]),
        passes("the host as well", &[1, 11], head(&with(&[("host", "gw.test")])), got(&[]), &["\r\nhost: gw"]),
        passes("te: trailers", &[4, 11], head(&with(&[("te", "trailers")])), got(&[]), &["trailers"]),
        passes(
            "cookies in pieces",
            &[4],
            head(&with(&[("cookie", "a=hush"), ("cookie", "b=hush")])),
            got(&[]),
            &["hush"],
        ),
        passes(
            "identities in small letters",
            &[4],
            head(&with(&[
                ("countersign-user", "usr_F"),
                ("countersign_user", "usr_F"),
                ("x-countersign-account", "acct_F"),
            ])),
            got(&[]),
            &["usr_F", "acct_F"],
        ),
        passes(
            "addresses",
            &[4],
            head(&with(&[
                ("x-forwarded-for", "10.0.0.1"),
                ("forwarded", "for=10.0.0.1"),
                ("x_forwarded_for", "10.0.0.1"),
                ("x-real-ip", "10.0.0.1"),
            ])),
            got(&[]),
            &["10.0.0.1"],
        ),
        passes(
            "routes and methods",
            &[4, 8],
            head(&with(&[("x-original-url", "/admin"), ("x-http-method-override", "PUT")])),
            got(&[]),
            &["/admin", "put"],
        ),
        passes(
            "credentials",
            &[4],
            head(&with(&[("authorization", "Bearer hush-too"), ("proxy-authorization", "hush-too")])),
            got(&[]),
            &["hush-too"],
        ),
        passes("an expectation", &[4], head(&with(&[("expect", "100-continue")])), got(&[]), &["expect"]),
        passes(
            "settings of an upgrade",
            &[4, 11],
            head(&with(&[("http2-settings", "AAMAAABk")])),
            got(&[]),
            &["aamaaabk"],
        ),
        passes("a trailer's name", &[4], head(&with(&[("trailer", "countersign-user")])), got(&[]), &["trailer:"]),
        passes(
            "a path with a request in its query",
            &[1, 8],
            head(&instead(":path", "/a?x=%0d%0aHost:other.test")),
            Arrived::new("GET /a?x=%0d%0aHost:other.test", &[]),
            &[],
        ),
        passes(
            "a request in the data",
            &[1, 11],
            [upload(&[]), data(END_STREAM, inner.as_bytes())].concat(),
            Arrived::new("POST /a", &[octets]).chunked(inner),
            &[],
        ),
        passes(
            "a request in data of a length",
            &[1, 11],
            [upload(&[("content-length", &length)]), data(END_STREAM, inner.as_bytes())].concat(),
            Arrived::new("POST /a", &[octets]).length(inner),
            &[],
        ),
        passes(
            "the end of chunks in the data",
            &[1, 11],
            [upload(&[]), data(0, b"0\r\n\r\n"), data(END_STREAM, b"0\r\n\r\n")].concat(),
            Arrived::new("POST /a", &[octets]).chunked("0\r\n\r\n0\r\n\r\n"),
            &[],
        ),
        passes(
            "padding",
            &[1],
            [upload(&[]), frame(DATA, END_STREAM | PADDED, 1, b"\x04abcPADS")].concat(),
            Arrived::new("POST /a", &[octets]).chunked("abc"),
            &["pads"],
        ),
        passes(
            "trailers",
            &[4],
            [
                upload(&[]),
                data(0, b"abc"),
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    1,
                    &block([("countersign-user", "usr_Trailer"), ("x-late", "late")]),
                ),
            ]
            .concat(),
            Arrived::new("POST /a", &[octets]).chunked("abc"),
            &["usr_trailer", "late"],
        ),
        passes(
            "a head in two frames",
            &[11],
            [frame(HEADERS, END_STREAM, 1, left), frame(CONTINUATION, END_HEADERS, 1, right)].concat(),
            got(&[]),
            &[],
        ),
        passes(
            "a frame of an unknown kind",
            &[11],
            [frame(0xbe, 0xff, 1, b"unknown"), head(&fields("GET", "/a"))].concat(),
            got(&[]),
            &["unknown"],
        ),
        passes(
            "a priority",
            &[11],
            [frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]), head(&fields("GET", "/a"))].concat(),
            got(&[]),
            &[],
        ),
        passes(
            "a ping and a window",
            &[11],
            [frame(PING, 0, 0, &[7; 8]), frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]), head(&fields("GET", "/a"))]
                .concat(),
            got(&[]),
            &[],
        ),
    ];
    run_all(&cases);
}

/// Holds rules 2, 11 and 12.
#[test]
fn a_body_over_http2_that_is_not_as_it_was_announced_is_never_complete() {
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let (plain, body) = verified(&[]);
    let of = |length: usize| verified(&[("content-length", &length.to_string())]).0;
    let whole = |head: Vec<u8>, flags| [head, data(flags, body.as_bytes())].concat();
    let trailers = |fields: &[(&str, &str)], flags| {
        let block = block(fields.iter().map(|(name, value)| (name, value)));
        [plain.clone(), data(0, body.as_bytes()), frame(HEADERS, flags | END_HEADERS, 1, &block)].concat()
    };
    let cases = [
        passes(
            "of its length",
            &[11],
            whole(of(body.len()), END_STREAM),
            Arrived::new("POST /a", &["content-type: application/json"]).length(&body),
            &[],
        ),
        reset("a byte less than announced", &[2, 11], whole(of(body.len() + 1), END_STREAM)),
        reset("a byte more than announced", &[2, 11], whole(of(body.len() - 1), END_STREAM)),
        reset("data where none was announced", &[2, 11], whole(of(0), END_STREAM)),
        reset("a length that is no number", &[2, 11], whole(verified(&[("content-length", "x")]).0, END_STREAM)),
        reset("a length with a sign", &[2, 11], whole(verified(&[("content-length", "+5")]).0, END_STREAM)),
        reset("a head that ends and announces a body", &[2, 11], head(&with(&[("content-length", "5")]))),
        passes(
            "trailers with a pseudo-header",
            &[4],
            trailers(&[(":path", "/smuggled")], END_STREAM),
            Arrived::new("POST /a", &["content-type: application/json"]).length(&body),
            &["smuggled"],
        ),
        reset("trailers with a connection's field", &[11], trailers(&[("transfer-encoding", "chunked")], END_STREAM)),
        closed("trailers in capitals", &[11], trailers(&[("X-Late", "y")], END_STREAM)),
        reset("trailers that do not end the stream", &[11], trailers(&[("x-late", "y")], 0)),
    ];
    run_all(&cases);
}

/// Holds rules 2 and 11.
#[test]
fn frames_that_break_the_protocol_end_the_connection() {
    let good = || head(&fields("GET", "/a"));
    let block_of = |fields: &[Field]| block(fields.iter().map(|(name, value)| (name, value)));
    let whole = block_of(&fields("GET", "/a"));
    let half = &whole[..40];
    let cases = [
        closed("data on stream 0", &[11], frame(DATA, END_STREAM, 0, b"x")),
        closed("a head on stream 0", &[11], frame(HEADERS, END_STREAM | END_HEADERS, 0, &whole)),
        closed("a head on an even stream", &[11], frame(HEADERS, END_STREAM | END_HEADERS, 2, &whole)),
        closed("data on a stream that is idle", &[11], frame(DATA, END_STREAM, 1, b"x")),
        closed("a reset of a stream that is idle", &[11], frame(RST_STREAM, 0, 1, &[0; 4])),
        closed("a reset of stream 0", &[11], frame(RST_STREAM, 0, 0, &[0; 4])),
        closed("settings on a stream", &[11], frame(SETTINGS, 0, 1, &[])),
        closed("settings of an odd length", &[11], frame(SETTINGS, 0, 0, &[0; 5])),
        closed("settings that are acknowledged with some", &[11], frame(SETTINGS, 1, 0, &[0; 6])),
        closed("a window beyond its bound", &[11], frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        closed("a frame size below its bound", &[11], frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        closed("a push that is neither yes nor no", &[11], frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2])),
        closed("a window of nothing", &[11], frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        closed("a window that overflows", &[11], frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        closed("a ping of an odd length", &[11], frame(PING, 0, 0, &[0; 7])),
        closed("a ping on a stream", &[11], frame(PING, 0, 1, &[0; 8])),
        closed("a promise from a client", &[11], frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        closed("a continuation of nothing", &[11], frame(CONTINUATION, END_HEADERS, 1, &whole)),
        closed(
            "a continuation on another stream",
            &[11],
            [frame(HEADERS, END_STREAM, 1, half), frame(CONTINUATION, END_HEADERS, 3, &whole[40..])].concat(),
        ),
        closed("data within a head", &[11], [frame(HEADERS, 0, 1, half), frame(DATA, END_STREAM, 1, b"x")].concat()),
        closed(
            "another head within a head",
            &[11],
            [frame(HEADERS, END_STREAM, 1, half), frame(HEADERS, END_STREAM | END_HEADERS, 3, &whole)].concat(),
        ),
        closed("padding beyond the frame", &[11], frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &[200, 0])),
        closed("a frame beyond its size", &[10, 11], frame(HEADERS, END_STREAM | END_HEADERS, 1, &vec![0; 20_000])),
        closed("a block that breaks off", &[11], frame(HEADERS, END_STREAM | END_HEADERS, 1, half)),
        closed("an index of no field", &[11], frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff, 0x80, 0x01])),
        closed("the index 0", &[11], frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80])),
        closed(
            "a table beyond its bound",
            &[10, 11],
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x3f, 0xff, 0xff, 0x7f]),
        ),
        closed("an integer without an end", &[10, 11], frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 32])),
        closed("a text of HTTP/1.1", &[11], b"GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n".to_vec()),
        closed("a second preface", &[11], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        closed(
            "an older stream behind a younger",
            &[11],
            [frame(HEADERS, END_STREAM | END_HEADERS, 99, &block([("x", "y")])), good()].concat(),
        ),
    ];
    run_all(&cases);
}

/// Holds rule 11.
#[test]
fn connect_opens_no_tunnel_over_http2() {
    let plain = vec![field(":method", "CONNECT"), field(":authority", "gw.test:443")];
    let signed = |fields: Vec<Field>| [fields, without(":method").split_off(3)].concat();
    let extended = |protocol: &str| {
        let mut fields = instead(":method", "CONNECT");
        fields.insert(1, field(":protocol", protocol));
        fields
    };
    let cases = [
        told("a tunnel", &[11], head(&signed(plain.clone())), 405, "method_not_allowed"),
        reset("a tunnel with a scheme and a path", &[11], head(&instead(":method", "CONNECT"))),
        told(
            "a tunnel without an authority",
            &[11],
            head(&signed(vec![field(":method", "CONNECT")])),
            400,
            "request_malformed",
        ),
        reset("an extended tunnel", &[11], head(&extended("websocket"))),
        reset("an extended tunnel of another protocol", &[11], head(&extended("connect-udp"))),
        reset(
            "a protocol without a tunnel",
            &[11],
            head(&[&[field(":protocol", "websocket")][..], &fields("GET", "/a")].concat()),
        ),
    ];
    run_all(&cases);
}

/// Holds rules 11 and 15: a client that goes away by its own word is not waited for.
#[test]
fn a_connection_that_says_farewell_is_ended() {
    let tape = Tape::start();
    let gateway = Gateway::with(&tape.route());
    let farewell = frame(GOAWAY, 0, 0, &[0; 8]);
    let (outcomes, _) = exchange(&gateway, &[head(&fields("GET", "/a")), farewell].concat(), &[1, 3]);
    assert!(matches!(outcomes.get(&1), Some(Outcome::Answered(200, _))), "{outcomes:?}");
    assert_eq!(tape.arrived().unwrap(), [Arrived::new("GET /a", &[])]);
}

//! Requests over HTTP/1.1, byte for byte.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{Arrived, Case, Reaches, Seen, Tape, Told, run};
use crate::support::{Gateway, find, identity_payload, signature, signed_body, signed_head};

type Sent = Case<Vec<u8>>;

/// A refusal, and the end of the connection: nothing that stands behind the request is read as another.
fn closed(name: &'static str, rules: &'static [u8], sent: impl AsRef<[u8]>, status: u16, code: &str) -> Sent {
    let told = Told::ThenClosed(vec![(status, code.to_owned())]);
    Case { name, rules, sent: sent.as_ref().to_vec(), told, reaches: Reaches::Nothing }
}

/// A refusal on a connection that serves on, of which nothing but the next request gets to the upstream.
fn kept(name: &'static str, rules: &'static [u8], sent: impl AsRef<[u8]>, status: u16, code: &str) -> Sent {
    let told = Told::Then(vec![(status, code.to_owned())]);
    Case { name, rules, sent: sent.as_ref().to_vec(), told, reaches: Reaches::Nothing }
}

/// A request that is answered by the upstream, which gets exactly `arrived` and nowhere one of `never`.
fn passes(
    name: &'static str,
    rules: &'static [u8],
    sent: impl AsRef<[u8]>,
    arrived: Arrived,
    never: &'static [&'static str],
) -> Sent {
    let reaches = Reaches::Only { requests: vec![arrived], never };
    Case { name, rules, sent: sent.as_ref().to_vec(), told: Told::Then(vec![(200, String::new())]), reaches }
}

/// Sends a case and, in the same bytes, one more request behind it.
fn send(gateway: &Gateway, case: &Sent) -> Seen {
    let mut client = gateway.connect();
    client.send([&case.sent[..], signed_head("GET", "/next", "").as_bytes()].concat());
    let (expected, serves_on) = match &case.told {
        Told::Then(told) => (told, true),
        Told::ThenClosed(told) => (told, false),
        Told::Reset => panic!("HTTP/1.1 has no streams"),
    };
    let method = if case.sent.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
    let mut told = Vec::new();
    for (status, _) in expected {
        if *status < 200 {
            told.push((client.interim(), String::new()));
        } else {
            let answer = client.answer_to(method);
            told.push((answer.status, answer.code()));
        }
    }
    if !serves_on {
        let told = if client.is_closed() { Told::ThenClosed(told) } else { Told::Then(told) };
        return Seen { told, next: None };
    }
    let served = client.answer().status == 200;
    Seen { told: Told::Then(told), next: served.then(|| Arrived::new("GET /next", &[])) }
}

fn run_all(cases: &[Sent]) {
    let tape = Tape::start();
    let gateway = Gateway::with(&tape.route());
    run(cases, &gateway, &tape, send);
}

/// A signed upload whose body no signature covers, so that it is passed on as it comes.
fn upload(fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let head = signed_head("POST", "/a", &format!("Content-Type: application/octet-stream\r\n{fields}"));
    [head.as_bytes(), body.as_ref()].concat()
}

const OPAQUE: &str = "content-type: application/octet-stream";

/// A whole signed request that an attacker would have taken for one of its own.
fn inner() -> String {
    signed_head("GET", "/smuggled", "")
}

/// Holds rules 1 and 2.
#[test]
fn a_body_with_two_lengths_or_an_odd_one_is_no_request() {
    let fields: &[(&'static str, &str)] = &[
        ("te: chunked twice in one field", "Transfer-Encoding: chunked, chunked\r\n"),
        ("te: a comma behind", "Transfer-Encoding: chunked,\r\n"),
        ("te: a comma before", "Transfer-Encoding: ,chunked\r\n"),
        ("te: a vertical tab before", "Transfer-Encoding:\u{b}chunked\r\n"),
        ("te: a form feed behind", "Transfer-Encoding: chunked\u{c}\r\n"),
        ("te: a NUL behind", "Transfer-Encoding: chunked\0\r\n"),
        ("te: a no-break space before", "Transfer-Encoding: \u{a0}chunked\r\n"),
        ("te: a Kelvin sign", "Transfer-Encoding: chun\u{212a}ed\r\n"),
        ("te: single quotes", "Transfer-Encoding: 'chunked'\r\n"),
        ("te: cut short", "Transfer-Encoding: chunk\r\n"),
        ("te: with a tail", "Transfer-Encoding: chunked-false\r\n"),
        ("te: compress", "Transfer-Encoding: compress\r\n"),
        ("te: trailers", "Transfer-Encoding: trailers, chunked\r\n"),
        ("te: empty", "Transfer-Encoding:\r\n"),
        ("te: empty, then chunked", "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n"),
        ("te: chunked, then another", "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n"),
        ("te: another, then chunked", "Transfer-Encoding: cow\r\ntransfer-encoding: chunked\r\n"),
        ("te: identity beside a length", "Transfer-Encoding: identity\r\nContent-Length: 5\r\n"),
        ("te: behind a bare line feed", "X: y\nTransfer-Encoding: chunked\r\n"),
        ("te: behind a bare carriage return", "X: y\rTransfer-Encoding: chunked\r\n"),
        ("te: behind two carriage returns", "X: y\r\r\nTransfer-Encoding: chunked\r\n"),
        ("te: a tab before the colon", "Transfer-Encoding\t: chunked\r\n"),
        ("te: a vertical tab in the name", "Transfer-Encoding\u{b}: chunked\r\n"),
        ("te: a NUL before the name", "\0Transfer-Encoding: chunked\r\n"),
        ("te: a semicolon in the name", "Transfer-Encoding;: chunked\r\n"),
        ("te: a space for the hyphen", "Transfer Encoding: chunked\r\n"),
        ("te: folded into the field before", "X: y\r\n Transfer-Encoding: chunked\r\n"),
        ("te: folded behind its comma", "Transfer-Encoding: gzip,\r\n\tchunked\r\n"),
        ("te: no colon", "Transfer-Encoding chunked\r\n"),
        ("te: an equals sign for the colon", "Transfer-Encoding=chunked\r\n"),
        ("te: with a length of nothing", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
        ("te: with an odd length", "Content-Length: x\r\nTransfer-Encoding: chunked\r\n"),
        ("te: with two lengths", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        ("cl: twice, in another case", "Content-Length: 5\r\ncontent-length: 5\r\n"),
        ("cl: two in one field", "Content-Length: 5,0\r\n"),
        ("cl: two in one field, with a space", "Content-Length: 5 5\r\n"),
        ("cl: with a parameter", "Content-Length: 5;0\r\n"),
        ("cl: a fraction", "Content-Length: 5.0\r\n"),
        ("cl: an exponent", "Content-Length: 5e0\r\n"),
        ("cl: octal", "Content-Length: 0o5\r\n"),
        ("cl: quoted", "Content-Length: \"5\"\r\n"),
        ("cl: minus nothing", "Content-Length: -0\r\n"),
        ("cl: an underscore", "Content-Length: 0_5\r\n"),
        ("cl: Arabic digits", "Content-Length: \u{665}\r\n"),
        ("cl: full-width digits", "Content-Length: \u{ff15}\r\n"),
        ("cl: a NUL behind", "Content-Length: 5\0\r\n"),
        ("cl: folded", "Content-Length: 5\r\n 0\r\n"),
        ("cl: beyond 64 bits", "Content-Length: 18446744073709551616\r\n"),
        ("cl: beyond 64 bits, as 5", "Content-Length: 18446744073709551621\r\n"),
        ("cl: the last of 64 bits", "Content-Length: 18446744073709551615\r\n"),
        ("cl: no number", "Content-Length: NaN\r\n"),
        ("cl: a tab before the colon", "Content-Length\t: 5\r\n"),
        ("cl: an empty one before", "Content-Length:\r\nContent-Length: 5\r\n"),
    ];
    let cases: Vec<_> = fields
        .iter()
        .map(|(name, fields)| closed(name, &[1, 2], upload(fields, "0\r\n\r\n"), 400, "request_malformed"))
        .collect();
    run_all(&cases);
}

/// Holds rules 1 and 2.
#[test]
fn a_body_with_one_reading_goes_on_in_a_framing_of_the_gateway_s() {
    let inner = inner();
    let posted = || Arrived::new("POST /a", &[OPAQUE]);
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len());
    let get = |fields: &str, body: &str| {
        signed_head("GET", "/a", &format!("Content-Type: application/octet-stream\r\n{fields}")) + body
    };
    let length = format!("Content-Length: {}\r\n", inner.len());
    let cases = [
        passes("a request in a body of a length", &[1, 2], upload(&length, &inner), posted().length(&inner), &[]),
        passes(
            "a request in a chunk",
            &[1, 2],
            upload("Transfer-Encoding: chunked\r\n", chunk(&inner)),
            posted().chunked(&inner),
            &[],
        ),
        passes(
            "a request in the body of a GET",
            &[1, 2],
            get(&length, &inner),
            Arrived::new("GET /a", &[OPAQUE]).length(&inner),
            &[],
        ),
        passes(
            "chunks in a body of a length",
            &[1, 2],
            upload("Content-Length: 5\r\n", "0\r\n\r\n"),
            posted().length("0\r\n\r\n"),
            &[],
        ),
        passes("a length of nothing", &[1], upload("Content-Length: 0\r\n", ""), posted(), &["length: 00"]),
        passes(
            "a length with noughts",
            &[1],
            upload("Content-Length: 0003\r\n", "abc"),
            posted().length("abc"),
            &["length: 0003"],
        ),
        passes(
            "a length between tabs",
            &[1],
            upload("Content-Length:\t3\t\r\n", "abc"),
            posted().length("abc"),
            &["\t3"],
        ),
        passes(
            "a coding in capitals",
            &[1],
            upload("TRANSFER-ENCODING: CHUNKED\r\n", chunk("abc")),
            posted().chunked("abc"),
            &[": CHUNKED\r\nT"],
        ),
        passes(
            "a length in a name with an underscore",
            &[1, 4],
            upload("Content_Length: 0\r\nContent-Length: 3\r\n", "abc"),
            posted().length("abc"),
            &["content_length"],
        ),
        passes(
            "a coding in a name with an underscore",
            &[1, 4],
            upload("Transfer_Encoding: chunked\r\nContent-Length: 3\r\n", "abc"),
            posted().length("abc"),
            &["transfer_encoding"],
        ),
        passes(
            "a coding in a name with a dot",
            &[1, 4],
            upload("Transfer.Encoding: chunked\r\nContent-Length: 3\r\n", "abc"),
            posted().length("abc"),
            &["transfer.encoding"],
        ),
        passes(
            "extensions of chunks",
            &[1],
            upload("Transfer-Encoding: chunked\r\n", "3;x=\"0\";y\r\nabc\r\n00;z\r\n\r\n"),
            posted().chunked("abc"),
            &["x=", ";z"],
        ),
        passes(
            "a size with noughts and in capitals",
            &[1],
            upload("Transfer-Encoding: chunked\r\n", "00A\r\n0123456789\r\n000\r\n\r\n"),
            posted().chunked("0123456789"),
            &["00a\r\n0123"],
        ),
    ];
    run_all(&cases);
}

/// Holds rules 1, 2 and 12.
#[test]
fn an_upload_in_chunks_that_are_malformed_is_never_complete() {
    let bodies: &[(&'static str, &str, &str)] = &[
        ("a size that is none", "3\r\nabc\r\nx\r\n\r\n", "abc"),
        ("a size of 65 bits", "3\r\nabc\r\n1000000000000000a\r\n", "abc"),
        ("a size in Arabic digits", "3\r\nabc\r\n\u{660}\r\n\r\n", "abc"),
        ("a line feed for a line end", "3\r\nabc\r\n0\n\r\n", "abc"),
        ("a carriage return alone", "3\r\nabc\r\n0\r\r\n\r\n", "abc"),
        ("an extension with a line feed", "3\r\nabc\r\n3;x=\ny\r\nabc\r\n0\r\n\r\n", "abc"),
        ("an extension with a control character", "3\r\nabc\r\n3;x=\u{1}\r\nabc\r\n0\r\n\r\n", "abc"),
        ("an extension with other letters", "3\r\nabc\r\n3;\u{e9}\r\nabc\r\n0\r\n\r\n", "abc"),
        ("a space before the size", "3\r\nabc\r\n 0\r\n\r\n", "abc"),
        ("a space behind the size", "3\r\nabc\r\n0 \r\n\r\n", "abc"),
        ("a trailer without a colon", "3\r\nabc\r\n0\r\nX\r\n\r\n", "abc"),
        ("a trailer with a space before its colon", "3\r\nabc\r\n0\r\nX : y\r\n\r\n", "abc"),
        ("a trailer with a bare line feed", "3\r\nabc\r\n0\r\nX: y\nZ: z\r\n\r\n", "abc"),
        ("a folded trailer", "3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n", "abc"),
        ("a request for a trailer", "3\r\nabc\r\n0\r\nGET /smuggled HTTP/1.1\r\n\r\n", "abc"),
    ];
    let mut cases: Vec<_> = bodies
        .iter()
        .map(|(name, body, part)| {
            let requests = vec![Arrived::new("POST /a", &[OPAQUE]).chunked(part).broken_off()];
            let reaches = Reaches::Only { requests, never: &["\r\n0\r\n", "smuggled"] };
            let told = Told::ThenClosed(vec![(400, "request_malformed".to_owned())]);
            let sent = upload("Transfer-Encoding: chunked\r\n", body);
            Case { name, rules: &[1, 2, 12], sent, told, reaches }
        })
        .collect();
    // What is read whole does not even begin.
    cases.extend([
        closed(
            "a body to verify with trailers beyond their bound",
            &[2, 10],
            signed_head("POST", "/a", "Transfer-Encoding: chunked\r\n")
                + &format!("0\r\nX: {}\r\n\r\n", "y".repeat(5000)),
            400,
            "request_malformed",
        ),
        closed(
            "a body to verify with a line feed behind its data",
            &[2],
            signed_head("POST", "/a", "Transfer-Encoding: chunked\r\n") + "3\r\nabc\n0\r\n\r\n",
            400,
            "request_malformed",
        ),
        closed(
            "a body to verify with a size of 17 noughts",
            &[2],
            signed_head("POST", "/a", "Transfer-Encoding: chunked\r\n") + "00000000000000000\r\n\r\n",
            400,
            "request_malformed",
        ),
    ]);
    let tape = Tape::start();
    let gateway = Gateway::with(&tape.route());
    // The part that is good is given time to get there, or it may not be sent at all.
    run(&cases, &gateway, &tape, |gateway, case| {
        let Reaches::Only { .. } = &case.reaches else { return send(gateway, case) };
        let parts = || tape.bytes().iter().filter(|bytes| bytes.ends_with(b"3\r\nabc\r\n")).count();
        let before = parts();
        let mut client = gateway.connect();
        let good = find(&case.sent, b"3\r\nabc\r\n").expect("a good chunk") + 8;
        client.send(&case.sent[..good]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while parts() == before {
            assert!(Instant::now() < deadline, "the good part goes on");
            std::thread::yield_now();
        }
        client.send([&case.sent[good..], signed_head("GET", "/next", "").as_bytes()].concat());
        let answer = client.answer();
        let told = vec![(answer.status, answer.code())];
        let told = if client.is_closed() { Told::ThenClosed(told) } else { Told::Then(told) };
        Seen { told, next: None }
    });
}

/// Holds rules 2 and 8.
#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn a_request_has_one_host_and_one_first_line() {
    let host = |line: &str| signed_head("GET", "/a", "").replace("Host: gw.test\r\n", line);
    let target = |target: &str| signed_head("GET", target, "");
    let line = |line: &str| signed_head("GET", "/a", "").replace("GET /a HTTP/1.1", line);
    let malformed: Vec<(&'static str, String)> = vec![
        ("host: twice, in another case", host("Host: gw.test\r\nhOST: gw.test\r\n")),
        ("host: an empty one behind", host("Host: gw.test\r\nHost:\r\n")),
        ("host: a backslash", host("Host: gw.test\\@other.test\r\n")),
        ("host: a user that looks like one", host("Host: gw.test@other.test\r\n")),
        ("host: a user with a port", host("Host: gw.test:443@other.test\r\n")),
        ("host: an escaped NUL", host("Host: gw.test%00.other.test\r\n")),
        ("host: a NUL", host("Host: gw.test\0\r\n")),
        ("host: a query", host("Host: gw.test?x\r\n")),
        ("host: a URL", host("Host: https://gw.test\r\n")),
        ("host: a wildcard", host("Host: *.gw.test\r\n")),
        ("host: a semicolon", host("Host: gw.test;other.test\r\n")),
        ("host: a space", host("Host: gw.test other.test\r\n")),
        ("host: a comma", host("Host: gw.test,\r\n")),
        ("host: a list with ports", host("Host: gw.test:443,other.test:443\r\n")),
        ("host: a port of 17 bits", host("Host: gw.test:65536\r\n")),
        ("host: a negative port", host("Host: gw.test:-1\r\n")),
        ("host: a port with a sign", host("Host: gw.test:+443\r\n")),
        ("host: a port in hexadecimal", host("Host: gw.test:0x1bb\r\n")),
        ("host: a port alone", host("Host: :443\r\n")),
        ("host: an address with a zone", host("Host: [fe80::1%25lo]\r\n")),
        ("host: an address without brackets", host("Host: ::1\r\n")),
        ("host: a future address", host("Host: [v1.x]\r\n")),
        ("host: an address and more", host("Host: [::1]x\r\n")),
        ("host: quotes", host("Host: \"gw.test\"\r\n")),
        ("host: a look-alike dot", host("Host: gw\u{ff0e}test\r\n")),
        ("host: a tab before the colon", host("Host\t: gw.test\r\n")),
        ("host: folded", host("Host: gw.test\r\n .other.test\r\n")),
        ("host: folded away", host("X: y\r\n Host: gw.test\r\n")),
        ("host: in a field of X- only", host("X-Host: gw.test\r\nX-Forwarded-Host: gw.test\r\n")),
        ("target: the port named only there", target("https://gw.test:443/a")),
        ("target: an empty host", target("https:///a")),
        ("target: one slash", target("https:/gw.test/a")),
        ("target: a backslash in the host", target("https://gw.test\\@other.test/a")),
        ("target: the host as a user", target("https://gw.test@other.test/a")),
        ("target: an empty user", target("https://@gw.test/a")),
        ("target: another scheme", target("ftp://gw.test/a")),
        ("target: a script", target("javascript:alert(1)")),
        ("target: a user only", target("@other.test/a")),
        ("target: a query only", target("?a")),
        ("target: a port only", target(":443/a")),
        ("target: a host without a scheme", target("gw.test:443")),
        ("target: no slash", target("a")),
        ("target: two stars", target("**")),
        ("target: in quotes", target("\"/a\"")),
        ("line: HTTP/0.9", line("GET /a")),
        ("line: a version twice", line("GET /a HTTP/1.1 HTTP/1.1")),
        ("line: a request in the target", line("GET /a HTTP/1.1\rGET /smuggled HTTP/1.1")),
        ("line: version 1.10", line("GET /a HTTP/1.10")),
        ("line: version 01.1", line("GET /a HTTP/01.1")),
        ("line: version 1,1", line("GET /a HTTP/1,1")),
        ("line: version 3", line("GET /a HTTP/3")),
        ("line: a space behind", line("GET /a HTTP/1.1 ")),
        ("line: a tab behind", line("GET /a HTTP/1.1\t")),
        ("line: a vertical tab between", line("GET\u{b}/a HTTP/1.1")),
        ("line: a no-break space between", line("GET\u{a0}/a HTTP/1.1")),
        ("line: another protocol", line("GET /a RTSP/1.0")),
        ("line: a protocol in small letters", line("GET /a Http/1.1")),
        ("line: a byte order mark before", line("\u{feff}GET /a HTTP/1.1")),
        ("line: a NUL before", line("\0GET /a HTTP/1.1")),
        ("line: a method in quotes", line("\"GET\" /a HTTP/1.1")),
        ("line: no method", line(" /a HTTP/1.1")),
        ("line: a response", line("HTTP/1.1 200 OK")),
        ("line: two empty ones before", format!("\r\n\r\n{}", target("/a"))),
        ("line: the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("line: a PROXY header of version 1", format!("PROXY TCP4 10.0.0.1 10.0.0.2 1 443\r\n{}", target("/a"))),
        (
            "line: a PROXY header of version 2",
            format!("\r\n\r\n\0\r\nQUIT\n\u{21}\u{11}\0\u{c}aaaabbbbccdd{}", target("/a")),
        ),
        ("line: a mail", "EHLO gw.test\r\nMAIL FROM:<a@gw.test>\r\n".to_owned()),
        ("field: no name", signed_head("GET", "/a", ": y\r\n")),
        ("field: a letter of another script", signed_head("GET", "/a", "\u{421}ountersign-User: usr_Forged\r\n")),
        ("field: a space behind one of ours", signed_head("GET", "/a", "Countersign-User : usr_Forged\r\n")),
        ("field: a NUL in one of ours", signed_head("GET", "/a", "Countersign-User\0: usr_Forged\r\n")),
        ("field: a slash in the name", signed_head("GET", "/a", "Countersign/User: usr_Forged\r\n")),
        ("field: a bell in the value", signed_head("GET", "/a", "X: \u{7}\r\n")),
        ("field: a DEL in the value", signed_head("GET", "/a", "X: \u{7f}\r\n")),
        ("field: an escape in the value", signed_head("GET", "/a", "X: \u{1b}[2J\r\n")),
    ];
    let mut cases: Vec<_> =
        malformed.into_iter().map(|(name, sent)| closed(name, &[2, 8], sent, 400, "request_malformed")).collect();
    cases.push(closed(
        "target: a fragment in the host",
        &[2, 8],
        target("https://gw.test#@other.test/a"),
        400,
        "path_ambiguous",
    ));
    cases.push(closed(
        "target: a fragment behind the path",
        &[2, 8],
        target("https://gw.test/a#b"),
        400,
        "path_ambiguous",
    ));
    cases.push(closed("target: a request line's end, escaped", &[8], target("/a\\r\\nX:y"), 400, "path_ambiguous"));
    run_all(&cases);
}

/// Holds rules 1 and 8.
#[test]
fn an_authority_in_the_target_or_a_port_changes_no_path_and_no_host() {
    let target = |target: &str| signed_head("GET", target, "");
    let host = |host: &str| target("/a").replace("gw.test", host);
    let got = |line: &str| Arrived::new(line, &[]);
    let cases = [
        passes(
            "a URL with a query for its path",
            &[1, 8],
            target("https://gw.test?b=c"),
            got("GET /?b=c"),
            &["https:"],
        ),
        passes("a URL without a path", &[1, 8], target("https://gw.test"), got("GET /"), &["https:"]),
        passes("a URL of the other scheme", &[1, 8], target("http://gw.test/a"), got("GET /a"), &["http:"]),
        passes("a URL in capitals", &[1, 8], target("HTTPS://GW.TEST/a"), got("GET /a"), &["https:"]),
        passes(
            "a URL in the query",
            &[8],
            target("/a?https://other.test/%2e%2e"),
            got("GET /a?https://other.test/%2e%2e"),
            &[],
        ),
        passes("a host with a port", &[1], host("gw.test:8443"), got("GET /a"), &["\r\nhost: gw"]),
        passes("a host with a last dot", &[1], host("gw.test."), got("GET /a"), &["\r\nhost: gw"]),
        passes("an address for a host", &[1], host("[::1]:443"), got("GET /a"), &["\r\nhost: ["]),
        passes(
            "the address of a cloud's own service",
            &[1, 8],
            host("169.254.169.254"),
            got("GET /a"),
            &["\r\nhost: 169"],
        ),
        kept("a URL with an empty segment", &[8], target("https://gw.test//a"), 400, "path_ambiguous"),
        kept("a URL with dots", &[8], target("https://gw.test/../a"), 400, "path_ambiguous"),
        kept("a URL with an escaped slash", &[8], target("https://gw.test/a%2fb"), 400, "path_ambiguous"),
        kept("a network path", &[8], target("//other.test/a"), 400, "path_ambiguous"),
    ];
    run_all(&cases);
}

/// Holds rule 8.
#[test]
fn a_path_that_a_server_may_read_otherwise_goes_to_none() {
    let paths = [
        "/a/%2e",
        "/%2e%2e",
        "/%2e./a",
        "/a/..%00/b",
        "/a/.%00./b",
        "/a/%2e%2e%2fb",
        "/a/..%5cb",
        "/a/..%c0%afb",
        "/a/%c0%2e%c0%2e/b",
        "/a/%e2%80%a4%e2%80%a4/b",
        "/a/%e2%80%a6/b",
        "/a%ef%bc%bcb",
        "/a%e2%81%84b",
        "/a%e2%a7%b8b",
        "/a%c1%9cb",
        "/a%f0%80%80%afb",
        "/a%uff0eb",
        "/a/%%32%65",
        "/a/%25%32%65",
        "/a/..%09/b",
        "/a/..%0d/b",
        "/a/....//b",
        "/a/.;x=y/b",
        "/a/..;jsessionid=1/b",
        "/a/%2e%2e;/b",
        "/a/..%3Bx/b",
        "/a/;/b",
        "/;x=y/a",
        "/a/%3b/b",
        "/a/.//b",
        "///a",
        "/a///",
        "/a%2",
        "/a%g0",
        "/a%0",
        "/a%7f",
        "/a%80",
        "/a%ed%bf%bf",
        "/a%f4%90%80%80",
        "/%41",
        "/a%2d%62",
        "/a%5f",
    ];
    let mut cases: Vec<_> =
        paths.into_iter().map(|path| kept(path, &[8], signed_head("GET", path, ""), 400, "path_ambiguous")).collect();
    for path in ["/a;v=1/b", "/a%3bb", "/a..b", "/...", "/a/", "/a%20b/c%3Fd"] {
        let arrived = Arrived::new(&format!("GET {path}"), &[]);
        cases.push(passes(path, &[8], signed_head("GET", path, ""), arrived, &["%2e", "%2f"]));
    }
    run_all(&cases);
}

/// Holds rules 1 and 4.
#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn no_field_stands_in_for_one_of_the_gateway_s() {
    let with = |fields: &str| signed_head("GET", "/a", &format!("{fields}X-Kept: y\r\n"));
    let kept = || Arrived::new("GET /a", &["x-kept: y"]);
    let cut: &[(&'static str, &str, &'static [&'static str])] = &[
        ("ours, twice", "Countersign-User: usr_F1\r\nCountersign-User: usr_F2\r\n", &["usr_F1", "usr_F2"]),
        ("ours, as a list", "Countersign-Roles: admin, owner\r\n", &["countersign-roles", "admin"]),
        ("ours, empty", "Countersign-Roles:\r\n", &["countersign-roles"]),
        ("ours, with a second hyphen", "Countersign--User: usr_F\r\n", &["usr_F"]),
        ("ours, with a hyphen behind", "Countersign-User-: usr_F\r\n", &["usr_F"]),
        ("ours, with an underscore behind", "Countersign-User_: usr_F\r\n", &["usr_F"]),
        ("ours, as CGI has it", "HTTP_COUNTERSIGN_USER: usr_F\r\n", &["usr_F"]),
        ("ours, with underscores and X", "X_Countersign_User: usr_F\r\n", &["usr_F"]),
        ("ours, with a plus", "Countersign+User: usr_F\r\n", &["usr_F"]),
        ("ours, with a percent sign", "Countersign%2dUser: usr_F\r\n", &["usr_F"]),
        ("ours, with a bar", "Countersign|User: usr_F\r\n", &["usr_F"]),
        ("ours, in a caret", "^Countersign-User: usr_F\r\n", &["usr_F"]),
        ("ours, in an apostrophe", "'Countersign-User': usr_F\r\n", &["usr_F"]),
        ("the account, in mixed case", "cOUNTERSIGN-aCCOUNT: acct_F\r\n", &["acct_F"]),
        ("the app", "Countersign-App: other\r\n", &["other"]),
        ("what is signed", "Countersign-Signed: body\r\n", &["signed: body"]),
        ("the address, as a chain", "X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n", &["10.0.0"]),
        ("the address, twice", "X-Forwarded-For: 10.0.0.1\r\nx-forwarded-for: 10.0.0.2\r\n", &["10.0.0"]),
        (
            "the address, by the standard",
            "Forwarded: for=10.0.0.1;proto=http;host=other.test\r\n",
            &["10.0.0", "other.test"],
        ),
        ("the address, with underscores", "X_FORWARDED_FOR: 10.0.0.1\r\n", &["10.0.0"]),
        ("the address, of a cloud", "X-Azure-ClientIP: 10.0.0.1\r\nFly-Client-IP: 10.0.0.2\r\n", &["10.0.0"]),
        ("the address, of the first proxy", "X-Original-Forwarded-For: 10.0.0.1\r\n", &["10.0.0"]),
        (
            "the scheme",
            "X-Forwarded-Proto: http\r\nX-Forwarded-Scheme: http\r\nX-Forwarded-Ssl: off\r\n",
            &["ssl", "-scheme"],
        ),
        ("the port and the prefix", "X-Forwarded-Port: 80\r\nX-Forwarded-Prefix: /admin\r\n", &["/admin", "-port"]),
        ("the server", "X-Forwarded-Server: other.test\r\nX-Host: other.test\r\n", &["other.test"]),
        ("the path", "X-Original-URL: /admin\r\nX-Rewrite-URL: /admin\r\nX-Forwarded-Uri: /admin\r\n", &["/admin"]),
        (
            "the path, of other servers",
            "X-Original-URI: /admin\r\nX-Envoy-Original-Path: /admin\r\nRequest-Uri: /admin\r\n",
            &["/admin"],
        ),
        ("the path's prefix", "X-Script-Name: /admin\r\nX-Replaced-Path: /admin\r\n", &["/admin"]),
        ("the method", "X-HTTP-Method-Override: PUT\r\nX-Method-Override: PUT\r\nX-HTTP-Method: PUT\r\n", &["put"]),
        (
            "the user of another gateway",
            "X-Auth-Request-User: root\r\nX-Remote-User: root\r\nRemote-User: root\r\n",
            &["root"],
        ),
        (
            "the user of a cloud",
            "X-Goog-Authenticated-User-Id: root\r\nX-MS-Client-Principal-Id: root\r\nCf-Access-Authenticated-User-Email: root\r\n",
            &["root"],
        ),
        (
            "a certificate",
            "X-SSL-Client-Verify: SUCCESS\r\nSSL-Client-Cert: x\r\nX-Client-DN: CN=root\r\nClient-Cert: x\r\n",
            &["success", "root", "-cert"],
        ),
        (
            "Stripe's own, with another hyphen",
            "Stripe-User: usr_F\r\nX-Stripe-Role: admin\r\nStripe-Account: acct_F\r\n",
            &["usr_F", "acct_F", "admin"],
        ),
        (
            "Stripe's own, with underscores",
            "Stripe_User_Id: usr_F\r\nX_Stripe_Account_Id: acct_F\r\n",
            &["usr_F", "acct_F"],
        ),
        ("Stripe's context", "Stripe-Context: acct_F\r\n", &["acct_F"]),
        (
            "credentials",
            "Authorization: Bearer hush-1\r\nCookie: s=hush-2\r\nProxy-Authorization: hush-3\r\nCookie2: hush-4\r\n",
            &["hush"],
        ),
        ("cookies, twice", "Cookie: a=F\r\nCookie: b=F\r\n", &["a=f", "b=f"]),
        (
            "a trace",
            "traceparent: 00-11111111111111111111111111111111-1111111111111111-01\r\ntracestate: x=F\r\nbaggage: x=F\r\n",
            &["1111111111", "x=f"],
        ),
        ("a request's id", "X-Request-Id: forged\r\nX-Request-ID: forged\r\nX_Request_Id: forged\r\n", &["forged"]),
        ("the library's environment", "Proxy: http://other.test\r\n", &["other.test"]),
        (
            "a file to send",
            "X-Accel-Redirect: /admin\r\nX-Sendfile-Type: X\r\nX-Accel-Mapping: /=/\r\n",
            &["/admin", "sendfile", "mapping"],
        ),
        ("middleware", "X-Middleware-Subrequest: middleware\r\nX-Middleware-Prefetch: 1\r\n", &["middleware"]),
    ];
    let mut cases: Vec<_> =
        cut.iter().map(|(name, fields, never)| passes(name, &[1, 4], with(fields), kept(), never)).collect();
    let other =
        |name, fields: &str, lines: &[&str]| passes(name, &[1], with(fields), Arrived::new("GET /a", lines), &[]);
    cases.extend([
        other(
            "letters of another alphabet in a value",
            "X-Name: Zo\u{eb}\r\n",
            &["x-kept: y", "x-name: Zo\u{c3}\u{ab}"],
        ),
        other("an empty value", "X-Empty: \t \r\n", &["x-kept: y", "x-empty: "]),
        other("a field twice", "Accept: a\r\nACCEPT: b\r\n", &["accept: a", "accept: b", "x-kept: y"]),
        other(
            "a value like a field",
            "X-Note: Countersign-User: usr_F\r\n",
            &["x-kept: y", "x-note: Countersign-User: usr_F"],
        ),
    ]);
    run_all(&cases);
}

/// Holds rule 4.
#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn a_connection_s_own_fields_end_at_the_gateway() {
    let with = |fields: &str| signed_head("GET", "/a", fields);
    let got = |fields: &[&str]| Arrived::new("GET /a", fields);
    let cases = [
        passes("names the host", &[4], with("Connection: host\r\n"), got(&[]), &["connection"]),
        passes(
            "names the signature",
            &[4],
            with("Connection: stripe-signature, stripe-user-id\r\n"),
            got(&[]),
            &["connection"],
        ),
        passes(
            "names all of ours",
            &[4],
            with(
                "Connection: countersign-user, countersign-account, countersign-app, countersign-signed, traceparent, x-forwarded-proto, x-forwarded-host\r\n",
            ),
            got(&[]),
            &["connection"],
        ),
        passes(
            "names two in two fields",
            &[4],
            with("Connection: x-a\r\nConnection: x-b\r\nX-A: hop-a\r\nX-B: hop-b\r\nX-C: c\r\n"),
            got(&["x-c: c"]),
            &["hop-a", "hop-b"],
        ),
        passes(
            "names one in capitals between commas",
            &[4],
            with("Connection: ,,\t X-A ,,\r\nX-A: hop1\r\n"),
            got(&[]),
            &["hop1"],
        ),
        passes(
            "names one that is there twice",
            &[4],
            with("Connection: x-a\r\nX-A: hop1\r\nX-A: hop2\r\n"),
            got(&[]),
            &["hop1", "hop2"],
        ),
        passes(
            "names itself",
            &[4],
            with("Connection: connection, keep-alive\r\nKeep-Alive: timeout=9\r\n"),
            got(&[]),
            &["timeout=9"],
        ),
        passes(
            "names what is not there",
            &[4],
            with("Connection: x-none\r\nX-A: y\r\n"),
            got(&["x-a: y"]),
            &["x-none"],
        ),
        passes(
            "names nothing readable",
            &[4],
            with("Connection: \"x-a\", x b\r\nX-A: y\r\n"),
            got(&["x-a: y"]),
            &["connection"],
        ),
        passes(
            "names the framing",
            &[1, 4],
            upload("Connection: content-length\r\nContent-Length: 3\r\n", "abc"),
            Arrived::new("POST /a", &[OPAQUE]).length("abc"),
            &["connection"],
        ),
        passes(
            "names the coding",
            &[1, 4],
            upload("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
            Arrived::new("POST /a", &[OPAQUE]).chunked("abc"),
            &["connection"],
        ),
        passes("te and trailer", &[4], with("TE: trailers\r\nTrailer: Countersign-User\r\n"), got(&[]), &["trailer"]),
        passes(
            "fields of a proxy",
            &[4],
            with("Proxy-Connection: keep-alive\r\nProxy-Authenticate: x\r\nProxy-Status: x\r\n"),
            got(&[]),
            &["proxy-"],
        ),
        passes(
            "an upgrade that no Connection names",
            &[4, 11],
            with("Upgrade: websocket\r\n"),
            got(&[]),
            &["upgrade", "websocket"],
        ),
        passes(
            "settings of HTTP/2",
            &[4, 11],
            with("HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"),
            got(&[]),
            &["http2", "aamaaabk"],
        ),
        passes(
            "trailers with an identity",
            &[4],
            upload("Transfer-Encoding: chunked\r\nTrailer: X\r\n", "0\r\nCountersign-User: usr_F\r\nX: y\r\n\r\n"),
            Arrived::new("POST /a", &[OPAQUE]).chunked(""),
            &["usr_F", "x: y"],
        ),
        passes(
            "trailers with a framing",
            &[1, 4],
            upload(
                "Transfer-Encoding: chunked\r\n",
                "0\r\nContent-Length: 98765\r\nTransfer-Encoding: gzip\r\nHost: other.test\r\n\r\n",
            ),
            Arrived::new("POST /a", &[OPAQUE]).chunked(""),
            &["length: 98765", "gzip", "other.test"],
        ),
    ];
    run_all(&cases);
}

/// Holds rules 4 and 11.
#[test]
fn an_upgrade_that_no_route_allows_is_refused_in_http1() {
    let cases: Vec<_> = [
        ("to HTTP/2", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        (
            "to a WebSocket",
            "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        ("to TLS", "Connection: upgrade\r\nUpgrade: TLS/1.2\r\n"),
        ("to a tunnel", "Connection: upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n"),
        ("to several", "Connection: close-not\r\nConnection: UPGRADE\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n"),
    ]
    .into_iter()
    .map(|(name, fields)| kept(name, &[4, 11], signed_head("GET", "/a", fields), 400, "request_malformed"))
    .collect();
    run_all(&cases);
}

/// Holds rules 3 and 5.
#[test]
fn the_body_of_a_refused_request_is_never_the_next_request() {
    let inner = inner();
    let length = format!("Content-Length: {}\r\n\r\n{inner}", inner.len());
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    let signed = signed_head("POST", "/a", "Content-Type: application/octet-stream\r\n");
    let signed = signed.trim_end_matches("\r\n").to_owned() + "\r\n";
    let unsigned = "POST /a HTTP/1.1\r\nHost: gw.test\r\nContent-Type: application/octet-stream\r\n";
    let preflight = "OPTIONS /a HTTP/1.1\r\nHost: gw.test\r\nOrigin: null\r\nAccess-Control-Request-Method: POST\r\n";
    let expired =
        signed.replace(&signature(&identity_payload()), &crate::support::signature_at(&identity_payload(), 1));
    let refused: &[(&'static str, &'static str, String, u16, &str)] = &[
        ("no signature, by length", "no signature, in chunks", unsigned.to_owned(), 401, "signature_missing"),
        (
            "a bad signature, by length",
            "a bad signature, in chunks",
            signed.replace("v1=", "v1=x"),
            401,
            "signature_malformed",
        ),
        (
            "somebody else, by length",
            "somebody else, in chunks",
            signed.replace("usr_", "usr_X"),
            401,
            "signature_mismatch",
        ),
        ("an old signature, by length", "an old signature, in chunks", expired, 401, "timestamp_expired"),
        (
            "a path of two readings, by length",
            "a path of two readings, in chunks",
            signed.replace("/a ", "/a//b "),
            400,
            "path_ambiguous",
        ),
        (
            "a method of no route, by length",
            "a method of no route, in chunks",
            signed.replace("POST", "DELETE"),
            405,
            "method_not_allowed",
        ),
        (
            "an OPTIONS, by length",
            "an OPTIONS, in chunks",
            signed.replace("POST", "OPTIONS"),
            405,
            "method_not_allowed",
        ),
        ("a TRACE, by length", "a TRACE, in chunks", signed.replace("POST", "TRACE"), 405, "method_not_allowed"),
        ("a preflight, by length", "a preflight, in chunks", preflight.to_owned(), 204, ""),
        (
            "two content types, by length",
            "two content types, in chunks",
            format!("{signed}Content-Type: text/plain\r\n"),
            400,
            "body_invalid",
        ),
    ];
    let mut cases = Vec::new();
    for (by_length, in_chunks, head, status, code) in refused {
        cases.push(kept(by_length, &[3, 5], format!("{head}{length}"), *status, code));
        cases.push(kept(in_chunks, &[3, 5], format!("{head}{chunked}"), *status, code));
    }
    let json = |body: &str| signed_body("POST", "/a", body).replace(&signature(body), &signature(&identity_payload()));
    cases.push(kept(
        "a body to verify, of somebody else",
        &[3, 5, 6],
        json(&format!("{{\"user_id\":\"usr_F\",\"x\":\"{}\"}}", "GET / HTTP/1.1")),
        401,
        "identity_missing",
    ));
    run_all(&cases);
}

/// Holds rules 2 and 3.
#[test]
fn a_body_that_waits_for_a_go_ahead_is_asked_for_or_the_connection_ends() {
    let body = identity_payload();
    let head = |expect: &str| {
        signed_body("POST", "/a", "")
            .replace("Content-Length: 0", &format!("{expect}\r\nContent-Length: {}", body.len()))
            .replace(&signature(""), &signature(&body))
    };
    let arrived = || Arrived::new("POST /a", &["content-type: application/json"]).length(&body);
    let whole = |expect: &str| head(expect) + &body;
    let goes_ahead = |name, expect: &str| {
        let told = Told::Then(vec![(100, String::new()), (200, String::new())]);
        Case { told, ..passes(name, &[2, 3], whole(expect), arrived(), &["expect"]) }
    };
    let cases = [
        goes_ahead("a body that comes at once", "Expect: 100-continue"),
        goes_ahead("in capitals", "EXPECT: 100-CONTINUE"),
        passes("another expectation", &[1, 4], whole("Expect: 200-ok"), arrived(), &["expect", "200-ok"]),
        passes("a name with an underscore", &[1, 4], whole("Expect_: 100-continue"), arrived(), &["expect_"]),
        closed(
            "an expectation without a signature",
            &[3, 5],
            whole("Expect: 100-continue").replace("Stripe-Signature", "X-S"),
            401,
            "signature_missing",
        ),
        closed(
            "an expectation of a path that is refused",
            &[3, 8],
            whole("Expect: 100-continue").replace("/a", "/a//b"),
            400,
            "path_ambiguous",
        ),
    ];
    run_all(&cases);
}

/// Holds rules 9 and 11: neither plain text nor the bytes of HTTP/2 in the other protocol's place get an answer from
/// an upstream.
#[test]
fn what_is_not_the_agreed_protocol_reaches_no_upstream() {
    let tape = Tape::start();
    let gateway = Gateway::with(&tape.route());
    let request = signed_head("GET", "/a", "");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for plain in
        [request.as_str(), preface, "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", "\x16\x03\x01\0\x05hello", "SSH-2.0-x\r\n"]
    {
        let mut stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(plain.as_bytes()).unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        assert!(!all.starts_with(b"HTTP/"), "{plain:?} was answered: {:?}", String::from_utf8_lossy(&all));
    }
    let mut client = gateway.connect();
    client.send([preface.as_bytes(), &super::frames::frame(super::frames::SETTINGS, 0, 0, &[])].concat());
    assert_eq!(client.answer().code(), "request_malformed");
    assert!(client.is_closed());
    let mut client = gateway.connect();
    client.send(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n");
    assert_eq!(client.answer().code(), "request_malformed");
    assert!(tape.bytes().is_empty(), "{:?}", tape.bytes());
}

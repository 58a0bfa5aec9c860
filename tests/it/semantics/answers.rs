//! Answers of a hostile upstream, byte for byte, and what of them gets to the client.

use std::collections::BTreeSet;

use super::tape::{HANG_UP, Tape, latin1};
use crate::support::{Gateway, find, signed_head};

/// One case of an answer.
struct Case {
    name: &'static str,
    rules: &'static [u8],
    answer: Vec<u8>,
    told: Told,
    /// What must not get to the client, in whatever case of letters.
    never: &'static [&'static str],
}

enum Told {
    /// The upstream's status and body.
    Body(u16, &'static str),
    /// The upstream's status, and a body that is seen to break off.
    BrokenOff(u16),
    /// A refusal, and nothing of the answer.
    Refused(u16, &'static str),
}

use Told::{Body, BrokenOff, Refused};

fn case(
    name: &'static str,
    rules: &'static [u8],
    answer: impl AsRef<[u8]>,
    told: Told,
    never: &'static [&'static str],
) -> Case {
    Case { name, rules, answer: answer.as_ref().to_vec(), told, never }
}

fn ok(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok")
}

const INVALID: Told = Refused(502, "upstream_invalid");

#[expect(clippy::too_many_lines, reason = "it is a table")]
fn cases() -> Vec<Case> {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let odd_length = |value: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\nok");
    let line = |line: &str| format!("{line}\r\nContent-Length: 2\r\n\r\nok");
    vec![
        case(
            "a length beside chunks",
            &[12],
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            Body(200, "ok"),
            &["content-length: 2"],
        ),
        case(
            "two lengths",
            &[12],
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\nokokoko",
            INVALID,
            &["okok"],
        ),
        case("a list of two lengths", &[12], odd_length("2, 7"), INVALID, &["ok\r\n"]),
        case("a length with a sign", &[12], odd_length("+2"), INVALID, &[]),
        case("a negative length", &[12], odd_length("-2"), INVALID, &[]),
        case("a length in hexadecimal", &[12], odd_length("0x2"), INVALID, &[]),
        case("a length of 65 bits", &[12], odd_length("18446744073709551618"), INVALID, &[]),
        case("an answer behind the answer", &[12], ok("") + poison, Body(200, "ok"), &["poison"]),
        case(
            "an answer behind the chunks",
            &[12],
            format!("{chunked}2\r\nok\r\n0\r\n\r\n{poison}"),
            Body(200, "ok"),
            &["poison"],
        ),
        case(
            "a body behind 204",
            &[12],
            format!("HTTP/1.1 204 No Content\r\n\r\n{poison}"),
            Body(204, ""),
            &["poison"],
        ),
        case(
            "a length at 204",
            &[12],
            "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison",
            Body(204, ""),
            &["poison", "content-length"],
        ),
        case(
            "chunks at 204",
            &[12],
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n",
            Body(204, ""),
            &["poison"],
        ),
        case(
            "a body behind 304",
            &[12],
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison",
            Body(304, ""),
            &["poison"],
        ),
        case(
            "a body shorter than announced",
            &[12],
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok",
            BrokenOff(200),
            &[],
        ),
        case("chunks without an end", &[12], format!("{chunked}2\r\nok\r\n"), BrokenOff(200), &["0\r\n\r\n"]),
        case("a chunk that is cut", &[12], format!("{chunked}9\r\nok"), BrokenOff(200), &["0\r\n\r\n"]),
        case("a size that is none", &[12], format!("{chunked}2\r\nok\r\nx\r\n\r\n"), BrokenOff(200), &["\r\n0\r\n"]),
        case(
            "a chunk longer than its size",
            &[12],
            format!("{chunked}2\r\nokay\r\n0\r\n\r\n"),
            BrokenOff(200),
            &["\r\n0\r\n"],
        ),
        case(
            "a trailer that names somebody",
            &[4, 12],
            format!("{chunked}2\r\nok\r\n0\r\nCountersign-User: usr_F\r\nSet-Cookie: a=b\r\n\r\n"),
            Body(200, "ok"),
            &["usr_F", "set-cookie"],
        ),
        case(
            "an unasked change of protocol",
            &[11, 12],
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\npoison",
            INVALID,
            &["poison", "upgrade", "101 switching"],
        ),
        case(
            "an unasked change to HTTP/2",
            &[11, 12],
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            INVALID,
            &["h2c", "101 switching"],
        ),
        case(
            "some interim answers",
            &[12],
            "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(3) + &ok(""),
            Body(200, "ok"),
            &["early", "link:"],
        ),
        case(
            "an unasked go-ahead",
            &[12],
            "HTTP/1.1 100 Continue\r\n\r\n".to_owned() + &ok(""),
            Body(200, "ok"),
            &["continue"],
        ),
        case("an answer of HTTP/0.9", &[12], "poison", INVALID, &["poison"]),
        case("an answer of HTTP/2", &[12], line("HTTP/2 200 OK"), INVALID, &["ok\r\n"]),
        case("an answer of HTTP/3.7", &[12], line("HTTP/3.7 200 OK"), INVALID, &[]),
        case("a status of two digits", &[12], line("HTTP/1.1 99 OK"), INVALID, &[]),
        case("a status of four digits", &[12], line("HTTP/1.1 2000 OK"), INVALID, &[]),
        case("a status of letters", &[12], line("HTTP/1.1 2OO OK"), INVALID, &[]),
        case("a reason with a NUL", &[12], line("HTTP/1.1 200 O\0K"), INVALID, &["o\0k"]),
        case("a NUL in a value", &[12], ok("X: a\0b\r\n"), INVALID, &["a\0b"]),
        case("a NUL in a name", &[12], ok("X\0Y: a\r\n"), INVALID, &["x\0y"]),
        case("a space before a colon", &[12], ok("X : a\r\n"), INVALID, &["x :"]),
        case("a folded field", &[12], ok("X: a\r\n poison\r\n"), INVALID, &["poison"]),
        case("a line without a colon", &[12], ok("poison\r\n"), INVALID, &["poison"]),
        case("a request for an answer", &[12], "GET /poison HTTP/1.1\r\nHost: gw.test\r\n\r\n", INVALID, &["poison"]),
        case("a handshake for an answer", &[12], b"\x15\x03\x01\0\x02\x02\x28\r\n\r\n", INVALID, &["\u{15}"]),
        case(
            "a field beyond every bound",
            &[10, 12],
            ok(&format!("X: {}\r\n", "poison".repeat(200_000))),
            INVALID,
            &["poison"],
        ),
        case("more fields than any answer has", &[10, 12], ok(&"X: poison\r\n".repeat(5000)), INVALID, &["poison"]),
        case(
            "its own word on origins",
            &[12],
            ok(
                "Access-Control-Allow-Origin: https://poison.test\r\naccess-control-allow-origin: null\r\nAccess-Control-Allow-Credentials: true\r\nAccess-Control-Allow-Private-Network: true\r\nAccess_Control_Allow_Origin: poison\r\n",
            ),
            Body(200, "ok"),
            &["poison", "credentials", "private-network"],
        ),
        case(
            "identities",
            &[4, 12],
            ok(
                "Countersign-User: usr_F\r\nX-Countersign-User: usr_F\r\nCountersign_Account: usr_F\r\nStripe-User-Id: usr_F\r\nX_Stripe_Account_Id: usr_F\r\nStripe-Signature: usr_F\r\n",
            ),
            Body(200, "ok"),
            &["usr_F"],
        ),
        case(
            "cookies",
            &[12],
            ok("Set-Cookie: a=poison\r\nset-cookie: b=poison\r\nSet-Cookie2: poison\r\n"),
            Body(200, "ok"),
            &["poison"],
        ),
        case(
            "orders to a proxy",
            &[12],
            ok(
                "X-Accel-Redirect: /poison\r\nX-Accel-Buffering: poison\r\nX-Forwarded-For: poison\r\nForwarded: poison\r\nVia: poison\r\n",
            ),
            Body(200, "ok"),
            &["poison"],
        ),
        case(
            "another address of the service",
            &[12],
            ok("Alt-Svc: h3=\"poison.test:443\"\r\n"),
            Body(200, "ok"),
            &["poison", "alt-svc"],
        ),
        case(
            "an id of its own",
            &[12],
            ok("X-Request-Id: poison\r\nx-request-id: poison\r\n"),
            Body(200, "ok"),
            &["poison"],
        ),
        case(
            "its connection's fields",
            &[4, 12],
            ok(
                "Connection: X-Hop, keep-alive\r\nX-Hop: poison\r\nKeep-Alive: poison=5\r\nProxy-Authenticate: poison\r\nUpgrade: poison\r\nTrailer: poison\r\n",
            ),
            Body(200, "ok"),
            &["poison"],
        ),
        case(
            "a coding that is none",
            &[12],
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\npoison",
            INVALID,
            &["poison"],
        ),
        case(
            "two codings",
            &[12],
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n6\r\npoison\r\n0\r\n\r\n",
            INVALID,
            &["poison"],
        ),
        case(
            "a redirect with a line end",
            &[8, 12],
            "HTTP/1.1 302 Found\r\nLocation: /a\r X: poison\r\nContent-Length: 0\r\n\r\n",
            INVALID,
            &["poison"],
        ),
    ]
}

/// Holds rules 4, 11 and 12.
#[test]
fn a_hostile_answer_is_refused_or_made_harmless_and_never_the_next_request_s() {
    let cases = cases();
    let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "a name serves one case");
    let mut wrong = Vec::new();
    for Case { name, rules, answer, told, never } in cases {
        assert!(!rules.is_empty() && rules.iter().all(|rule| (1..=15).contains(rule)), "{name}");
        let tape = Tape::answering(move |line| {
            if line.starts_with("GET /next") {
                return b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext".to_vec();
            }
            answer.clone()
        });
        let gateway = Gateway::with(&tape.route());
        let mut client = gateway.connect();
        client.send(signed_head("GET", if let BrokenOff(_) = told { HANG_UP } else { "/attack" }, ""));
        let got = client.answer();
        let (body, code) = (latin1(&got.body), got.code());
        let fits = match told {
            Body(status, text) => got.status == status && got.complete && body == text,
            BrokenOff(status) => got.status == status && !got.complete,
            Refused(status, expected) => got.status == status && got.complete && code == expected,
        };
        if !fits {
            wrong.push(format!("{name}: told {} {code:?} {body:?}, complete: {}", got.status, got.complete));
        }
        let all = [got.head.as_bytes(), &got.body].concat().to_ascii_lowercase();
        for text in never {
            if find(&all, text.to_ascii_lowercase().as_bytes()).is_some() {
                wrong.push(format!("{name}: {text:?} reached the client in {:?}", got.head));
            }
        }
        if (got.count("access-control-allow-origin"), got.count("x-request-id")) != (1, 1) {
            wrong.push(format!("{name}: {:?}", got.head));
        }
        // On whatever connection to the upstream, the next answer is the next request's.
        for _ in 0..2 {
            let next = gateway.ask(signed_head("GET", "/next", ""));
            if (next.status, &next.body[..]) != (200, b"next") {
                wrong.push(format!("{name}: the next request got {} {:?}", next.status, latin1(&next.body)));
            }
        }
        if let Err(other) = tape.arrived() {
            wrong.push(format!("{name}: {other}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

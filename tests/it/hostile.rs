//! Requests that two readers could understand differently, or that name somebody else: nothing of them may reach the upstream.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::support::{
    ACCOUNT, Gateway, USER, Upstream, find, header, headers, identity_payload, signature, signed_body, signed_head,
};

/// Asks each case of a signed request that is otherwise good, and expects its refusal with nothing at the upstream.
fn all_refused<'c>(cases: impl IntoIterator<Item = (String, u16, &'c str)>) {
    let upstream = Upstream::ok();
    let gateway = Gateway::with(&format!(
        "[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\nmethods = [\"GET\", \"POST\"]\n",
        upstream.origin()
    ));
    let mut wrong = Vec::new();
    for (request, status, code) in cases {
        let answer = gateway.ask(&request);
        if (answer.status, answer.code().as_str()) != (status, code) {
            wrong.push(format!("{request:?}\n  gave {} {}, not {status} {code}", answer.status, answer.code()));
        }
        let opened = (answer.header("access-control-allow-origin"), answer.count("access-control-allow-origin"));
        if opened != (Some("*"), 1) || answer.header("x-request-id").is_none() {
            wrong.push(format!("{request:?}\n  the page cannot read: {}", answer.head));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
    assert_eq!(gateway.ask(signed_head("GET", "/", "")).status, 200, "the gateway still serves");
}

/// Holds rule 2.
#[test]
fn a_framing_with_two_readings_is_refused() {
    let post = |more: &str, body: &str| signed_head("POST", "/a", more) + body;
    let cases = [
        post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"),
        post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
        post("Content-Length: 3\r\nContent-Length: 0\r\n", "abc"),
        post("Content-Length: 3, 3\r\n", "abc"),
        post("Content-Length: +3\r\n", "abc"),
        post("Content-Length: -3\r\n", "abc"),
        post("Content-Length: 0x3\r\n", "abc"),
        post("Content-Length: 3a\r\n", "abc"),
        post("Content-Length:\r\n", ""),
        post("Content-Length: 9223372036854775808\r\n", ""),
        post("Content-Length : 3\r\n", "abc"),
        post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: identity\r\n", ""),
        post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chu\u{b}nked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        signed_head("GET", "/a", "").replace("HTTP/1.1", "HTTP/1.0"),
        signed_head("POST", "/a", "Transfer-Encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0") + "0\r\n\r\n",
        signed_head("GET", "/a", "").replace("HTTP/1.1", "HTTP/2.0"),
        signed_head("GET", "/a", "").replace("HTTP/1.1", "HTTP/1.2"),
        signed_head("GET", "/a", "").replace("HTTP/1.1", "http/1.1"),
        signed_head("GET", "/a", "").replace(" HTTP/1.1", ""),
        signed_head("GET", "/a", "").replace(" HTTP/1.1", "  HTTP/1.1"),
        signed_head("GET", "/a", "").replace("\r\n", "\n"),
        signed_head("GET", "/a", "X: y\n"),
        signed_head("GET", "/a", "X: y\rZ: z\r\n"),
        signed_head("GET", "/a", "").replace("\r\n\r\n", "\r\n\r\r\n"),
        signed_head("GET", "/a", "X: y\0\r\n"),
        signed_head("GET", "/a", "X\0: y\r\n"),
        signed_head("GET", "/a", "X: y\r\n folded\r\n"),
        signed_head("GET", "/a", "X: y\r\n\tfolded\r\n"),
        signed_head("GET", "/a", "X : y\r\n"),
        signed_head("GET", "/a", "X y\r\n"),
        signed_head("GET", "/a", ": y\r\n"),
        signed_head("GET", "/a", "X(Y): y\r\n"),
        signed_head("G ET", "/a", ""),
        signed_head("G\tET", "/a", ""),
        signed_head("GET\t", "/a", ""),
        signed_head("GET", "/a\tb", ""),
        signed_head("GET", "/a\0", ""),
        format!("\r\n{}", signed_head("GET", "/a", "")),
        format!(" {}", signed_head("GET", "/a", "")),
    ];
    all_refused(cases.map(|case| (case, 400, "request_malformed")));
}

/// Holds rule 2.
#[test]
fn a_chunked_body_that_is_malformed_is_refused() {
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(300));
    let cases = [
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3;\0\r\nabc\r\n0\r\n\r\n",
        "3;a\n\r\nabc\r\n0\r\n\r\n",
        "g\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "0\r\nNo colon\r\n\r\n",
        "0\r\n Folded: x\r\n\r\n",
        "0\r\nX: \0\r\n\r\n",
        long.as_str(),
    ];
    let head = signed_head("POST", "/a", "Transfer-Encoding: chunked\r\n");
    all_refused(cases.map(|case| (format!("{head}{case}"), 400, "request_malformed")));
}

/// Holds rules 2 and 8.
#[test]
fn a_host_with_two_readings_is_refused() {
    let host = |host: &str| signed_head("GET", "/a", "").replace("Host: gw.test\r\n", host);
    let absolute = |target: &str| signed_head("GET", target, "");
    let cases = [
        host(""),
        host("Host: gw.test\r\nHost: gw.test\r\n"),
        host("Host: gw.test\r\nHost: other.test\r\n"),
        host("Host: gw.test, other.test\r\n"),
        host("Host:\r\n"),
        host("Host: user@gw.test\r\n"),
        host("Host: gw.test/path\r\n"),
        host("Host: gw test\r\n"),
        host("Host: gw.test:port\r\n"),
        host("Host: gw.test:\r\n"),
        host("Host: gw.test:80:80\r\n"),
        host("Host: [::1\r\n"),
        host("Host: gw.test#a\r\n"),
        host("Host: gw%2etest\r\n"),
        host("Host: \u{e9}\r\n"),
        absolute("http://other.test/a"),
        absolute("https://gw.test:444/a"),
        absolute("https://user@gw.test/a"),
        absolute("gw.test/a"),
        host("").replace(" /a ", " https://gw.test/a "),
    ];
    all_refused(cases.map(|case| (case, 400, "request_malformed")));
}

/// Holds rule 8.
#[test]
fn an_absolute_target_of_the_same_host_is_taken() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    assert_eq!(gateway.ask(signed_head("GET", "https://gw.test/a?b=c", "")).status, 200);
    assert!(upstream.only().0.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{}", upstream.only().0);
}

/// Holds rule 8.
#[test]
fn a_path_with_two_readings_is_refused() {
    let cases = [
        "/a/../b",
        "/../a",
        "/a/..",
        "/a/.",
        "/./a",
        "/a/./b",
        "//a",
        "/a//b",
        "/a//",
        "/a/%2e%2e/b",
        "/a/%2E%2E/b",
        "/a/.%2e/b",
        "/a/%2e/b",
        "/a/..;/b",
        "/a/..;x=1/b",
        "/a/.;/b",
        "/a/..%3b/b",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a%5Cb",
        "/a\\b",
        "/a\\..\\b",
        "/a%00",
        "/a%00.html",
        "/a%0a",
        "/a%0d%0ab",
        "/a%09",
        "/a%7f",
        "/a%25",
        "/a%252e%252e/b",
        "/a%252fb",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%u002e",
        "/a#b",
        "/a%c0%ae",
        "/a%c0%af",
        "/a%e0%80%ae",
        "/a%ff",
        "/a%c3",
        "/%ef%bc%8e%ef%bc%8e/b",
        "/%e2%80%a5/b",
        "/a%e2%88%95b",
        "/a%ef%bc%8fb",
        "/a%ef%bc%85",
        "/%61dmin",
        "/a%2Db",
        "/a%7e",
        "/a\u{e9}",
        "/a<b",
        "/a>b",
        "/a\"b",
        "/a`b",
        "/a{b}",
    ];
    all_refused(cases.map(|case| (signed_head("GET", case, ""), 400, "path_ambiguous")));
}

/// Holds rule 8.
#[test]
fn a_parameter_in_a_path_does_not_lead_around_a_stricter_route() {
    let upstream = Upstream::ok();
    let origin = upstream.origin();
    let gateway = Gateway::with(&format!(
        "[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{origin}\"\n\
         [[routes]]\npath = \"/admin/\"\napp = \"test\"\nupstream = \"{origin}\"\nroles = [\"admin\"]\n"
    ));
    for path in ["/admin;x/users", "/admin;/users", "/admin%3bx/users"] {
        let answer = gateway.ask(signed_head("GET", path, ""));
        assert_eq!((answer.status, answer.code().as_str()), (400, "path_ambiguous"), "{path}");
    }
    assert_eq!(gateway.ask(signed_head("GET", "/admin/users;x", "")).code(), "role_missing");
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
    assert_eq!(gateway.ask(signed_head("GET", "/users;x=1/a", "")).status, 200);
}

/// Holds rule 8.
#[test]
fn a_path_with_one_reading_goes_on_as_it_came() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let paths = [
        "/a.b/..c/...",
        "/a;x=1/b",
        "/caf%C3%A9",
        "/joe%40x",
        "/joe@x",
        "/a%20b",
        "/a+b?c=%2e%2e%2f&d=//",
        "/a?b?c",
        "/~x/_y/-z",
    ];
    for path in paths {
        assert_eq!(gateway.ask(signed_head("GET", path, "")).status, 200, "{path}");
    }
    for (path, request) in paths.iter().zip(upstream.requests()) {
        assert!(request.starts_with(format!("GET {path} HTTP/1.1\r\n").as_bytes()), "{path}");
    }
}

/// Holds rule 11.
#[test]
fn methods_that_are_never_forwarded_are_refused() {
    let mut cases: Vec<_> = ["TRACE", "OPTIONS", "CONNECT", "get", "PROPFIND"]
        .map(|method| (signed_head(method, "/a", ""), 405, "method_not_allowed"))
        .into();
    cases.push((
        signed_head("CONNECT", "gw.test:443", "").replace("Host: gw.test", "Host: gw.test:443"),
        405,
        "method_not_allowed",
    ));
    cases.push((signed_head("OPTIONS", "*", ""), 405, "method_not_allowed"));
    all_refused(cases);
}

/// Holds rule 6.
#[test]
fn a_signature_header_with_two_spellings_is_refused() {
    let good = signature(&identity_payload());
    let (t, v1) = good.split_once(',').unwrap();
    let tag = v1.strip_prefix("v1=").unwrap();
    let spelled = |value: &str| {
        format!(
            "GET /a HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {value}\r\nStripe-User-Id: {USER}\r\nStripe-Account-Id: {ACCOUNT}\r\n\r\n"
        )
    };
    let cases = [
        format!("{good}, {good}"),
        format!("{t},{good}"),
        format!("{t}z,{v1}"),
        format!("{t}.0,{v1}"),
        format!("t=0{},{v1}", &t[2..]),
        format!("t= {},{v1}", &t[2..]),
        format!("t=+{},{v1}", &t[2..]),
        format!("t=,{v1}"),
        v1.to_owned(),
        t.to_owned(),
        format!("{t},v1={}", tag.to_uppercase()),
        format!("{t},v1={tag}0"),
        format!("{t},v1={}", &tag[1..]),
        format!("{t},v1=\"{tag}\""),
        format!("{t},v1= {tag}"),
        format!("{t},V1={tag}"),
        format!("{t},v0={tag}"),
        format!("{t};{v1}"),
        format!("{good},{}", "x".repeat(4096)),
        "x".to_owned(),
        format!("{good}\r\nStripe-Signature: {good}"),
        format!("{good}\r\nstripe-signature: x"),
    ];
    all_refused(cases.map(|case| (spelled(&case), 401, "signature_malformed")));
}

/// Holds rule 6.
#[test]
fn a_body_that_parsers_read_differently_is_refused() {
    let ids = identity_payload();
    let deep = format!("{{\"a\":{}{},{}", "[".repeat(101), "]".repeat(101), &ids[1..]);
    let cases = [
        format!("{{\"account_id\":\"{ACCOUNT}\",{}", &ids[1..]),
        format!("{{\"\\u0061ccount_id\":\"{ACCOUNT}\",{}", &ids[1..]),
        format!("{{\"a\":{{\"b\":1,\"b\":2}},{}", &ids[1..]),
        format!("\u{feff}{ids}"),
        deep,
        format!("{ids} x"),
        format!("{ids}{ids}"),
        ids.replace('"', "'"),
        format!("{{\"a\":01,{}", &ids[1..]),
        format!("{{\"a\":NaN,{}", &ids[1..]),
        format!("{{\"a\":1,{}", &ids[1..]).replace('}', ",}"),
        format!("/**/{ids}"),
        "{".to_owned(),
    ];
    all_refused(cases.clone().map(|case| (signed_body("POST", "/a", &case), 400, "body_invalid")));
    // To a reader that is less strict, text that begins as an object is one.
    let plain = |case: &String| signed_body("POST", "/a", case).replace("application/json", "text/plain");
    all_refused(cases[..5].iter().map(|case| (plain(case), 400, "body_invalid")));
    let two = signed_body("POST", "/a", &ids).replace("application/json", "application/json, text/plain");
    all_refused([(two, 400, "body_invalid")]);
}

/// The identity as other servers would read it, in every spelling.
const FORGED: &[&str] = &[
    "Countersign-User",
    "countersign-user",
    "COUNTERSIGN-ACCOUNT",
    "Countersign_User",
    "Countersign.User",
    "Countersign~User",
    "Countersign-Roles",
    "Countersign-Signed",
    "Countersign-App",
    "Countersign-Anything",
    "X-Countersign-User",
    "Stripe_User_Id",
    "X_Stripe_Account_Id",
    "X-Forwarded-For",
    "X_Forwarded_For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "Forwarded",
    "X-Real-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "Remote-User",
    "X-Remote-User",
    "Remote_User",
    "X-Auth-Request-User",
    "X-Auth-Request-Email",
    "X-Envoy-Original-Path",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-HTTP-Method-Override",
    "X-HTTP-Method",
    "X-Method-Override",
    "X-Original-Host",
    "Proxy",
    "Via",
    "Cookie",
    "Authorization",
    "Proxy-Authorization",
    "X-Request-Id",
    "traceparent",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Fastly-Client-IP",
    "X-Authenticated-User",
    "X-Webauth-User",
    "X-Goog-Authenticated-User-Email",
    "X-MS-Client-Principal-Name",
    "X-Amzn-Oidc-Identity",
    "TE",
    "Trailer",
    "Keep-Alive",
    "Remote-Groups",
    "X-Auth-User",
    "X-Pomerium-Jwt-Assertion",
    "Tailscale-User-Login",
    "Impersonate-User",
    "OIDC-Claim-Sub",
    "Client-Cert",
    "WL-Proxy-Client-IP",
    "X-HTTP-Verb-Override",
    "HTTP2-Settings",
    "Upgrade",
    "Expect_",
    "X-Accel-Redirect",
];

/// Holds rules 1 and 4.
#[test]
fn no_forged_header_reaches_the_upstream_in_any_spelling() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for name in FORGED {
        let answer = gateway.ask(signed_head("GET", "/a", &format!("{name}: forged\r\nX-Harmless: kept\r\n")));
        assert_eq!(answer.status, 200, "{name}: {}", answer.code());
    }
    for (name, request) in FORGED.iter().zip(upstream.requests()) {
        let text = String::from_utf8(request).unwrap();
        assert!(!text.contains("forged"), "{name} went on: {text}");
        assert_eq!(header(&text, "x-harmless"), Some("kept"));
        for (ours, value) in [("countersign-user", USER), ("countersign-account", ACCOUNT), ("countersign-app", "test")]
        {
            assert_eq!(headers(&text, ours).collect::<Vec<_>>(), [value], "{name}");
        }
        assert_eq!(headers(&text, "countersign-signed").collect::<Vec<_>>(), ["identity"]);
        assert_eq!(headers(&text, "x-forwarded-for").collect::<Vec<_>>(), ["127.0.0.1"]);
        assert_eq!(headers(&text, "x-forwarded-proto").collect::<Vec<_>>(), ["https"]);
        assert_eq!(headers(&text, "x-forwarded-host").collect::<Vec<_>>(), ["gw.test"]);
        assert_eq!(headers(&text, "host").count(), 1);
        assert_eq!(header(&text, "stripe-signature"), None);
    }
}

/// Holds rule 4.
#[test]
fn a_connection_header_cannot_name_ours_but_removes_what_it_names() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let more = "Connection: Countersign-User, countersign-account, X-Forwarded-For, X-Request-Id, X-Hop, Content-Type\r\nContent-Type: image/png\r\nX-Hop: x\r\nX-Kept: y\r\n";
    assert_eq!(gateway.ask(signed_head("GET", "/a", more)).status, 200);
    let (head, _) = upstream.only();
    assert_eq!(header(&head, "countersign-user"), Some(USER));
    assert_eq!(header(&head, "countersign-account"), Some(ACCOUNT));
    assert_eq!(header(&head, "x-forwarded-for"), Some("127.0.0.1"));
    assert!(header(&head, "x-request-id").is_some());
    assert_eq!(header(&head, "x-hop"), None);
    assert_eq!(header(&head, "x-kept"), Some("y"));
    // By it the body was read.
    assert_eq!(header(&head, "content-type"), Some("image/png"));
}

/// Holds rule 4.
#[test]
fn trailers_of_a_request_are_dropped() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let head = signed_head(
        "POST",
        "/a",
        "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\nTrailer: Countersign-User\r\n",
    );
    assert_eq!(gateway.ask(format!("{head}3\r\nabc\r\n0\r\nCountersign-User: usr_Forged\r\n\r\n")).status, 200);
    let request = upstream.requests().remove(0);
    assert!(find(&request, b"usr_Forged").is_none(), "{:?}", String::from_utf8_lossy(&request));
}

/// Holds rules 2 and 3.
#[test]
fn no_byte_behind_a_refused_request_is_taken_for_another() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let inner = signed_head("GET", "/smuggled", "");
    for first in [
        signed_head("POST", "/a", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n",
        signed_head("POST", "/a", "Transfer-Encoding: xchunked\r\n"),
        signed_head("POST", "/a", "Transfer-Encoding: chunked\r\n") + "0\n\r\n",
        signed_head("GET", "/a", "X: y\n"),
    ] {
        let mut client = gateway.connect();
        client.send(format!("{first}{inner}"));
        assert_eq!(client.answer().status, 400);
        assert!(client.is_closed());
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

/// Holds rule 3.
#[test]
fn requests_in_one_packet_are_answered_one_by_one() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    let unsigned = "GET /b HTTP/1.1\r\nHost: gw.test\r\n\r\n";
    let body = signed_body("POST", "/c", &identity_payload());
    client.send(format!("{}{unsigned}{body}{}", signed_head("GET", "/a", ""), signed_head("GET", "/d", "")));
    let statuses: Vec<_> = (0..4).map(|_| client.answer().status).collect();
    assert_eq!(statuses, [200, 401, 200, 200]);
    let lines: Vec<_> = upstream.requests().iter().map(|request| request[..7].to_vec()).collect();
    assert_eq!(lines, [b"GET /a ".to_vec(), b"POST /c".to_vec(), b"GET /d ".to_vec()]);
}

/// Holds rule 10.
#[test]
fn a_head_beyond_its_bounds_is_refused() {
    let many = "X: y\r\n".repeat(101);
    let cases = [
        signed_head("GET", "/a", &format!("X: {}\r\n", "y".repeat(33 * 1024))),
        signed_head("GET", &format!("/{}", "a".repeat(33 * 1024)), ""),
        signed_head("GET", "/a", &many),
    ];
    all_refused(cases.map(|case| (case, 431, "headers_too_large")));
}

/// Holds rule 3.
#[test]
fn a_refusal_of_a_large_upload_can_be_read() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let length = 8 * 1024 * 1024;
    for more in
        ["Content-Type: application/json\r\n", "Content-Type: application/octet-stream\r\nStripe-Signature: twice\r\n"]
    {
        let mut client = gateway.connect();
        client.send(signed_head("POST", "/a", &format!("{more}Content-Length: {length}\r\n")));
        client.send(vec![b'x'; length]);
        let answer = client.answer();
        assert!([413, 401].contains(&answer.status), "{}", answer.status);
    }
    assert!(upstream.requests().is_empty());
}

/// Holds rules 3 and 9.
#[test]
fn a_refused_upload_is_thrown_away_within_one_bound() {
    let upstream = Upstream::ok();
    let routes = format!("[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n", upstream.origin());
    let head = "POST /a HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 1000000000\r\n\r\n";
    // By bytes: what the system's buffers hold comes on top.
    let gateway = Gateway::with(&format!("[limits]\ndiscard_bytes = \"1MiB\"\n{routes}"));
    let mut client = gateway.connect();
    client.send(head);
    let mut sent = 0;
    while sent < 64 * 1024 * 1024 && client.stream.write_all(&[b'x'; 8192]).is_ok() {
        sent += 8192;
    }
    assert!((1024 * 1024..24 * 1024 * 1024).contains(&sent), "{sent}");
    // By time.
    let gateway = Gateway::with(&format!("[limits]\ndiscard_timeout = \"2s\"\n{routes}"));
    let mut client = gateway.connect();
    client.send(head);
    assert_eq!(client.answer().status, 401);
    let began = Instant::now();
    assert!(client.is_closed());
    // The gateway has said all; what the client still sends is taken only until the bound, and then refused.
    while client.stream.write_all(b"x").is_ok() && began.elapsed() < Duration::from_secs(15) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_millis(3500)).contains(&took), "once, not twice: {took:?}");
}

/// Holds rule 3.
#[test]
fn a_body_is_asked_for_only_when_the_head_is_good() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let waiting = "Expect: 100-continue\r\nContent-Type: application/json\r\n";
    let mut client = gateway.connect();
    client.send(signed_head("POST", "/a", &format!("{waiting}Content-Length: 99999999\r\n")));
    let answer = client.answer();
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    let mut client = gateway.connect();
    client.send(format!("POST /a HTTP/1.1\r\nHost: gw.test\r\n{waiting}Content-Length: 2\r\n\r\n"));
    assert_eq!(client.answer().status, 401);

    let body = identity_payload();
    let mut client = gateway.connect();
    client.send(signed_head("POST", "/a", &format!("{waiting}Content-Length: {}\r\n", body.len())));
    assert_eq!(client.interim(), 100);
    client.send(&body);
    assert_eq!(client.answer().status, 200);
    assert_eq!(header(&upstream.only().0, "expect"), None);
}

/// Holds rule 5.
#[test]
fn a_body_that_ends_early_never_reaches_the_upstream() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let body = identity_payload();
    let mut client = gateway.connect();
    client.send(signed_head(
        "POST",
        "/a",
        &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len() + 1),
    ));
    client.send(&body);
    drop(client);
    let record = gateway.records(1).remove(0);
    assert_eq!(record["countersign.decision"], "refused");
    assert!(upstream.requests().is_empty());
}

/// Holds rules 3 and 5.
#[test]
fn preflights_are_answered_everywhere_and_never_forwarded() {
    let upstream = Upstream::ok();
    let gateway =
        Gateway::with(&format!("[[routes]]\npath = \"/a/\"\napp = \"test\"\nupstream = \"{}\"\n", upstream.origin()));
    let preflight = |path: &str| {
        format!(
            "OPTIONS {path} HTTP/1.1\r\nHost: gw.test\r\nOrigin: null\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type,stripe-signature\r\n\r\n"
        )
    };
    for path in ["/a/x", "/none", "/a//b", "/a/../b", "/a%2fb", "*"] {
        let answer = gateway.ask(preflight(path));
        assert_eq!(answer.status, 204, "{path}: {}", answer.head);
        for (name, value) in [
            ("access-control-allow-origin", "*"),
            ("access-control-max-age", "7200"),
            ("access-control-expose-headers", "*"),
            ("vary", "Stripe-Signature"),
        ] {
            assert_eq!((answer.count(name), answer.header(name)), (1, Some(value)), "{path}: {}", answer.head);
        }
        let named = answer.header("access-control-allow-headers").unwrap();
        for name in ["*", "Authorization", "Content-Type", "Stripe-Signature"] {
            assert!(named.split(", ").any(|other| other == name), "{named}");
        }
        let named = answer.header("access-control-allow-methods").unwrap();
        for name in ["*", "GET", "POST", "PUT", "PATCH", "DELETE"] {
            assert!(named.split(", ").any(|other| other == name), "{named}");
        }
        assert!(answer.header("access-control-allow-credentials").is_none());
        assert!(answer.header("x-request-id").is_some());
    }
    assert!(upstream.requests().is_empty());
    assert!(gateway.records(6).iter().all(|record| record["countersign.decision"] == "preflight"));
}

/// Holds rule 9.
#[test]
fn silent_and_slow_clients_are_cut_within_their_bounds() {
    let upstream = Upstream::ok();
    let gateway = Gateway::with(&format!(
        "[limits]\nhandshake_timeout = \"300ms\"\nhead_timeout = \"300ms\"\nbody_timeout = \"300ms\"\nidle_timeout = \"300ms\"\ndiscard_timeout = \"300ms\"\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
        upstream.origin()
    ));
    let began = Instant::now();
    // No handshake, half a handshake.
    for hello in [&b""[..], b"\x16\x03\x01"] {
        let mut stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.write_all(hello).unwrap();
        assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
    }
    // No request, half a head, nothing after a request.
    for part in ["", "G", "GET /a HTTP/1.1\r\nHost: gw.test\r\nX"] {
        let mut client = gateway.connect();
        client.send(part);
        assert!(client.is_closed(), "{part}");
    }
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/a", ""));
    assert_eq!(client.answer().status, 200);
    assert!(client.is_closed());
    // Half a body.
    let mut client = gateway.connect();
    client.send(signed_head("POST", "/a", "Content-Type: application/json\r\nContent-Length: 100\r\n") + "{");
    assert_eq!(client.answer().code(), "request_malformed");
    assert!(client.is_closed());
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    assert_eq!(upstream.requests().len(), 1);
}

/// Holds rule 15.
#[test]
fn nothing_of_a_request_leaks_into_the_log_or_an_answer() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let good = signature(&identity_payload());
    let tag = good.split_once("v1=").unwrap().1.to_owned();
    let head = signed_head(
        "GET",
        "/a?token=hush-query",
        "Authorization: Bearer hush-authorization\r\nCookie: hush=cookie\r\nUser-Agent: a\"\\\r\n",
    );
    assert_eq!(gateway.ask(&head).status, 200);
    let body = format!("{{\"note\":\"hush-body\",{}", &identity_payload()[1..]);
    assert_eq!(gateway.ask(signed_body("POST", "/a", &body)).status, 200);
    let forged = head.replace("v1=", "v1=0000000000000000000000000000000000000000000000000000000000000000,x=");
    let refused = gateway.ask(forged);
    assert_eq!(refused.status, 401);
    gateway.records(3);
    let log = gateway.raw_records();
    assert_eq!(log.lines().count(), 3);
    for secret in ["hush", tag.as_str(), crate::support::SECRET, "stripe-signature"] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
        assert!(!String::from_utf8_lossy(&refused.body).contains(secret), "{secret} is in the answer");
    }
    assert!(!String::from_utf8_lossy(&refused.body).contains("127.0.0.1"));
}

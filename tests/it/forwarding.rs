//! What is permitted arrives as it was sent, and what is answered comes back as it was answered.

use std::{
    io::Write as _,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use crate::support::{Gateway, USER, Upstream, header, headers, identity_payload, signature, signed_body, signed_head};

fn answering(answer: &'static str) -> (Upstream, Gateway) {
    let upstream = Upstream::answering(move |_| answer.as_bytes().to_vec());
    let gateway = Gateway::to(&upstream);
    (upstream, gateway)
}

/// An upstream, and how many connections were made to it.
fn counting(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> (Upstream, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let upstream = Upstream::raw(move |stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        serve(stream);
    });
    (upstream, connections)
}

/// Holds rule 6.
#[test]
fn the_verified_bytes_are_the_forwarded_bytes() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let body = format!("{{ \"b\": 1.50, \"a\":\"\\u00e9\\/\",\r\n{}", &identity_payload()[1..]);
    assert_eq!(gateway.ask(signed_body("POST", "/a?x=%20", &body)).status, 200);
    let (head, received) = upstream.only();
    assert!(head.starts_with("POST /a?x=%20 HTTP/1.1\r\n"), "{head}");
    assert_eq!(received, body.as_bytes());
    assert_eq!(headers(&head, "content-length").collect::<Vec<_>>(), [body.len().to_string()]);
    assert_eq!(header(&head, "transfer-encoding"), None);
    assert_eq!(header(&head, "countersign-signed"), Some("body"));
    assert_eq!(header(&head, "content-type"), Some("application/json"));
}

#[test]
fn a_chunked_body_that_was_read_goes_on_with_its_length() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let body = identity_payload();
    let (one, two) = body.split_at(10);
    let request = format!(
        "POST /a HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {}\r\nTransfer-Encoding: chunked\r\n\r\na;ext=1\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
        signature(&body),
        two.len()
    );
    assert_eq!(gateway.ask(request).status, 200);
    let (head, received) = upstream.only();
    assert_eq!(received, body.as_bytes());
    assert_eq!(header(&head, "transfer-encoding"), None);
    assert_eq!(header(&head, "content-length"), Some(body.len().to_string().as_str()));
}

#[test]
fn the_route_s_path_is_replaced_by_the_upstream_s() {
    let upstream = Upstream::ok();
    let route = |path: &str, put: &str| {
        format!(
            "[[routes]]\npath = \"{path}\"\napp = \"test\"\nupstream = \"{}\"\nupstream_path = \"{put}\"\n",
            upstream.origin()
        )
    };
    let gateway = Gateway::with(&(route("/shop/orders/", "/api/orders/") + &route("/shop/one", "/api/fixed")));
    for (asked, arrived) in [
        ("/shop/orders/in_1/lines?x=1", "/api/orders/in_1/lines?x=1"),
        ("/shop/orders/", "/api/orders/"),
        ("/shop/orders/a%20b", "/api/orders/a%20b"),
        ("/shop/one?y", "/api/fixed?y"),
    ] {
        assert_eq!(gateway.ask(signed_head("GET", asked, "")).status, 200);
        let last = String::from_utf8(upstream.requests().pop().unwrap()).unwrap();
        assert!(last.starts_with(&format!("GET {arrived} HTTP/1.1\r\n")), "{last}");
    }
    assert_eq!(gateway.records(1)[0]["url.path"], "/shop/orders/in_1/lines");
}

#[test]
fn headers_are_set_and_removed_as_the_route_says() {
    let upstream =
        Upstream::answering(|_| b"HTTP/1.1 200 OK\r\nServer: secret/1\r\nContent-Length: 0\r\n\r\n".to_vec());
    let route = format!(
        "[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n\
         request_headers = {{ set = {{ X-Api = \"1\" }}, secret = {{ Authorization = {{ file = \"token\" }} }}, remove = [\"X-Debug\"] }}\n\
         response_headers = {{ set = {{ Strict-Transport-Security = \"max-age=1\" }}, remove = [\"Server\"] }}\n",
        upstream.origin()
    );
    let gateway = Gateway::with_files("", &Gateway::tables(&route), &[("token", "Bearer inside")]);
    let answer = gateway.ask(signed_head("GET", "/a", "X-Api: 2\r\nX-Debug: yes\r\nAuthorization: Bearer outside\r\n"));
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=1"));
    assert_eq!(answer.header("server"), None);
    let (head, _) = upstream.only();
    assert_eq!(headers(&head, "x-api").collect::<Vec<_>>(), ["1"]);
    assert_eq!(headers(&head, "authorization").collect::<Vec<_>>(), ["Bearer inside"]);
    assert_eq!(header(&head, "x-debug"), None);
}

/// Holds rule 12.
#[test]
fn the_answer_s_own_word_on_cookies_origins_and_identity_is_removed() {
    let (_upstream, gateway) = answering(
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://a.example\r\nAccess-Control-Allow-Credentials: true\r\n\
         Set-Cookie: a=b\r\nCountersign-User: usr_x\r\nX-Request-Id: theirs\r\nConnection: X-Hop\r\nX-Hop: y\r\nKeep-Alive: timeout=5\r\n\
         Vary: Accept\r\nETag: \"1\"\r\nContent-Length: 2\r\n\r\nok",
    );
    let answer = gateway.ask(signed_head("GET", "/a", ""));
    for gone in ["access-control-allow-credentials", "set-cookie", "countersign-user", "x-hop", "keep-alive"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    assert_eq!(
        (answer.count("access-control-allow-origin"), answer.header("access-control-allow-origin")),
        (1, Some("*"))
    );
    assert_eq!(answer.header("access-control-expose-headers"), Some("*"));
    assert_eq!(answer.header("vary"), Some("Stripe-Signature, Accept"));
    assert_eq!(answer.header("etag"), Some("\"1\""));
    assert_eq!(answer.count("x-request-id"), 1);
    assert_ne!(answer.header("x-request-id"), Some("theirs"));
}

#[test]
fn a_location_that_names_the_upstream_becomes_the_gateway_s() {
    let upstream = Upstream::serving(|stream, request| {
        let text = String::from_utf8_lossy(request);
        let host = header(&text, "host").unwrap().to_owned();
        let target = text.split(' ').nth(1).unwrap();
        let location =
            target.split_once("?to=").unwrap().1.replace("%5C", "\\").replace("HASH", "#").replace("HOST", &host);
        write!(stream, "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").is_ok()
    });
    let gateway = Gateway::with(&format!(
        "[[routes]]\npath = \"/shop/\"\napp = \"test\"\nupstream = \"{0}\"\nupstream_path = \"/api/\"\n[[routes]]\npath = \"/plain/\"\napp = \"test\"\nupstream = \"{0}\"\n\
         [[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{0}\"\nupstream_path = \"/root/\"\n",
        upstream.origin()
    ));
    for (route, location, told) in [
        ("/", "http://HOST/root//evil.example/", "/evil.example/"),
        ("/", "/root/\\evil.example", "/evil.example"),
        ("/shop/", "http://HOST/api/1?x=y", "/shop/1?x=y"),
        ("/shop/", "/api/1", "/shop/1"),
        ("/plain/", "http://HOST/plain/1", "/plain/1"),
        ("/plain/", "http://HOST//evil.example/", "/evil.example/"),
        ("/plain/", "http://HOST/\\evil.example", "/evil.example"),
        ("/shop/", "http://HOST/api///evil.example", "/shop///evil.example"),
        ("/plain/", "//HOST/plain/1", "/plain/1"),
        ("/plain/", "http:\\\\HOST\\plain\\1", "/plain\\1"),
        ("/plain/", "http://user:pw@HOST", "/"),
        ("/plain/", "http://HOST?a#b", "/?a#b"),
        ("/plain/", "//login.example.com/x", "//login.example.com/x"),
        ("/plain/", "https://login.example.com/x", "https://login.example.com/x"),
        ("/plain/", "next", "next"),
    ] {
        let asked = location.replace('\\', "%5C").replace('#', "HASH");
        let answer = gateway.ask(signed_head("GET", &format!("{route}a?to={asked}"), ""));
        assert_eq!((answer.status, answer.header("location")), (302, Some(told)), "{location}");
    }
}

#[test]
fn a_location_that_is_there_twice_is_not_passed_on() {
    let upstream = Upstream::serving(|stream, request| {
        let text = String::from_utf8_lossy(request);
        let host = header(&text, "host").unwrap();
        let twice = format!("Location: https://login.example.com/\r\nLocation: http://{host}/internal\r\n");
        write!(stream, "HTTP/1.1 302 Found\r\n{twice}Content-Length: 0\r\n\r\n").is_ok()
    });
    let answer = Gateway::to(&upstream).ask(signed_head("GET", "/a", ""));
    assert_eq!((answer.status, answer.count("location")), (302, 0));
}

/// Holds rule 12.
#[test]
fn answers_without_a_body_keep_their_meaning() {
    let upstream = Upstream::answering(|request| {
        let status = match request.split(|b| *b == b' ').nth(1).unwrap() {
            b"/204" => "204 No Content\r\n",
            b"/304" => "304 Not Modified\r\nContent-Length: 7\r\n",
            _ => "200 OK\r\nContent-Length: 7\r\n",
        };
        format!("HTTP/1.1 {status}\r\n").into_bytes()
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for (method, path, status, length) in [
        ("HEAD", "/200", 200, Some("7")),
        ("GET", "/204", 204, None),
        ("GET", "/304", 304, None),
        ("HEAD", "/200", 200, Some("7")),
    ] {
        client.send(signed_head(method, path, ""));
        let answer = client.answer_to(method);
        assert_eq!((answer.status, answer.header("content-length")), (status, length), "{method} {path}");
    }
}

#[test]
fn answers_stream_while_they_are_made() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::serving(move |stream, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n").unwrap();
        // The second event is made only after the first was seen.
        wait.lock().unwrap().recv_timeout(Duration::from_secs(10)).unwrap();
        stream.write_all(b"8\r\ndata: 2\n\r\n0\r\n\r\n").is_ok()
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/events", ""));
    client.read_until(b"data: 1\n");
    go.send(()).unwrap();
    client.read_until(b"data: 2\n");
}

#[test]
fn uploads_stream_while_they_come() {
    let (seen, first) = mpsc::channel::<()>();
    let upstream = Upstream::raw(move |stream| {
        let mut got = Vec::new();
        Upstream::read_until(stream, &mut got, b"part one");
        seen.send(()).unwrap();
        Upstream::read_until(stream, &mut got, b"part two");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(
        signed_head("PUT", "/a", "Content-Type: application/octet-stream\r\nContent-Length: 16\r\n")
            .replace("PUT", "POST"),
    );
    client.send("part one");
    first.recv_timeout(Duration::from_secs(10)).expect("the first part went on alone");
    client.send("part two");
    assert_eq!(client.answer().status, 200);
    assert_eq!(gateway.records(1)[0]["http.request.body.size"], 16);
}

/// Holds rule 10.
#[test]
fn a_streamed_body_ends_at_its_limit() {
    let upstream = Upstream::ok();
    let gateway = Gateway::with(&format!(
        "[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\nbody_limit = \"1KiB\"\n",
        upstream.origin()
    ));
    let opaque = "Content-Type: application/octet-stream\r\n";
    let declared = signed_head("POST", "/a", &format!("{opaque}Content-Length: 1025\r\n")) + &"x".repeat(1025);
    let answer = gateway.ask(declared);
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert!(upstream.requests().is_empty());
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let chunked = signed_head("POST", "/a", &format!("{opaque}Transfer-Encoding: chunked\r\n"));
    let answer = gateway.ask(format!("{chunked}{chunk}1\r\nx\r\n0\r\n\r\n"));
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert_eq!(gateway.ask(format!("{chunked}{chunk}0\r\n\r\n")).status, 200);
    let json = signed_body("POST", "/a", &format!("{{\"a\":\"{}\",{}", "x".repeat(1024), &identity_payload()[1..]));
    assert_eq!(gateway.ask(json).code(), "body_too_large");
}

#[test]
fn connections_to_an_upstream_are_kept() {
    let (upstream, connections) = counting(move |stream| {
        let mut got = Vec::new();
        while Upstream::read_until(stream, &mut got, b"\r\n\r\n") {
            got.clear();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    let gateway = Gateway::to(&upstream);
    for _ in 0..20 {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// Holds rule 12. It may read the body as another request, and answer that too.
#[test]
fn a_server_that_answers_without_reading_the_body_answers_nobody_else_with_it() {
    let (upstream, connections) = counting(|stream| {
        let mut got = Vec::new();
        while Upstream::read_until(stream, &mut got, b"\r\n\r\n") {
            let end = got.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
            let head = String::from_utf8(got.drain(..end).collect()).unwrap();
            let path = head.split(' ').nth(1).unwrap();
            if path == "/within" {
                std::thread::sleep(Duration::from_millis(300));
            }
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
        }
    });
    let gateway = Gateway::to(&upstream);
    let opaque = "Content-Type: application/octet-stream\r\n";
    let body = "GET /within HTTP/1.1\r\nHost: service\r\n\r\n";
    let declared = signed_head("POST", "/declared", &format!("{opaque}Content-Length: {}\r\n", body.len()));
    // The length of the chunk is a part of the other request's first line then.
    let chunked = signed_head("POST", "/chunked", &format!("{opaque}Transfer-Encoding: chunked\r\n"));
    let text = signed_head("POST", "/text", &format!("Content-Length: {}\r\n", body.len()));
    for (path, upload) in [
        ("/text", format!("{text}{body}")),
        ("/declared", format!("{declared}{body}")),
        ("/chunked", format!("{chunked}{:x}\r\n{body}\r\n0\r\n\r\n", body.len())),
    ] {
        for _ in 0..3 {
            assert_eq!(gateway.ask(&upload).body, path.as_bytes());
            assert_eq!(gateway.ask(signed_head("GET", "/mine", "")).body, b"/mine", "behind {path}");
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 10, "each body's own, and one that is kept");
    let json = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    assert_eq!(gateway.ask(signed_head("POST", "/json", &json) + body).status, 400, "what is kept is JSON");
}

#[test]
fn one_connection_carries_answers_that_come_at_once_and_such_that_do_not() {
    let large = "x".repeat(1 << 20);
    let answers: Vec<(Vec<String>, String)> = vec![
        (vec!["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into()], "ok".into()),
        (vec!["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".into(), "ok".into()], "ok".into()),
        (vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into()], String::new()),
        (
            vec!["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n".into()],
            "ab".into(),
        ),
        (
            vec![
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r".into(),
                "\nb\r\n0\r\n\r\n".into(),
            ],
            "ab".into(),
        ),
        (
            vec!["HTTP/1.1 103 Early Hints\r\n\r\n".into(), "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nc".into()],
            "c".into(),
        ),
        (vec![format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}", large.len())], large),
    ];
    let given = answers.clone();
    let (upstream, connections) = counting(move |stream| {
        let (mut got, mut turn) = (Vec::new(), 0);
        while Upstream::read_until(stream, &mut got, b"\r\n\r\n") {
            got.clear();
            for part in &given[turn / 2 % given.len()].0 {
                stream.write_all(part.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            turn += 1;
        }
    });
    let gateway = Gateway::to(&upstream);
    for (_, body) in answers.iter().chain(&answers) {
        for _ in 0..2 {
            let answer = gateway.ask(signed_head("GET", "/a", ""));
            assert_eq!((answer.status, answer.complete), (200, true));
            assert!(answer.body == body.as_bytes(), "{} bytes, not {}", answer.body.len(), body.len());
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// Holds rule 15.
#[test]
fn a_record_says_what_was_decided() {
    let (_upstream, gateway) = answering("HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello");
    let body = format!(
        r#"{{"stripe_roles":[{{"type":"custom","id":"ops","name":"Ops"}}],"user_id":"{USER}","account_id":"acct_Test0001"}}"#
    );
    let request = signed_body("POST", "/a/b?secret=1", &body).replace("Host:", "User-Agent: panel/1\r\nHost:");
    let answer = gateway.ask(request);
    let record = gateway.records(1).remove(0);
    for (field, value) in [
        ("http.request.method", "POST"),
        ("url.path", "/a/b"),
        ("client.address", "127.0.0.1"),
        ("user_agent.original", "panel/1"),
        ("network.protocol.version", "1.1"),
        ("countersign.request_id", answer.header("x-request-id").unwrap()),
        ("countersign.route", "/"),
        ("countersign.app", "test"),
        ("countersign.account", "acct_Test0001"),
        ("countersign.user", USER),
        ("countersign.signed", "body"),
        ("countersign.decision", "permitted"),
    ] {
        assert_eq!(record[field], value, "{field}");
    }
    assert_eq!(record["countersign.roles"], serde_json::json!(["ops"]));
    assert_eq!(record["http.response.status_code"], 201);
    assert_eq!(record["http.request.body.size"], body.len());
    assert_eq!(record["http.response.body.size"], 5);
    assert_eq!(record["countersign.complete"], true);
    assert!(record["countersign.duration_ms"].as_f64() >= record["countersign.upstream_ms"].as_f64());
    assert!(record.get("countersign.reason").is_none());
    assert!(record["countersign.upstream"].as_str().unwrap().starts_with("http://127.0.0.1:"));
}

#[test]
fn what_runs_is_finished_in_a_drain_and_kept_connections_are_closed() {
    let (go, wait) = mpsc::channel::<()>();
    let (began, under_way) = mpsc::channel::<()>();
    let (wait, began) = (std::sync::Mutex::new(wait), std::sync::Mutex::new(began));
    let upstream = Upstream::serving(move |stream, request| {
        if request.starts_with(b"GET /slow") {
            began.lock().unwrap().send(()).unwrap();
            wait.lock().unwrap().recv_timeout(Duration::from_secs(10)).unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    let gateway = Gateway::to(&upstream);
    let mut kept = gateway.connect();
    kept.send(signed_head("GET", "/quick", ""));
    let answer = kept.answer();
    assert_eq!((answer.status, answer.header("connection")), (200, None));
    let mut slow = gateway.connect();
    slow.send(signed_head("GET", "/slow", ""));
    under_way.recv_timeout(Duration::from_secs(10)).unwrap();
    gateway.stop.drain();
    // What still comes on a kept connection within half a second is answered.
    kept.send(signed_head("GET", "/quick", ""));
    let answer = kept.answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    go.send(()).unwrap();
    let answer = slow.answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(slow.is_closed() && kept.is_closed());
    let address = gateway.address;
    gateway.join();
    assert!(std::net::TcpStream::connect(address).is_err(), "nothing listens any more");
}

//! Every vector of Stripe's own libraries, through a real TLS socket.

use std::{fmt::Write as _, sync::Arc};

use base64_lite::decode;
use countersign::{
    auth::{Scheme, StripeApp},
    headers::Proxies,
    limits::Limits,
    policy::{Accounts, Demand, Policy},
    route::{HeaderEdits, Methods, Pattern, Route, RouteTable},
    secret::SigningSecret,
    server::Settings,
    signature::SigningKey,
    tls, upstream,
    webhook::Webhooks,
};
use http::{HeaderValue, Method};
use serde_json::Value;

use crate::support::{Answer, Gateway, Upstream, header, write_files};

pub(crate) const VECTORS: &str = include_str!("../vectors/stripe-app-requests.json");

/// Holds rule 6.
#[test]
fn all_173_vectors_hold_through_the_socket() {
    let file: Value = serde_json::from_str(VECTORS).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 173);
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), "unused");
    let wrong: Vec<String> = vectors.iter().filter_map(|vector| judge(vector, folder.path()).err()).collect();
    println!("{} of {} vectors hold", vectors.len() - wrong.len(), vectors.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Sends a vector and compares what came of it with what it expects.
fn judge(vector: &Value, files: &std::path::Path) -> Result<(), String> {
    let name = vector["name"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(files.join("cert.pem"), folder.path().join("cert.pem")).unwrap();
    std::fs::copy(files.join("key.pem"), folder.path().join("key.pem")).unwrap();
    let upstream = Upstream::ok();
    let gateway = Gateway::start(settings(vector, folder.path(), &upstream), folder);
    gateway.set_time(vector["now"].as_i64().unwrap());
    let answer = gateway.ask(request(vector));

    let mut fitting = vec![&vector["expect"]];
    fitting.extend(vector["also_ok"].as_array().into_iter().flatten());
    let outcomes: Vec<_> = fitting.iter().map(|expected| fits(expected, &answer, &upstream)).collect();
    if outcomes.iter().any(Result::is_ok) {
        return Ok(());
    }
    Err(format!("{name}: {outcomes:?}; got {} {}", answer.status, String::from_utf8_lossy(&answer.body)))
}

fn fits(expected: &Value, answer: &Answer, upstream: &Upstream) -> Result<(), String> {
    if expected["outcome"] == "reject" {
        let mut codes = vec![expected["reason"].as_str().unwrap_or_default()];
        codes.extend(expected["reason_also_ok"].as_array().into_iter().flatten().filter_map(Value::as_str));
        let refused = codes.contains(&answer.code().as_str()) && upstream.requests().is_empty();
        return if refused { Ok(()) } else { Err(format!("not refused as {codes:?}")) };
    }
    if answer.status != 200 {
        return Err("not accepted".to_owned());
    }
    let (head, _) = upstream.only();
    let ids: Vec<_> = expected["roles"].as_array().unwrap().iter().map(|role| role["id"].as_str().unwrap()).collect();
    let ids = ids.join(",");
    let said = [
        ("countersign-user", expected["user"].as_str()),
        ("countersign-account", expected["account"].as_str()),
        ("countersign-roles", Some(ids.as_str()).filter(|ids| !ids.is_empty())),
        ("countersign-signed", expected["binding"].as_str()),
    ];
    for (name, wanted) in said {
        if header(&head, name) != wanted {
            return Err(format!("{name} is {:?} and not {wanted:?}", header(&head, name)));
        }
    }
    Ok(())
}

fn settings(vector: &Value, files: &std::path::Path, upstream: &Upstream) -> Settings {
    let config = |key: &str| vector["config"][key].as_bool().unwrap_or_default();
    let keys = vector["secrets"].as_array().unwrap().iter();
    let keys = keys.map(|secret| {
        let secret = SigningSecret::parse(secret.as_str().unwrap().to_owned().into()).unwrap();
        SigningKey::new(&secret)
    });
    let app = StripeApp {
        keys: keys.collect(),
        tolerance: std::time::Duration::from_secs(300),
        allow_account_only: config("allow_account_only"),
    };
    let signed = if config("require_body_binding") { Demand::Body } else { Demand::Identity };
    let route = Route {
        pattern: Pattern::parse("/").unwrap(),
        app: HeaderValue::from_static("test"),
        scheme: Arc::new(Scheme::StripeApp(app)),
        policy: Policy { accounts: Accounts::Any, users: None, roles: None, signed },
        methods: Methods::only(vec![Method::GET, Method::POST, Method::PUT, Method::DELETE]),
        upstream: 0,
        upstream_path: None,
        body_limit_bytes: None,
        response_timeout: None,
        websocket: false,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        tally: arc_swap::ArcSwap::default(),
    };
    let origin = upstream::Origin {
        protocol: upstream::Protocol::Http,
        place: upstream::Place::Host(upstream.address.to_string().parse().unwrap()),
    };
    let upstream = upstream::Settings::new("test".into(), vec![origin]);
    let chain = tls::certificates(&files.join("cert.pem")).unwrap();
    let key = tls::private_key(&files.join("key.pem")).unwrap();
    let certificate = tls::Certificate::new(chain, key, tls::Origin::Files).unwrap();
    Settings {
        config: "vector".into(),
        resolver: Arc::new(tls::Resolver::new(tls::Certificates::new(certificate, Vec::new()))),
        client_ca: None,
        names: vec!["gw.example.com".into()],
        trusted_proxies: Proxies::default(),
        proxy_protocol: Proxies::default(),
        routes: RouteTable::new(vec![Arc::new(route)]).unwrap(),
        webhooks: Webhooks::default(),
        upstreams: vec![upstream],
        limits: Limits::default(),
        audit: None,
        intake: None,
        workers: Some(1),
    }
}

pub(crate) fn request(vector: &Value) -> Vec<u8> {
    let url = vector["url"].as_str().unwrap();
    let target = url.strip_prefix("https://gw.example.com").unwrap();
    let mut head = format!("{} {target} HTTP/1.1\r\n", vector["method"].as_str().unwrap());
    for pair in vector["headers"].as_array().unwrap() {
        write!(head, "{}: {}\r\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()).unwrap();
    }
    let body = match vector["body_b64"].as_str() {
        Some(text) => decode(text),
        None => vector["body"].as_str().unwrap_or_default().as_bytes().to_vec(),
    };
    if !body.is_empty() {
        write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
    }
    let mut request = format!("{head}\r\n").into_bytes();
    request.extend_from_slice(&body);
    request
}

mod base64_lite {
    /// Standard base64 with padding, as the vectors have it.
    pub(crate) fn decode(text: &str) -> Vec<u8> {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut bytes = Vec::new();
        let (mut bits, mut count) = (0_u32, 0);
        for digit in text.bytes().filter(|digit| *digit != b'=') {
            let value = DIGITS.iter().position(|known| *known == digit).expect("a base64 digit");
            bits = bits << 6 | u32::try_from(value).unwrap();
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
            }
        }
        bytes
    }
}

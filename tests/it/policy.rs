//! Who may pass: a refusal is proven by what the upstream did not receive, and has a sibling that passes.

use crate::support::{
    ACCOUNT, Answer, Gateway, NOW, SECRET, USER, Upstream, header, identity_payload, sign, signature, signature_at,
    signed_body, signed_head,
};

fn route(upstream: &Upstream, keys: &str) -> Gateway {
    Gateway::with(&format!(
        "[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\nmethods = [\"GET\", \"POST\"]\n{keys}\n",
        upstream.origin()
    ))
}

/// Asks and expects a refusal that the upstream does not hear of.
fn refused(gateway: &Gateway, upstream: &Upstream, request: impl AsRef<[u8]>, status: u16, code: &str) -> Answer {
    let before = upstream.requests().len();
    let answer = gateway.ask(request);
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.head);
    assert_eq!(upstream.requests().len(), before, "a refused request reached the upstream");
    answer
}

fn by_headers(signature: &str, user: &str, account: &str) -> String {
    format!(
        "GET /a HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {signature}\r\nStripe-User-Id: {user}\r\nStripe-Account-Id: {account}\r\n\r\n"
    )
}

/// Holds rule 5.
#[test]
fn nobody_passes_without_a_signature() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "");
    let plain =
        format!("GET /a HTTP/1.1\r\nHost: gw.test\r\nStripe-User-Id: {USER}\r\nStripe-Account-Id: {ACCOUNT}\r\n\r\n");
    refused(&gateway, &upstream, plain, 401, "signature_missing");
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
}

/// Holds rules 5 and 6.
#[test]
fn a_signature_of_one_bit_less_is_refused() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "");
    let good = signature(&identity_payload());
    let last = if good.ends_with('0') { "1" } else { "0" };
    let bad = format!("{}{last}", &good[..good.len() - 1]);
    refused(&gateway, &upstream, by_headers(&bad, USER, ACCOUNT), 401, "signature_mismatch");
    assert_eq!(gateway.ask(by_headers(&good, USER, ACCOUNT)).status, 200);
}

/// Holds rules 5 and 6.
#[test]
fn a_signature_serves_nobody_but_whom_it_names() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "");
    let good = signature(&identity_payload());
    refused(&gateway, &upstream, by_headers(&good, "usr_Other", ACCOUNT), 401, "signature_mismatch");
    refused(&gateway, &upstream, by_headers(&good, USER, "acct_Other"), 401, "signature_mismatch");
}

#[test]
fn a_signature_lives_for_the_tolerance_and_both_its_ends() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "");
    let at = |at| by_headers(&signature_at(&identity_payload(), at), USER, ACCOUNT);
    refused(&gateway, &upstream, at(NOW - 301), 401, "timestamp_expired");
    refused(&gateway, &upstream, at(NOW + 301), 401, "timestamp_future");
    assert_eq!(gateway.ask(at(NOW - 300)).status, 200);
    assert_eq!(gateway.ask(at(NOW + 300)).status, 200);
}

#[test]
fn both_secrets_serve_while_one_is_rolled_and_no_third() {
    const NEXT: &str = "absec_next_0123456789";
    let upstream = Upstream::ok();
    let gateway = Gateway::of_app(
        "secrets = [{ file = \"secret\" }, { file = \"next\" }]",
        &[("next", NEXT)],
        &format!("[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n", upstream.origin()),
    );
    let with = |secret| by_headers(&sign(secret, &identity_payload(), NOW), USER, ACCOUNT);
    assert_eq!(gateway.ask(with(SECRET)).status, 200);
    assert_eq!(gateway.ask(with(NEXT)).status, 200);
    refused(&gateway, &upstream, with("absec_third"), 401, "signature_mismatch");
    // Stripe sends one `v1` for each secret; the one that fits may be any of them.
    let tag = |secret| sign(secret, &identity_payload(), NOW).split_once(",v1=").unwrap().1.to_owned();
    let both = format!("t={NOW},v1={},v1={}", tag("absec_third"), tag(NEXT));
    assert_eq!(gateway.ask(by_headers(&both, USER, ACCOUNT)).status, 200);
}

#[test]
fn an_account_that_is_not_listed_is_refused_and_recorded_as_proven() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "");
    let payload = format!(r#"{{"user_id":"{USER}","account_id":"acct_Other"}}"#);
    refused(&gateway, &upstream, by_headers(&signature(&payload), USER, "acct_Other"), 403, "account_not_allowed");
    let record = gateway.records(1).remove(0);
    assert_eq!(record["countersign.account"], "acct_Other");
    assert_eq!(record["countersign.user"], USER);
    assert_eq!(record["countersign.decision"], "refused");
    assert_eq!(record["countersign.reason"], "account_not_allowed");
}

#[test]
fn a_user_who_is_not_listed_is_refused() {
    let upstream = Upstream::ok();
    let strict = route(&upstream, "users = [\"usr_Other\"]");
    refused(&strict, &upstream, signed_head("GET", "/a", ""), 403, "user_not_allowed");
    let open = route(&upstream, &format!("users = [\"usr_Other\", \"{USER}\"]"));
    assert_eq!(open.ask(signed_head("GET", "/a", "")).status, 200);
}

#[test]
fn a_role_counts_only_where_the_signature_covers_it() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "roles = [\"admin\"]");
    let roles = |id: &str| {
        format!(
            r#"{{"stripe_roles":[{{"type":"builtIn","id":"{id}","name":"N"}}],"user_id":"{USER}","account_id":"{ACCOUNT}"}}"#
        )
    };
    let body = roles("admin");
    let unsigned = format!(
        "POST /a HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        signature(&identity_payload()),
        body.len()
    );
    refused(&gateway, &upstream, unsigned, 403, "role_missing");
    refused(&gateway, &upstream, signed_body("POST", "/a", &roles("view_only")), 403, "role_missing");
    refused(&gateway, &upstream, signed_head("GET", "/a", ""), 403, "role_missing");
    assert_eq!(gateway.ask(signed_body("POST", "/a", &body)).status, 200);
    assert_eq!(header(&upstream.only().0, "countersign-roles"), Some("admin"));
}

#[test]
fn unsigned_roles_are_not_told_to_the_upstream() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "");
    let body = format!(
        r#"{{"stripe_roles":[{{"type":"builtIn","id":"admin","name":"N"}}],"user_id":"{USER}","account_id":"{ACCOUNT}"}}"#
    );
    let request = format!(
        "POST /a HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {}\r\nCountersign-Roles: admin\r\nContent-Length: {}\r\n\r\n{body}",
        signature(&identity_payload()),
        body.len()
    );
    assert_eq!(gateway.ask(request).status, 200);
    let (head, received) = upstream.only();
    assert_eq!(header(&head, "countersign-roles"), None);
    assert_eq!(header(&head, "countersign-signed"), Some("identity"));
    assert_eq!(received, body.as_bytes());
}

#[test]
fn a_body_must_be_signed_where_the_route_says_so() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "signed = \"body\"");
    let body = format!(r#"{{"amount":1,"user_id":"{USER}","account_id":"{ACCOUNT}"}}"#);
    let identity_only = format!(
        "POST /a HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        signature(&identity_payload()),
        body.len()
    );
    refused(&gateway, &upstream, identity_only, 403, "body_not_signed");
    let changed = signed_body("POST", "/a", &body).replace("\"amount\":1", "\"amount\":9");
    refused(&gateway, &upstream, changed, 401, "signature_mismatch");
    let opaque = signed_head("POST", "/a", "Content-Type: application/octet-stream\r\nContent-Length: 3\r\n") + "abc";
    refused(&gateway, &upstream, opaque, 403, "body_not_signed");
    assert_eq!(gateway.ask(signed_body("POST", "/a", &body)).status, 200);
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    assert_eq!(gateway.ask(signed_head("POST", "/a", "Content-Length: 0\r\n")).status, 200);
}

/// Holds rule 5.
#[test]
fn places_that_name_different_people_are_refused() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "");
    let body = identity_payload();
    let with = |target: &str, more: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {}\r\n{more}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            signature(&body),
            body.len()
        )
    };
    for (target, more) in [
        ("/a", "Stripe-User-Id: usr_Other\r\n"),
        ("/a", "X-Stripe-Account-Id: acct_Other\r\n"),
        ("/a?user_id=usr_Other", ""),
        ("/a?user%5fid=usr_Other", ""),
        ("/a?x=1&account_id=acct_Other", ""),
        ("/a", "Stripe-User-Id: usr_Test0001\r\nStripe-User-Id: usr_Other\r\n"),
    ] {
        refused(&gateway, &upstream, with(target, more), 401, "identity_conflict");
    }
    assert_eq!(gateway.ask(with(&format!("/a?user_id={USER}"), "")).status, 200);
    for odd in ["/a?user_id=usr_Other%zz", "/a?user_id=usr_%ff"] {
        refused(&gateway, &upstream, with(odd, ""), 401, "identity_invalid");
    }
    // A value of another form is the app's own parameter.
    assert_eq!(gateway.ask(with("/a?user_id=42", &format!("Stripe-User-Id: {USER}\r\n"))).status, 200);
}

/// Holds rule 15.
#[test]
fn reasons_behind_the_mac_are_not_told_to_strangers() {
    let upstream = Upstream::ok();
    let gateway = route(&upstream, "users = [\"usr_Other\"]\nroles = [\"admin\"]\nsigned = \"body\"");
    let payload = format!(r#"{{"user_id":"{USER}","account_id":"acct_Other"}}"#);
    for at in [NOW, NOW - 1000, NOW + 1000] {
        let forged = sign("absec_guessed", &payload, at);
        refused(&gateway, &upstream, by_headers(&forged, USER, "acct_Other"), 401, "signature_mismatch");
    }
    for record in gateway.records(3) {
        assert!(record.get("countersign.user").is_none(), "a claim was recorded as proven: {record}");
        assert!(record.get("countersign.account").is_none());
    }
}

#[test]
fn an_account_alone_passes_only_where_the_app_allows_it() {
    let upstream = Upstream::ok();
    let routes = format!("[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n", upstream.origin());
    let payload = format!(r#"{{"account_id":"{ACCOUNT}"}}"#);
    let request = format!(
        "GET /a HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {}\r\nStripe-Account-Id: {ACCOUNT}\r\n\r\n",
        signature(&payload)
    );
    let strict = Gateway::with(&routes);
    refused(&strict, &upstream, &request, 401, "identity_missing");
    let open = Gateway::of_app("secrets = [{ file = \"secret\" }]\nallow_account_only = true", &[], &routes);
    assert_eq!(open.ask(&request).status, 200);
    let (head, _) = upstream.only();
    assert_eq!(header(&head, "countersign-user"), None);
    assert_eq!(header(&head, "countersign-account"), Some(ACCOUNT));
    // One who is named must be signed for.
    refused(&open, &upstream, by_headers(&signature(&payload), USER, ACCOUNT), 401, "signature_mismatch");
}

#[test]
fn methods_and_paths_that_no_route_has_are_refused() {
    let upstream = Upstream::ok();
    let gateway = Gateway::with(&format!(
        "[[routes]]\npath = \"/a/\"\napp = \"test\"\nupstream = \"{0}\"\n[[routes]]\npath = \"/exact\"\napp = \"test\"\nupstream = \"{0}\"\nmethods = [\"PUT\"]\n",
        upstream.origin()
    ));
    for path in ["/", "/a", "/ab", "/exact/", "/exactly", "/A/", "/exact;x"] {
        refused(&gateway, &upstream, signed_head("GET", path, ""), 404, "route_unknown");
    }
    let answer = refused(&gateway, &upstream, signed_head("GET", "/exact", ""), 405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("PUT"));
    for method in ["DELETE", "OPTIONS", "TRACE"] {
        let answer = refused(&gateway, &upstream, signed_head(method, "/a/x", ""), 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some("GET, HEAD, POST"), "{method}");
    }
    let answer = refused(&gateway, &upstream, signed_head("OPTIONS", "/none", ""), 405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some(""));
    assert_eq!(gateway.ask(signed_head("PUT", "/exact", "Content-Length: 0\r\n")).status, 200);
}

/// Holds rule 8.
#[test]
fn a_host_that_is_none_of_the_names_is_misdirected() {
    let upstream = Upstream::ok();
    let tables =
        Gateway::tables(&format!("[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n", upstream.origin()));
    let gateway = Gateway::of("names = [\"gw.test\"]", &tables);
    let other = signed_head("GET", "/", "").replace("Host: gw.test", "Host: other.test");
    refused(&gateway, &upstream, other, 421, "misdirected");
    let spelled = signed_head("GET", "/", "").replace("Host: gw.test", "Host: GW.test.:8443");
    assert_eq!(gateway.ask(spelled).status, 200);
}

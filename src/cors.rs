//! Cross-origin answers: the preflight, and the headers without which a browser hides an answer from the page.
//!
//! Source: the Fetch standard, <https://fetch.spec.whatwg.org/#http-cors-protocol>, and measurements with Chromium and
//! Firefox: neither caches a bare `*`, so headers and methods are named too.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};

const ANY: HeaderValue = HeaderValue::from_static("*");
const ALLOW_HEADERS: HeaderValue = HeaderValue::from_static(
    "*, Authorization, Content-Type, Stripe-Signature, Stripe-User-Id, Stripe-Account-Id, X-Stripe-User-Id, \
     X-Stripe-Account-Id, X-Requested-With, Accept, Range, If-Match, If-None-Match",
);
const ALLOW_METHODS: HeaderValue = HeaderValue::from_static("*, GET, HEAD, POST, PUT, PATCH, DELETE");
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const VARY_SIGNATURE: HeaderValue = HeaderValue::from_static("Stripe-Signature");

/// Whether a request is a preflight: `OPTIONS` with `Origin` and `Access-Control-Request-Method`.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Adds what a preflight's answer says: every header and method, for two hours; never credentials.
pub fn answer_preflight(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, ALLOW_HEADERS);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, ALLOW_METHODS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
}

/// Makes an answer readable for the page that asked: exactly one origin, every header exposed, and kept apart from the
/// answers to other signatures in caches. What `headers` said of cross-origin access is replaced.
pub fn open(headers: &mut HeaderMap) {
    let theirs: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in theirs {
        if !matches!(name, ACCESS_CONTROL_ALLOW_HEADERS | ACCESS_CONTROL_ALLOW_METHODS | ACCESS_CONTROL_MAX_AGE) {
            headers.remove(name);
        }
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANY);
    let vary = joined_vary(headers);
    headers.insert(VARY, vary);
}

fn joined_vary(headers: &HeaderMap) -> HeaderValue {
    let mut joined = String::new();
    for value in headers.get_all(VARY).iter().filter_map(|value| value.to_str().ok()) {
        for name in value.split(',').map(str::trim) {
            if !name.is_empty() && !name.eq_ignore_ascii_case("stripe-signature") {
                joined.push_str(", ");
                joined.push_str(name);
            }
        }
    }
    if joined.is_empty() {
        return VARY_SIGNATURE;
    }
    HeaderValue::try_from(format!("Stripe-Signature{joined}")).unwrap_or(VARY_SIGNATURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_preflight_has_method_origin_and_requested_method() {
        let whole = headers(&[("origin", "null"), ("access-control-request-method", "POST")]);
        assert!(is_preflight(&Method::OPTIONS, &whole));
        assert!(!is_preflight(&Method::GET, &whole));
        assert!(!is_preflight(&Method::OPTIONS, &headers(&[("origin", "null")])));
        assert!(!is_preflight(&Method::OPTIONS, &headers(&[("access-control-request-method", "POST")])));
    }

    #[test]
    fn an_answer_has_exactly_one_origin_and_one_vary() {
        let mut answer = headers(&[
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("vary", "Origin"),
            ("vary", "stripe-signature, Accept"),
        ]);
        open(&mut answer);
        let all = |name: &str| answer.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("access-control-allow-origin"), ["*"]);
        assert_eq!(all("access-control-expose-headers"), ["*"]);
        assert_eq!(all("access-control-allow-credentials"), [""; 0]);
        assert_eq!(all("vary"), ["Stripe-Signature, Origin, Accept"]);
    }
}

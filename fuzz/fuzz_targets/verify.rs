//! Verification as a whole. The input is a request as text: a line `KIND QUERY`, header lines, an empty line, a body.
//!
//! `KIND` is `json`, `text`, `opaque` or `none`. A fuzzer does not find MACs, so a header value may ask for one: in
//! `{0}` to `{9}` stands the MAC of the candidate of that place, in `{body}` that of the body as it is. Every request is
//! verified at the time of its own signature.
#![no_main]

use std::{fmt::Write as _, time::Duration};

use countersign::{
    auth::{Candidate, Carried, Coverage, Error, Presented, Principal, Scheme, StripeApp},
    secret::SigningSecret,
    signature::{Signature, SigningKey},
};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sha2::Sha256;
use zeroize::Zeroizing;

const SECRET: &str = "absec_fuzz";
const OTHER_SECRET: &str = "absec_fuzy";
const TOLERANCE_SECONDS: i64 = 300;

fuzz_target!(|input: &[u8]| {
    let Some(mut request) = Request::read(input) else { return };
    for allow_account_only in [false, true] {
        request.sign(&app(SECRET, allow_account_only));
        request.judge(allow_account_only);
    }
});

struct Request<'i> {
    kind: &'i str,
    query: Option<&'i str>,
    headers: HeaderMap,
    body: &'i [u8],
}

impl<'i> Request<'i> {
    fn read(input: &'i [u8]) -> Option<Self> {
        let mut rest = input;
        let mut line = || {
            let end = rest.iter().position(|b| *b == b'\n')?;
            let line = &rest[..end];
            rest = &rest[end + 1..];
            Some(line)
        };
        let first = std::str::from_utf8(line()?).ok()?;
        let mut headers = HeaderMap::new();
        while let Some(header) = line().filter(|header| !header.is_empty()) {
            let colon = header.iter().position(|b| *b == b':')?;
            let (name, value) = (&header[..colon], header[colon + 1..].trim_ascii());
            headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
        }
        let (kind, query) = first.split_once(' ').unwrap_or((first, ""));
        Some(Self { kind, query: Some(query).filter(|query| !query.is_empty()), headers, body: rest })
    }

    fn presented(&self) -> Presented<'_> {
        let body = match self.kind {
            "json" => Carried::Json(self.body),
            "text" => Carried::Text(self.body),
            "opaque" => Carried::Opaque,
            _ => Carried::Nothing,
        };
        Presented { headers: &self.headers, query: self.query, body }
    }

    /// Puts the MACs that the signature header asks for into it.
    fn sign(&mut self, app: &StripeApp) {
        let Some(value) = self.headers.get("stripe-signature").and_then(|value| value.to_str().ok()) else { return };
        if !value.contains('{') {
            return;
        }
        let Some(timestamp) = value.split(',').find_map(|item| item.trim().strip_prefix("t=")).map(str::to_owned)
        else {
            return;
        };
        let mut value = value.replace("{body}", &mac(SECRET, &timestamp, self.body));

        // The candidates do not depend on the tags, only on there being one.
        let mut probe = self.headers.clone();
        probe.insert("stripe-signature", format!("t=1,v1={}", "0".repeat(64)).parse().expect("a header value"));
        let mut place = 0;
        let _ = app.attempts(&Presented { headers: &probe, ..self.presented() }, |attempt| {
            value = value.replace(&format!("{{{place}}}"), &mac(SECRET, &timestamp, attempt.text));
            place += 1;
        });
        if let Ok(value) = value.parse() {
            self.headers.insert("stripe-signature", value);
        }
    }

    fn judge(&self, allow_account_only: bool) {
        let request = self.presented();
        let scheme = Scheme::StripeApp(app(SECRET, allow_account_only));
        let stranger = Scheme::StripeApp(app(OTHER_SECRET, allow_account_only));
        let header = self.headers.get("stripe-signature").map(HeaderValue::as_bytes).unwrap_or_default();
        let now = Signature::parse(header).map_or(0, |signature| signature.timestamp());

        // Nobody holds a tag under the other secret: nothing is proven, not even to the log.
        let refused = stranger.verify(&request, now).expect_err("a signature under a secret that nobody signed with");
        assert!(refused.proven.is_none());

        let verified = scheme.verify(&request, now);
        if let Err(error) = scheme.check_form(&self.headers) {
            assert_eq!(verified.as_ref().err().map(|failure| failure.error), Some(error));
        }
        match verified {
            Ok(principal) => {
                let (candidate, text) =
                    self.matched(allow_account_only).expect("who is accepted has a MAC that matches");
                self.is_vouched_for(&principal, candidate, &text);
                self.names_nobody_else(&principal);
                assert!(allow_account_only || principal.user().is_some());
                for (now, accepted) in [
                    (now - TOLERANCE_SECONDS, None),
                    (now + TOLERANCE_SECONDS, None),
                    (now - TOLERANCE_SECONDS - 1, Some(Error::TimestampFuture)),
                    (now + TOLERANCE_SECONDS + 1, Some(Error::TimestampExpired)),
                ] {
                    assert_eq!(scheme.verify(&request, now).err().map(|failure| failure.error), accepted);
                }
            }
            Err(failure) => {
                let proven = matches!(failure.error, Error::RolesInvalid);
                assert_eq!(failure.proven.is_some(), proven, "{:?}", failure.error);
                assert_eq!(self.matched(allow_account_only).is_some(), proven, "{:?}", failure.error);
            }
        }
    }

    /// The first candidate whose MAC, computed here, stands in the header.
    fn matched(&self, allow_account_only: bool) -> Option<(Candidate, Vec<u8>)> {
        let header = std::str::from_utf8(self.headers.get("stripe-signature")?.as_bytes()).ok()?;
        let items = || header.split(',').map(|item| item.trim_matches([' ', '\t']));
        let timestamp = items().find_map(|item| item.strip_prefix("t="))?;
        let mut found = None;
        let _ = app(SECRET, allow_account_only).attempts(&self.presented(), |attempt| {
            let wanted = format!("v1={}", mac(SECRET, timestamp, attempt.text));
            let matches = items().any(|item| item == wanted);
            assert_eq!(attempt.matched.is_some(), matches);
            if matches && found.is_none() {
                found = Some((attempt.candidate, attempt.text.to_vec()));
            }
        });
        found
    }

    /// The headers and a JSON body name the principal or nobody.
    fn names_nobody_else(&self, principal: &Principal) {
        let user = principal.user().map(|user| user.as_str());
        let account = Some(principal.account().as_str());
        let body = if matches!(self.kind, "json" | "text") {
            serde_json::from_slice(self.body).unwrap_or_default()
        } else {
            Value::Null
        };
        for (proven, member, headers) in [
            (user, "user_id", ["stripe-user-id", "x-stripe-user-id"]),
            (account, "account_id", ["stripe-account-id", "x-stripe-account-id"]),
        ] {
            let values =
                headers.iter().flat_map(|name| self.headers.get_all(*name)).map(|value| value.to_str().expect("an id"));
            assert!(values.filter(|value| !value.is_empty()).all(|value| Some(value) == proven));
            // A text without an account is not read as JSON, so nor is its user.
            let is_read = self.kind == "json" || body.get("account_id").is_some();
            let said = body.get(member).and_then(Value::as_str).filter(|id| is_read && !id.is_empty());
            assert!(said.is_none() || said == proven);
        }
    }

    /// The signed text names the principal, and says what it is said to cover.
    fn is_vouched_for(&self, principal: &Principal, candidate: Candidate, text: &[u8]) {
        assert_eq!(principal.signed(), candidate.covers());
        let user = principal.user().map(|user| user.as_str());
        let account = principal.account().as_str();
        // The second parser refuses lone surrogates and numbers beyond its range; ids need neither.
        let Ok(signed) = serde_json::from_slice::<Value>(text) else {
            assert!(String::from_utf8_lossy(text).contains(account));
            return;
        };
        let id = |name: &str| signed.get(name).and_then(Value::as_str).filter(|id| !id.is_empty());
        assert_eq!(id("account_id"), Some(account));
        assert_eq!(id("user_id"), user);

        let said = signed.get("stripe_roles").and_then(Value::as_array);
        let said: Vec<_> = said.into_iter().flatten().filter_map(|role| role.get("id")?.as_str()).collect();
        assert_eq!(principal.roles().iter().map(|role| role.as_str()).collect::<Vec<_>>(), said);

        if principal.signed() == Coverage::Body {
            let mut body: Value = serde_json::from_slice(self.body).expect("a body that is covered is what was signed");
            let members = body.as_object_mut().expect("a body that is covered is an object");
            for (name, id) in [("user_id", user), ("account_id", Some(account))] {
                if let Some(id) = id {
                    members.insert(name.to_owned(), id.into());
                }
            }
            assert!(same(&signed, &body), "signed {signed}, sent {body}");
        }
    }
}

/// Whether two values are the same to JavaScript.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let (Some(one), Some(other)) = (one.as_f64(), other.as_f64()) else { return false };
            // The second parser rounds in the last place.
            (one - other).abs() <= one.abs() * 1e-15
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, one)| other.get(name).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}

fn app(secret: &str, allow_account_only: bool) -> StripeApp {
    let secret = SigningSecret::parse(Zeroizing::new(secret.to_owned())).expect("a secret");
    let tolerance = Duration::from_secs(TOLERANCE_SECONDS.unsigned_abs());
    StripeApp { keys: vec![SigningKey::new(&secret)], tolerance, allow_account_only }
}

fn mac(secret: &str, timestamp: &str, text: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length");
    for part in [timestamp.as_bytes(), b".", text] {
        mac.update(part);
    }
    mac.finalize().into_bytes().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

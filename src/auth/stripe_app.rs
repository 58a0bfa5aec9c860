//! The signature of a Stripe App's UI extension.
//!
//! Source: Stripe, "Build a UI extension back end", <https://docs.stripe.com/stripe-apps/build-backend>. What is
//! signed is not sent: it is rebuilt from the request, by the candidates K1 to K6 of [`Candidate`] and no other.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::{Carried, Claims, Coverage, Error, Failure, Presented, Principal};
use crate::{
    identity::RoleId,
    json::{Document, Element},
    signature::{Age, Signature, SigningKey},
};

/// The header that carries the signature.
pub const STRIPE_SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");

/// An app whose signing secrets vouch for its users.
#[derive(Debug)]
pub struct StripeApp {
    /// One key, or two while the secret is being rolled.
    pub keys: Vec<SigningKey>,
    /// How far a timestamp may be from now, either way.
    pub tolerance: Duration,
    /// Whether a signature over an account alone is taken where no user is named.
    pub allow_account_only: bool,
}

/// The texts that are tried as the signed payload, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// The raw body, a JSON object that carries the ids.
    Body,
    /// The body as JavaScript prints it.
    Printed,
    /// The same with the ids moved last.
    IdentityLast,
    /// The roles of the body and the ids.
    Roles,
    /// The ids alone; the commonest real client.
    Identity,
}

/// One candidate: its text and the place of the key under which a tag of the request is that text's MAC.
#[derive(Debug)]
pub struct Attempt<'a> {
    pub candidate: Candidate,
    pub text: &'a [u8],
    pub matched: Option<usize>,
}

/// A request's signature, and what it may be over.
struct Read<'r> {
    signature: Signature<'r>,
    document: Option<Document<'r>>,
    claims: Claims,
    raw: &'r [u8],
}

impl StripeApp {
    pub(super) fn verify(&self, request: &Presented<'_>, now: i64) -> Result<Principal, Failure> {
        let Read { signature, document, claims, raw } = self.read(request)?;
        let mut matched = None;
        // One tag is the MAC of one text, so that with a body that says more than the ids it does not matter which candidate is
        // tried first. The ids alone are the shortest, and the commonest.
        let says_more = document.as_ref().is_some_and(|document| {
            let is_id = |key: Element<'_>| key.as_str().is_some_and(|key| key == "user_id" || key == "account_id");
            document.members().any(|(key, _)| !is_id(key))
        });
        let is_tried = says_more && signature.has_one_tag();
        if is_tried {
            let text = identity(&claims);
            matched = signature.matching_key(&self.keys, &text).map(|key| (Candidate::Identity, key));
        }
        if matched.is_none() {
            candidates(&claims, raw, document.as_ref(), |candidate, text| {
                let is_new = !is_tried || candidate != Candidate::Identity;
                let hit = if is_new { signature.matching_key(&self.keys, text) } else { None };
                matched = hit.map(|key| (candidate, key));
                hit.is_none()
            });
        }
        let matched = matched.and_then(|(candidate, place)| Some((candidate, self.keys.get(place)?)));
        let Some((candidate, key)) = matched else { return Err(Error::SignatureMismatch.into()) };
        // A stale one too: whoever signed it has the secret still.
        key.note_use(now);
        let proven = |error| Failure { error, proven: Some(claims.clone()) };
        match signature.age(now, self.tolerance) {
            Age::Fresh => {}
            Age::Expired => return Err(proven(Error::TimestampExpired)),
            Age::Future => return Err(proven(Error::TimestampFuture)),
        }
        let said = document.as_ref().and_then(|document| document.member("stripe_roles"));
        let roles = roles(said).ok_or_else(|| proven(Error::RolesInvalid))?;
        Ok(Principal {
            user: claims.user,
            account: claims.account,
            roles: if candidate.covers_roles() { roles } else { Vec::new() },
            signed: candidate.covers(),
            key: key.id(),
        })
    }

    /// Tries every candidate for `request`, shows each to `look`, and answers whom the request names, for tools that
    /// explain a refusal.
    ///
    /// # Errors
    /// The reason for which no candidate could be built.
    pub fn attempts(&self, request: &Presented<'_>, mut look: impl FnMut(Attempt<'_>)) -> Result<Claims, Error> {
        let Read { signature, document, claims, raw } = self.read(request)?;
        candidates(&claims, raw, document.as_ref(), |candidate, text| {
            look(Attempt { candidate, text, matched: signature.matching_key(&self.keys, text) });
            true
        });
        Ok(claims)
    }

    /// What there is to verify, in the order in which its faults are told.
    fn read<'r>(&self, request: &Presented<'r>) -> Result<Read<'r>, Error> {
        let signature = signature_of(request.headers)?;
        let document = request.body.document()?;
        let claims = Claims::read(request, document.as_ref(), self.allow_account_only)?;
        let raw = match request.body {
            Carried::Json(body) | Carried::Text(body) => body,
            Carried::Nothing | Carried::Opaque => &[],
        };
        Ok(Read { signature, document, claims, raw })
    }

    /// Counts the uses of its keys together with those of `before`, the same app of a configuration that this one's replaces.
    pub fn go_on_from(&self, before: &Self) {
        for key in &self.keys {
            if let Some(same) = before.keys.iter().find(|other| other.id() == key.id()) {
                key.go_on_from(same);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { keys: Vec::new(), tolerance: Duration::from_secs(300), allow_account_only: false }
    }
}

impl Candidate {
    /// What a signature over this text covers.
    pub fn covers(self) -> Coverage {
        match self {
            Self::Body | Self::Printed | Self::IdentityLast => Coverage::Body,
            Self::Roles | Self::Identity => Coverage::Identity,
        }
    }

    fn covers_roles(self) -> bool {
        match self {
            Self::Body | Self::Printed | Self::IdentityLast | Self::Roles => true,
            Self::Identity => false,
        }
    }
}

/// The one signature of `headers`. A blank header is none.
pub(crate) fn signature_of(headers: &HeaderMap) -> Result<Signature<'_>, Error> {
    let mut values = headers.get_all(STRIPE_SIGNATURE).iter();
    let value = values.next().ok_or(Error::SignatureMissing)?;
    if values.next().is_some() {
        return Err(Error::SecondSignature);
    }
    if value.is_empty() {
        return Err(Error::SignatureMissing);
    }
    Signature::parse(value.as_bytes()).map_err(Error::SignatureMalformed)
}

/// Builds the candidates one after the other and hands each to `go_on`, until that says no. A text that an earlier
/// candidate had already is not built twice.
fn candidates(
    claims: &Claims,
    raw: &[u8],
    body: Option<&Document<'_>>,
    mut go_on: impl FnMut(Candidate, &[u8]) -> bool,
) {
    let both = ids(claims);
    let last = if claims.user.is_some() { &both[..] } else { &both[1..] };

    let mut text = Vec::with_capacity(raw.len() + 128);
    if let Some(document) = body.filter(|document| document.is_object()) {
        let carries = |name: &str| document.member(name).is_some_and(|id| id.as_str().is_some_and(|id| !id.is_empty()));
        let carries_ids = last.iter().all(|(name, _)| carries(name));
        if carries_ids && !go_on(Candidate::Body, raw) {
            return;
        }
        if !document.has_lossy_number() {
            document.print(&mut text);
            if carries_ids && text != raw && !go_on(Candidate::Printed, &text) {
                return;
            }
            let mut moved = Vec::with_capacity(text.len() + 128);
            document.print_with_last(last, &mut moved);
            let was_tried = carries_ids && moved == text;
            if !was_tried && !go_on(Candidate::IdentityLast, &moved) {
                return;
            }
        }
        if let Some(roles) = document.member("stripe_roles").filter(|roles| !roles.has_lossy_number()) {
            text.clear();
            text.extend_from_slice(b"{\"stripe_roles\":");
            roles.print(&mut text);
            text.push(b',');
            members(last, &mut text);
            if !go_on(Candidate::Roles, &text) {
                return;
            }
        }
    }
    go_on(Candidate::Identity, &identity(claims));
}

/// The members that name the user and the account; without a user the account twice.
fn ids(claims: &Claims) -> [(&str, &str); 2] {
    let account = ("account_id", claims.account.as_str());
    [claims.user.as_ref().map_or(account, |user| ("user_id", user.as_str())), account]
}

/// The ids alone, as an object.
fn identity(claims: &Claims) -> Vec<u8> {
    let both = ids(claims);
    let mut text = Vec::with_capacity(128);
    text.push(b'{');
    members(if claims.user.is_some() { &both } else { &both[1..] }, &mut text);
    text
}

/// `"name":"id"` for each, separated by commas, and the closing brace. Ids need no escapes.
fn members(ids: &[(&str, &str)], text: &mut Vec<u8>) {
    for (place, (name, id)) in ids.iter().enumerate() {
        for part in [if place == 0 { "\"" } else { ",\"" }, name, "\":\"", id, "\""] {
            text.extend_from_slice(part.as_bytes());
        }
    }
    text.push(b'}');
}

/// The ids of a `stripe_roles` value; none for an absent one, `None` for one that is not a list of roles. Roles of
/// SDKs that send no id vouch for nothing and are left out.
fn roles(said: Option<Element<'_>>) -> Option<Vec<RoleId>> {
    let Some(said) = said else { return Some(Vec::new()) };
    let mut ids = Vec::new();
    for role in said.items()? {
        let kind = role.member("type")?;
        if !matches!(kind.as_str()?.as_ref(), "builtIn" | "custom") {
            return None;
        }
        if let Some(name) = role.member("name") {
            name.as_str()?;
        }
        if let Some(id) = role.member("id") {
            ids.push(RoleId::parse(id.as_str()?.as_ref()).ok()?);
        }
    }
    Some(ids)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::secret::SigningSecret;

    /// What a signature over the ids alone covers of a request with `body`, whose ids are in the headers too.
    fn covered(body: &str, tags: usize) -> Coverage {
        let secret = Zeroizing::new("absec_test_0123456789abcdef".to_owned());
        let key = SigningKey::new(&SigningSecret::parse(secret).unwrap());
        let signature = key.header(1_790_000_000, br#"{"user_id":"usr_a","account_id":"acct_b"}"#);
        let signature = signature + &format!(",v1={}", "0".repeat(64)).repeat(tags - 1);
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("stripe-signature", &*signature), ("stripe-user-id", "usr_a"), ("stripe-account-id", "acct_b")]
        {
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        let app = StripeApp { keys: vec![key], ..StripeApp::for_tests() };
        let request = Presented { headers: &headers, query: None, body: Carried::Json(body.as_bytes()) };
        app.verify(&request, 1_790_000_000).unwrap_or_else(|_| panic!("{body}")).signed()
    }

    #[test]
    fn what_an_account_alone_proved_holds_only_while_it_may() {
        let key = || {
            SigningKey::new(&SigningSecret::parse(Zeroizing::new("absec_test_0123456789abcdef".to_owned())).unwrap())
        };
        let app = |allow_account_only| StripeApp { keys: vec![key()], allow_account_only, ..StripeApp::for_tests() };
        let mut headers = HeaderMap::new();
        let signature = key().header(1_790_000_000, br#"{"account_id":"acct_b"}"#);
        headers.insert("stripe-signature", signature.parse().unwrap());
        headers.insert("stripe-account-id", "acct_b".parse().unwrap());
        let request = Presented { headers: &headers, query: None, body: Carried::Nothing };
        let principal = app(true).verify(&request, 1_790_000_000).unwrap_or_else(|_| panic!("it is refused"));
        let holds = |allowed| crate::auth::Scheme::StripeApp(app(allowed)).holds(&principal);
        assert_eq!([holds(true), holds(false)], [true, false]);
    }

    #[test]
    fn a_body_of_nothing_but_the_ids_is_covered_by_a_signature_over_them_and_another_is_not() {
        for tags in [1, 2] {
            for body in [
                r#"{"user_id":"usr_a","account_id":"acct_b"}"#,
                r#"{ "user_id": "usr_a", "account_id": "acct_b" }"#,
                r#"{"account_id":"acct_b","user_id":"usr_a"}"#,
                r#"{"\u0075ser_id":"usr_a","account_id":"acct_b"}"#,
                r#"{"account_id":"acct_b"}"#,
                "{}",
            ] {
                assert_eq!(covered(body, tags), Coverage::Body, "{body}");
            }
            for body in [
                r#"{"user_id":"usr_a","account_id":"acct_b","amount":1}"#,
                r#"{"":0}"#,
                r#"{"stripe_roles":[]}"#,
                r#"{"\ud800":0,"user_id":"usr_a"}"#,
            ] {
                assert_eq!(covered(body, tags), Coverage::Identity, "{body}");
            }
        }
    }
}

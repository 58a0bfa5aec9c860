//! What went wrong where no signature fits: the known mistakes, tried one by one.
//!
//! Nothing here decides anything. A text that matches only here is refused by the gateway, and for good reason; that it
//! matches tells the developer what was signed in place of what was sent.

use crate::{
    auth::{Attempt, Candidate, Carried, Claims, Presented, StripeApp},
    json::Document,
    signature::Signature,
};

/// Members of a body up to which every subset of them is tried: a thousand MACs for each secret.
const MOST_SUBSET_MEMBERS: usize = 10;

/// What was found out about a signature.
pub(super) struct Diagnosis {
    /// The text that a signature fits, and the place of the secret, from 1.
    pub(super) matched: Option<(&'static str, usize)>,
    /// What was tried, each as what it is and its text.
    pub(super) tried: Vec<(&'static str, String)>,
    /// The mistake that explains the signature, as a sentence with its remedy.
    pub(super) mistake: Option<String>,
}

/// Looks at the signature of `request`, whose body is `body`; `None` where there is nothing to compare, for header, body or
/// ids are at fault.
pub(super) fn diagnose(app: &StripeApp, request: &Presented<'_>, body: &[u8]) -> Option<Diagnosis> {
    let mut matched = None;
    let mut tried = Vec::new();
    let claims = app.attempts(request, |Attempt { candidate, text, matched: key }| {
        matched = matched.or(key.map(|key| (name(candidate), key + 1)));
        tried.push((name(candidate), String::from_utf8_lossy(text).into_owned()));
    });
    let claims = claims.ok()?;
    let mistake = if matched.is_some() { None } else { mistake(app, request, body, &claims) };
    Some(Diagnosis { matched, tried, mistake })
}

fn name(candidate: Candidate) -> &'static str {
    match candidate {
        Candidate::Body => "the body as it is",
        Candidate::Printed => "the body as JavaScript prints it",
        Candidate::IdentityLast => "the body with the ids last",
        Candidate::Roles => "the roles and the ids",
        Candidate::Identity => "the ids alone",
    }
}

fn mistake(app: &StripeApp, request: &Presented<'_>, body: &[u8], claims: &Claims) -> Option<String> {
    let declared = Presented { body: Carried::Json(body), ..*request };
    let mut fits_as_json = false;
    if app.attempts(&declared, |attempt| fits_as_json |= attempt.matched.is_some()).is_ok() && fits_as_json {
        return Some(UNDECLARED.to_owned());
    }
    let value = request.headers.get("stripe-signature")?;
    let signature = Signature::parse(value.as_bytes()).ok()?;
    let fits = |text: &str| signature.matching_key(&app.keys, text.as_bytes()).is_some();
    let account = claims.account.as_str();
    let user = claims.user.as_ref().map(crate::identity::UserId::as_str);

    let known = [
        (format!(r#"{{"account_id":"{account}"}}"#), ACCOUNT_ALONE),
        (String::new(), NOTHING),
        ("{}".to_owned(), NOTHING),
    ];
    if let Some((_, mistake)) = known.iter().find(|(text, _)| fits(text)) {
        return Some((*mistake).to_owned());
    }
    if let Some(user) = user {
        let known = [
            (format!(r#"{{"account_id":"{account}","user_id":"{user}"}}"#), ACCOUNT_FIRST),
            (format!(r#"{{"user_id": "{user}", "account_id": "{account}"}}"#), SPACES),
            (format!(r#"{{"account_id": "{account}", "user_id": "{user}"}}"#), ACCOUNT_FIRST),
            (format!(r#"{{"user_id":"{user}"}}"#), USER_ALONE),
        ];
        if let Some((_, mistake)) = known.iter().find(|(text, _)| fits(text)) {
            return Some((*mistake).to_owned());
        }
    }
    let document = Document::parse(body).ok().filter(Document::is_object)?;
    let members = members(&document);
    let ids: Vec<_> = user.map(|user| ("user_id", user)).into_iter().chain([("account_id", account)]).collect();
    let ids: Vec<String> = ids.iter().map(|(name, id)| format!("\"{name}\":\"{id}\"")).collect();
    let object = |parts: &[&str]| format!("{{{}}}", parts.join(","));
    let texts: Vec<&str> = members.iter().map(|member| member.text.as_str()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let reversed: Vec<&str> = ids.iter().rev().copied().collect();

    if fits(&object(&texts)) || std::str::from_utf8(body).is_ok_and(fits) {
        return Some(NO_IDENTITY.to_owned());
    }
    if fits(&object(&[&texts[..], &reversed[..]].concat())) {
        return Some(ACCOUNT_FIRST.to_owned());
    }
    if fits(&object(&[&ids[..], &texts[..]].concat())) {
        return Some(IDENTITY_FIRST.to_owned());
    }
    let mut sorted = texts.clone();
    sorted.sort_unstable();
    if sorted != texts && fits(&object(&[&sorted[..], &ids[..]].concat())) {
        return Some(SORTED.to_owned());
    }
    if document.has_lossy_number() && fits(&object(&[&texts[..], &ids[..]].concat())) {
        return Some(LOSSY.to_owned());
    }
    if members.len() > MOST_SUBSET_MEMBERS {
        return None;
    }
    (1..1_u32 << members.len()).find_map(|chosen| {
        let is_chosen = |place: &usize| chosen >> place & 1 == 1;
        let signed: Vec<&str> =
            texts.iter().enumerate().filter(|(at, _)| is_chosen(at)).map(|(_, text)| *text).collect();
        let found = signed.len() < texts.len() && fits(&object(&[&signed[..], &ids[..]].concat()));
        found.then(|| {
            let unsigned =
                members.iter().enumerate().filter(|(at, _)| !is_chosen(at)).map(|(_, member)| member.name.as_str());
            let unsigned = unsigned.collect::<Vec<_>>().join(", ");
            format!("the body has members that were not signed: {unsigned}; {PASS_ALL}")
        })
    })
}

/// A member of the body that is none of the ids, as JavaScript prints it.
struct Member {
    name: String,
    text: String,
}

fn members(document: &Document<'_>) -> Vec<Member> {
    let mut members = Vec::new();
    for (key, value) in document.members() {
        let Some(name) = key.as_str().filter(|name| name != "user_id" && name != "account_id") else { continue };
        let mut text = Vec::new();
        key.print(&mut text);
        text.push(b':');
        value.print(&mut text);
        members.push(Member { name: name.into_owned(), text: String::from_utf8_lossy(&text).into_owned() });
    }
    members
}

const PASS_ALL: &str = "pass every member but the ids to fetchStripeSignature(), in the order in which they are sent";
const UNDECLARED: &str = "the signature covers the body, but the body is not declared as JSON, so it was not read; send the header \
    Content-Type: application/json";
const ACCOUNT_ALONE: &str = "it was signed for the account alone, but the request names a user; send the ids that were signed, \
    or, where there is no user, none and set `allow_account_only` for the app";
const USER_ALONE: &str = "it was signed for the user alone, which Stripe never does; use fetchStripeSignature()";
const NOTHING: &str = "an empty text was signed; that is how Stripe signs other calls, and it proves nobody. Use \
    fetchStripeSignature()";
const ACCOUNT_FIRST: &str = "it was signed with account_id before user_id; Stripe signs user_id first. A test that signs by itself \
    must do the same";
const SPACES: &str = "it was signed over JSON with spaces; Stripe signs compact JSON, as JSON.stringify prints it (in Python \
    separators=(\",\", \":\"))";
const NO_IDENTITY: &str = "it was signed over the body without user_id and account_id, as webhooks are; Stripe signs the ids behind \
    the values that are passed to fetchStripeSignature()";
const IDENTITY_FIRST: &str = "it was signed with the ids before the other members; Stripe puts them last";
const SORTED: &str = "the members were sorted by name before they were signed, or after; send them in the order in which they were \
    passed to fetchStripeSignature()";
const LOSSY: &str = "the body has a number that JavaScript does not keep, such as 9007199254740993 or 1e400, so what was signed \
    cannot be told from other bodies; send it as a string";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;
    use zeroize::Zeroizing;

    use super::*;
    use crate::{secret::SigningSecret, signature::SigningKey};

    const BODY: &str = r#"{"note":"n","amount":1,"big":2,"user_id":"usr_1","account_id":"acct_1"}"#;

    fn diagnosed(signed: &str, body: &str) -> Diagnosis {
        let key = SigningKey::new(&SigningSecret::parse(Zeroizing::new("absec_1".to_owned())).unwrap());
        let mut headers = HeaderMap::new();
        headers.insert("stripe-signature", key.header(1, signed.as_bytes()).parse().unwrap());
        let app = StripeApp { keys: vec![key], tolerance: Duration::from_secs(300), allow_account_only: false };
        let request = Presented { headers: &headers, query: None, body: Carried::Json(body.as_bytes()) };
        diagnose(&app, &request, body.as_bytes()).unwrap()
    }

    #[test]
    fn each_known_mistake_is_recognised() {
        for (signed, mistake) in [
            (r#"{"account_id":"acct_1","user_id":"usr_1"}"#, ACCOUNT_FIRST),
            (r#"{"note":"n","amount":1,"big":2,"account_id":"acct_1","user_id":"usr_1"}"#, ACCOUNT_FIRST),
            (r#"{"user_id": "usr_1", "account_id": "acct_1"}"#, SPACES),
            (r#"{"account_id":"acct_1"}"#, ACCOUNT_ALONE),
            (r#"{"user_id":"usr_1"}"#, USER_ALONE),
            ("", NOTHING),
            ("{}", NOTHING),
            (r#"{"note":"n","amount":1,"big":2}"#, NO_IDENTITY),
            (r#"{"user_id":"usr_1","account_id":"acct_1","note":"n","amount":1,"big":2}"#, IDENTITY_FIRST),
            (r#"{"amount":1,"big":2,"note":"n","user_id":"usr_1","account_id":"acct_1"}"#, SORTED),
        ] {
            let diagnosis = diagnosed(signed, BODY);
            assert_eq!(diagnosis.matched, None, "{signed}");
            assert_eq!(diagnosis.mistake.as_deref(), Some(mistake), "{signed}");
        }
        let some = diagnosed(r#"{"note":"n","big":2,"user_id":"usr_1","account_id":"acct_1"}"#, BODY).mistake.unwrap();
        assert!(some.contains("not signed: amount;"), "{some}");
        let lossy = BODY.replace(":1,", ":1e400,");
        let signed = r#"{"note":"n","amount":null,"big":2,"user_id":"usr_1","account_id":"acct_1"}"#;
        assert_eq!(diagnosed(signed, &lossy).mistake.as_deref(), Some(LOSSY));
    }

    #[test]
    fn a_body_that_is_not_declared_as_json_is_recognised() {
        let key = SigningKey::new(&SigningSecret::parse(Zeroizing::new("absec_1".to_owned())).unwrap());
        let mut headers = HeaderMap::new();
        let signed = r#"{"note":"n","user_id":"usr_1","account_id":"acct_1"}"#;
        headers.insert("stripe-signature", key.header(1, signed.as_bytes()).parse().unwrap());
        headers.insert("stripe-user-id", "usr_1".parse().unwrap());
        headers.insert("stripe-account-id", "acct_1".parse().unwrap());
        let app = StripeApp { keys: vec![key], tolerance: Duration::from_secs(300), allow_account_only: false };
        let body = br#"{"note":"n"}"#;
        for carried in [Carried::Text(body), Carried::Opaque] {
            let request = Presented { headers: &headers, query: None, body: carried };
            assert_eq!(diagnose(&app, &request, body).unwrap().mistake.as_deref(), Some(UNDECLARED));
        }
    }

    #[test]
    fn what_fits_is_named_with_its_secret() {
        assert_eq!(diagnosed(BODY, BODY).matched, Some(("the body as it is", 1)));
        let ids = r#"{"user_id":"usr_1","account_id":"acct_1"}"#;
        assert_eq!(diagnosed(ids, BODY).matched, Some(("the ids alone", 1)));
        let none = diagnosed("something else", BODY);
        assert!(none.mistake.is_none() && none.matched.is_none());
        assert_eq!(none.tried.last(), Some(&("the ids alone", ids.to_owned())));
    }
}

//! Who is asking: from what a request presents to a [`Principal`] that a scheme vouches for.
//!
//! A new scheme is a file in `auth/` and a variant of [`Scheme`].

use std::fmt;

use http::HeaderMap;

use crate::{
    identity::{AccountId, RoleId, UserId},
    json::Document,
    signature::{KeyId, Malformed},
};

mod claims;
mod stripe_app;

pub use claims::{Claims, Member};
pub(crate) use stripe_app::signature_of;
pub use stripe_app::{Attempt, Candidate, STRIPE_SIGNATURE, StripeApp};

/// How the requests of an app prove who sends them.
#[derive(Debug)]
pub enum Scheme {
    StripeApp(StripeApp),
}

/// What of a request a scheme may look at.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'r> {
    pub headers: &'r HeaderMap,
    pub query: Option<&'r str>,
    pub body: Carried<'r>,
}

/// The body as far as verification is concerned.
#[derive(Clone, Copy, Debug)]
pub enum Carried<'r> {
    Nothing,
    /// Declared as JSON: it must be.
    Json(&'r [u8]),
    /// `text/plain` or undeclared: JSON if it is an object with an `account_id`.
    Text(&'r [u8]),
    /// Of another type; not looked at, and not covered by any signature.
    Opaque,
}

/// How a body of some content type is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    Json,
    Text,
    Opaque,
}

/// What the matched signature covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    Identity,
    Body,
}

/// Someone whom a valid signature vouches for.
///
/// Only this module makes one, after a MAC matched and its timestamp was fresh: its fields are nobody else's.
///
/// ```compile_fail,E0451
/// use countersign::{auth::{Coverage, Principal}, identity::AccountId};
///
/// fn forged(account: AccountId) -> Principal {
///     Principal { user: None, account, roles: Vec::new(), signed: Coverage::Body }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Principal {
    user: Option<UserId>,
    account: AccountId,
    roles: Vec<RoleId>,
    signed: Coverage,
    key: KeyId,
}

/// Why nobody was proven. What stands behind `proven` may be told only because the MAC held.
#[derive(Debug)]
pub struct Failure {
    pub error: Error,
    /// Whom the MAC vouched for, where it held.
    pub proven: Option<Claims>,
}

/// Why a request proves nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    SignatureMissing,
    SignatureMalformed(Malformed),
    SecondSignature,
    SignatureMismatch,
    TimestampExpired,
    TimestampFuture,
    IdentityMissing(Member),
    IdentityInvalid(Member),
    IdentityConflict(Member),
    BodyInvalid(BodyFault),
    RolesInvalid,
}

/// What is wrong with a body that must be JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    Syntax,
    Utf8,
    ByteOrderMark,
    DuplicateKey,
    TooDeep,
    ContentType,
}

impl Scheme {
    /// Verifies what `request` presents at `now`, seconds since the epoch.
    ///
    /// # Errors
    /// [`Failure`] with the first reason in the order: header form, body, identity, MAC, time, roles.
    pub fn verify(&self, request: &Presented<'_>, now: i64) -> Result<Principal, Failure> {
        match self {
            Self::StripeApp(app) => app.verify(request, now),
        }
    }

    /// The reason for which `headers` alone suffice to refuse, so that no body need be read for it.
    ///
    /// # Errors
    /// The header form's [`Error`].
    pub fn check_form(&self, headers: &HeaderMap) -> Result<(), Error> {
        match self {
            Self::StripeApp(_) => stripe_app::signature_of(headers).map(|_| ()),
        }
    }

    /// Whether what proved `principal` would still prove it: the secret that the MAC was made with, and that it may name an account alone.
    pub fn holds(&self, principal: &Principal) -> bool {
        match self {
            Self::StripeApp(app) => {
                (principal.user().is_some() || app.allow_account_only)
                    && app.keys.iter().any(|key| key.id() == principal.key)
            }
        }
    }
}

impl BodyKind {
    /// The kind that the content type of `headers` stands for.
    ///
    /// # Errors
    /// More than one content type, or one that is no text: readers would differ on what the body is.
    pub fn of(headers: &HeaderMap) -> Result<Self, BodyFault> {
        let mut values = headers.get_all(http::header::CONTENT_TYPE).iter();
        let Some(value) = values.next() else { return Ok(Self::Text) };
        if values.next().is_some() {
            return Err(BodyFault::ContentType);
        }
        let text = value.to_str().map_err(|_| BodyFault::ContentType)?;
        // Outside quotes every second part is; a comma there begins another type for some readers.
        if text.split('"').step_by(2).any(|part| part.contains(',')) {
            return Err(BodyFault::ContentType);
        }
        let essence = text.split(';').next().unwrap_or_default().trim();
        let (kind, subtype) = essence.split_once('/').unwrap_or((essence, ""));
        let json_suffix =
            subtype.len() >= 5 && subtype.get(subtype.len() - 5..).is_some_and(|s| s.eq_ignore_ascii_case("+json"));
        if subtype.eq_ignore_ascii_case("json") || json_suffix {
            Ok(Self::Json)
        } else if essence.is_empty() || (kind.eq_ignore_ascii_case("text") && subtype.eq_ignore_ascii_case("plain")) {
            Ok(Self::Text)
        } else {
            Ok(Self::Opaque)
        }
    }
}

impl<'r> Carried<'r> {
    /// Parses what must be or may be JSON; `None` for a body that is opaque, or none.
    fn document(self) -> Result<Option<Document<'r>>, Error> {
        use crate::json::Error as Json;
        match self {
            Self::Nothing | Self::Opaque | Self::Json([]) | Self::Text([]) => Ok(None),
            Self::Json(body) => Document::parse(body).map(Some).map_err(|error| Error::BodyInvalid(error.into())),
            Self::Text(body) => match Document::parse(body) {
                Ok(document) if document.is_object() && document.member("account_id").is_some() => Ok(Some(document)),
                // It is JSON to a reader that is less strict, and may name an account for it.
                Err(error @ (Json::DuplicateKey | Json::TooDeep | Json::ByteOrderMark | Json::Utf8))
                    if begins_as_object(body) =>
                {
                    Err(Error::BodyInvalid(error.into()))
                }
                Ok(_) | Err(_) => Ok(None),
            },
        }
    }
}

fn begins_as_object(body: &[u8]) -> bool {
    body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body).trim_ascii_start().starts_with(b"{")
}

impl Coverage {
    /// The word for the upstream and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Body => "body",
        }
    }
}

impl Principal {
    /// The user, unless the signature vouches for an account alone.
    pub fn user(&self) -> Option<&UserId> {
        self.user.as_ref()
    }

    /// The account.
    pub fn account(&self) -> &AccountId {
        &self.account
    }

    /// The roles that the signature vouches for; the user may hold more.
    pub fn roles(&self) -> &[RoleId] {
        &self.roles
    }

    /// What the signature covers.
    pub fn signed(&self) -> Coverage {
        self.signed
    }

    #[cfg(test)]
    pub(crate) fn for_tests(user: &str, account: &str, roles: &[&str], signed: Coverage) -> Self {
        Self {
            user: Some(UserId::parse(user).unwrap()),
            account: AccountId::parse(account).unwrap(),
            roles: roles.iter().map(|role| RoleId::parse(role).unwrap()).collect(),
            signed,
            key: crate::signature::SigningKey::new(
                &crate::secret::SigningSecret::parse("absec_1".to_owned().into()).unwrap(),
            )
            .id(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, proven: None }
    }
}

impl From<crate::json::Error> for BodyFault {
    fn from(error: crate::json::Error) -> Self {
        use crate::json::Error as Json;
        match error {
            Json::Syntax { .. } => Self::Syntax,
            Json::Utf8 => Self::Utf8,
            Json::ByteOrderMark => Self::ByteOrderMark,
            Json::DuplicateKey => Self::DuplicateKey,
            Json::TooDeep => Self::TooDeep,
        }
    }
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "it is not JSON",
            Self::Utf8 => "it is not UTF-8",
            Self::ByteOrderMark => "it begins with a byte order mark",
            Self::DuplicateKey => "an object in it has a key twice",
            Self::TooDeep => "it is nested more than 100 levels deep",
            Self::ContentType => "its content type is not exactly one",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SignatureMissing => f.write_str("no Stripe-Signature header"),
            Self::SignatureMalformed(form) => write!(f, "malformed Stripe-Signature: {form}"),
            Self::SecondSignature => f.write_str("more than one Stripe-Signature header"),
            Self::SignatureMismatch => f.write_str("no signature matches"),
            Self::TimestampExpired => f.write_str("the signature is too old"),
            Self::TimestampFuture => f.write_str("the signature is from the future"),
            Self::IdentityMissing(member) => write!(f, "no {member}"),
            Self::IdentityInvalid(member) => write!(f, "{member} is not an id"),
            Self::IdentityConflict(member) => write!(f, "{member} differs between its places"),
            Self::BodyInvalid(fault) => write!(f, "unusable body: {fault}"),
            Self::RolesInvalid => f.write_str("stripe_roles is not a list of roles"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn kind(values: &[&'static str]) -> Result<BodyKind, BodyFault> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(http::header::CONTENT_TYPE, HeaderValue::from_static(value));
        }
        BodyKind::of(&headers)
    }

    #[test]
    fn the_content_type_decides_how_a_body_is_read() {
        assert_eq!(kind(&[]), Ok(BodyKind::Text));
        assert_eq!(kind(&["text/plain;charset=UTF-8"]), Ok(BodyKind::Text));
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", "text/json"] {
            assert_eq!(kind(&[json]), Ok(BodyKind::Json), "{json}");
        }
        for opaque in ["application/octet-stream", "multipart/form-data; boundary=json", "application/jsonp", "json"] {
            assert_eq!(kind(&[opaque]), Ok(BodyKind::Opaque), "{opaque}");
        }
        assert_eq!(kind(&["application/json", "text/plain"]), Err(BodyFault::ContentType));
        assert_eq!(kind(&["application/json, text/plain"]), Err(BodyFault::ContentType));
        assert_eq!(kind(&["multipart/form-data; boundary=\"a,b\""]), Ok(BodyKind::Opaque));
    }
}

//! From a stage's error to what the client is told: status, stable code and the next step.
//!
//! This is the only place that does so. A detail never holds a secret, a tag, an internal address, or anything of the
//! request but names it already knows.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{auth, body, limits::Limit, path::Ambiguous, policy, route::Methods, upstream, webhook};

/// How long a client is asked to wait where the gateway or an upstream has too much to do.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A refusal, or an answer that an upstream did not give.
#[derive(Debug)]
pub struct Rejection {
    pub code: Code,
    pub detail: String,
    /// The methods that would be taken, for `method_not_allowed`.
    pub allow: Option<String>,
    /// Whom a valid MAC vouched for, for the records.
    pub proven: Option<auth::Claims>,
    /// The limit of the gateway that is the reason, to be counted.
    pub limit: Option<Limit>,
    /// The status where it is not the code's own.
    pub status: Option<StatusCode>,
}

macro_rules! codes {
    ($($variant:ident $text:literal $status:ident $title:literal $meaning:literal;)*) => {
        /// The stable codes of refusals.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $(#[doc = $meaning] $variant,)* }

        impl Code {
            /// Every code, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code as clients and logs see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The status that goes with it.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            /// A short text that is the same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// When it is given, for the reference.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

codes! {
    SignatureMissing "signature_missing" UNAUTHORIZED "No signature" "The request has no `Stripe-Signature` header.";
    SignatureMalformed "signature_malformed" UNAUTHORIZED "Malformed signature" "The header is not of the form `t=UNIX,v1=HEX`, or there is more than one.";
    SignatureMismatch "signature_mismatch" UNAUTHORIZED "Signature does not match" "No signature in the header is one over this request under the app's signing secret.";
    TimestampExpired "timestamp_expired" UNAUTHORIZED "Signature too old" "The signature is valid but older than the app's tolerance.";
    TimestampFuture "timestamp_future" UNAUTHORIZED "Signature from the future" "The signature is valid but its time lies ahead by more than the app's tolerance.";
    IdentityMissing "identity_missing" UNAUTHORIZED "No identity" "The request does not name the user or the account that the signature is about.";
    IdentityInvalid "identity_invalid" UNAUTHORIZED "Invalid identity" "A user or account id is not of the form that Stripe's ids have.";
    IdentityConflict "identity_conflict" UNAUTHORIZED "Conflicting identity" "Two places of the request name different users or accounts.";
    BodyInvalid "body_invalid" BAD_REQUEST "Invalid body" "The body is declared as JSON and is not strictly that, or has a key twice.";
    RolesInvalid "roles_invalid" BAD_REQUEST "Invalid roles" "The signature is valid, but `stripe_roles` is not a list of roles.";
    PathAmbiguous "path_ambiguous" BAD_REQUEST "Ambiguous path" "Two servers could read the path differently.";
    RequestMalformed "request_malformed" BAD_REQUEST "Malformed request" "The request is not HTTP with one reading: its head, framing or host is at fault, or its body broke off.";
    AccountNotAllowed "account_not_allowed" FORBIDDEN "Account not allowed" "The signature is valid, but the app's `accounts` do not list the account.";
    UserNotAllowed "user_not_allowed" FORBIDDEN "User not allowed" "The signature is valid, but the route's `users` do not list the user.";
    RoleMissing "role_missing" FORBIDDEN "Role missing" "The signature is valid, but vouches for none of the route's `roles`.";
    BodyNotSigned "body_not_signed" FORBIDDEN "Body not signed" "The signature is valid, but does not cover the body, which the route demands.";
    SourceNotAllowed "source_not_allowed" FORBIDDEN "Source not allowed" "The webhook's `sources` do not list the address that the request comes from.";
    RouteUnknown "route_unknown" NOT_FOUND "No such route" "No route of the configuration matches the path.";
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED "Method not allowed" "The route does not take the method; `Allow` lists those it takes.";
    BodyTooLarge "body_too_large" PAYLOAD_TOO_LARGE "Body too large" "The body is larger than the route allows.";
    Misdirected "misdirected" MISDIRECTED_REQUEST "Wrong host" "The gateway is not known by the host name that was asked for.";
    HeadersTooLarge "headers_too_large" REQUEST_HEADER_FIELDS_TOO_LARGE "Headers too large" "The request line and headers are larger or more than allowed.";
    InternalError "internal_error" INTERNAL_SERVER_ERROR "Internal error" "The gateway failed; nothing was forwarded, or its answer was lost.";
    UpstreamUnreachable "upstream_unreachable" BAD_GATEWAY "Upstream unreachable" "No server of the upstream could be reached, or it closed the connection without an answer.";
    UpstreamInvalid "upstream_invalid" BAD_GATEWAY "Invalid upstream answer" "The upstream's answer is not valid HTTP, or not one that was asked for.";
    Overloaded "overloaded" SERVICE_UNAVAILABLE "Overloaded" "A limit of the gateway or of the upstream is reached; `Retry-After` says when to try again.";
    StoreUnavailable "store_unavailable" SERVICE_UNAVAILABLE "Store unavailable" "The event could not be made durable; Stripe sends it again.";
    UpstreamTimeout "upstream_timeout" GATEWAY_TIMEOUT "Upstream timed out" "The upstream did not accept the connection, or did not begin to answer, in time.";
}

impl Rejection {
    /// A refusal with `code` and what to do about it.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), allow: None, proven: None, limit: None, status: None }
    }

    /// The same, for `limit` was hit.
    #[must_use]
    pub fn at(self, limit: Limit) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// No route has the request's path.
    pub fn route_unknown() -> Self {
        Self::new(
            Code::RouteUnknown,
            "no route of the gateway has this path; compare it with the routes that `countersign check` lists (a route without a trailing slash is exactly its path)",
        )
    }

    /// The method is not one of `methods`.
    pub fn method_not_allowed(methods: &Methods) -> Self {
        let allow = methods.to_string();
        let detail = format!("this route takes {allow}; another method must be listed under the route's `methods`");
        Self { allow: Some(allow), ..Self::new(Code::MethodNotAllowed, detail) }
    }

    /// The method is none that goes on, whatever the route, if there is one, takes.
    pub fn never_forwarded(method: &http::Method, methods: Option<&Methods>) -> Self {
        let allow = methods.map(Methods::to_string).unwrap_or_default();
        let hint = if method == http::Method::OPTIONS {
            "; a preflight has the headers Origin and Access-Control-Request-Method"
        } else {
            ""
        };
        let detail = format!("{method} is answered by no route{hint}; use a method of Allow");
        Self { allow: Some(allow), ..Self::new(Code::MethodNotAllowed, detail) }
    }

    /// The host is none of the listener's names.
    pub fn misdirected() -> Self {
        Self::new(
            Code::Misdirected,
            "the gateway is not configured for this host; add it to the listener's `names`, or call it by one of them",
        )
    }

    /// The request asks for another protocol, which its route does not allow, or not in that form.
    pub fn upgrade_not_allowed(takes_websockets: bool) -> Self {
        let detail = if takes_websockets {
            "this route takes only WebSockets of version 13, asked for by a GET without a body"
        } else {
            "the request asks for another protocol (Upgrade), which this route does not allow; send it without, or have \
             the route's `websocket` set"
        };
        Self::new(Code::RequestMalformed, detail)
    }

    /// The decision cannot be recorded, and so nobody passes; `proven` is who is known to have asked, where that was not noted.
    pub fn unrecorded(proven: Option<auth::Claims>) -> Self {
        let detail = "the gateway cannot write its audit log, and lets nobody through until it can; try again later, and \
                      tell the gateway's administrator";
        Self { proven, ..Self::new(Code::Overloaded, detail) }
    }

    /// An event that cannot be kept, for the store or the audit log fails.
    pub fn store_unavailable() -> Self {
        Self::new(
            Code::StoreUnavailable,
            "the gateway could not make the event durable, and did not take it; send it again, as Stripe does by itself. Its \
             log says what is wrong with its inbox",
        )
    }

    /// A webhook takes requests from listed addresses only.
    pub fn source_not_allowed() -> Self {
        Self::new(
            Code::SourceNotAllowed,
            "this address is not in the file that the webhook's `sources` name; compare the file with the list that Stripe \
             publishes, and `listener.trusted_proxies` where a proxy stands before the gateway",
        )
    }

    /// Something of ours failed.
    pub fn internal() -> Self {
        Self::new(Code::InternalError, "the gateway failed on this request; its log says why under this request id")
    }

    /// The answer's status.
    pub fn status(&self) -> StatusCode {
        self.status.unwrap_or(self.code.status())
    }

    /// The answer's body, RFC 9457.
    pub fn problem(&self, request_id: &str) -> Bytes {
        let problem = Problem {
            kind: &format!("urn:countersign:{}", self.code.as_str()),
            title: self.code.title(),
            status: self.status().as_u16(),
            code: self.code.as_str(),
            detail: &self.detail,
            request_id,
        };
        serde_json::to_vec(&problem).unwrap_or_default().into()
    }

    /// The answer's headers, but for those that every answer has.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(10);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(allow) = self.allow.as_deref().and_then(|allow| HeaderValue::try_from(allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if [Code::Overloaded, Code::StoreUnavailable].contains(&self.code) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        headers
    }
}

/// The members of a problem, in the order in which people read them.
#[derive(serde::Serialize)]
struct Problem<'p> {
    #[serde(rename = "type")]
    kind: &'p str,
    title: &'p str,
    status: u16,
    code: &'p str,
    detail: &'p str,
    request_id: &'p str,
}

impl From<Ambiguous> for Rejection {
    fn from(why: Ambiguous) -> Self {
        Self::new(Code::PathAmbiguous, format!("the path has more than one reading: {why}; send it in its plain form"))
    }
}

impl From<auth::Failure> for Rejection {
    fn from(failure: auth::Failure) -> Self {
        Self { proven: failure.proven, ..failure.error.into() }
    }
}

impl From<auth::Error> for Rejection {
    fn from(error: auth::Error) -> Self {
        use auth::Error;
        let (code, detail) = match error {
            Error::SignatureMissing => (
                Code::SignatureMissing,
                "send the result of fetchStripeSignature() in the Stripe-Signature header of this request".to_owned(),
            ),
            Error::SignatureMalformed(form) => (
                Code::SignatureMalformed,
                format!("the Stripe-Signature header cannot be read: {form}; send the result of fetchStripeSignature() unchanged"),
            ),
            Error::SecondSignature => {
                (Code::SignatureMalformed, "there is more than one Stripe-Signature header; send exactly one".to_owned())
            }
            Error::SignatureMismatch => (
                Code::SignatureMismatch,
                "no signature fits this request. Most often: extra values were signed but not sent (or in another order), the body was changed after signing, \
                 or the gateway has another app's secret. `countersign explain` tells which"
                    .to_owned(),
            ),
            Error::TimestampExpired => (
                Code::TimestampExpired,
                "the signature is too old; call fetchStripeSignature() anew for each request, and check the gateway's clock".to_owned(),
            ),
            Error::TimestampFuture => {
                (Code::TimestampFuture, "the signature's time lies in the future; check the gateway's clock".to_owned())
            }
            Error::IdentityMissing(member) => (
                Code::IdentityMissing,
                format!("{member} is not in the request; send user_id and account_id in the JSON body, or as the headers Stripe-User-Id and Stripe-Account-Id"),
            ),
            Error::IdentityInvalid(member) => (
                Code::IdentityInvalid,
                format!("{member} is not an id of Stripe's form (usr_… and acct_…); send it as userContext gives it"),
            ),
            Error::IdentityConflict(member) => (
                Code::IdentityConflict,
                format!("{member} is given more than once and not the same each time; send the same in body, headers and query, or in one place only"),
            ),
            Error::BodyInvalid(fault) => (Code::BodyInvalid, format!("the body cannot be used: {fault}; send what JSON.stringify prints")),
            Error::RolesInvalid => (
                Code::RolesInvalid,
                "stripe_roles must be a list of roles, each with `type` builtIn or custom; send it as it was signed".to_owned(),
            ),
        };
        Self::new(code, detail)
    }
}

/// Stripe's own libraries answer 400 where a signature does not hold, and so do webhooks here.
impl From<webhook::Error> for Rejection {
    fn from(error: webhook::Error) -> Self {
        use auth::Error;
        let (code, detail) = match error {
            webhook::Error::Event(fault) => (
                Code::BodyInvalid,
                format!("the body is signed, but is no event that can be taken: {fault}; only events of Stripe's are sent here"),
            ),
            webhook::Error::Signature(error) => match error {
                Error::SignatureMissing => (
                    Code::SignatureMissing,
                    "there is no Stripe-Signature header; only Stripe's servers send events here".to_owned(),
                ),
                Error::SignatureMalformed(form) => (
                    Code::SignatureMalformed,
                    format!("the Stripe-Signature header cannot be read: {form}; it is sent as Stripe made it"),
                ),
                Error::SecondSignature => (
                    Code::SignatureMalformed,
                    "there is more than one Stripe-Signature header; one is sent, as Stripe made it".to_owned(),
                ),
                Error::TimestampExpired => (
                    Code::TimestampExpired,
                    "the signature is valid and more than 5 minutes old; check the gateway's clock. `stripe events resend` sends \
                     an old event anew"
                        .to_owned(),
                ),
                Error::TimestampFuture => (
                    Code::TimestampFuture,
                    "the signature is valid and from more than 5 minutes ahead; check the gateway's clock".to_owned(),
                ),
                _ => (
                    Code::SignatureMismatch,
                    "no v1 of the Stripe-Signature header fits this body under the webhook's secrets. Most often the secret is \
                     another endpoint's (test and live ones differ), or a proxy changed the body"
                        .to_owned(),
                ),
            },
        };
        Self { status: Some(StatusCode::BAD_REQUEST), ..Self::new(code, detail) }
    }
}

impl From<policy::Error> for Rejection {
    fn from(error: policy::Error) -> Self {
        use policy::Error;
        let (code, detail) = match error {
            Error::Account => (
                Code::AccountNotAllowed,
                "the signature is valid, but this account is not among the app's `accounts`; the gateway's administrator can add it",
            ),
            Error::User => (
                Code::UserNotAllowed,
                "the signature is valid, but this user is not among the route's `users`; the gateway's administrator can add them",
            ),
            Error::Role => (
                Code::RoleMissing,
                "the signature is valid, but proves none of the roles this route asks for; sign and send stripe_roles with the user's roles, ids included",
            ),
            Error::BodyNotSigned => (
                Code::BodyNotSigned,
                "the signature is valid, but covers only the identity; pass the body's members to fetchStripeSignature() and send them in that order, user_id and account_id last, as application/json. A body that is no JSON object cannot be signed",
            ),
        };
        Self::new(code, detail)
    }
}

impl From<body::Error> for Rejection {
    fn from(error: body::Error) -> Self {
        use body::Error;
        match error {
            Error::TooLarge => Self::new(
                Code::BodyTooLarge,
                "the body is larger than this route takes; send less, or raise the route's `body_limit`",
            )
            .at(Limit::BodyBytes),
            Error::TooSlow => Self::new(Code::RequestMalformed, "the body did not arrive in time; send it again")
                .at(Limit::BodyTimeout),
            Error::Broken => Self::new(
                Code::RequestMalformed,
                "the body broke off, is malformed, or is not as long as Content-Length says; send it again",
            ),
            Error::NoRoom => Self::overloaded().at(Limit::BufferedBytes),
            Error::NoShare => Self::overloaded().at(Limit::BufferedBytesPerAddress),
        }
    }
}

impl Rejection {
    /// A body that is passed on as it comes cannot be.
    pub fn streamed(error: body::Error) -> Self {
        use body::Error;
        let limit = match error {
            Error::TooLarge => Some(Limit::StreamBytes),
            Error::TooSlow => Some(Limit::StreamRate),
            Error::Broken | Error::NoRoom | Error::NoShare => None,
        };
        Self { limit, ..error.into() }
    }

    /// A limit is reached.
    pub fn overloaded() -> Self {
        Self::new(Code::Overloaded, "too much is asked at this moment; try again after the time in Retry-After")
    }
}

impl From<upstream::Error> for Rejection {
    fn from(error: upstream::Error) -> Self {
        use upstream::Error;
        match error {
            Error::Client(error) => Self::streamed(error),
            Error::Unreachable => Self::new(
                Code::UpstreamUnreachable,
                "the request was permitted, but the internal service cannot be reached; its administrator should look whether it runs",
            ),
            Error::Timeout => Self::new(
                Code::UpstreamTimeout,
                "the request was permitted, but the internal service took too long; try again, or raise the route's `response_timeout`",
            ),
            Error::Invalid => Self::new(
                Code::UpstreamInvalid,
                "the request was permitted, but the internal service's answer is not valid HTTP; its log should say more",
            ),
            Error::Overloaded => Self::overloaded(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_distinct() {
        let distinct: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(distinct.len(), Code::ALL.len());
    }

    #[test]
    fn a_problem_has_its_six_members() {
        let rejection = Rejection::route_unknown();
        let problem: serde_json::Value = serde_json::from_slice(&rejection.problem("id-1")).unwrap();
        let mut members: Vec<_> = problem.as_object().unwrap().keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["code", "detail", "request_id", "status", "title", "type"]);
        assert_eq!(problem["status"], 404);
        assert_eq!(problem["code"], "route_unknown");
    }
}

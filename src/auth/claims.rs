//! What a request says of who sends it, before anything vouches for that.

use std::fmt;

use http::{HeaderMap, HeaderName};

use super::{Error, Presented};
use crate::{
    identity::{AccountId, UserId},
    json::Document,
};

/// A user and an account as a request names them, the same in every place that names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub user: Option<UserId>,
    pub account: AccountId,
}

/// One of the two members of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    User,
    Account,
}

impl Claims {
    /// Reads the ids from the top level of the body, the headers and the query; all places that carry one must agree.
    /// Empty values and JSON `null` are absent. `account_only` lets the user be absent.
    ///
    /// # Errors
    /// `IdentityInvalid` for a value that is not of its form, `IdentityConflict` for two that differ,
    /// `IdentityMissing` for none.
    pub(super) fn read(
        request: &Presented<'_>,
        body: Option<&Document<'_>>,
        account_only: bool,
    ) -> Result<Self, Error> {
        let user = Member::User.read(request, body, UserId::parse)?;
        let account = Member::Account.read(request, body, AccountId::parse)?;
        if user.is_none() && !account_only {
            return Err(Error::IdentityMissing(Member::User));
        }
        Ok(Self { user, account: account.ok_or(Error::IdentityMissing(Member::Account))? })
    }
}

impl Member {
    /// The name in JSON bodies and queries.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user_id",
            Self::Account => "account_id",
        }
    }

    /// The headers that carry it.
    pub fn headers(self) -> &'static [HeaderName; 2] {
        static USER: [HeaderName; 2] =
            [HeaderName::from_static("stripe-user-id"), HeaderName::from_static("x-stripe-user-id")];
        static ACCOUNT: [HeaderName; 2] =
            [HeaderName::from_static("stripe-account-id"), HeaderName::from_static("x-stripe-account-id")];
        match self {
            Self::User => &USER,
            Self::Account => &ACCOUNT,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::User => "usr_",
            Self::Account => "acct_",
        }
    }

    fn read<Id: PartialEq>(
        self,
        request: &Presented<'_>,
        body: Option<&Document<'_>>,
        parse: impl Fn(&str) -> Result<Id, crate::identity::InvalidId>,
    ) -> Result<Option<Id>, Error> {
        let mut found = None;
        let mut take = |text: &str| {
            if text.is_empty() {
                return Ok(());
            }
            let id = parse(text).map_err(|_| Error::IdentityInvalid(self))?;
            match &found {
                Some(other) if *other != id => Err(Error::IdentityConflict(self)),
                _ => {
                    found = Some(id);
                    Ok(())
                }
            }
        };
        if let Some(element) = body.and_then(|document| document.member(self.name()))
            && !element.is_null()
        {
            take(&element.as_str().ok_or(Error::IdentityInvalid(self))?)?;
        }
        for value in self.header_values(request.headers) {
            take(value.to_str().map_err(|_| Error::IdentityInvalid(self))?)?;
        }
        for pair in request.query.into_iter().flat_map(|query| query.split('&')) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if query_text(name).is_none_or(|name| name != self.name()) {
                continue;
            }
            match query_text(value) {
                Some(value) if value.starts_with(self.prefix()) => take(&value)?,
                // A reader that is less strict takes what stands before or around the broken escape.
                None if value.starts_with(self.prefix()) => return Err(Error::IdentityInvalid(self)),
                Some(_) | None => {}
            }
        }
        Ok(found)
    }

    fn header_values(self, headers: &HeaderMap) -> impl Iterator<Item = &http::HeaderValue> {
        self.headers().iter().flat_map(|name| headers.get_all(name))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name or value of a query as a form reader understands it; `None` where its escapes are broken.
fn query_text(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = |b: u8| char::from(b).to_digit(16);
                u8::try_from(hex(bytes.next()?)? << 4 | hex(bytes.next()?)?).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

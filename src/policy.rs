//! Who may use a route: a [`Principal`] and a [`Policy`] give a [`Permit`], or a reason why not.

use std::{collections::HashSet, fmt};

use crate::{
    auth::{Coverage, Principal},
    identity::{AccountId, RoleId, UserId},
};

/// What a route demands of whoever is proven to ask. Whatever is not allowed here is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub accounts: Accounts,
    /// Any of these users; `None`: every user of an allowed account.
    pub users: Option<HashSet<UserId>>,
    /// Any of these roles, proven; `None`: no role is asked for.
    pub roles: Option<HashSet<RoleId>>,
    pub signed: Demand,
}

/// The accounts whose users may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accounts {
    Only(HashSet<AccountId>),
    /// `unsafe_any_account`: whoever installed the app.
    Any,
}

/// What a signature must cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    Identity,
    /// The body as well, where the request has one.
    Body,
}

/// Proof that a principal satisfied a route's policy. Only [`Policy::permit`] makes one, and only a permit opens an
/// upstream: nobody else can name its field.
///
/// ```compile_fail,E0451
/// fn forged(principal: &countersign::auth::Principal) -> countersign::policy::Permit<'_> {
///     countersign::policy::Permit { principal }
/// }
/// ```
#[derive(Debug)]
pub struct Permit<'p> {
    principal: &'p Principal,
}

/// Why a proven principal may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Account,
    User,
    Role,
    BodyNotSigned,
}

impl Policy {
    /// Grants a permit to `principal`, or says what is missing. `has_body` tells whether the request carries a body,
    /// which [`Demand::Body`] wants covered.
    ///
    /// # Errors
    /// [`Error`], the first of: account, user, role, coverage.
    pub fn permit<'p>(&self, principal: &'p Principal, has_body: bool) -> Result<Permit<'p>, Error> {
        match &self.accounts {
            Accounts::Only(accounts) if !accounts.contains(principal.account()) => return Err(Error::Account),
            Accounts::Only(_) | Accounts::Any => {}
        }
        if let Some(users) = &self.users
            && !principal.user().is_some_and(|user| users.contains(user))
        {
            return Err(Error::User);
        }
        if let Some(roles) = &self.roles
            && !principal.roles().iter().any(|role| roles.contains(role))
        {
            return Err(Error::Role);
        }
        match (self.signed, principal.signed()) {
            (Demand::Body, Coverage::Identity) if has_body => Err(Error::BodyNotSigned),
            (Demand::Body | Demand::Identity, Coverage::Identity | Coverage::Body) => Ok(Permit { principal }),
        }
    }
}

impl<'p> Permit<'p> {
    /// Who was permitted.
    pub fn principal(&self) -> &'p Principal {
        self.principal
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Account => "the account is not allowed for this app",
            Self::User => "the user is not allowed on this route",
            Self::Role => "no proven role is allowed on this route",
            Self::BodyNotSigned => "the signature does not cover the body",
        })
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(roles: &[&str], signed: Coverage) -> Principal {
        Principal::for_tests("usr_1", "acct_1", roles, signed)
    }

    fn policy() -> Policy {
        Policy {
            accounts: Accounts::Only([AccountId::parse("acct_1").unwrap()].into()),
            users: None,
            roles: None,
            signed: Demand::Identity,
        }
    }

    #[test]
    fn another_account_is_refused() {
        let who = principal(&[], Coverage::Identity);
        assert!(policy().permit(&who, false).is_ok());
        let other = Policy { accounts: Accounts::Only([AccountId::parse("acct_2").unwrap()].into()), ..policy() };
        assert_eq!(other.permit(&who, false).err(), Some(Error::Account));
        let none = Policy { accounts: Accounts::Only(HashSet::new()), ..policy() };
        assert_eq!(none.permit(&who, false).err(), Some(Error::Account));
    }

    #[test]
    fn a_user_who_is_not_listed_is_refused() {
        let who = principal(&[], Coverage::Identity);
        let listed = |user| Policy { users: Some([UserId::parse(user).unwrap()].into()), ..policy() };
        assert!(listed("usr_1").permit(&who, false).is_ok());
        assert_eq!(listed("usr_2").permit(&who, false).err(), Some(Error::User));
    }

    #[test]
    fn one_of_the_roles_is_enough_and_none_is_not() {
        let wanted =
            || Policy { roles: Some(["admin", "analyst"].map(|r| RoleId::parse(r).unwrap()).into()), ..policy() };
        assert!(wanted().permit(&principal(&["analyst"], Coverage::Body), false).is_ok());
        assert_eq!(wanted().permit(&principal(&["view_only"], Coverage::Body), false).err(), Some(Error::Role));
        assert_eq!(wanted().permit(&principal(&[], Coverage::Body), false).err(), Some(Error::Role));
    }

    #[test]
    fn a_body_must_be_covered_where_there_is_one() {
        let strict = || Policy { signed: Demand::Body, ..policy() };
        assert!(strict().permit(&principal(&[], Coverage::Body), true).is_ok());
        assert!(strict().permit(&principal(&[], Coverage::Identity), false).is_ok());
        assert_eq!(strict().permit(&principal(&[], Coverage::Identity), true).err(), Some(Error::BodyNotSigned));
    }
}

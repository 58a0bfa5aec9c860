//! Who may be named in a request: users, accounts, roles and the apps that vouch for them.

use std::{fmt, sync::Arc};

/// The longest id that is taken, in bytes. Stripe's are below 40; what is accepted here becomes a header towards the
/// upstream and a field of the log, so it must stay small.
pub const ID_LIMIT_BYTES: usize = 255;

/// A Stripe dashboard user, `usr_…`.
///
/// Source: `@stripe/ui-extension-sdk`, `userContext.id`; the form is fixed by `^usr_[A-Za-z0-9_]+$`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

/// A Stripe account, `acct_…`.
///
/// Source: `@stripe/ui-extension-sdk`, `userContext.account.id`; the form is fixed by `^acct_[A-Za-z0-9_]+$`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(Arc<str>);

/// The id of a role, such as `admin` or the id of a custom role.
///
/// Printable ASCII without comma, space or quotes, at most [`ID_LIMIT_BYTES`] long, because ids are handed to the
/// upstream as a comma-separated list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleId(Arc<str>);

/// The text is not an id of the wanted kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidId;

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an id of the expected form")
    }
}

impl std::error::Error for InvalidId {}

impl UserId {
    /// Takes `text` if it is `usr_` and one to 251 of `A–Z a–z 0–9 _`.
    ///
    /// # Errors
    /// [`InvalidId`] for anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        prefixed(text, "usr_").map(Self)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AccountId {
    /// Takes `text` if it is `acct_` and one to 250 of `A–Z a–z 0–9 _`.
    ///
    /// # Errors
    /// [`InvalidId`] for anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        prefixed(text, "acct_").map(Self)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RoleId {
    /// Takes `text` if it is a role id.
    ///
    /// # Errors
    /// [`InvalidId`] if it is empty, too long, or holds anything but letters, digits and ``!#$%&'*+-./:;=?@^_`|~``.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b',' | b'"' | b'\\' | b'(' | b')' | b'<' | b'>');
        if text.is_empty() || text.len() > ID_LIMIT_BYTES || !text.bytes().all(allowed) {
            return Err(InvalidId);
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RoleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn prefixed(text: &str, prefix: &str) -> Result<Arc<str>, InvalidId> {
    let rest = text.strip_prefix(prefix).ok_or(InvalidId)?;
    let fits = !rest.is_empty() && text.len() <= ID_LIMIT_BYTES;
    if fits && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') { Ok(text.into()) } else { Err(InvalidId) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_have_their_prefix_and_a_rest() {
        assert!(UserId::parse("usr_t6uiXp46ClLOux").is_ok());
        for bad in
            ["", "usr_", "USR_a", "acct_1", "usr_a b", "usr_a\n", "usr_é", " usr_a", "usr_a\",\"account_id\":\"acct_1"]
        {
            assert_eq!(UserId::parse(bad), Err(InvalidId), "{bad:?}");
        }
    }

    #[test]
    fn account_ids_have_their_prefix_and_a_rest() {
        assert!(AccountId::parse("acct_1ceNvJrGWgpIsbte").is_ok());
        for bad in ["acct_", "ACCT_1", "usr_1", "acct_1,acct_2", "acct_1\0"] {
            assert_eq!(AccountId::parse(bad), Err(InvalidId), "{bad:?}");
        }
    }

    #[test]
    fn ids_are_bounded() {
        let longest = format!("usr_{}", "a".repeat(ID_LIMIT_BYTES - 4));
        assert!(UserId::parse(&longest).is_ok());
        assert_eq!(UserId::parse(&format!("{longest}a")), Err(InvalidId));
    }

    #[test]
    fn role_ids_cannot_break_out_of_a_list() {
        assert!(RoleId::parse("refund_analyst").is_ok());
        for bad in ["", "a,b", "a b", "a\r\nb", "ré"] {
            assert_eq!(RoleId::parse(bad), Err(InvalidId), "{bad:?}");
        }
    }
}

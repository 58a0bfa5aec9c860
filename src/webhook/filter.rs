//! Which events are taken.

use std::{collections::HashSet, fmt};

/// Of which mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Livemode {
    Only(bool),
    Any,
}

/// Of which accounts: connected ones by their id, and one's own, whose events name none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    pub connected: HashSet<Box<str>>,
    /// `"self"` is in the list.
    pub own: bool,
}

/// Of which types: one, or all below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeFilter {
    /// With the dot at its end where it is a prefix.
    text: Box<str>,
    is_prefix: bool,
}

impl Livemode {
    /// Whether events of that mode are taken.
    pub fn takes(self, livemode: bool) -> bool {
        match self {
            Self::Only(only) => only == livemode,
            Self::Any => true,
        }
    }
}

impl Accounts {
    /// Whether the events of `account` are taken; `None` is one's own.
    pub fn take(&self, account: Option<&str>) -> bool {
        account.map_or(self.own, |account| self.connected.contains(account))
    }
}

impl TypeFilter {
    /// Takes `invoice.paid`, which is exactly that, or `invoice.*`, which is everything below it at any depth; `None` for
    /// anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, is_prefix) = text.strip_suffix(".*").map_or((text, false), |name| (name, true));
        let fits = |part: &str| !part.is_empty() && part.bytes().all(super::event::fits_a_type);
        let fits = name.len() <= super::event::LIMIT_BYTES && name.split('.').all(fits);
        let text = if is_prefix { format!("{name}.") } else { name.to_owned() };
        fits.then(|| Self { text: text.into(), is_prefix })
    }

    /// Whether events of that type are taken.
    pub fn takes(&self, kind: &str) -> bool {
        if self.is_prefix { kind.starts_with(&*self.text) } else { kind == &*self.text }
    }
}

impl fmt::Display for TypeFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_one_type_or_all_below_a_prefix() {
        let takes = |filter: &str, kind: &str| TypeFilter::parse(filter).unwrap().takes(kind);
        assert!(takes("invoice.*", "invoice.paid") && takes("invoice.*", "invoice.a.b"));
        assert!(!takes("invoice.*", "invoiceitem.created") && !takes("invoice.*", "invoice"));
        assert!(takes("invoice.paid", "invoice.paid") && !takes("invoice.paid", "invoice.paid.x"));
        assert_eq!(TypeFilter::parse("invoice.*").unwrap().to_string(), "invoice.*");
        assert!(takes("v2.core.*", "v2.core.account[configuration.customer].updated"));
        for wrong in ["", "*", ".*", "invoice*", "*.paid", "invoice.**", "a..b", "in voice.x", "invoice.*.paid", "a\n"]
        {
            assert_eq!(TypeFilter::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_event_without_an_account_is_ones_own() {
        let accounts = Accounts { connected: HashSet::from(["acct_1".into()]), own: false };
        assert!(accounts.take(Some("acct_1")) && !accounts.take(Some("acct_2")) && !accounts.take(None));
        let own = Accounts { own: true, ..Accounts::default() };
        assert!(own.take(None) && !own.take(Some("acct_1")));
    }
}

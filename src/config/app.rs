//! The apps: whose signatures are believed, and for whom.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use http::HeaderValue;

use super::{
    mask::quoted,
    reference,
    section::{Item, Section},
};
use crate::{
    auth::{Scheme, StripeApp},
    identity::AccountId,
    policy::Accounts,
    secret::SigningSecret,
    signature::SigningKey,
};

/// An app that routes may name.
pub(super) struct App {
    /// `None` after a mistake in it, so that routes that name it are not reported as well.
    pub made: Option<Made>,
}

/// What a route takes from its app.
pub(super) struct Made {
    /// The app's name, as the upstream is told it.
    pub name: HeaderValue,
    pub scheme: Arc<Scheme>,
    pub accounts: Accounts,
}

const TOLERANCE: Duration = Duration::from_secs(300);
const MOST_TOLERANCE: Duration = Duration::from_secs(600);
const MOST_UNSAFE_TOLERANCE: Duration = Duration::from_secs(36_500 * 86_400);
const ACCOUNTS: &str = "accounts = [\"acct_…\"]";

/// All apps, by name.
pub(super) fn apps(root: &Section<'_>) -> BTreeMap<String, App> {
    let mut apps = BTreeMap::new();
    let example = "a table `[apps.NAME]` with `secrets` and `accounts`";
    let is_needed = root.item("webhooks").is_none() || root.item("routes").is_some();
    let item = if is_needed { root.required("apps", example) } else { root.item("apps") };
    let Some(item) = item else { return apps };
    let Some(section) = item.section("apps") else { return apps };
    let names = section.names();
    if names.is_empty() {
        item.error("there is no app", Some(&format!("write {example}")));
    }
    let mut seen = HashMap::new();
    for (name, item) in names {
        let fits = check_name(&name, &item);
        let made = item.section("apps.NAME").and_then(|section| app(&name, &section, &mut seen));
        apps.insert(name, App { made: made.filter(|_| fits) });
    }
    apps
}

/// Refuses a name that does not fit a header or a log field.
pub(super) fn check_name(name: &str, item: &Item<'_>) -> bool {
    let byte_fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let fits = !name.is_empty() && name.len() <= 64 && name.bytes().all(byte_fits);
    if !fits {
        item.key_error(
            &format!("{} is no usable name", quoted(name)),
            Some("a name has 1 to 64 letters, digits, hyphens, underscores and dots"),
        );
    }
    fits
}

fn app(name: &str, section: &Section<'_>, seen: &mut HashMap<String, String>) -> Option<Made> {
    let secrets = secrets(name, section, seen);
    let accounts = accounts(section);
    let tolerance = tolerance(section);
    let allow_account_only = match section.item("allow_account_only") {
        None => Some(false),
        Some(item) => item.flag().inspect(|allowed| {
            if *allowed {
                item.warn("a signature that names no user is taken: who asks is then known by account only");
            }
        }),
    };
    let app = StripeApp { keys: secrets?, tolerance: tolerance?, allow_account_only: allow_account_only? };
    Some(Made {
        name: HeaderValue::from_str(name).ok()?,
        scheme: Arc::new(Scheme::StripeApp(app)),
        accounts: accounts?,
    })
}

fn secrets(name: &str, section: &Section<'_>, seen: &mut HashMap<String, String>) -> Option<Vec<SigningKey>> {
    const EXAMPLE: &str = "secrets = [{ file = \"secrets/NAME.absec\" }]";
    let list = section.required("secrets", EXAMPLE)?;
    if list.as_text().is_some() {
        reference::read(&list, "apps.NAME.secrets");
        return None;
    }
    let items = list.list(EXAMPLE)?;
    if let Some(third) = items.get(2) {
        third.error(
            "an app has one secret, or two while it is being rolled",
            Some("remove those that Stripe no longer signs with"),
        );
    }
    let mut parsed: Vec<SigningSecret> = Vec::new();
    let mut complete = items.len() <= 2;
    for item in &items {
        let Some(secret) = reference::read(item, "apps.NAME.secrets") else {
            complete = false;
            continue;
        };
        match SigningSecret::parse(secret.text) {
            Ok(new) if parsed.iter().any(|other| other.expose() == new.expose()) => {
                let suggestion = "while a secret is being rolled the second differs from the first; remove one";
                secret
                    .item
                    .error(&format!("{} holds a secret that this app has already", secret.origin), Some(suggestion));
                complete = false;
            }
            Ok(new) => parsed.push(new),
            Err(error) => {
                secret.item.error(&format!("{}: {error}", secret.origin), Some(error.suggestion()));
                complete = false;
            }
        }
    }
    for secret in &parsed {
        let digest = digest(secret);
        if let Some(other) = seen.get(&digest).filter(|other| other.as_str() != name) {
            list.warn(&format!(
                "the app {} has the same secret: what one of them signs passes for the other",
                quoted(other)
            ));
        }
        seen.insert(digest, name.to_owned());
    }
    complete.then(|| parsed.iter().map(SigningKey::new).collect())
}

fn digest(secret: &SigningSecret) -> String {
    use sha2::{Digest as _, Sha256};
    super::hex(&Sha256::digest(secret.expose().as_bytes()))
}

fn accounts(section: &Section<'_>) -> Option<Accounts> {
    let any = section.item("unsafe_any_account");
    let flag = match &any {
        Some(item) => item.flag(),
        None => Some(false),
    };
    let listed = section.item("accounts");
    match (flag, any, listed) {
        (Some(true), Some(any), None) => {
            any.warn("whoever installs the app may call its routes: any Stripe account, not yours alone");
            Some(Accounts::Any)
        }
        (Some(true), Some(any), Some(listed)) => {
            let message = "`unsafe_any_account` contradicts `accounts`";
            any.key_error(message, Some(&format!("keep one; the list, on line {}, is the safe one", listed.line())));
            None
        }
        (_, _, Some(listed)) => Some(Accounts::Only(account_ids(&listed)?)),
        (Some(_), _, None) => {
            section.required(
                "accounts",
                &format!("{ACCOUNTS}: a valid signature only says that some account installed the app"),
            );
            None
        }
        (None, _, None) => None,
    }
}

fn account_ids(listed: &Item<'_>) -> Option<HashSet<AccountId>> {
    let items = listed.list(ACCOUNTS)?;
    let mut ids = HashSet::new();
    let mut complete = true;
    for item in &items {
        let id = item.text().and_then(|text| {
            let id = AccountId::parse(text).ok();
            if id.is_none() {
                item.error(
                    &format!("{} is not an account id", item.shown(text)),
                    Some("an account id is `acct_` and letters or digits; the Dashboard shows it under Settings, Account details"),
                );
            }
            id
        });
        complete &= id.is_some();
        ids.extend(id);
    }
    complete.then_some(ids)
}

fn tolerance(section: &Section<'_>) -> Option<Duration> {
    const LEAST: Duration = Duration::from_secs(1);
    match (section.item("tolerance"), section.item("unsafe_tolerance")) {
        (None, None) => Some(TOLERANCE),
        (Some(item), None) => {
            let tolerance = item.duration(LEAST..=MOST_UNSAFE_TOLERANCE)?;
            if tolerance > MOST_TOLERANCE {
                let longer =
                    "a longer one lets a stolen request be repeated for as long; if it must be: `unsafe_tolerance`";
                item.error("`tolerance` is at most 10m", Some(longer));
                return None;
            }
            Some(tolerance)
        }
        (None, Some(item)) => {
            let tolerance = item.duration(LEAST..=MOST_UNSAFE_TOLERANCE)?;
            item.warn("a request that was overheard or logged can be repeated for as long as this");
            Some(tolerance)
        }
        (Some(tolerance), Some(item)) => {
            let suggestion = format!("keep one; the other is on line {}", tolerance.line());
            item.key_error("`unsafe_tolerance` contradicts `tolerance`", Some(&suggestion));
            None
        }
    }
}

//! Signing secrets, held so that they cannot be printed.

use std::fmt;

use zeroize::Zeroizing;

/// The signing secret of a Stripe App, `absec_…`, or of a webhook endpoint, `whsec_…`, as Stripe shows it; the prefix is part
/// of the key.
///
/// `Debug` prints a placeholder, the memory is wiped on drop, and nothing of it, not even its length, can be read
/// except through [`SigningSecret::expose`].
pub struct SigningSecret(Zeroizing<String>);

/// Why a text cannot be a signing secret. Each says what it is instead, never what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Empty,
    WhiteSpace,
    /// Of a webhook endpoint, where an app's is expected.
    WebhookSecret,
    /// Of an app, where a webhook endpoint's is expected.
    AppSecret,
    /// Neither, where that is expected.
    ApiKey(Kind),
    UnknownKind(Kind),
    NotAscii,
}

/// Whose secret is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    App,
    Webhook,
}

impl Kind {
    /// What such a secret begins with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::App => "absec_",
            Self::Webhook => "whsec_",
        }
    }
}

impl SigningSecret {
    /// Takes the whole of `text` as an app's secret.
    ///
    /// # Errors
    /// Those of [`SigningSecret::parse_as`].
    pub fn parse(text: Zeroizing<String>) -> Result<Self, Error> {
        Self::parse_as(Kind::App, text)
    }

    /// Takes the whole of `text` as a secret of that kind.
    ///
    /// # Errors
    /// [`Error`] names the mistake: nothing there, white space anywhere (a line feed at the end too), a secret of the other
    /// kind, an API key, or anything else that is not the kind's prefix and a rest.
    pub fn parse_as(expected: Kind, text: Zeroizing<String>) -> Result<Self, Error> {
        let kind = |prefix: &str| text.trim_start().starts_with(prefix);
        if text.trim().is_empty() {
            return Err(Error::Empty);
        }
        match expected {
            Kind::App if kind(Kind::Webhook.prefix()) => return Err(Error::WebhookSecret),
            Kind::Webhook if kind(Kind::App.prefix()) => return Err(Error::AppSecret),
            Kind::App | Kind::Webhook => {}
        }
        if kind("sk_") || kind("rk_") || kind("pk_") {
            return Err(Error::ApiKey(expected));
        }
        if text.chars().any(char::is_whitespace) {
            return Err(Error::WhiteSpace);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::NotAscii);
        }
        if text.strip_prefix(expected.prefix()).is_none_or(str::is_empty) {
            return Err(Error::UnknownKind(expected));
        }
        Ok(Self(text))
    }

    /// The secret's text, for the one who computes a MAC with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(redacted)")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the secret is empty",
            Self::WhiteSpace => "the secret contains white space (often a line feed at its end)",
            Self::WebhookSecret => "this is a webhook endpoint's secret (whsec_), not an app's signing secret (absec_)",
            Self::AppSecret => "this is an app's signing secret (absec_), not a webhook endpoint's secret (whsec_)",
            Self::ApiKey(Kind::App) => "this is an API key (sk_, rk_ or pk_), not an app's signing secret (absec_)",
            Self::ApiKey(Kind::Webhook) => {
                "this is an API key (sk_, rk_ or pk_), not a webhook endpoint's secret (whsec_)"
            }
            Self::UnknownKind(Kind::App) => "an app's signing secret begins with absec_",
            Self::UnknownKind(Kind::Webhook) => "a webhook endpoint's secret begins with whsec_",
            Self::NotAscii => "the secret contains a character that no signing secret has",
        })
    }
}

impl Error {
    /// What to do about it, as a sentence for the administrator.
    pub fn suggestion(self) -> &'static str {
        match self {
            Self::Empty => "copy the signing secret from its page in the Stripe Dashboard",
            Self::WhiteSpace => "write it without a line feed: printf %s \"$SECRET\" > FILE",
            Self::WebhookSecret | Self::ApiKey(Kind::App) | Self::UnknownKind(Kind::App) | Self::NotAscii => {
                "the app's signing secret is in the Stripe Dashboard: Developers, Created apps, your app, Signing secret"
            }
            Self::AppSecret | Self::ApiKey(Kind::Webhook) | Self::UnknownKind(Kind::Webhook) => {
                "the endpoint's secret is in the Stripe Dashboard: Developers, Webhooks, your endpoint, Signing secret; for \
                 deliveries write one of your own: echo whsec_$(openssl rand -hex 32)"
            }
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SigningSecret, Error> {
        SigningSecret::parse(Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn each_wrong_kind_is_named() {
        assert!(parse("absec_0123").is_ok());
        for (text, error) in [
            ("", Error::Empty),
            (" \n", Error::Empty),
            ("absec_0123\n", Error::WhiteSpace),
            (" absec_0123", Error::WhiteSpace),
            ("absec_01 23", Error::WhiteSpace),
            ("whsec_0123", Error::WebhookSecret),
            ("whsec_0123\n", Error::WebhookSecret),
            ("sk_live_0123", Error::ApiKey(Kind::App)),
            ("rk_live_0123", Error::ApiKey(Kind::App)),
            ("absec_", Error::UnknownKind(Kind::App)),
            ("secret", Error::UnknownKind(Kind::App)),
            ("absec_é", Error::NotAscii),
        ] {
            assert_eq!(parse(text).err(), Some(error), "{text:?}");
        }
        let webhook = |text: &str| SigningSecret::parse_as(Kind::Webhook, Zeroizing::new(text.to_owned())).err();
        for (text, error) in [
            ("whsec_0123", None),
            ("absec_0123", Some(Error::AppSecret)),
            ("sk_test_1", Some(Error::ApiKey(Kind::Webhook))),
            ("whsec_", Some(Error::UnknownKind(Kind::Webhook))),
            ("whsec_1\n", Some(Error::WhiteSpace)),
        ] {
            assert_eq!(webhook(text), error, "{text:?}");
        }
    }

    #[test]
    fn debug_does_not_print_the_secret() {
        let printed = format!("{:?}", parse("absec_0123456789").unwrap());
        assert!(!printed.contains("0123"), "{printed}");
    }
}

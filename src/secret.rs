//! Signing secrets, held so that they cannot be printed.

use std::fmt;

use zeroize::Zeroizing;

/// The signing secret of a Stripe App, `absec_…`, as Stripe shows it; the prefix is part of the key.
///
/// `Debug` prints a placeholder, the memory is wiped on drop, and nothing of it, not even its length, can be read
/// except through [`SigningSecret::expose`].
pub struct SigningSecret(Zeroizing<String>);

/// Why a text cannot be an app's signing secret. Each says what it is instead, never what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Empty,
    WhiteSpace,
    WebhookSecret,
    ApiKey,
    UnknownKind,
    NotAscii,
}

impl SigningSecret {
    /// Takes the whole of `text` as the secret.
    ///
    /// # Errors
    /// [`Error`] names the mistake: nothing there, white space anywhere (a line feed at the end too), a webhook
    /// endpoint's secret, an API key, or anything else that is not `absec_` and a rest.
    pub fn parse(text: Zeroizing<String>) -> Result<Self, Error> {
        let kind = |prefix: &str| text.trim_start().starts_with(prefix);
        if text.trim().is_empty() {
            return Err(Error::Empty);
        }
        if kind("whsec_") {
            return Err(Error::WebhookSecret);
        }
        if kind("sk_") || kind("rk_") || kind("pk_") {
            return Err(Error::ApiKey);
        }
        if text.chars().any(char::is_whitespace) {
            return Err(Error::WhiteSpace);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::NotAscii);
        }
        if text.strip_prefix("absec_").is_none_or(str::is_empty) {
            return Err(Error::UnknownKind);
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
            Self::ApiKey => "this is an API key (sk_, rk_ or pk_), not an app's signing secret (absec_)",
            Self::UnknownKind => "an app's signing secret begins with absec_",
            Self::NotAscii => "the secret contains a character that no signing secret has",
        })
    }
}

impl Error {
    /// What to do about it, as a sentence for the administrator.
    pub fn suggestion(self) -> &'static str {
        match self {
            Self::Empty => "copy the signing secret from the app's page in the Stripe Dashboard",
            Self::WhiteSpace => "write it without a line feed: printf %s \"$SECRET\" > FILE",
            Self::WebhookSecret | Self::ApiKey | Self::UnknownKind | Self::NotAscii => {
                "the app's signing secret is in the Stripe Dashboard: Developers, Created apps, your app, Signing secret"
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
            ("sk_live_0123", Error::ApiKey),
            ("rk_live_0123", Error::ApiKey),
            ("absec_", Error::UnknownKind),
            ("secret", Error::UnknownKind),
            ("absec_é", Error::NotAscii),
        ] {
            assert_eq!(parse(text).err(), Some(error), "{text:?}");
        }
    }

    #[test]
    fn debug_does_not_print_the_secret() {
        let printed = format!("{:?}", parse("absec_0123456789").unwrap());
        assert!(!printed.contains("0123"), "{printed}");
    }
}

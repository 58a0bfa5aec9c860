//! What outlives the gateway: the account, and the certificate with its key. Each is one file, so that both halves are of
//! one piece whatever happens.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::Error;
use crate::{
    files,
    tls::{self, Certificate, Origin},
};

const CERTIFICATE: &str = "certificate.pem";
const ACCOUNT: &str = "account.json";

/// The folder, which only the gateway's user may enter.
#[derive(Debug)]
pub(super) struct Store(PathBuf);

/// An account as it is kept.
#[derive(Deserialize)]
pub(super) struct Kept {
    pub(super) contact: Vec<String>,
    credentials: Value,
}

/// What stands before the directory, in the line before the certificate.
const OBTAINED_FROM: &str = "Obtained from: ";

/// The certificate that was obtained last, if there is one in `folder` and it is of the server of this directory.
///
/// # Errors
/// Those of [`tls`] for a file that cannot be read or used.
pub fn stored(folder: &Path, directory: &str) -> Result<Option<Certificate>, tls::Error> {
    let path = folder.join(CERTIFICATE);
    let text = Zeroizing::new(fs::read_to_string(&path).unwrap_or_default());
    // Those of before the line was written are of the only server there was.
    if text.lines().find_map(|line| line.strip_prefix(OBTAINED_FROM)).is_some_and(|other| other != directory) {
        return Ok(None);
    }
    match tls::certificates(&path) {
        Err(tls::Error::Unreadable(io::ErrorKind::NotFound)) => Ok(None),
        chain => Certificate::new(chain?, tls::private_key(&path)?, Origin::Acme).map(Some),
    }
}

impl Store {
    /// The folder, which is made if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        files::private_folder(folder).map_err(|error| Error::Store(folder.to_owned(), error))?;
        Ok(Self(folder.to_owned()))
    }

    /// Keeps a certificate: the directory of the server that it is of, its key, then its chain.
    pub(super) fn keep(&self, directory: &str, pem: &str) -> Result<(), Error> {
        let text = Zeroizing::new(format!("{OBTAINED_FROM}{directory}\n{pem}"));
        self.put(CERTIFICATE, text.as_bytes())
    }

    /// The account with the server of this directory.
    pub(super) fn account(&self, directory: &str) -> Option<Kept> {
        let text = Zeroizing::new(fs::read(self.0.join(ACCOUNT)).ok()?);
        let kept: Option<Kept> = serde_json::from_slice(&text).ok();
        kept.filter(|kept| kept.credentials.get("directory").and_then(Value::as_str) == Some(directory))
    }

    pub(super) fn keep_account(&self, credentials: &AccountCredentials, contact: &[&str]) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Keeping<'a> {
            contact: &'a [&'a str],
            credentials: &'a AccountCredentials,
        }
        let text = serde_json::to_vec(&Keeping { contact, credentials }).map_err(|_| Error::Request)?;
        self.put(ACCOUNT, &Zeroizing::new(text))
    }

    pub(super) fn forget_account(&self) -> Result<(), Error> {
        let path = self.0.join(ACCOUNT);
        fs::remove_file(&path).map_err(|error| Error::Store(path, error))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.0.join(name);
        files::put(&path, bytes, 0o600).map_err(|error| Error::Store(path, error))
    }
}

impl Kept {
    /// What the account's requests are signed with.
    pub(super) fn credentials(&self) -> Result<AccountCredentials, Error> {
        AccountCredentials::deserialize(&self.credentials).map_err(|error| Error::Server(error.into()))
    }
}

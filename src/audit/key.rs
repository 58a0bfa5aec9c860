//! The key that seals the audit log: made at first start, its public half beside the log for whoever checks it.

use std::{fmt, fs, io, path::Path, time::Duration};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde::Deserialize;

use super::{
    Settings,
    chain::{Beginning, Hash, Head},
};
use crate::files::put;

/// Ed25519's identifier and the length of its key, as a certificate writes them (RFC 8410, section 4).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Signs checkpoints.
pub struct SealingKey(Ed25519KeyPair);

/// Checks what a [`SealingKey`] signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// What a checkpoint says.
#[derive(Debug, Deserialize)]
pub(super) struct Checkpoint {
    signature: String,
    key: String,
    pub(super) lines: u64,
    pub(super) every: f64,
}

impl Checkpoint {
    /// Whether the next one is to come as these say.
    pub(super) fn promises(&self, settings: &Settings) -> bool {
        let every = Duration::try_from_secs_f64(self.every).ok();
        self.lines == settings.checkpoint_lines && every == Some(settings.checkpoint_every)
    }
}

impl SealingKey {
    /// The key in the PEM file at `path`, which only its owner may read. Where there is none, one is made if `is_first`: a log that
    /// was begun with another could not be verified any more.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::InvalidData`] for a file that holds something else.
    pub fn open(path: &Path, is_first: bool) -> io::Result<Self> {
        match fs::read(path) {
            Ok(pem) => {
                let pem = zeroize::Zeroizing::new(pem);
                let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| invalid("it holds no PEM private key"))?;
                let pair = Ed25519KeyPair::from_pkcs8(der.secret_der());
                pair.map(Self).map_err(|_| invalid("it holds a key that is not of Ed25519"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_first => Self::make(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(invalid(
                "audit.key is gone, and the log is signed with it: restore it, or move the audit folder away",
            )),
            Err(error) => Err(error),
        }
    }

    fn make(path: &Path) -> io::Result<Self> {
        let pair = Ed25519KeyPair::generate().map_err(|_| io::Error::other("no key could be made"))?;
        let der = pair.to_pkcs8v1().map_err(|_| io::Error::other("the key cannot be written"))?;
        let text = zeroize::Zeroizing::new(pem("PRIVATE KEY", der.as_ref()));
        put(path, text.as_bytes(), 0o600)?;
        Ok(Self(pair))
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        let bytes = self.0.public_key().as_ref().try_into();
        PublicKey(bytes.unwrap_or_default())
    }

    /// The signature of the checkpoint that follows `head`, in base64.
    pub(super) fn seal(&self, head: Head) -> String {
        BASE64.encode(self.0.sign(&sealed(head.sequence + 1, head.hash)))
    }
}

impl PublicKey {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::InvalidData`] for a file that holds something else.
    pub fn read(path: &Path) -> io::Result<Self> {
        let der = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(&fs::read(path)?)
            .map_err(|_| invalid("it holds no PEM public key"))?;
        Self::of_der(&der).ok_or_else(|| invalid("it holds a key that is not of Ed25519"))
    }

    /// Reads what its `Display` prints: the line between those that begin and end the PEM file.
    pub fn parse(text: &str) -> Option<Self> {
        Self::of_der(&BASE64.decode(text).ok()?)
    }

    /// Writes it as PEM, for everyone to read.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = pem("PUBLIC KEY", &self.der());
        if fs::read(path).is_ok_and(|written| written == text.as_bytes()) {
            return Ok(());
        }
        put(path, text.as_bytes(), 0o644)
    }

    /// SHA-256 of its DER form, by which checkpoints name it.
    pub fn fingerprint(&self) -> Hash {
        Hash::of(&self.der())
    }

    /// What the checkpoint `line` says, which begins with `beginning`.
    ///
    /// # Errors
    /// What is wrong with it: it is no checkpoint, of another key, or not signed by this one.
    pub(super) fn sealed(&self, line: &[u8], beginning: &Beginning<'_>) -> Result<Checkpoint, String> {
        let checkpoint: Checkpoint =
            serde_json::from_slice(line).map_err(|_| "this checkpoint has not the fields of one".to_owned())?;
        let name = self.fingerprint().to_string();
        if checkpoint.key != name {
            let named = checkpoint.key;
            return Err(format!("signed by another key: this checkpoint names {named}, and the key is {name}"));
        }
        let (key, text) = (UnparsedPublicKey::new(&ED25519, &self.0), sealed(beginning.sequence, beginning.previous));
        let signature = BASE64.decode(&checkpoint.signature);
        if !signature.is_ok_and(|signature| key.verify(&text, &signature).is_ok()) {
            return Err("the signature of this checkpoint is not valid".to_owned());
        }
        Ok(checkpoint)
    }

    fn of_der(der: &[u8]) -> Option<Self> {
        der.strip_prefix(&SPKI)?.try_into().ok().map(Self)
    }

    fn der(&self) -> Vec<u8> {
        [&SPKI[..], &self.0].concat()
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(redacted)")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.der()))
    }
}

/// What a checkpoint signs: its own number and, through the hash, all that stands before it.
fn sealed(sequence: u64, previous: Hash) -> Vec<u8> {
    format!("countersign checkpoint\n{sequence}\n{previous}\n").into_bytes()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_read_back_from_its_line_and_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let key = SealingKey::open(&folder.path().join("audit.key"), true).unwrap().public();
        let text = key.to_string();
        assert_eq!(PublicKey::parse(&text), Some(key));
        let file = folder.path().join("public.pem");
        key.write(&file).unwrap();
        assert_eq!(PublicKey::read(&file).unwrap(), key);
        assert_eq!(fs::read_to_string(&file).unwrap().lines().nth(1), Some(text.as_str()));
        // Shorter, longer, the key alone, a key of X25519, the fingerprint, a path.
        let alone = BASE64.encode(key.0);
        let other = text.replacen("MCowBQYDK2Vw", "MCowBQYDK2Vu", 1);
        assert_ne!(other, text);
        for wrong in [&text[4..], &format!("{text}AAAA"), &alone, &other, &key.fingerprint().to_string(), "public.pem"]
        {
            assert_eq!(PublicKey::parse(wrong), None, "{wrong}");
        }
    }
}

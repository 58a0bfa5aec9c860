//! `countersign audit`: whether the audit log is as it was written.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{FINE, NEGATIVE, TextOrJson, UNAVAILABLE, say, say_error};
use crate::audit::{
    chain::Hash,
    key::PublicKey,
    verify::{Demands, Error, Report, verify},
};

#[derive(Debug, Subcommand)]
pub(super) enum Task {
    /// Checks numbers, chain and signatures, and prints the head.
    Verify(Options),
}

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The folder of segments, or one segment.
    path: PathBuf,
    /// The public key that must have signed, as the gateway prints it at start, or its PEM file; else public.pem beside the log,
    /// which proves less.
    #[arg(long, value_name = "KEY")]
    public_key: Option<PathBuf>,
    /// The hash of a line that must be in the log: a head that was noted earlier.
    #[arg(long, value_parser = hash)]
    expect_head: Option<Hash>,
    /// The hash of the line before the first, where older segments are kept elsewhere.
    #[arg(long, value_parser = hash)]
    after: Option<Hash>,
    #[arg(long, value_enum, default_value_t)]
    format: TextOrJson,
}

fn hash(text: &str) -> Result<Hash, String> {
    Hash::parse(text).ok_or_else(|| "a hash is 64 hex digits in lower case, as `audit verify` prints it".to_owned())
}

pub(super) fn run(task: &Task) -> u8 {
    let Task::Verify(options) = task;
    let public = match options.public_key.as_deref().map(|given| (given, public_key(given))) {
        None => None,
        Some((_, Ok(key))) => Some(key),
        Some((given, Err(error))) => {
            say_error(&format!("error: {} is no public key, and cannot be read as a file: {error}\n", given.display()));
            return UNAVAILABLE;
        }
    };
    let demands = Demands { public, expected: options.expect_head, after: options.after };
    match (verify(&options.path, &demands), options.format) {
        (Ok(report), TextOrJson::Text) => {
            say(&told(&report));
            FINE
        }
        (Ok(report), TextOrJson::Json) => {
            say(&format!("{}\n", json(&report)));
            FINE
        }
        (Err(Error::Broken(broken)), TextOrJson::Text) => {
            say(&format!("broken: {broken}\n"));
            NEGATIVE
        }
        (Err(Error::Broken(broken)), TextOrJson::Json) => {
            let (file, line, what) = (broken.file.to_string_lossy(), broken.line, &broken.what);
            say(&format!("{}\n", serde_json::json!({ "valid": false, "file": file, "line": line, "what": what })));
            NEGATIVE
        }
        (Err(error @ Error::Unreadable(..)), _) => {
            say_error(&format!("error: {error}\n"));
            UNAVAILABLE
        }
    }
}

/// The key that was given by itself, or as a file.
fn public_key(given: &Path) -> io::Result<PublicKey> {
    given.to_str().and_then(PublicKey::parse).map_or_else(|| PublicKey::read(given), Ok)
}

fn told(report: &Report) -> String {
    let Report { segments, lines, first, head, sealed, late, torn, cuts, cut_bytes, lost, is_ended, key, is_key_given } =
        report;
    let last = head.sequence;
    let mut text = format!("valid: {lines} records, {first} to {last}, in {segments} segments\nhead: {}\n", head.hash);
    let fingerprint = key.fingerprint();
    let _ = writeln!(text, "public key: {key}");
    let _ = if *is_key_given {
        writeln!(text, "key: {fingerprint}")
    } else {
        writeln!(
            text,
            "key: {fingerprint}, found beside the log: that proves nothing against someone who signed everything anew; \
             give the one you know with --public-key"
        )
    };
    if last > *sealed {
        let count = last - sealed;
        let _ = writeln!(text, "not signed yet: {count} records behind the last checkpoint, which are chained");
    }
    if *late > 0 {
        let _ = writeln!(
            text,
            "signed late: {late} records, which were found unsigned at a later start; that they are as they were written nobody vouches"
        );
    }
    if *torn > 0 {
        let _ = writeln!(text, "torn: {torn} bytes behind the last record, as a crash leaves them");
    }
    if *cuts > 0 {
        let _ = writeln!(text, "cut off: {cut_bytes} bytes in all, which crashes left behind a record, {cuts} times");
    }
    if *lost > 0 {
        let _ = writeln!(text, "lost: {lost} records, which could not be written when they were made");
    }
    if !is_ended {
        text += "not ended: the last record is no signed `stop`, so the gateway runs or was killed; that nothing was cut off behind \
                 it shows only with --expect-head\n";
    }
    text
}

fn json(report: &Report) -> serde_json::Value {
    serde_json::json!({
        "valid": true,
        "segments": report.segments,
        "records": report.lines,
        "first": report.first,
        "last": report.head.sequence,
        "head": report.head.hash.to_string(),
        "public_key": report.key.to_string(),
        "key": report.key.fingerprint().to_string(),
        "key_given": report.is_key_given,
        "unsigned": report.head.sequence - report.sealed,
        "late": report.late,
        "torn_bytes": report.torn,
        "cuts": report.cuts,
        "cut_bytes": report.cut_bytes,
        "lost": report.lost,
        "ended": report.is_ended,
    })
}

//! How the audit log is kept.

use std::{path::PathBuf, time::Duration};

use super::section::{Item, Section};
use crate::audit::{OnError, Settings};

const KIB: u64 = 1 << 10;
const TIB: u64 = 1 << 40;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(366 * 86_400);

/// The settings, the defaults where nothing is said; the folder is the caller's to add.
pub(super) fn audit_log(root: &Section<'_>) -> Option<Settings> {
    let standard = Settings {
        state_directory: PathBuf::new(),
        on_error: OnError::Refuse,
        checkpoint_lines: 1000,
        checkpoint_every: Duration::from_secs(10),
        segment_bytes: 64 << 20,
        segment_every: Duration::from_secs(86_400),
    };
    let Some(item) = root.item("audit") else { return Some(standard) };
    let section = item.section("audit")?;
    let on_error = section.item("on_error").map_or(Some(standard.on_error), |item| on_error(&item));
    let checkpoint = match section.item("checkpoint") {
        None => Some((standard.checkpoint_lines, standard.checkpoint_every)),
        Some(item) => item.section("audit.checkpoint").and_then(|section| {
            let lines = section.item("lines").map_or(Some(standard.checkpoint_lines), |item| item.count(1..=1_000_000));
            let every =
                section.item("every").map_or(Some(standard.checkpoint_every), |item| item.duration(SECOND..=HOUR));
            Some((lines?, every?))
        }),
    };
    let segment = match section.item("segment") {
        None => Some((standard.segment_bytes, standard.segment_every)),
        Some(item) => item.section("audit.segment").and_then(|section| {
            let size = section.item("size").map_or(Some(standard.segment_bytes), |item| item.size(64 * KIB..=TIB));
            let every = section.item("every").map_or(Some(standard.segment_every), |item| item.duration(SECOND..=YEAR));
            Some((size?, every?))
        }),
    };
    let (on_error, (checkpoint_lines, checkpoint_every), (segment_bytes, segment_every)) =
        (on_error?, checkpoint?, segment?);
    Some(Settings { on_error, checkpoint_lines, checkpoint_every, segment_bytes, segment_every, ..standard })
}

fn on_error(item: &Item<'_>) -> Option<OnError> {
    match item.text()? {
        "refuse" => Some(OnError::Refuse),
        "serve" => Some(OnError::Serve),
        other => {
            let message = format!("{} is no way to go on", item.shown(other));
            item.error(
                &message,
                Some("write \"refuse\", so that nobody passes unrecorded, or \"serve\", so that all go on without"),
            );
            None
        }
    }
}

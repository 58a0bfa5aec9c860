//! What is recorded of one attempt to deliver an event, and how it is written down.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Line,
    access::{escaped, milliseconds, number, plain},
};

/// What is to become of a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    Delivered,
    /// There will be another attempt.
    Retry,
    /// There will be none.
    Dead,
}

/// Everything the log says of one attempt. No secrets, bodies or headers.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The hash of the configuration by which it is made.
    pub config: Arc<str>,
    /// When it began.
    pub began: SystemTime,
    /// Until its end was known, the reading of the answer included.
    pub took: Duration,
    pub webhook: Arc<str>,
    pub event: Arc<str>,
    pub event_type: Arc<str>,
    pub account: Option<Arc<str>>,
    pub delivery: Arc<str>,
    pub destination: Arc<str>,
    /// Its number, from 1.
    pub number: u32,
    pub sent_bytes: u64,
    /// `None`: there was no answer.
    pub status: Option<u16>,
    pub outcome: AttemptOutcome,
    /// Why it failed, if it did.
    pub reason: Option<String>,
}

impl AttemptOutcome {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Delivered, Self::Retry, Self::Dead];

    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Dead => "dead",
        }
    }
}

impl Line for Attempt {
    fn print(&self, out: &mut Vec<u8>) -> io::Result<()> {
        out.extend_from_slice(b"{\"timestamp\":\"");
        OffsetDateTime::from(self.began).format_into(out, &Rfc3339).map_err(io::Error::other)?;
        out.push(b'"');
        if let Some(status) = self.status {
            number(out, ",\"http.response.status_code\":", status.into());
        }
        number(out, ",\"http.request.body.size\":", self.sent_bytes);
        for (name, value) in [
            (",\"countersign.webhook\":", &self.webhook),
            (",\"countersign.event\":", &self.event),
            (",\"countersign.event_type\":", &self.event_type),
            (",\"countersign.delivery\":", &self.delivery),
            (",\"countersign.destination\":", &self.destination),
        ] {
            escaped(out, name, value.as_bytes());
        }
        number(out, ",\"countersign.attempt\":", self.number.into());
        if let Some(account) = &self.account {
            escaped(out, ",\"countersign.account\":", account.as_bytes());
        }
        plain(out, ",\"countersign.outcome\":\"", self.outcome.as_str());
        if let Some(reason) = &self.reason {
            escaped(out, ",\"countersign.reason\":", reason.as_bytes());
        }
        milliseconds(out, ",\"countersign.duration_ms\":", self.took);
        plain(out, ",\"countersign.config\":\"", &self.config);
        out.extend_from_slice(b"}\n");
        Ok(())
    }
}

impl Attempt {
    /// Appends what the audit log says of the delivery that is dead after it.
    pub(crate) fn print_death(&self, out: &mut Vec<u8>) {
        plain(out, ",\"outcome\":\"", self.outcome.as_str());
        for (name, value) in [
            (",\"webhook\":", &self.webhook),
            (",\"event\":", &self.event),
            (",\"type\":", &self.event_type),
            (",\"delivery\":", &self.delivery),
            (",\"destination\":", &self.destination),
        ] {
            escaped(out, name, value.as_bytes());
        }
        if let Some(account) = &self.account {
            escaped(out, ",\"account\":", account.as_bytes());
        }
        number(out, ",\"attempts\":", self.number.into());
        if let Some(reason) = &self.reason {
            escaped(out, ",\"reason\":", reason.as_bytes());
        }
        plain(out, ",\"config\":\"", &self.config);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_whatever_is_in_it_and_leaves_out_what_is_not_there() {
        let attempt = Attempt {
            config: "c".into(),
            began: SystemTime::UNIX_EPOCH,
            took: Duration::from_micros(1500),
            webhook: "/w\"".into(),
            event: "evt_1".into(),
            event_type: "invoice.paid".into(),
            account: None,
            delivery: "dlv_1".into(),
            destination: "a \u{fc}\n".into(),
            number: 3,
            sent_bytes: 7,
            status: None,
            outcome: AttemptOutcome::Retry,
            reason: Some("connect: \"x\"".to_owned()),
        };
        let mut out = Vec::new();
        attempt.print(&mut out).unwrap();
        assert!(out.ends_with(b"}\n"));
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["countersign.webhook"], "/w\"");
        assert_eq!(line["countersign.destination"], "a \u{fc}\n");
        assert_eq!(line["countersign.reason"], "connect: \"x\"");
        assert_eq!(line["countersign.attempt"], 3);
        assert_eq!(line["countersign.duration_ms"], 1.5);
        assert!(line.get("countersign.account").is_none() && line.get("http.response.status_code").is_none());
        let mut death = b"{\"kind\":\"delivery\"".to_vec();
        attempt.print_death(&mut death);
        death.push(b'}');
        let death: serde_json::Value = serde_json::from_slice(&death).unwrap();
        assert_eq!((death["attempts"].as_u64(), &death["reason"]), (Some(3), &line["countersign.reason"]));
    }
}

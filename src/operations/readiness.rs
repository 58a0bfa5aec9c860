//! Whether the gateway is ready, part by part.

use std::fmt;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Observed;
use crate::{acme, inbox::Condition, server::Stop};

/// A line for each part.
#[derive(Debug)]
pub(super) struct Readiness(Vec<Part>);

#[derive(Debug)]
struct Part {
    name: &'static str,
    state: String,
    is_ready: bool,
}

/// Of a gateway that may not have started yet.
pub(super) fn of(stop: &Stop, observed: Option<&Observed>) -> Readiness {
    let listener = match (stop.is_draining(), observed) {
        (true, _) => Part { name: "listener", state: "draining".to_owned(), is_ready: false },
        (false, None) => Part { name: "listener", state: "starting".to_owned(), is_ready: false },
        (false, Some(_)) => Part { name: "listener", state: "accepting".to_owned(), is_ready: true },
    };
    let mut parts = vec![listener];
    if let Some(observed) = observed {
        parts.push(config(observed));
        parts.extend(observed.acme.as_ref().map(|acme| certificate(observed, &acme.read())));
        parts.extend(observed.mail.as_ref().map(|(condition, _)| inbox(condition)));
        parts.extend(observed.mail.as_ref().and_then(|(_, gauge)| deliveries(gauge.is_stopped())));
        parts.extend(audit(observed));
    }
    Readiness(parts)
}

impl Readiness {
    pub(super) fn is_ready(&self) -> bool {
        self.0.iter().all(|part| part.is_ready)
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Part { name, state, .. } in &self.0 {
            writeln!(f, "{name}: {state}")?;
        }
        Ok(())
    }
}

/// One that was refused leaves the old one in force, and the gateway does its work.
fn config(observed: &Observed) -> Part {
    let standing = observed.status.standing();
    let state = match standing.refused {
        None => standing.config,
        Some((since, reason)) => {
            let since = OffsetDateTime::from(since).format(&Rfc3339).unwrap_or_default();
            // A reason is a line, whatever is in it.
            let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            format!("refused since {since}: {reason}; in force: {}", standing.config)
        }
    };
    Part { name: "config", state, is_ready: true }
}

/// One that is still to be obtained leaves clients with what none of them trusts.
fn certificate(observed: &Observed, report: &acme::Report) -> Part {
    let certificates = observed.house.resolver().current();
    let told = |time: OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
    let until = OffsetDateTime::from_unix_timestamp(certificates.own().leaf().not_after);
    let mut state = match report.standing_in_since {
        Some(since) => format!("none yet, a self-signed one stands in since {}", told(since.into())),
        None => format!("valid until {}", until.map(told).unwrap_or_default()),
    };
    if let Some(error) = &report.last_error {
        state += "; the last attempt failed: ";
        state.extend(error.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
    Part { name: "certificate", state, is_ready: !certificates.is_standing_in() }
}

/// One that cannot be written has events refused, which Stripe sends again.
fn inbox(condition: &Condition) -> Part {
    let failure = condition.failure();
    let state = failure.map_or_else(|| "open".to_owned(), |why| format!("{why}; events are refused, requests pass"));
    Part { name: "inbox", state, is_ready: failure.is_none() }
}

/// Only where they are stopped.
fn deliveries(is_stopped: bool) -> Option<Part> {
    let state =
        "stopped by a panic and begun again soon; if it stays so, restart the gateway and report what its log says";
    is_stopped.then(|| Part { name: "deliveries", state: state.to_owned(), is_ready: false })
}

fn audit(observed: &Observed) -> Option<Part> {
    let audit = observed.house.audit()?;
    let head = audit.head();
    let state = format!("{} {}", head.sequence, head.hash);
    Some(if audit.refuses() {
        Part { name: "audit", state: format!("cannot be written, nobody passes; {state}"), is_ready: false }
    } else if audit.is_failing() {
        Part {
            name: "audit",
            state: format!("cannot be written, requests are served unrecorded; {state}"),
            is_ready: true,
        }
    } else {
        Part { name: "audit", state, is_ready: true }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_that_are_stopped_are_a_part_of_their_own_and_not_ready() {
        let listener = Part { name: "listener", state: "accepting".to_owned(), is_ready: true };
        let readiness = Readiness([listener].into_iter().chain(deliveries(true)).collect());
        assert!(!readiness.is_ready());
        assert!(readiness.to_string().starts_with("listener: accepting\ndeliveries: stopped"), "{readiness}");
        assert!(deliveries(false).is_none());
    }
}

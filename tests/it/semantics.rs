//! Cases of hostile requests and answers, each with the exact bytes that are sent, what the client is told, and what
//! must and must not reach the upstream, whose bytes are linted whatever the case.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use crate::support::{Gateway, find};

mod answers;
mod frames;
mod http1;
mod http2;
mod tape;

use tape::{Arrived, Tape};

/// One case of a request.
struct Case<S> {
    name: &'static str,
    /// The rules of `docs/reference/rules.md` that it holds.
    rules: &'static [u8],
    sent: S,
    told: Told,
    reaches: Reaches,
}

/// What the client sees.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    /// These answers, by status and code (empty for the upstream's own), and a connection that serves on.
    Then(Vec<(u16, String)>),
    /// These answers, and the end of the connection.
    ThenClosed(Vec<(u16, String)>),
    /// The end of its HTTP/2 stream alone.
    Reset,
}

/// What gets to the upstream.
enum Reaches {
    /// Not one byte, nor of what follows the request on a connection that is closed.
    Nothing,
    /// Exactly these requests, and nowhere among their bytes, in whatever case, one of `never`.
    Only { requests: Vec<Arrived>, never: &'static [&'static str] },
}

impl Reaches {
    fn requests(&self) -> Vec<Arrived> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Only { requests, .. } => requests.clone(),
        }
    }
}

/// What was seen of one case at the client.
struct Seen {
    told: Told,
    /// The request that was sent behind the case's, where the connection served it.
    next: Option<Arrived>,
}

/// Runs each case against one gateway by `send`, which sends a further request behind it, and tells what went wrong.
fn run<S>(cases: &[Case<S>], gateway: &Gateway, tape: &Tape, send: impl Fn(&Gateway, &Case<S>) -> Seen) {
    check_table(cases);
    let mut wrong = Vec::new();
    let mut expected = Vec::new();
    for case in cases {
        let Ok(Seen { told, next }) = catch_unwind(AssertUnwindSafe(|| send(gateway, case))) else {
            wrong.push(format!("{}: told nothing that can be read", case.name));
            continue;
        };
        if told != case.told {
            wrong.push(format!("{}: told {told:?}, not {:?}", case.name, case.told));
        }
        expected.extend(case.reaches.requests());
        expected.extend(next);
        expected.sort();
        if let Err(other) = settled(tape, &expected) {
            wrong.push(format!("{}: {other}", case.name));
            expected = tape.arrived().unwrap_or_default();
        }
        if let Reaches::Only { never, .. } = case.reaches {
            let all = tape.bytes().concat().to_ascii_lowercase();
            let found = never.iter().filter(|text| find(&all, text.to_ascii_lowercase().as_bytes()).is_some());
            wrong.extend(found.map(|text| format!("{}: {text:?} reached the upstream", case.name)));
        }
    }
    // Nor did anything come late.
    if let Err(other) = settled(tape, &expected) {
        wrong.push(format!("at the end: {other}"));
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    println!("{} cases", cases.len());
    check_records(cases, gateway);
}

/// A name tells its case, and a case names the rules it holds.
fn check_table<S>(cases: &[Case<S>]) {
    let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "a name serves one case");
    for case in cases {
        assert!(!case.rules.is_empty() && case.rules.iter().all(|rule| (1..=15).contains(rule)), "{}", case.name);
    }
}

/// Waits until the upstream has what is expected, for a part of a request has no answer to wait for.
fn settled(tape: &Tape, expected: &[Arrived]) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let arrived = tape.arrived()?;
        if arrived == expected {
            return Ok(());
        }
        if arrived.len() > expected.len() || Instant::now() > deadline {
            let more: Vec<_> = arrived.iter().filter(|one| !expected.contains(one)).collect();
            let less: Vec<_> = expected.iter().filter(|one| !arrived.contains(one)).collect();
            return Err(format!("the upstream got {more:?}, not {less:?} ({} of {})", arrived.len(), expected.len()));
        }
        std::thread::yield_now();
    }
}

/// Each refusal left a record with its reason. A request of a stream that is reset may have come so far as to leave
/// one too, as malformed.
fn check_records<S>(cases: &[Case<S>], gateway: &Gateway) {
    let resets = cases.iter().any(|case| case.told == Told::Reset);
    let counts = |code: &String| !(code.is_empty() || resets && code == "request_malformed");
    let told = cases.iter().flat_map(|case| match &case.told {
        Told::Then(told) | Told::ThenClosed(told) => told.clone(),
        Told::Reset => Vec::new(),
    });
    let mut reasons: Vec<_> = told.map(|(_, code)| code).filter(counts).collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let records = gateway.records(reasons.len());
        let recorded = records.iter().filter_map(|record| record["countersign.reason"].as_str());
        let mut recorded: Vec<_> = recorded.map(str::to_owned).filter(counts).collect();
        recorded.sort();
        reasons.sort();
        if recorded == reasons {
            return;
        }
        assert!(Instant::now() < deadline, "{recorded:?} were recorded, not {reasons:?}");
        std::thread::yield_now();
    }
}

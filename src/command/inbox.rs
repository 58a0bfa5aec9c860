//! `countersign inbox`: what is in the inbox, and what somebody wants done about it.

use std::{fmt::Write as _, fs, path::PathBuf, sync::Arc, time::SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{CONFIGURATION, FINE, NEGATIVE, TextOrJson, UNAVAILABLE, loaded, say, say_error};
use crate::{
    config::Config,
    inbox::{
        self, Figures, Initialised, State,
        desk::{Deed, Desk, Details, Done, Failed, Filter, Row},
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Task {
    /// Lists deliveries, the latest events' first.
    List(List),
    /// Shows an event with its deliveries.
    Show {
        /// An event's id, or a delivery's.
        id: String,
        /// Also shows the event's body as it came; otherwise only which keys are in it.
        #[arg(long)]
        body: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Has a delivery made again, at once; it keeps its id, and its attempts count on.
    Retry {
        /// A delivery's id, or an event's for all of its deliveries that are not delivered.
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// Gives a delivery up.
    Discard {
        /// A delivery's id, or an event's for all of its deliveries that are not delivered.
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// Counts events, and the deliveries of each destination by state.
    Stats {
        #[command(flatten)]
        common: Common,
    },
    /// Makes the inbox where there is none.
    Init {
        /// Makes a new one in place of one that was lost or is damaged, or takes another one than that which was used before.
        #[arg(long)]
        accept_loss: bool,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
pub(super) struct Common {
    /// The configuration, found as `run` finds it.
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    format: TextOrJson,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only those in this state.
    #[arg(long, value_enum)]
    state: Option<Shown>,
    /// Only those for this destination.
    #[arg(long)]
    destination: Option<String>,
    /// Only those of events of this type; `invoice.*` for all that begin so.
    #[arg(long = "type")]
    kind: Option<String>,
    /// Only those of events of this account.
    #[arg(long)]
    account: Option<String>,
    /// So many at most.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

/// A state, as it is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shown {
    Pending,
    Delivering,
    Delivered,
    Dead,
    Discarded,
    Orphaned,
}

impl From<Shown> for State {
    fn from(shown: Shown) -> Self {
        match shown {
            Shown::Pending => Self::Pending,
            Shown::Delivering => Self::Delivering,
            Shown::Delivered => Self::Delivered,
            Shown::Dead => Self::Dead,
            Shown::Discarded => Self::Discarded,
            Shown::Orphaned => Self::Orphaned,
        }
    }
}

/// How the inbox of a configuration is kept, and the names of its destinations.
fn settings_of(config: &Config) -> (inbox::Settings, Vec<Arc<str>>) {
    let names = config.destinations.iter().map(|destination| Arc::clone(&destination.name)).collect();
    (config.inbox.clone(), names)
}

pub(super) fn run(task: &Task) -> u8 {
    let common = match task {
        Task::List(List { common, .. })
        | Task::Show { common, .. }
        | Task::Retry { common, .. }
        | Task::Discard { common, .. }
        | Task::Stats { common }
        | Task::Init { common, .. } => common,
    };
    let Ok(config) = loaded(common.config.clone()) else { return CONFIGURATION };
    let (settings, known) = settings_of(&config);
    let known: Vec<&str> = known.iter().map(|name| &**name).collect();
    if let Task::Init { accept_loss, .. } = task {
        return init(&settings, *accept_loss, common.format);
    }
    let mut desk = match Desk::open(&settings) {
        Ok(desk) => desk,
        Err(error) => {
            say_error(&format!("error: {error}\n"));
            return UNAVAILABLE;
        }
    };
    let answer = match task {
        Task::List(options) => list(&desk, options, &known),
        Task::Show { id, body, .. } => show(&desk, id, *body, &known, common.format),
        Task::Retry { id, .. } => act(&mut desk, Deed::Retry, id, common.format),
        Task::Discard { id, .. } => act(&mut desk, Deed::Discard, id, common.format),
        Task::Stats { .. } | Task::Init { .. } => stats(&desk, common.format),
    };
    answer.unwrap_or_else(|error| {
        say_error(&format!("error: the inbox does not answer: {error}; try again\n"));
        UNAVAILABLE
    })
}

fn init(settings: &inbox::Settings, accepts_loss: bool, format: TextOrJson) -> u8 {
    let (word, told) = match inbox::init(settings, accepts_loss) {
        Ok(Initialised::Made) => ("made", "a new inbox is there, and empty"),
        Ok(Initialised::Adopted) => ("adopted", "the inbox that is there is from now on the one that is used"),
        Ok(Initialised::Whole) => ("whole", "the inbox is there and whole; nothing was done"),
        Err(error) => {
            say_error(&format!("error: {error}\n"));
            return UNAVAILABLE;
        }
    };
    match format {
        TextOrJson::Text => say(&format!("{told}\n")),
        TextOrJson::Json => say(&format!("{}\n", json!({ "outcome": word }))),
    }
    FINE
}

fn list(desk: &Desk, options: &List, known: &[&str]) -> Result<u8, Failed> {
    let filter = Filter {
        state: options.state.map(State::from),
        destination: options.destination.clone(),
        kind: options.kind.clone(),
        account: options.account.clone(),
        limit: options.limit,
    };
    let rows = desk.list(&filter, known)?;
    match options.common.format {
        TextOrJson::Text => say(&table(&rows)),
        TextOrJson::Json => say(&format!("{}\n", rows.iter().map(row).collect::<Value>())),
    }
    Ok(FINE)
}

fn show(desk: &Desk, id: &str, with_body: bool, known: &[&str], format: TextOrJson) -> Result<u8, Failed> {
    let all = desk.show(id, known)?;
    if all.is_empty() {
        return Ok(unknown(id));
    }
    match format {
        TextOrJson::Text => all.iter().for_each(|details| say(&told(details, with_body))),
        TextOrJson::Json => {
            let all: Value = all.iter().map(|details| described(details, with_body)).collect();
            say(&format!("{all}\n"));
        }
    }
    Ok(FINE)
}

fn act(desk: &mut Desk, deed: Deed, id: &str, format: TextOrJson) -> Result<u8, Failed> {
    let all = desk.act(deed, id, &user())?;
    if all.is_empty() && desk.show(id, &[])?.is_empty() {
        return Ok(unknown(id));
    }
    let outcome = |done: &Done| if done.refusal.is_some() { "refused" } else { deed.as_str() };
    match format {
        TextOrJson::Text => {
            let mut text = String::new();
            for done in &all {
                let reason = done.refusal.map(|refusal| format!(": {}", refusal.as_str())).unwrap_or_default();
                let _ = writeln!(text, "{} {} to {}{reason}", outcome(done), done.delivery, done.destination);
            }
            if all.is_empty() {
                text += "nothing of this event is left to be delivered\n";
            }
            say(&text);
        }
        TextOrJson::Json => {
            let all = all.iter().map(|done| {
                json!({
                    "event": done.event, "delivery": done.delivery, "destination": done.destination,
                    "outcome": outcome(done), "reason": done.refusal.map(inbox::desk::Refusal::as_str),
                })
            });
            say(&format!("{}\n", all.collect::<Value>()));
        }
    }
    Ok(if all.iter().any(|done| done.refusal.is_none()) { FINE } else { NEGATIVE })
}

fn stats(desk: &Desk, format: TextOrJson) -> Result<u8, Failed> {
    let (events, figures) = desk.stats()?;
    let now = SystemTime::now();
    let age = |figures: &Figures| {
        figures.oldest_pending.map(|oldest| now.duration_since(oldest).unwrap_or_default().as_secs())
    };
    let oldest = figures.iter().filter_map(age).max();
    match format {
        TextOrJson::Text => {
            let mut text = format!("events: {events}\n");
            if let Some(seconds) = oldest {
                let _ = writeln!(text, "oldest pending: {seconds} s");
            }
            let head = ["destination", "pending", "delivering", "delivered", "dead", "discarded", "oldest s"];
            let rows = figures.iter().map(|one| {
                let counts = [one.pending, one.delivering, one.delivered, one.dead, one.discarded];
                let age = age(one).map(|age| age.to_string()).unwrap_or_default();
                let name = one.destination.clone();
                std::iter::once(name).chain(counts.map(|count| count.to_string())).chain([age]).collect()
            });
            say(&(text + &columns(&head, rows.collect())));
        }
        TextOrJson::Json => {
            let destinations = figures.iter().map(|one| {
                let value = json!({
                    "pending": one.pending, "delivering": one.delivering, "delivered": one.delivered, "dead": one.dead,
                    "discarded": one.discarded, "oldest_pending_seconds": age(one),
                });
                (one.destination.clone(), value)
            });
            let destinations: serde_json::Map<_, _> = destinations.collect();
            let all = json!({ "events": events, "oldest_pending_seconds": oldest, "destinations": destinations });
            say(&format!("{all}\n"));
        }
    }
    Ok(FINE)
}

fn unknown(id: &str) -> u8 {
    say_error(&format!(
        "error: no event and no delivery has the id {id:?}; `countersign inbox list` shows those there are\n"
    ));
    NEGATIVE
}

/// A delivery for programs.
fn row(row: &Row) -> Value {
    json!({
        "event": row.event, "delivery": row.delivery, "webhook": row.webhook, "destination": row.destination,
        "type": row.kind, "account": row.account, "state": row.state.as_str(), "attempts": row.attempts,
        "next": row.next.map(written), "last_error": row.last_error, "received": written(row.received),
    })
}

/// An event for programs.
fn described(details: &Details, with_body: bool) -> Value {
    let mut all = json!({
        "event": details.event, "webhook": details.webhook, "type": details.kind, "account": details.account,
        "object": details.object, "livemode": details.livemode, "received": written(details.received),
        "content_type": details.content_type, "body_bytes": details.body.as_ref().map(Vec::len),
        "keys": details.body.as_deref().and_then(keys),
        "deliveries": details.deliveries.iter().map(row).collect::<Value>(),
    });
    if let (true, Value::Object(all)) = (with_body, &mut all) {
        let body = details.body.as_deref().map(String::from_utf8_lossy);
        all.insert("body".to_owned(), json!(body));
    }
    all
}

/// An event for people.
fn told(details: &Details, with_body: bool) -> String {
    let yes = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut text = format!(
        "event: {}\nwebhook: {}\ntype: {}\naccount: {}\nobject: {}\nlivemode: {}\nreceived: {}\n",
        details.event,
        details.webhook,
        details.kind,
        yes(&details.account),
        yes(&details.object),
        details.livemode,
        written(details.received),
    );
    let _ = match &details.body {
        None => writeln!(text, "body: dropped after the retention"),
        Some(body) => writeln!(text, "body: {} bytes, {}", body.len(), yes(&details.content_type)),
    };
    text += &table(&details.deliveries);
    match details.body.as_deref() {
        Some(body) if with_body => {
            let _ = writeln!(text, "\n{}", shown(&String::from_utf8_lossy(body)));
        }
        Some(body) => {
            if let Some(keys) = keys(body) {
                let _ = writeln!(text, "\n{}", shown(&format!("{keys:#}")));
            }
        }
        None => {}
    }
    text
}

/// `text` as a terminal shows it and does not obey it: control characters, and those that turn the direction of writing,
/// are escaped.
fn shown(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_plain = |c: char| matches!(c, '\n' | '\t') || !c.is_control() && !turns(c);
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if is_plain(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_unicode());
        }
        shown
    })
}

/// The JSON in `body` with the kind of each value in its place; `None` where it is no JSON.
fn keys(body: &[u8]) -> Option<Value> {
    fn hide(value: Value) -> Value {
        match value {
            Value::Null => Value::Null,
            Value::Bool(_) => "boolean".into(),
            Value::Number(_) => "number".into(),
            Value::String(_) => "string".into(),
            Value::Array(values) => values.into_iter().map(hide).collect(),
            Value::Object(members) => members.into_iter().map(|(key, value)| (key, hide(value))).collect(),
        }
    }
    serde_json::from_slice(body).ok().map(hide)
}

fn table(rows: &[Row]) -> String {
    let head =
        ["state", "destination", "type", "account", "attempts", "next", "received", "event", "delivery", "last error"];
    let cells = rows.iter().map(|row| {
        let account = row.account.clone().unwrap_or_default();
        let next = row.next.map(written).unwrap_or_default();
        let error = row.last_error.clone().unwrap_or_default();
        let (state, attempts, received) = (row.state.to_string(), row.attempts.to_string(), written(row.received));
        let (destination, kind) = (row.destination.clone(), row.kind.clone());
        vec![
            state,
            destination,
            kind,
            account,
            attempts,
            next,
            received,
            row.event.clone(),
            row.delivery.clone(),
            error,
        ]
    });
    columns(&head, cells.collect())
}

/// A table for people, each column as wide as what is in it.
fn columns(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            // What a service answered may stand in an error, and is not to steer the terminal.
            let cell: String = cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            let cell = if cell.is_empty() { "-" } else { &cell };
            let _ = write!(line, "{cell:<width$}  ", width = width(column).unwrap_or_default());
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn written(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    time.replace_millisecond(time.millisecond()).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

/// The name of the operating system's user who runs this.
fn user() -> String {
    let id = rustix::process::getuid().as_raw();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(id)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("user {id}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn keys_are_shown_and_values_are_not() {
        let body = br#"{"id":"evt_1","data":{"object":{"amount":12,"lines":[{"paid":true,"note":null}]}}}"#;
        let shown = keys(body).unwrap().to_string();
        let expected =
            r#"{"data":{"object":{"amount":"number","lines":[{"note":null,"paid":"boolean"}]}},"id":"string"}"#;
        assert_eq!(shown, expected);
        assert_eq!(keys(b"no JSON"), None);
    }

    #[test]
    fn a_table_steers_no_terminal() {
        let table = columns(&["a", "b"], vec![vec!["\u{1b}[31m".into(), String::new()]]);
        assert_eq!(table, "a      b\n?[31m  -\n");
    }

    #[test]
    fn a_time_has_milliseconds() {
        assert_eq!(written(SystemTime::UNIX_EPOCH + Duration::from_micros(1_234_567)), "1970-01-01T00:00:01.234Z");
    }
}

//! Looking into the file, and what is done by hand.

use std::{path::Path, time::SystemTime};

use rusqlite::{
    Connection, OptionalExtension as _, Result, TransactionBehavior, params, params_from_iter, types::Value,
};

use super::{Access, Kind, Marker, Opened, PARKED, file_in, found, micros, queue, reader, recognise, time_of};
use crate::inbox::{
    Fault, Figures, OpenError, State,
    desk::{Deed, Details, Done, Failed, Filter, Row, Standing, Verdict, prefix},
};

/// The file, open beside whoever else has it open.
#[derive(Debug)]
pub(in crate::inbox) struct Desk(Opened);

const ROWS: &str = "SELECT e.id, d.id, e.webhook, d.destination, e.type, e.account, d.state, d.attempts, \
     iif(d.due = 0, d.since, d.due), d.last_error, \
     e.received FROM deliveries d JOIN events e ON e.seq = d.number / 65536";

impl Desk {
    pub(in crate::inbox) fn open(state_directory: &Path) -> Result<Self, OpenError> {
        let file = file_in(state_directory);
        let marker = Marker::read(state_directory)
            .map_err(|error| OpenError::unavailable(Marker::path(state_directory).display(), error))?;
        let fault = |fault| OpenError { place: file.display().to_string(), fault };
        if marker.as_ref().is_some_and(|marker| marker.kind != Kind::Sqlite) {
            return Err(fault(Fault::Another("in PostgreSQL")));
        }
        if !file.try_exists().map_err(|error| OpenError::unavailable(file.display(), error))? {
            return Err(fault(if marker.is_some() { Fault::Missing } else { Fault::None }));
        }
        let opened = Opened::of(&file, Access::Writing).map_err(|error| found(&file, error))?;
        recognise(&opened, true)?;
        let identity = opened.identity().map_err(|error| found(&file, error))?;
        if marker.is_some_and(|marker| marker.identity != identity) {
            return Err(fault(Fault::Another("in another file of SQLite")));
        }
        Ok(Self(opened))
    }

    pub(in crate::inbox) fn list(&self, filter: &Filter, known: &[&str]) -> Result<Vec<Row>, Failed> {
        let Filter { state, destination, kind, account, limit } = filter;
        let (mut conditions, mut values) = (Vec::new(), Vec::new());
        if let Some(state) = state {
            let is_known = match state {
                State::Orphaned => "state < 2 AND destination NOT IN (SELECT value FROM json_each(?))",
                State::Pending | State::Delivering => {
                    "state = ? AND state < 2 AND destination IN (SELECT value FROM json_each(?))"
                }
                State::Delivered | State::Dead | State::Discarded => "state = ? AND state >= 2",
            };
            conditions.push(is_known);
            if *state != State::Orphaned {
                values.push(Value::from(state.code()));
            }
            if state.is_open() {
                values.push(Value::from(serde_json::json!(known).to_string()));
            }
        }
        let mut equals = |condition, value: &str| {
            conditions.push(condition);
            values.push(Value::from(value.to_owned()));
        };
        if let Some(destination) = destination {
            equals("destination = ?", destination);
        }
        if let Some(account) = account {
            equals("account = ?", account);
        }
        match kind.as_deref().map(|kind| (kind, prefix(kind))) {
            None => {}
            Some((_, Some(prefix))) => equals("instr(type, ?) = 1", prefix),
            Some((kind, None)) => equals("type = ?", kind),
        }
        values.push(Value::from(i64::from(*limit)));
        let conditions = if conditions.is_empty() { "TRUE".to_owned() } else { conditions.join(" AND ") };
        let (from, order) = source(filter);
        let sql = format!(
            "{ROWS} WHERE d.number IN (SELECT number FROM {from} WHERE {conditions} ORDER BY {order} LIMIT ?) \
             ORDER BY d.number DESC"
        );
        let mut select = self.0.connection.prepare(&sql)?;
        let rows = select.query_map(params_from_iter(values), |row| read_row(row, known))?;
        Ok(rows.collect::<Result<_>>()?)
    }

    pub(in crate::inbox) fn show(&self, id: &str, known: &[&str]) -> Result<Vec<Details>, Failed> {
        let store = &self.0.connection;
        let named: Option<i64> =
            store.query_row("SELECT number FROM deliveries WHERE id = ?", [id], |row| row.get(0)).optional()?;
        let mut select = store.prepare(
            "SELECT e.seq, e.id, e.webhook, e.type, e.account, e.object, e.livemode, e.received, e.content_type, b.body \
             FROM events e LEFT JOIN bodies b ON b.event = e.seq WHERE e.id = ?1 OR e.seq = ?2 / 65536 ORDER BY e.seq",
        )?;
        let mut deliveries = store.prepare(&format!("{ROWS} WHERE d.number BETWEEN ? AND ? ORDER BY d.number"))?;
        let events = select.query_map(params![id, named], |row| {
            let seq: i64 = row.get(0)?;
            let range = named.map_or((seq * super::PLACES, (seq + 1) * super::PLACES - 1), |number| (number, number));
            let rows = deliveries.query_map(range, |row| read_row(row, known))?;
            Ok(Details {
                event: row.get(1)?,
                webhook: row.get(2)?,
                kind: row.get(3)?,
                account: row.get(4)?,
                object: row.get(5)?,
                livemode: row.get(6)?,
                received: time_of(row.get(7)?),
                content_type: row.get(8)?,
                body: row.get(9)?,
                deliveries: rows.collect::<Result<_>>()?,
            })
        })?;
        Ok(events.collect::<Result<_>>()?)
    }

    pub(in crate::inbox) fn act(&mut self, deed: Deed, id: &str, by: &str) -> Result<Vec<Done>, Failed> {
        let transaction = self.0.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let now = micros(SystemTime::now());
        let mut all = Vec::new();
        for target in targets(&transaction, id, now)? {
            let verdict = deed.verdict(target.standing);
            if verdict == Verdict::Done {
                target.change(&transaction, deed, by, now)?;
            }
            all.extend(verdict.told(target.event, target.delivery, target.destination));
        }
        transaction.commit()?;
        Ok(all)
    }

    pub(in crate::inbox) fn stats(&self) -> Result<(u64, Vec<Figures>), Failed> {
        let events: i64 = self.0.connection.query_row("SELECT count(*) FROM events", (), |row| row.get(0))?;
        Ok((events.unsigned_abs(), reader::figures(&self.0.connection)?))
    }
}

/// A delivery to which something may be done.
struct Target {
    number: i64,
    event: String,
    delivery: String,
    destination: String,
    object: Option<String>,
    standing: Standing,
}

/// Where rows are looked for, and their order: the newest first. What an index has all of is looked through there, and only what is
/// listed is fetched from the tables; where only events tell, they are read and not the deliveries of those that do not count.
fn source(filter: &Filter) -> (&'static str, &'static str) {
    match (filter.kind.is_some() || filter.account.is_some(), filter.state) {
        (false, _) => ("deliveries", "number DESC"),
        (true, Some(_)) => ("deliveries JOIN events ON seq = number / 65536", "number DESC"),
        (true, None) => (
            "events CROSS JOIN deliveries ON number BETWEEN seq * 65536 AND seq * 65536 + 65535",
            "seq DESC, number DESC",
        ),
    }
}

fn targets(store: &Connection, id: &str, now: i64) -> Result<Vec<Target>> {
    const SQL: &str = "SELECT d.number, e.id, d.id, d.destination, d.object, d.state, d.due <= ?2, b.event IS NOT NULL, d.id = ?1 \
         FROM events e JOIN deliveries d ON d.number BETWEEN e.seq * 65536 AND e.seq * 65536 + 65535 \
         LEFT JOIN bodies b ON b.event = e.seq WHERE ";
    let of_event = format!("{SQL} e.id = ?1 ORDER BY d.number");
    let named = format!("{SQL} d.id = ?1 AND e.seq = (SELECT number / 65536 FROM deliveries WHERE id = ?1)");
    let read = |row: &rusqlite::Row<'_>| {
        let standing = Standing {
            state: state(row.get(5)?, true)?,
            is_due: row.get(6)?,
            has_body: row.get(7)?,
            is_named: row.get(8)?,
        };
        let (number, object) = (row.get(0)?, row.get(4)?);
        Ok(Target { number, event: row.get(1)?, delivery: row.get(2)?, destination: row.get(3)?, object, standing })
    };
    let mut targets = Vec::new();
    for sql in [of_event, named] {
        let mut select = store.prepare(&sql)?;
        let found = select.query_map(params![id, now], read)?;
        targets.extend(found.collect::<Result<Vec<_>>>()?);
    }
    Ok(targets)
}

impl Target {
    /// What is due now is due at 0: the gateway has a clock of its own.
    fn change(&self, store: &Connection, deed: Deed, by: &str, now: i64) -> Result<()> {
        let sql = match deed {
            Deed::Retry => "UPDATE deliveries SET state = ?1, due = 0, since = ?2, settled = NULL WHERE number = ?3",
            Deed::Discard => "UPDATE deliveries SET state = ?1, due = 0, settled = ?2 WHERE number = ?3",
        };
        store.execute(sql, params![deed.state().code(), now, self.number])?;
        let note = "INSERT INTO acts (at, act, by, delivery, event, destination) VALUES (?, ?, ?, ?, ?, ?)";
        store.execute(note, params![now, deed.as_str(), by, self.delivery, self.event, self.destination])?;
        match (&self.object, deed) {
            (Some(object), Deed::Discard) => queue::release_next(store, &self.destination, object, 0),
            (Some(_) | None, Deed::Retry | Deed::Discard) => Ok(()),
        }
    }
}

fn read_row(row: &rusqlite::Row<'_>, known: &[&str]) -> Result<Row> {
    let destination: String = row.get(3)?;
    let state = state(row.get(6)?, known.contains(&&*destination))?;
    let due: i64 = row.get(8)?;
    Ok(Row {
        event: row.get(0)?,
        delivery: row.get(1)?,
        webhook: row.get(2)?,
        destination,
        kind: row.get(4)?,
        account: row.get(5)?,
        state,
        attempts: row.get(7)?,
        next: (state.is_open() && due < PARKED).then(|| time_of(due)),
        last_error: row.get(9)?,
        received: time_of(row.get(10)?),
    })
}

fn state(code: i64, is_known: bool) -> Result<State> {
    State::of(code, is_known).ok_or(rusqlite::Error::IntegralValueOutOfRange(6, code))
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self(Box::new(error))
    }
}

//! What is done in a transaction: events in, leases and ends of deliveries.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Result, Row, named_params, params};
use uuid::Uuid;

use super::{PARKED, PLACES, micros, span, time_of};
use crate::inbox::{Acceptance, Act, Arrived, Due, End, Lease, Leased, Settled, State, Want, ask::Doomed};

/// Deliveries that wait for earlier ones and are put aside in one go, so that nobody waits long for that.
const MOST_PARKED: usize = 1000;
/// Acts that are answered in one go.
const MOST_ACTS: i64 = 100;

/// Keeps an event and notes its deliveries, unless it is there already.
pub(super) fn accept(store: &Connection, arrived: &Arrived, now: i64) -> Result<Acceptance> {
    let event = &arrived.event;
    let received = micros(arrived.received);
    let mut insert = store.prepare_cached(
        "INSERT INTO events (webhook, id, type, livemode, account, object, received, content_type) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, webhook) DO NOTHING",
    )?;
    let (account, object) = (event.account.as_deref(), event.object.as_deref());
    let (webhook, id, kind) = (&*arrived.webhook, event.id.as_str(), &*event.kind);
    let content_type = arrived.content_type.as_deref();
    let values = params![webhook, id, kind, event.livemode, account, object, received, content_type];
    if insert.execute(values)? == 0 {
        return Ok(Acceptance::Duplicate);
    }
    let seq = store.last_insert_rowid();
    store.prepare_cached("INSERT INTO bodies (event, body) VALUES (?, ?)")?.execute(params![seq, &arrived.body[..]])?;
    let mut insert = store.prepare_cached(
        "INSERT INTO deliveries (number, id, destination, object, state, attempts, due, since) VALUES (?, ?, ?, ?, 0, 0, ?, ?)",
    )?;
    let mut id = [0; uuid::fmt::Hyphenated::LENGTH];
    for (number, destination) in (seq * PLACES..(seq + 1) * PLACES).zip(&arrived.destinations) {
        let id = Uuid::now_v7().hyphenated().encode_lower(&mut id);
        insert.execute(params![number, &*id, &**destination, object, now, received])?;
    }
    Ok(Acceptance::New)
}

/// Takes what a destination is to have now.
pub(super) fn lease(store: &Connection, want: &Want, now: i64) -> Result<Leased> {
    let numbers = if want.ordered { due_in_order(store, want, now)? } else { due(store, want, now)? };
    let mut leased = Leased { due: Vec::with_capacity(numbers.len()), next: None };
    let mut take =
        store.prepare_cached("UPDATE deliveries SET state = 1, attempts = attempts + 1, due = ? WHERE number = ?")?;
    let mut read = store.prepare_cached(
        "SELECT d.id, d.object, d.attempts, d.since, e.webhook, e.id, e.type, e.account, e.received, e.content_type, b.body \
         FROM deliveries d JOIN events e ON e.seq = d.number / 65536 JOIN bodies b ON b.event = e.seq WHERE d.number = ?",
    )?;
    for number in numbers {
        take.execute((now.saturating_add(span(want.lease)), number))?;
        leased.due.extend(read.query_row([number], |row| read_due(row, &want.destination)).optional()?);
    }
    let mut next = store.prepare_cached(
        "SELECT due FROM deliveries WHERE destination = ? AND state < 2 AND due < ? ORDER BY due LIMIT 1",
    )?;
    let next: Option<i64> = next.query_row((&*want.destination, PARKED), |row| row.get(0)).optional()?;
    leased.next = next.map(|due| Duration::from_micros(due.saturating_sub(now).try_into().unwrap_or_default()));
    Ok(leased)
}

/// The numbers of the first that are due, and of those that waited for others while the destination was ordered.
fn due(store: &Connection, want: &Want, now: i64) -> Result<Vec<i64>> {
    let mut select = store.prepare_cached(
        "SELECT number FROM deliveries WHERE destination = ? AND state < 2 AND due <= ? ORDER BY due LIMIT ?",
    )?;
    let mut numbers: Vec<i64> = select
        .query_map(params![&*want.destination, now, limit(want.most)], |row| row.get(0))?
        .collect::<Result<_>>()?;
    let mut parked = store
        .prepare_cached("SELECT number FROM deliveries WHERE destination = ? AND state < 2 AND due = ? LIMIT ?")?;
    let rest = limit(want.most - numbers.len().min(want.most));
    if rest > 0 {
        let parked = parked.query_map(params![&*want.destination, PARKED, rest], |row| row.get(0))?;
        numbers.extend(parked.collect::<Result<Vec<i64>>>()?);
    }
    Ok(numbers)
}

/// The numbers of the first that are due and before which no other of the same object is to be delivered, nor any is under
/// way. The others are put aside until that one has ended, so that nobody comes across them again.
fn due_in_order(store: &Connection, want: &Want, now: i64) -> Result<Vec<i64>> {
    let mut select = store.prepare_cached(
        "SELECT number, object FROM deliveries WHERE destination = ? AND state < 2 AND due <= ? ORDER BY due LIMIT ?",
    )?;
    let (mut first, mut is_busy) = (store.prepare_cached(FIRST)?, store.prepare_cached(IS_BUSY)?);
    let mut park = store.prepare_cached("UPDATE deliveries SET state = 0, due = ? WHERE number = ?")?;
    let (mut numbers, mut parked, mut free) = (Vec::new(), Vec::new(), HashSet::new());
    let mut candidates = select.query(params![&*want.destination, now, limit(want.most + MOST_PARKED)])?;
    while let Some(candidate) = candidates.next()? {
        let (number, object): (i64, Option<String>) = (candidate.get(0)?, candidate.get(1)?);
        let (first, is_busy): (i64, bool) = match &object {
            Some(object) => (
                first.query_row((&*want.destination, object), |row| row.get(0))?,
                is_busy.query_row(params![&*want.destination, object, now, number], |row| row.get(0))?,
            ),
            None => (number, false),
        };
        if first != number || is_busy {
            parked.push(number);
            free.extend(object.filter(|_| !is_busy));
        } else if numbers.len() < want.most {
            numbers.push(number);
        }
        if numbers.len() >= want.most || parked.len() >= MOST_PARKED {
            break;
        }
    }
    for number in parked {
        park.execute((PARKED, number))?;
    }
    // The first may itself have waited for one whose lease has ended now.
    for object in free {
        release_next(store, &want.destination, &object, now)?;
    }
    Ok(numbers)
}

/// The first delivery of an object that is still to be made.
const FIRST: &str =
    "SELECT min(number) FROM deliveries WHERE destination = ? AND object = ? AND state < 2 AND object IS NOT NULL";

/// Whether an attempt of another delivery of an object is under way. It may be a later one, where this one was dead meanwhile.
const IS_BUSY: &str = "SELECT EXISTS (SELECT 1 FROM deliveries WHERE destination = ? AND object = ? AND object IS NOT NULL \
     AND state = 1 AND due > ? AND number <> ?)";

/// Has the next of an object that was put aside be due, now that another has ended.
pub(super) fn release_next(store: &Connection, destination: &str, object: &str, now: i64) -> Result<()> {
    let first: Option<i64> = store.prepare_cached(FIRST)?.query_row((destination, object), |row| row.get(0))?;
    if let Some(first) = first {
        let mut release = store.prepare_cached("UPDATE deliveries SET due = ? WHERE number = ? AND due = ?")?;
        release.execute((now, first, PARKED))?;
    }
    Ok(())
}

fn read_due(row: &Row<'_>, destination: &Arc<str>) -> Result<Due> {
    let attempt: u32 = row.get(2)?;
    Ok(Due {
        delivery: row.get(0)?,
        object: row.get(1)?,
        attempt,
        lease: Lease(attempt.into()),
        since: time_of(row.get(3)?),
        webhook: row.get(4)?,
        event: row.get(5)?,
        kind: row.get(6)?,
        account: row.get(7)?,
        received: time_of(row.get(8)?),
        content_type: row.get(9)?,
        body: Bytes::copy_from_slice(row.get_ref(10)?.as_blob()?),
        destination: Arc::clone(destination),
    })
}

/// Notes how an attempt ended, if the lease is still that one.
pub(super) fn settle(store: &Connection, settled: &Settled, now: i64) -> Result<bool> {
    let (state, due, error, ended) = match &settled.end {
        End::Delivered => (State::Delivered, 0, None, Some(micros(SystemTime::now()))),
        End::Again { after, error } => (State::Pending, now.saturating_add(span(*after)), Some(error), None),
        End::Dead { error } => (State::Dead, 0, Some(error), Some(micros(SystemTime::now()))),
        End::Released => (State::Pending, now, None, None),
    };
    let (id, lease) = (&*settled.delivery, i64::try_from(settled.lease.0).unwrap_or(-1));
    let mut note = store.prepare_cached(
        "UPDATE deliveries SET state = :state, due = :due, last_error = coalesce(:error, last_error), settled = :ended \
         WHERE id = :id AND attempts = :lease AND state = 1 RETURNING destination, object",
    )?;
    let values = named_params! {
        ":state": state.code(), ":due": due, ":error": error, ":ended": ended, ":id": id, ":lease": lease
    };
    let noted: Option<(String, Option<String>)> =
        note.query_row(values, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((destination, object)) = noted else {
        // It may have been noted before, and only the answer was lost.
        let mut is = store.prepare_cached("SELECT state FROM deliveries WHERE id = ? AND attempts = ?")?;
        let is: Option<i64> = is.query_row((id, lease), |row| row.get(0)).optional()?;
        return Ok(is == Some(state.code()));
    };
    if let Some(object) = object {
        release_next(store, &destination, &object, now)?;
    }
    Ok(true)
}

/// What was done by hand, the oldest first.
pub(super) fn acts(store: &Connection) -> Result<Vec<Act>> {
    let mut select = store
        .prepare_cached("SELECT number, at, act, by, delivery, event, destination FROM acts ORDER BY number LIMIT ?")?;
    let acts = select.query_map([MOST_ACTS], |row| {
        Ok(Act {
            number: row.get(0)?,
            at: time_of(row.get(1)?),
            act: row.get(2)?,
            by: row.get(3)?,
            delivery: row.get(4)?,
            event: row.get(5)?,
            destination: row.get(6)?,
        })
    })?;
    acts.collect()
}

/// Forgets the acts with these numbers.
pub(super) fn forget_acts(store: &Connection, numbers: &[i64]) -> Result<()> {
    let mut forget = store.prepare_cached("DELETE FROM acts WHERE number = ?")?;
    numbers.iter().try_for_each(|number| forget.execute([number]).map(std::mem::drop))
}

/// Drops what was found to be old, but for what was taken up again since.
pub(super) fn drop(store: &Connection, doomed: &Doomed) -> Result<u64> {
    let mut dropped = 0;
    let mut is_done = store.prepare_cached(
        "SELECT NOT EXISTS (SELECT 1 FROM deliveries WHERE number BETWEEN ?1 * 65536 AND ?1 * 65536 + 65535 \
         AND state NOT IN (2, 4))",
    )?;
    let mut body = store.prepare_cached("DELETE FROM bodies WHERE event = ?")?;
    let mut deliveries =
        store.prepare_cached("DELETE FROM deliveries WHERE number BETWEEN ?1 * 65536 AND ?1 * 65536 + 65535")?;
    let mut event = store.prepare_cached("DELETE FROM events WHERE seq = ?")?;
    for seq in doomed.bodies.iter().chain(&doomed.events) {
        if is_done.query_row([seq], |row| row.get(0))? {
            dropped += body.execute([seq])?;
        }
    }
    for seq in &doomed.events {
        if is_done.query_row([seq], |row| row.get(0))? {
            dropped += deliveries.execute([seq])? + event.execute([seq])?;
        }
    }
    Ok(dropped as u64)
}

fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

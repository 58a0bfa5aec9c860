//! How attempts ended: all that wait, in one transaction; and what is done now and then.

use std::collections::HashSet;

use deadpool_postgres::Object;
use futures_util::future::join;

use super::{RETENTION_LOCK, Result};
use crate::inbox::{
    Act, End, Settled, State,
    ask::{Ask, Doomed},
};

/// The end of an attempt, and the place for the answer.
pub(super) type Ending = Ask<Settled, bool>;

const NOTE: &str = "\
UPDATE countersign.deliveries d SET state = s.state, last_error = coalesce(s.error, d.last_error),
    due = clock_timestamp() + s.after * interval '1 second', settled = CASE WHEN s.state > 1 THEN clock_timestamp() END
FROM unnest($1::text[], $2::integer[], $3::smallint[], $4::float8[], $5::text[]) AS s (id, lease, state, after, error)
WHERE d.id = s.id::uuid AND d.attempts = s.lease AND d.state = 1
RETURNING d.id::text, d.object IS NOT NULL, d.destination, d.object";

/// Which had been noted before, so that only the answer was lost.
const NOTED: &str = "\
SELECT s.place FROM unnest($1::text[], $2::integer[], $3::smallint[]) WITH ORDINALITY AS s (id, lease, state, place)
JOIN countersign.deliveries d ON d.id = s.id::uuid AND d.attempts = s.lease AND d.state = s.state";

/// Has the next of each object that was put aside be due. It must begin after the others have ended.
pub(super) const RELEASE_NEXT: &str = "\
UPDATE countersign.deliveries d SET due = statement_timestamp()
FROM (SELECT (SELECT number FROM countersign.deliveries WHERE destination = o.destination AND object = o.object
              AND object IS NOT NULL AND state < 2 ORDER BY number LIMIT 1) AS number
      FROM unnest($1::text[], $2::text[]) AS o (destination, object)) AS first
WHERE d.number = first.number AND d.due = 'infinity'";

const ACTS: &str = "\
SELECT number, at, act, by, delivery, event, destination FROM countersign.acts ORDER BY number LIMIT 100";

const DROP_BODIES: &str = "\
DELETE FROM countersign.bodies WHERE event = ANY ($1::bigint[]) AND NOT EXISTS (
    SELECT 1 FROM countersign.deliveries WHERE number BETWEEN event * 65536 AND event * 65536 + 65535 AND state NOT IN (2, 4))";

const DROP_EVENTS: &str = "\
WITH gone AS (
    DELETE FROM countersign.events WHERE seq = ANY ($1::bigint[]) AND NOT EXISTS (
        SELECT 1 FROM countersign.deliveries WHERE number BETWEEN seq * 65536 AND seq * 65536 + 65535 AND state NOT IN (2, 4))
    RETURNING seq
), deliveries AS (
    DELETE FROM countersign.deliveries d USING gone WHERE d.number BETWEEN gone.seq * 65536 AND gone.seq * 65536 + 65535
    RETURNING 1
)
SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM deliveries)";

/// Notes how attempts ended, each if the lease is still that one.
pub(super) async fn settle(client: &mut Object, endings: &mut [&mut Ending]) -> Result<()> {
    let (mut ids, mut leases, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let (mut afters, mut errors) = (Vec::new(), Vec::new());
    for ending in endings.iter() {
        let settled = &ending.what;
        let (state, after, error) = match &settled.end {
            End::Delivered => (State::Delivered, 0.0, None),
            End::Again { after, error } => (State::Pending, after.as_secs_f64(), Some(error)),
            End::Dead { error } => (State::Dead, 0.0, Some(error)),
            End::Released => (State::Pending, 0.0, None),
        };
        ids.push(settled.delivery.to_string());
        leases.push(i32::try_from(settled.lease.0).unwrap_or(-1));
        states.push(state.stored());
        afters.push(after);
        // A byte that no text of the server's can have.
        errors.push(error.map(|error| error.replace('\0', "")));
    }
    let (note, noted) = (client.prepare_cached(NOTE).await?, client.prepare_cached(NOTED).await?);
    let release = client.prepare_cached(RELEASE_NEXT).await?;
    let note = async { client.query(&note, &[&ids, &leases, &states, &afters, &errors]).await };
    let (begun, rows) = join(client.batch_execute("BEGIN"), note).await;
    begun?;
    let rows = rows?;
    let mut fresh = HashSet::new();
    let (mut destinations, mut objects) = (Vec::new(), Vec::new());
    for row in &rows {
        fresh.insert(row.try_get::<_, &str>(0)?);
        if row.try_get(1)? {
            destinations.push(row.try_get::<_, &str>(2)?);
            objects.push(row.try_get::<_, &str>(3)?);
        }
    }
    if !objects.is_empty() {
        client.execute(&release, &[&destinations, &objects]).await?;
    }
    let mut known = HashSet::new();
    if ids.iter().any(|id| !fresh.contains(&**id)) {
        for row in client.query(&noted, &[&ids, &leases, &states]).await? {
            known.insert(row.try_get::<_, i64>(0)?);
        }
    }
    client.batch_execute("COMMIT").await?;
    for (place, (ending, id)) in (1..).zip(endings.iter_mut().zip(&ids)) {
        ending.answer = Some(fresh.contains(&**id) || known.contains(&place));
    }
    Ok(())
}

/// What was done by hand, the oldest first.
pub(super) async fn acts(client: &Object) -> Result<Vec<Act>> {
    let statement = client.prepare_cached(ACTS).await?;
    let rows = client.query(&statement, &[]).await?;
    let act = |row: &tokio_postgres::Row| {
        Ok(Act {
            number: row.try_get(0)?,
            at: row.try_get(1)?,
            act: row.try_get(2)?,
            by: row.try_get(3)?,
            delivery: row.try_get(4)?,
            event: row.try_get(5)?,
            destination: row.try_get(6)?,
        })
    };
    rows.iter().map(act).collect()
}

/// Forgets the acts with these numbers.
pub(super) async fn forget_acts(client: &Object, numbers: &[i64]) -> Result<()> {
    client.execute("DELETE FROM countersign.acts WHERE number = ANY ($1::bigint[])", &[&numbers]).await?;
    Ok(())
}

/// Drops what was found to be old, but for what was taken up again since.
pub(super) async fn drop(client: &mut Object, doomed: &Doomed) -> Result<u64> {
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&RETENTION_LOCK]).await?;
    let bodies: Vec<i64> = doomed.bodies.iter().chain(&doomed.events).copied().collect();
    let bodies = transaction.execute(DROP_BODIES, &[&bodies]).await?;
    let events: i64 = transaction.query_one(DROP_EVENTS, &[&doomed.events]).await?.try_get(0)?;
    transaction.commit().await?;
    Ok(bodies + events.unsigned_abs())
}

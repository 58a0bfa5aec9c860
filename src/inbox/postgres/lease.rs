//! What is due, for one gateway at a time.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use deadpool_postgres::Object;
use futures_util::future::join;
use tokio_postgres::Row;

use super::Result;
use crate::inbox::{Due, Lease, Leased, Want};

/// Deliveries that wait for earlier ones and are put aside in one go.
const MOST_PARKED: usize = 200;
/// How soon one is looked for again that is due, and that somebody else is busy with.
const BUSY_AGAIN: Duration = Duration::from_millis(50);

const PICK: &str = "\
WITH due AS (
    SELECT number FROM countersign.deliveries WHERE destination = $1 AND state < 2 AND due <= statement_timestamp()
    ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED
), parked AS (
    SELECT number FROM countersign.deliveries WHERE destination = $1 AND state < 2 AND due = 'infinity'
    LIMIT $2 - (SELECT count(*) FROM due) FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE countersign.deliveries SET state = 1, attempts = attempts + 1, due = clock_timestamp() + $3::float8 * interval '1 second'
    WHERE number = ANY (ARRAY(SELECT number FROM due UNION ALL SELECT number FROM parked))
    RETURNING number, id, object, attempts, since
)
SELECT t.id::text, t.object, t.attempts, t.since, e.webhook, e.id, e.type, e.account, e.received, e.content_type, b.body
FROM taken t JOIN countersign.events e ON e.seq = t.number / 65536 JOIN countersign.bodies b ON b.event = e.seq ORDER BY t.number";

const TAKE: &str = "\
WITH taken AS (
    UPDATE countersign.deliveries SET state = 1, attempts = attempts + 1, due = clock_timestamp() + $2::float8 * interval '1 second'
    WHERE number = ANY ($1::bigint[]) RETURNING number, id, object, attempts, since
)
SELECT t.id::text, t.object, t.attempts, t.since, e.webhook, e.id, e.type, e.account, e.received, e.content_type, b.body
FROM taken t JOIN countersign.events e ON e.seq = t.number / 65536 JOIN countersign.bodies b ON b.event = e.seq ORDER BY t.number";

const NEXT: &str = "\
SELECT extract(epoch FROM due - clock_timestamp())::float8 FROM countersign.deliveries
WHERE destination = $1 AND state < 2 AND due < 'infinity' ORDER BY due LIMIT 1";

const CANDIDATES: &str = "\
SELECT number, object FROM countersign.deliveries WHERE destination = $1 AND state < 2 AND due <= statement_timestamp()
ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED";

/// Whoever leases in order does so alone for a destination: otherwise neither of two would see what the other takes.
const ORDER_LOCK: &str = "SELECT pg_advisory_xact_lock(1668508014, hashtext($1))";

/// The deliveries that each waits for, and whether an attempt of that one is under way: the first before it, and any that is
/// under way. That may be a later one, where this one was dead meanwhile or was committed after it.
const BEFORE: &str = "\
SELECT one.number, other.number, other.is_busy FROM unnest($2::bigint[], $3::text[]) AS one (number, object) CROSS JOIN LATERAL (
    (SELECT number, false AS is_busy FROM countersign.deliveries
     WHERE destination = $1 AND object = one.object AND object IS NOT NULL AND state < 2 AND number < one.number
     ORDER BY number LIMIT 1)
    UNION ALL
    (SELECT number, true FROM countersign.deliveries
     WHERE destination = $1 AND object = one.object AND object IS NOT NULL AND state = 1 AND due > statement_timestamp()
     AND number <> one.number LIMIT 1)
) AS other";

/// Keeps them from ending until what waits for them is put aside: otherwise nobody would fetch it back.
const HOLD: &str =
    "SELECT number FROM countersign.deliveries WHERE number = ANY ($1::bigint[]) AND state < 2 FOR SHARE SKIP LOCKED";

/// The first may itself have waited for one whose lease has ended now.
const FREE: &str = "UPDATE countersign.deliveries SET due = statement_timestamp() WHERE number = ANY ($1::bigint[]) AND due = 'infinity'";

const PARK: &str = "UPDATE countersign.deliveries SET state = 0, due = 'infinity' WHERE number = ANY ($1::bigint[])";

/// Takes what a destination is to have now.
pub(super) async fn lease(client: &mut Object, want: &Want) -> Result<Leased> {
    if want.ordered { lease_in_order(client, want).await } else { lease_any(client, want).await }
}

async fn lease_any(client: &Object, want: &Want) -> Result<Leased> {
    let (pick, next) = (client.prepare_cached(PICK).await?, client.prepare_cached(NEXT).await?);
    let (destination, most, seconds) = (&*want.destination, limit(want.most), want.lease.as_secs_f64());
    let picked = async { client.query(&pick, &[&destination, &most, &seconds]).await };
    let then = async { client.query_opt(&next, &[&destination]).await };
    // Sent one behind the other, without waiting in between.
    let (picked, then) = join(picked, then).await;
    leased(want, &picked?, then?)
}

/// Takes the first that are due and before which no other of the same object is to be delivered, nor any is under way. The
/// others are put aside until that one has ended.
async fn lease_in_order(client: &mut Object, want: &Want) -> Result<Leased> {
    let candidates = client.prepare_cached(CANDIDATES).await?;
    let before = client.prepare_cached(BEFORE).await?;
    let (hold, park) = (client.prepare_cached(HOLD).await?, client.prepare_cached(PARK).await?);
    let (take, next) = (client.prepare_cached(TAKE).await?, client.prepare_cached(NEXT).await?);
    let destination = &*want.destination;
    let (order, free) = (client.prepare_cached(ORDER_LOCK).await?, client.prepare_cached(FREE).await?);
    let transaction = client.transaction().await?;
    transaction.execute(&order, &[&destination]).await?;
    let rows = transaction.query(&candidates, &[&destination, &limit(want.most + MOST_PARKED)]).await?;
    let (mut numbers, mut objects) = (Vec::new(), Vec::new());
    for row in &rows {
        numbers.push(row.try_get::<_, i64>(0)?);
        objects.push(row.try_get::<_, Option<&str>>(1)?);
    }
    // What is under way comes second, and so stands for what waits for both.
    let mut waits = HashMap::new();
    for row in transaction.query(&before, &[&destination, &numbers, &objects]).await? {
        let (number, other, is_busy): (i64, i64, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if is_busy || !waits.contains_key(&number) {
            waits.insert(number, (other, is_busy));
        }
    }
    if !waits.is_empty() {
        let firsts: Vec<i64> = waits.values().map(|(other, _)| *other).collect();
        let mut locked = Vec::new();
        for row in transaction.query(&hold, &[&firsts]).await? {
            locked.push(row.try_get::<_, i64>(0)?);
        }
        let parked: Vec<i64> =
            waits.iter().filter(|(_, (other, _))| locked.contains(other)).map(|(number, _)| *number).collect();
        transaction.execute(&park, &[&parked]).await?;
        locked.retain(|other| waits.values().any(|wait| *wait == (*other, false)) && !parked.contains(other));
        transaction.execute(&free, &[&locked]).await?;
    }
    numbers.retain(|number| !waits.contains_key(number));
    numbers.truncate(want.most);
    let taken = transaction.query(&take, &[&numbers, &want.lease.as_secs_f64()]).await?;
    let then = transaction.query_opt(&next, &[&destination]).await?;
    transaction.commit().await?;
    leased(want, &taken, then)
}

fn leased(want: &Want, rows: &[Row], next: Option<Row>) -> Result<Leased> {
    let due = rows.iter().map(|row| read_due(row, want)).collect::<Result<Vec<_>>>()?;
    let next = next.map(|row| row.try_get::<_, f64>(0)).transpose()?;
    let mut next = next.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX));
    if due.is_empty() {
        // What is due and was not taken is in somebody else's hands at this moment.
        next = next.map(|next| next.max(BUSY_AGAIN));
    }
    Ok(Leased { due, next })
}

fn read_due(row: &Row, want: &Want) -> Result<Due> {
    let text = |place| row.try_get::<_, &str>(place).map(Into::into);
    let maybe = |place| row.try_get::<_, Option<&str>>(place).map(|text| text.map(Into::into));
    let attempt = row.try_get::<_, i32>(2)?.unsigned_abs();
    Ok(Due {
        delivery: text(0)?,
        object: maybe(1)?,
        attempt,
        lease: Lease(attempt.into()),
        since: row.try_get(3)?,
        webhook: text(4)?,
        event: text(5)?,
        kind: text(6)?,
        account: maybe(7)?,
        received: row.try_get(8)?,
        content_type: maybe(9)?,
        body: Bytes::copy_from_slice(row.try_get(10)?),
        destination: want.destination.clone(),
    })
}

fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

//! Looking into the database, and what is done by hand.

use std::path::Path;

use deadpool_postgres::Object;
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{Access, Database, Failure, RETENTION_LOCK, Result, open, reader, runtime, settle};
use crate::inbox::{
    Figures, OpenError, Postgres, State,
    desk::{Deed, Details, Done, Failed, Filter, Row, Standing, Verdict, prefix},
};

/// The database, and what drives the connection to it.
#[derive(Debug)]
pub(in crate::inbox) struct Desk {
    database: Database,
    runtime: Runtime,
}

const ROWS: &str = "SELECT e.id, d.id::text, e.webhook, d.destination, e.type, e.account, d.state::bigint, d.attempts, \
     CASE WHEN d.state < 2 AND d.due < 'infinity' THEN d.due END, d.last_error, e.received \
     FROM countersign.deliveries d JOIN countersign.events e ON e.seq = d.number / 65536";

const EVENTS: &str = "SELECT e.seq, e.id, e.webhook, e.type, e.account, e.object, e.livemode, e.received, e.content_type, b.body \
     FROM countersign.events e LEFT JOIN countersign.bodies b ON b.event = e.seq WHERE e.id = $1 OR e.seq = $2::bigint / 65536 ORDER BY e.seq";

const TARGETS: &str = "SELECT d.number, e.id, d.id::text, d.destination, d.object, d.state::bigint, d.due <= clock_timestamp(), \
     EXISTS (SELECT 1 FROM countersign.bodies WHERE event = e.seq), d.number IS NOT DISTINCT FROM $2::bigint \
     FROM countersign.events e JOIN countersign.deliveries d ON d.number BETWEEN e.seq * 65536 AND e.seq * 65536 + 65535 \
     WHERE (e.id = $1 AND $2::bigint IS NULL) OR (e.seq = $2::bigint / 65536 AND d.number = $2) ORDER BY d.number FOR UPDATE OF d";

const RETRY: &str = "UPDATE countersign.deliveries SET state = 0, due = clock_timestamp(), since = clock_timestamp(), settled = NULL \
     WHERE number = $1";
const DISCARD: &str = "UPDATE countersign.deliveries SET state = 4, settled = clock_timestamp() WHERE number = $1";
const ACT: &str = "INSERT INTO countersign.acts (at, act, by, delivery, event, destination) \
     VALUES (clock_timestamp(), $1, $2, $3, $4, $5)";

impl Desk {
    pub(in crate::inbox) fn open(postgres: &Postgres, state_directory: &Path) -> Result<Self, OpenError> {
        let database = Database::of(postgres, 1, "", &super::Identity::default())?;
        let runtime = runtime().map_err(|error| OpenError::unavailable(&database.place, error))?;
        runtime.block_on(open(&database, state_directory, Access::Looking))?;
        Ok(Self { database, runtime })
    }

    pub(in crate::inbox) fn list(&self, filter: &Filter, known: &[&str]) -> Result<Vec<Row>, Failed> {
        let Filter { state, destination, kind, account, limit } = filter;
        let code = state.map(State::stored);
        let limit = i64::from(*limit);
        let (mut conditions, mut values) = (Vec::<String>::new(), Vec::<&(dyn ToSql + Sync)>::new());
        let mut holds = |before: &str, value, after: &str| {
            values.push(value);
            conditions.push(format!("{before} ${}{after}", values.len()));
        };
        if let (Some(state), Some(code)) = (state, &code) {
            match state {
                State::Orphaned => holds("state < 2 AND destination <> ALL (", &known, "::text[])"),
                State::Pending | State::Delivering => {
                    holds("state < 2 AND state =", code, "");
                    holds("destination = ANY (", &known, "::text[])");
                }
                State::Delivered | State::Dead | State::Discarded => holds("state >= 2 AND state =", code, ""),
            }
        }
        if let Some(destination) = destination {
            holds("destination =", destination, "");
        }
        if let Some(account) = account {
            holds("account =", account, "");
        }
        let prefix = kind.as_deref().and_then(prefix);
        match (kind, &prefix) {
            (None, _) => {}
            (Some(_), Some(prefix)) => holds("starts_with(type,", prefix, ")"),
            (Some(kind), None) => holds("type =", kind, ""),
        }
        values.push(&limit);
        let needs_events = kind.is_some() || account.is_some();
        let from = if needs_events { "JOIN countersign.events ON seq = number / 65536" } else { "" };
        let conditions = if conditions.is_empty() { "TRUE".to_owned() } else { conditions.join(" AND ") };
        let sql = format!(
            "{ROWS} WHERE d.number = ANY (ARRAY(SELECT number FROM countersign.deliveries {from} WHERE {conditions} \
             ORDER BY number DESC LIMIT ${})) ORDER BY d.number DESC",
            values.len()
        );
        let rows = self.wait(async |client| {
            let rows = client.query(&sql, &values).await?;
            rows.iter().map(|row| read_row(row, known)).collect()
        });
        Ok(rows?)
    }

    pub(in crate::inbox) fn show(&self, id: &str, known: &[&str]) -> Result<Vec<Details>, Failed> {
        let details = self.wait(async |client| {
            let named = number(client, id).await?;
            let mut all = Vec::new();
            for row in client.query(EVENTS, &[&id, &named]).await? {
                let seq: i64 = row.try_get(0)?;
                let range = named.map_or((seq * 65536, seq * 65536 + 65535), |number| (number, number));
                let sql = format!("{ROWS} WHERE d.number BETWEEN $1 AND $2 ORDER BY d.number");
                let deliveries = client.query(&sql, &[&range.0, &range.1]).await?;
                all.push(Details {
                    event: row.try_get(1)?,
                    webhook: row.try_get(2)?,
                    kind: row.try_get(3)?,
                    account: row.try_get(4)?,
                    object: row.try_get(5)?,
                    livemode: row.try_get(6)?,
                    received: row.try_get(7)?,
                    content_type: row.try_get(8)?,
                    body: row.try_get(9)?,
                    deliveries: deliveries.iter().map(|row| read_row(row, known)).collect::<Result<_>>()?,
                });
            }
            Ok(all)
        });
        Ok(details?)
    }

    pub(in crate::inbox) fn act(&self, deed: Deed, id: &str, by: &str) -> Result<Vec<Done>, Failed> {
        Ok(self.wait(async |client| act(client, deed, id, by).await)?)
    }

    pub(in crate::inbox) fn stats(&self) -> Result<(u64, Vec<Figures>), Failed> {
        let stats = self.wait(async |client| {
            let events: i64 = client.query_one("SELECT count(*) FROM countersign.events", &[]).await?.try_get(0)?;
            Ok((events.unsigned_abs(), reader::figures(client).await?))
        });
        Ok(stats?)
    }

    fn wait<T>(&self, work: impl AsyncFnOnce(&mut Object) -> Result<T>) -> Result<T> {
        self.runtime.block_on(self.database.with(work))
    }
}

/// The number of the delivery with this id.
async fn number(client: &Object, id: &str) -> Result<Option<i64>> {
    if Uuid::try_parse(id).is_err() {
        return Ok(None);
    }
    let row = client.query_opt("SELECT number FROM countersign.deliveries WHERE id = $1::text::uuid", &[&id]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

async fn act(client: &mut Object, deed: Deed, id: &str, by: &str) -> Result<Vec<Done>> {
    let named = number(client, id).await?;
    let transaction = client.transaction().await?;
    // What is taken up again must not be dropped at this moment.
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&RETENTION_LOCK]).await?;
    let (mut all, mut destinations, mut objects) = (Vec::new(), Vec::new(), Vec::new());
    for row in transaction.query(TARGETS, &[&id, &named]).await? {
        let (number, event, delivery): (i64, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (destination, object): (String, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
        let standing = Standing {
            state: state(row.try_get(5)?, true)?,
            is_due: row.try_get(6)?,
            has_body: row.try_get(7)?,
            is_named: row.try_get(8)?,
        };
        let verdict = deed.verdict(standing);
        if verdict == Verdict::Done {
            let change = match deed {
                Deed::Retry => RETRY,
                Deed::Discard => DISCARD,
            };
            transaction.execute(change, &[&number]).await?;
            transaction.execute(ACT, &[&deed.as_str(), &by, &delivery, &event, &destination]).await?;
            if let (Deed::Discard, Some(object)) = (deed, object) {
                destinations.push(destination.clone());
                objects.push(object);
            }
        }
        all.extend(verdict.told(event, delivery, destination));
    }
    transaction.execute(settle::RELEASE_NEXT, &[&destinations, &objects]).await?;
    transaction.commit().await?;
    Ok(all)
}

fn read_row(row: &tokio_postgres::Row, known: &[&str]) -> Result<Row> {
    let destination: String = row.try_get(3)?;
    let state = state(row.try_get(6)?, known.contains(&&*destination))?;
    Ok(Row {
        event: row.try_get(0)?,
        delivery: row.try_get(1)?,
        webhook: row.try_get(2)?,
        destination,
        kind: row.try_get(4)?,
        account: row.try_get(5)?,
        state,
        attempts: row.try_get::<_, i32>(7)?.unsigned_abs(),
        next: row.try_get(8)?,
        last_error: row.try_get(9)?,
        received: row.try_get(10)?,
    })
}

fn state(code: i64, is_known: bool) -> Result<State> {
    State::of(code, is_known).ok_or(Failure::Unreadable)
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self(Box::new(failure))
    }
}

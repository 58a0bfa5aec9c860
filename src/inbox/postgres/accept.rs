//! Events in: all that wait, in one statement and so in one transaction.

use std::{collections::HashMap, time::SystemTime};

use deadpool_postgres::Object;
use uuid::Uuid;

use super::{Failure, Result};
use crate::inbox::{
    Acceptance, Arrived,
    ask::{Ask, Waiting},
};

/// An event that has arrived, and the place for the answer.
pub(super) type Arrival = Ask<Box<Waiting>, Acceptance>;

/// Answers whether this is the store that was opened, without which nothing is kept, and the places of what is new. Numbers are
/// given in the order of arrival; rows are inserted in the order of their keys, so that two gateways never wait for each other.
const ACCEPT: &str = "\
WITH ours AS MATERIALIZED (
    SELECT FROM countersign.store WHERE identity = $14
), came AS MATERIALIZED (
    SELECT nextval('countersign.events_seq') AS seq, rows.*
    FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[], $6::text[], $7::timestamptz[], $8::text[], $9::bytea[])
    WITH ORDINALITY AS rows (webhook, id, type, livemode, account, object, received, content_type, body, place)
    WHERE EXISTS (SELECT FROM ours)
), new AS (
    INSERT INTO countersign.events (seq, webhook, id, type, livemode, account, object, received, content_type)
    SELECT seq, webhook, id, type, livemode, account, object, received, content_type FROM came
    ORDER BY id COLLATE \"C\", webhook COLLATE \"C\"
    ON CONFLICT (id, webhook) DO NOTHING RETURNING seq
), kept AS (
    INSERT INTO countersign.bodies (event, body) SELECT seq, body FROM came JOIN new USING (seq)
), due AS (
    INSERT INTO countersign.deliveries (number, id, destination, object, state, attempts, due, since)
    SELECT came.seq * 65536 + wanted.number, wanted.id::uuid, wanted.destination, came.object, 0, 0, statement_timestamp(), came.received
    FROM unnest($10::bigint[], $11::bigint[], $12::text[], $13::text[]) AS wanted (place, number, id, destination)
    JOIN came ON came.place = wanted.place JOIN new ON new.seq = came.seq
)
SELECT EXISTS (SELECT FROM ours), ARRAY(SELECT place FROM came JOIN new USING (seq))";

/// The columns of the rows that are to be inserted.
#[derive(Default)]
struct Columns<'a> {
    webhook: Vec<&'a str>,
    id: Vec<&'a str>,
    kind: Vec<&'a str>,
    livemode: Vec<bool>,
    account: Vec<Option<&'a str>>,
    object: Vec<Option<&'a str>>,
    received: Vec<SystemTime>,
    content_type: Vec<Option<&'a str>>,
    body: Vec<&'a [u8]>,
    place: Vec<i64>,
    number: Vec<i64>,
    delivery: Vec<String>,
    destination: Vec<&'a str>,
}

/// Keeps events and notes their deliveries, each unless it is there already.
pub(super) async fn accept(client: &mut Object, identity: &str, arrivals: &mut [&mut Arrival]) -> Result<()> {
    // Where in the columns each is; the same event may have arrived more than once.
    let mut known = HashMap::with_capacity(arrivals.len());
    let mut columns = Columns::default();
    let mut answers = Vec::with_capacity(arrivals.len());
    for arrival in arrivals.iter() {
        let arrived = &arrival.what.arrived;
        let next = known.len();
        let place = *known.entry((&*arrived.webhook, arrived.event.id.as_str())).or_insert(next);
        if place == next {
            columns.push(arrived);
        }
        answers.push((place, place == next));
    }
    let places = columns.insert(client, identity).await?;
    let mut is_new = vec![false; known.len()];
    drop(known);
    for place in places {
        if let Some(is_new) = usize::try_from(place - 1).ok().and_then(|place| is_new.get_mut(place)) {
            *is_new = true;
        }
    }
    for (arrival, (place, is_first)) in arrivals.iter_mut().zip(answers) {
        let is_new = is_first && is_new.get(place) == Some(&true);
        arrival.answer = Some(if is_new { Acceptance::New } else { Acceptance::Duplicate });
    }
    Ok(())
}

impl<'a> Columns<'a> {
    fn push(&mut self, arrived: &'a Arrived) {
        let event = &arrived.event;
        self.webhook.push(&arrived.webhook);
        self.id.push(event.id.as_str());
        self.kind.push(&event.kind);
        self.livemode.push(event.livemode);
        self.account.push(event.account.as_deref());
        self.object.push(event.object.as_deref());
        self.received.push(arrived.received);
        self.content_type.push(arrived.content_type.as_deref());
        self.body.push(&arrived.body);
        let place = i64::try_from(self.id.len()).unwrap_or(i64::MAX);
        for (number, destination) in (0..).zip(&arrived.destinations) {
            self.place.push(place);
            self.number.push(number);
            self.delivery.push(Uuid::now_v7().to_string());
            self.destination.push(destination);
        }
    }

    /// The places of those that were not there.
    async fn insert(&self, client: &Object, identity: &str) -> Result<Vec<i64>> {
        let statement = client.prepare_cached(ACCEPT).await?;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 14] = [
            &self.webhook,
            &self.id,
            &self.kind,
            &self.livemode,
            &self.account,
            &self.object,
            &self.received,
            &self.content_type,
            &self.body,
            &self.place,
            &self.number,
            &self.delivery,
            &self.destination,
            &identity,
        ];
        let row = client.query_one(&statement, &values).await?;
        let (is_ours, places): (bool, Vec<i64>) = (row.try_get(0)?, row.try_get(1)?);
        if is_ours { Ok(places) } else { Err(Failure::Another) }
    }
}

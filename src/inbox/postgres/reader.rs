//! What takes long, and changes nothing itself.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use deadpool_postgres::Object;
use tokio::sync::mpsc;

use super::{Database, Result};
use crate::inbox::{
    Figures, REMEMBERED, Unavailable,
    ask::{Ask, Command, Doomed, Inquiry},
    figures::Counted,
};

/// Events that are dropped in one go, and those that are looked at for that.
const MOST_DROPPED: usize = 2000;
const MOST_SEEN: i64 = 20_000;

/// Answers inquiries over a connection of its own.
pub(super) struct Reader {
    database: Database,
    /// Where what is to be dropped is handed to.
    drops: mpsc::Sender<Command>,
    figures: Counted,
    /// The events up to which all was looked at, for bodies and for themselves.
    seen_bodies: i64,
    seen_events: i64,
}

const FIGURES: &str = "\
SELECT destination, state::bigint, count(*), CASE WHEN state < 2 THEN min(number) / 65536 END
FROM countersign.deliveries GROUP BY destination, state ORDER BY destination";

const OLD_EVENTS: &str = "\
SELECT e.seq, e.received, e.received < $2 AND NOT EXISTS (
    SELECT 1 FROM countersign.deliveries d WHERE d.number BETWEEN e.seq * 65536 AND e.seq * 65536 + 65535
    AND (d.state NOT IN (2, 4) OR d.settled >= $2))
FROM (SELECT seq, received FROM countersign.events WHERE seq > $1 ORDER BY seq LIMIT $3) e ORDER BY e.seq";
/// The same of those whose bodies are there.
const OLD_BODIES: &str = "\
SELECT e.seq, e.received, e.received < $2 AND NOT EXISTS (
    SELECT 1 FROM countersign.deliveries d WHERE d.number BETWEEN e.seq * 65536 AND e.seq * 65536 + 65535
    AND (d.state NOT IN (2, 4) OR d.settled >= $2))
FROM (SELECT event FROM countersign.bodies WHERE event > $1 ORDER BY event LIMIT $3) b
JOIN countersign.events e ON e.seq = b.event ORDER BY e.seq";

impl Reader {
    pub(super) fn new(database: Database, drops: mpsc::Sender<Command>) -> Self {
        Self { database, drops, figures: Counted::default(), seen_bodies: 0, seen_events: 0 }
    }

    /// Takes inquiries until the last that can make any is gone, or says that it is done.
    pub(super) async fn run(mut self, mut inquiries: mpsc::Receiver<Inquiry>) {
        while let Some(inquiry) = inquiries.recv().await {
            match inquiry {
                Inquiry::Figures(mut ask) => {
                    ask.answer = self.figures().await;
                    ask.give(true);
                }
                Inquiry::Expire(mut ask) => {
                    ask.answer = self.expire(ask.what).await.ok();
                    ask.give(true);
                }
                Inquiry::Finish => return,
            }
        }
    }

    async fn figures(&mut self) -> Option<Vec<Figures>> {
        if let Some(figures) = self.figures.fresh() {
            return Some(figures);
        }
        let begun = Instant::now();
        let figures = self.database.with(async |client| figures(client).await).await.ok()?;
        self.figures.keep(&figures, begun.elapsed());
        Some(figures)
    }

    /// Finds what is older than `retention` and has it dropped; how many rows went.
    async fn expire(&mut self, retention: Duration) -> Result<u64, Unavailable> {
        let after = (self.seen_events, self.seen_bodies);
        let found = self.database.with(async |client| {
            let now: SystemTime = client.query_one("SELECT clock_timestamp()", &[]).await?.try_get(0)?;
            let before = |age| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
            let events = old(client, OLD_EVENTS, after.0, before(retention.max(REMEMBERED))).await?;
            let bodies = old(client, OLD_BODIES, after.1, before(retention)).await?;
            Ok((events, bodies))
        });
        let ((events, seen_events), (bodies, seen_bodies)) = found.await.map_err(|_| Unavailable::Failed)?;
        (self.seen_bodies, self.seen_events) = (seen_bodies, seen_events);
        if bodies.is_empty() && events.is_empty() {
            return Ok(0);
        }
        let (ask, answer) = Ask::new(Doomed { bodies, events });
        self.drops.send(Command::Drop(ask)).await.map_err(|_| Unavailable::Failed)?;
        answer.await.unwrap_or(Err(Unavailable::Failed))
    }
}

/// How many deliveries of each destination are in which state.
pub(super) async fn figures(client: &Object) -> Result<Vec<Figures>> {
    let mut figures: Vec<Figures> = Vec::new();
    let rows = client.query(FIGURES, &[]).await?;
    let mut oldest = HashMap::new();
    for row in &rows {
        let destination: String = row.try_get(0)?;
        if figures.last().is_none_or(|last| last.destination != destination) {
            figures.push(Figures { destination: destination.clone(), ..Figures::default() });
        }
        if let Some(entry) = figures.last_mut() {
            entry.set(row.try_get(1)?, row.try_get::<_, i64>(2)?.unsigned_abs());
        }
        if let Some(seq) = row.try_get::<_, Option<i64>>(3)? {
            let first = oldest.entry(destination).or_insert(seq);
            *first = seq.min(*first);
        }
    }
    let seqs: Vec<i64> = oldest.values().copied().collect();
    let sql = "SELECT seq, received FROM countersign.events WHERE seq = ANY ($1::bigint[])";
    let mut received = HashMap::new();
    for row in client.query(sql, &[&seqs]).await? {
        received.insert(row.try_get::<_, i64>(0)?, row.try_get::<_, SystemTime>(1)?);
    }
    for entry in &mut figures {
        entry.oldest_pending = oldest.get(&entry.destination).and_then(|seq| received.get(seq)).copied();
    }
    Ok(figures)
}

/// Events that can go, and the number up to which all were looked at: 0 where it is to begin anew.
async fn old(client: &Object, sql: &str, after: i64, before: SystemTime) -> Result<(Vec<i64>, i64)> {
    let rows = client.query(sql, &[&after, &before, &MOST_SEEN]).await?;
    let (mut old, mut seen) = (Vec::new(), 0);
    for row in &rows {
        // Those that follow came later, but for what clocks differ.
        if row.try_get::<_, SystemTime>(1)? >= before {
            return Ok((old, 0));
        }
        seen = row.try_get(0)?;
        if row.try_get(2)? {
            old.push(seen);
        }
        if old.len() >= MOST_DROPPED {
            break;
        }
    }
    Ok((old, seen))
}

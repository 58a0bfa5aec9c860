//! The thread that looks for what takes long, and changes nothing itself.

use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, Result, params};
use tokio::sync::mpsc;

use super::{Access, Opened, Place, Whereabouts, log_of, micros, node, span, time_of};
use crate::inbox::{
    Figures, REMEMBERED, State, Unavailable,
    ask::{Ask, Command, Doomed, Inquiry},
    figures::Counted,
};

/// Events that are dropped in one go, and those that are looked at for that.
const MOST_DROPPED: usize = 2000;
const MOST_SEEN: i64 = 20_000;

/// Answers inquiries over a connection of its own.
pub(super) struct Reader {
    place: Place,
    opened: Option<Opened>,
    /// Where what is to be dropped is handed to.
    writer: mpsc::Sender<Command>,
    figures: Counted,
    /// The events up to which all was looked at, for bodies and for themselves.
    seen_bodies: i64,
    seen_events: i64,
}

impl Reader {
    pub(super) fn new(opened: Opened, place: Place, writer: mpsc::Sender<Command>) -> Self {
        Self { place, opened: Some(opened), writer, figures: Counted::default(), seen_bodies: 0, seen_events: 0 }
    }

    /// Takes inquiries until the last that can make any is gone, or says that it is done.
    pub(super) fn run(mut self, mut inquiries: mpsc::Receiver<Inquiry>) {
        while let Some(inquiry) = inquiries.blocking_recv() {
            match inquiry {
                Inquiry::Figures(mut ask) => {
                    ask.answer = self.figures();
                    ask.give(true);
                }
                Inquiry::Expire(mut ask) => {
                    ask.answer = self.expire(ask.what).ok();
                    ask.give(true);
                }
                Inquiry::Finish => return,
            }
        }
    }

    fn figures(&mut self) -> Option<Vec<Figures>> {
        if let Some(figures) = self.figures.fresh() {
            return Some(figures);
        }
        let begun = Instant::now();
        let figures = self.read(figures).ok()?;
        self.figures.keep(&figures, begun.elapsed());
        Some(figures)
    }

    /// Finds what is older than `retention` and has the writer drop it; how many rows went.
    fn expire(&mut self, retention: Duration) -> Result<u64, Unavailable> {
        let now = micros(SystemTime::now());
        let before = now.saturating_sub(span(retention));
        let forgotten = now.saturating_sub(span(retention.max(REMEMBERED)));
        let (after_bodies, after_events) = (self.seen_bodies, self.seen_events);
        let (events, seen_events) = self.read(|store| old(store, OLD_EVENTS, after_events, forgotten))?;
        let (bodies, seen_bodies) = self.read(|store| old(store, OLD_BODIES, after_bodies, before))?;
        (self.seen_bodies, self.seen_events) = (seen_bodies, seen_events);
        if bodies.is_empty() && events.is_empty() {
            return Ok(0);
        }
        let (ask, answer) = Ask::new(Doomed { bodies, events });
        self.writer.blocking_send(Command::Drop(ask)).map_err(|_| Unavailable::Failed)?;
        answer.blocking_recv().unwrap_or(Err(Unavailable::Failed))
    }

    fn read<T>(&mut self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T, Unavailable> {
        let result = self.opened().and_then(|opened| query(&opened.connection).inspect(|_| self.opened = Some(opened)));
        result.map_err(|error| {
            if self.place.health.note(&error) {
                self.place.tell_broken(&error);
            }
            tracing::debug!(%error, "the inbox cannot be read");
            Unavailable::Failed
        })
    }

    /// The connection to the files that are there, once the writer has its own to the same.
    fn opened(&mut self) -> Result<Opened> {
        self.place.health.check()?;
        let log = self.place.health.log();
        let is_fit = |opened: &Opened| opened.whereabouts() == Whereabouts::InPlace && opened.log == log;
        match self.opened.take().filter(is_fit) {
            Some(opened) => Ok(opened),
            None if node(&log_of(&self.place.file)) == log => self.place.reopen(Access::Reading),
            None => Err(rusqlite::Error::InvalidPath(log_of(&self.place.file))),
        }
    }
}

/// The open ones in the order of an index that has all of it; the closed ones likewise.
pub(super) fn figures(store: &Connection) -> Result<Vec<Figures>> {
    let mut figures: Vec<Figures> = Vec::new();
    // By destination and state the open ones would be sorted first, all of them in memory.
    let mut select = store.prepare_cached(
        "SELECT destination, 0, count(*) - sum(state), sum(state), min(number) / 65536 FROM deliveries WHERE state < 2 \
         GROUP BY destination \
         UNION ALL \
         SELECT destination, state, count(*), NULL, NULL FROM deliveries WHERE state >= 2 GROUP BY state, destination",
    )?;
    let mut received = store.prepare_cached("SELECT received FROM events WHERE seq = ?")?;
    let mut rows = select.query(())?;
    while let Some(row) = rows.next()? {
        let destination: String = row.get(0)?;
        let place = figures.iter().position(|known| known.destination == destination).unwrap_or_else(|| {
            figures.push(Figures { destination, ..Figures::default() });
            figures.len() - 1
        });
        let Some(entry) = figures.get_mut(place) else { continue };
        entry.set(row.get(1)?, row.get::<_, i64>(2)?.unsigned_abs());
        if let Some(delivering) = row.get::<_, Option<i64>>(3)? {
            entry.set(State::Delivering.code(), delivering.unsigned_abs());
        }
        if let Some(oldest) = row.get::<_, Option<i64>>(4)? {
            let oldest = time_of(received.query_row([oldest], |row| row.get(0))?);
            entry.oldest_pending = Some(oldest);
        }
    }
    figures.sort_unstable_by(|a, b| a.destination.cmp(&b.destination));
    Ok(figures)
}

/// The next events after a number, whether they are older than a time, with all their deliveries, and nothing of them is
/// left to be delivered.
const OLD_EVENTS: &str = "SELECT e.seq, e.received, e.received < ?2 AND NOT EXISTS (\
     SELECT 1 FROM deliveries d WHERE d.number BETWEEN e.seq * 65536 AND e.seq * 65536 + 65535 \
     AND (d.state NOT IN (2, 4) OR d.settled >= ?2)) \
     FROM events e WHERE e.seq > ?1 ORDER BY e.seq LIMIT ?3";
/// The same of those whose bodies are there.
const OLD_BODIES: &str = "SELECT e.seq, e.received, e.received < ?2 AND NOT EXISTS (\
     SELECT 1 FROM deliveries d WHERE d.number BETWEEN e.seq * 65536 AND e.seq * 65536 + 65535 \
     AND (d.state NOT IN (2, 4) OR d.settled >= ?2)) \
     FROM bodies b CROSS JOIN events e ON e.seq = b.event WHERE b.event > ?1 ORDER BY b.event LIMIT ?3";

/// Events that can go, and the number up to which all were looked at: 0 where it is to begin anew.
fn old(store: &Connection, sql: &str, after: i64, before: i64) -> Result<(Vec<i64>, i64)> {
    let mut select = store.prepare_cached(sql)?;
    let mut rows = select.query(params![after, before, MOST_SEEN])?;
    let (mut old, mut seen) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        // Those that follow came later, but for what clocks differ.
        if row.get::<_, i64>(1)? >= before {
            return Ok((old, 0));
        }
        seen = row.get(0)?;
        if row.get(2)? {
            old.push(seen);
        }
        if old.len() >= MOST_DROPPED {
            break;
        }
    }
    Ok((old, seen))
}

-- Times are microseconds since 1970.

-- What this store is told apart by from every other.
CREATE TABLE store (
    identity TEXT NOT NULL
) STRICT;

-- Each event that was accepted, in the order of acceptance.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    webhook TEXT NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    livemode INTEGER NOT NULL,
    account TEXT,
    object TEXT,
    received INTEGER NOT NULL,
    content_type TEXT,
    UNIQUE (id, webhook)
) STRICT;

CREATE TABLE bodies (
    event INTEGER PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;

-- number: its event's seq times 65536, plus its place among the event's deliveries.
-- state: 0 pending, 1 delivering, 2 delivered, 3 dead, 4 discarded.
-- due: 0, or when the next attempt may be made, or when the lease of the one under way ends. The largest number: when another
--      delivery of the same object has ended.
-- attempts: also tells one lease from the next.
-- since: since when time for giving up counts.
CREATE TABLE deliveries (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    destination TEXT NOT NULL,
    object TEXT,
    state INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    due INTEGER NOT NULL,
    since INTEGER NOT NULL,
    settled INTEGER,
    last_error TEXT
) STRICT;

CREATE INDEX deliveries_open ON deliveries (destination, due, state) WHERE state < 2;
CREATE INDEX deliveries_object ON deliveries (destination, object) WHERE state < 2 AND object IS NOT NULL;
CREATE INDEX deliveries_under_way ON deliveries (destination, object, due) WHERE state = 1 AND object IS NOT NULL;
CREATE INDEX deliveries_closed ON deliveries (state, destination) WHERE state >= 2;

-- What was done by hand and stands in no audit log yet.
CREATE TABLE acts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    act TEXT NOT NULL,
    by TEXT NOT NULL,
    delivery TEXT NOT NULL,
    event TEXT NOT NULL,
    destination TEXT NOT NULL
) STRICT;

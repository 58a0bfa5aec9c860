-- What this store is told apart by from every other, and the version of its schema.
CREATE TABLE countersign.store (
    identity text NOT NULL,
    version integer NOT NULL
);

CREATE SEQUENCE countersign.events_seq AS bigint;

-- Each event that was accepted, in the order of acceptance.
CREATE TABLE countersign.events (
    seq bigint PRIMARY KEY,
    webhook text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    livemode boolean NOT NULL,
    account text COLLATE "C",
    object text COLLATE "C",
    received timestamptz NOT NULL,
    content_type text,
    UNIQUE (id, webhook)
);

CREATE TABLE countersign.bodies (
    event bigint PRIMARY KEY,
    body bytea NOT NULL
);
-- They are read once or twice: compressing them costs more than it saves.
ALTER TABLE countersign.bodies ALTER COLUMN body SET STORAGE EXTERNAL;

-- number: its event's seq times 65536, plus its place among the event's deliveries.
-- state: 0 pending, 1 delivering, 2 delivered, 3 dead, 4 discarded.
-- due: when the next attempt may be made, or when the lease of the one under way ends. Infinity: when another delivery of
--      the same object has ended.
-- attempts: also tells one lease from the next.
-- since: since when time for giving up counts.
CREATE TABLE countersign.deliveries (
    number bigint PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    destination text COLLATE "C" NOT NULL,
    object text COLLATE "C",
    state smallint NOT NULL,
    attempts integer NOT NULL,
    due timestamptz NOT NULL,
    since timestamptz NOT NULL,
    settled timestamptz,
    last_error text
);

CREATE INDEX deliveries_open ON countersign.deliveries (destination, due) WHERE state < 2;
CREATE INDEX deliveries_object ON countersign.deliveries (destination, object, number) WHERE state < 2 AND object IS NOT NULL;
CREATE INDEX deliveries_under_way ON countersign.deliveries (destination, object, due) WHERE state = 1 AND object IS NOT NULL;
CREATE INDEX deliveries_closed ON countersign.deliveries (state, destination) WHERE state >= 2;

-- What was done by hand and stands in no audit log yet.
CREATE TABLE countersign.acts (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    act text NOT NULL,
    by text NOT NULL,
    delivery text NOT NULL,
    event text NOT NULL,
    destination text NOT NULL
);

-- Rows come and go all the time: what is left of them is swept up while it is little.
ALTER TABLE countersign.deliveries SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

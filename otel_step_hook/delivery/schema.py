"""The schema of an outbox: its tables, their versions, and the statements that copy its rows into a new file. Pure."""

VERSION = 1  # of the schema, in the file's `user_version`
APPLICATION_ID = 0x0E57E900  # in the file's header: shows that the file is an outbox

SCHEMA = """
CREATE TABLE resource (
    hash TEXT PRIMARY KEY,
    content TEXT NOT NULL  -- JSON: attributes and schema_url
) WITHOUT ROWID;
CREATE TABLE delivery (
    id INTEGER PRIMARY KEY,
    webhook_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,  -- its name
    event TEXT NOT NULL,  -- JSON: the step, with its span context
    resource TEXT NOT NULL,  -- hash
    pipeline TEXT,  -- id of a pipeline in the process that has put the event
    submitted_at REAL NOT NULL,  -- all times in unix seconds
    due_at REAL NOT NULL,  -- of a leased row: when the lease ends
    is_new INTEGER NOT NULL,  -- 1: was never claimed
    attempts INTEGER NOT NULL,
    error_type TEXT NOT NULL,  -- of the last attempt
    body TEXT NOT NULL,  -- the same for every attempt; empty before the first
    owner TEXT,  -- the process that has leased it
    lease INTEGER,  -- number of the lease in that process: an older one changes nothing
    discarded_at REAL,  -- NULL: waits
    redeliveries INTEGER NOT NULL DEFAULT 0,  -- how often it was made due again after it was discarded
    UNIQUE (webhook_id, endpoint)
);
CREATE INDEX delivery_due ON delivery (endpoint, due_at) WHERE discarded_at IS NULL;
CREATE INDEX delivery_new ON delivery (endpoint, id) WHERE discarded_at IS NULL AND is_new;
CREATE INDEX delivery_submitted ON delivery (endpoint, submitted_at) WHERE discarded_at IS NULL;
CREATE INDEX delivery_resource ON delivery (resource);
CREATE INDEX delivery_discarded ON delivery (discarded_at) WHERE discarded_at IS NOT NULL;
CREATE INDEX delivery_kept ON delivery (endpoint, discarded_at) WHERE discarded_at IS NOT NULL;
CREATE INDEX delivery_owner ON delivery (owner) WHERE owner IS NOT NULL;  -- of those that are leased
CREATE TABLE clock (  -- unix seconds at monotonic time 0, for all processes of one boot: the wall clock may jump
    boot TEXT PRIMARY KEY,
    started_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE row_count (  -- kept by triggers: counting a million rows takes long
    endpoint TEXT NOT NULL,
    is_discarded INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    PRIMARY KEY (endpoint, is_discarded)
) WITHOUT ROWID;
CREATE TRIGGER delivery_inserted AFTER INSERT ON delivery BEGIN
    INSERT INTO row_count VALUES (new.endpoint, new.discarded_at IS NOT NULL, 1)
    ON CONFLICT DO UPDATE SET rows = rows + 1;
END;
CREATE TRIGGER delivery_deleted AFTER DELETE ON delivery BEGIN
    UPDATE row_count SET rows = rows - 1
    WHERE endpoint = old.endpoint AND is_discarded = (old.discarded_at IS NOT NULL);
END;
CREATE TRIGGER delivery_changed AFTER UPDATE OF discarded_at ON delivery
WHEN (old.discarded_at IS NULL) <> (new.discarded_at IS NULL) BEGIN
    UPDATE row_count SET rows = rows - 1
    WHERE endpoint = old.endpoint AND is_discarded = (old.discarded_at IS NOT NULL);
    INSERT INTO row_count VALUES (new.endpoint, new.discarded_at IS NOT NULL, 1)
    ON CONFLICT DO UPDATE SET rows = rows + 1;
END;
"""
_ROW = (
    "webhook_id, endpoint, event, resource, pipeline, submitted_at, due_at, is_new, attempts, error_type, body, owner, "
    "lease, discarded_at, redeliveries"
)
_COPIED = "FROM main.delivery WHERE :endpoint IS NULL OR endpoint = :endpoint"
COPY = (
    "INSERT OR IGNORE INTO restored.resource SELECT * FROM main.resource",
    "INSERT OR IGNORE INTO restored.clock SELECT * FROM main.clock",
    f"INSERT OR IGNORE INTO restored.delivery (id, {_ROW}) SELECT id, {_ROW} {_COPIED}",  # leases go by the id
    f"INSERT OR IGNORE INTO restored.delivery ({_ROW}) SELECT {_ROW} {_COPIED}",  # whose id another row has
)
MIGRATIONS: tuple[str, ...] = ()  # the n-th changes version n to n + 1; each statement begins on a line of its own

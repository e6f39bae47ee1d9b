-- The last number that was drawn for a key.
CREATE TABLE {sequence} (
    address TEXT NOT NULL,
    okey BLOB NOT NULL,
    n INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    PRIMARY KEY (address, okey)
) WITHOUT ROWID;

-- How far each key of a consumer has come.
CREATE TABLE {sequence_progress} (
    consumer INTEGER NOT NULL,
    -- Of the source and the ordering key.
    key BLOB NOT NULL,
    source TEXT NOT NULL,
    okey BLOB NOT NULL,
    -- The lowest number that came, and one above the highest.
    first_n INTEGER NOT NULL,
    next_n INTEGER NOT NULL,
    -- Those between them that did not, such as 3-5,9. NULL where nothing came.
    missing TEXT,
    -- What was followed before the producer's counter went back, and the like.
    aside TEXT NOT NULL DEFAULT '',
    -- Where it was last told that the key stands still; 0 if it does not.
    told_at INTEGER NOT NULL DEFAULT 0,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (consumer, key)
) WITHOUT ROWID;
CREATE INDEX main."{prefix}sequence_gaps" ON "{prefix}sequence_progress" (consumer, key) WHERE missing <> '';

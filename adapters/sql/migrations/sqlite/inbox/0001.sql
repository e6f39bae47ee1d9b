CREATE TABLE {consumer} (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL
);

-- The hour of the message's own time stands in front of the key, so that marks are written side by side.
CREATE TABLE {inbox} (
    consumer INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    key BLOB NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (consumer, hour, key)
) WITHOUT ROWID;

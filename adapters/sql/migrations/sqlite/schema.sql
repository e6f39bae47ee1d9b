CREATE TABLE IF NOT EXISTS {schema} (
    component TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    min_code INTEGER NOT NULL,
    applied_at INTEGER NOT NULL
);

-- All text is bytes: collations call `A` and `a`, or `a` and `a `, the same, and TEXT holds 64 KiB.
CREATE TABLE IF NOT EXISTS {outbox} (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    -- -1: not due yet.
    slot SMALLINT NOT NULL,
    address VARBINARY(512) NOT NULL,
    okey VARBINARY(256),
    due_at BIGINT NOT NULL DEFAULT 0,
    attempts INT NOT NULL DEFAULT 0,
    last_error BLOB,
    created_at BIGINT NOT NULL,
    -- To know it, nobody has to fetch them.
    bytes BIGINT AS (LENGTH(head) + LENGTH(data)) STORED,
    head LONGBLOB NOT NULL,
    data LONGBLOB NOT NULL,
    -- With the key, so that rows of held ones are passed by in the index.
    KEY by_slot (slot, address, id, okey),
    KEY by_due (slot, due_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {outbox_parked} (
    id BIGINT NOT NULL PRIMARY KEY,
    slot SMALLINT NOT NULL,
    address VARBINARY(512) NOT NULL,
    okey VARBINARY(256),
    due_at BIGINT NOT NULL,
    attempts INT NOT NULL,
    last_error BLOB,
    created_at BIGINT NOT NULL,
    reason BLOB NOT NULL,
    holds_key TINYINT NOT NULL,
    parked_at BIGINT NOT NULL,
    head LONGBLOB NOT NULL,
    data LONGBLOB NOT NULL,
    KEY by_key (address, okey, holds_key)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- The keys that parked rows hold up.
CREATE TABLE IF NOT EXISTS {outbox_held} (
    address VARBINARY(512) NOT NULL,
    okey VARBINARY(256) NOT NULL,
    PRIMARY KEY (address, okey)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {outbox_paused} (
    address VARBINARY(512) NOT NULL PRIMARY KEY
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- Its row is locked by whoever holds up a key or lifts one: MySQL's LOCK TABLES would commit.
CREATE TABLE IF NOT EXISTS {outbox_turn} (
    id INT NOT NULL PRIMARY KEY
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
INSERT INTO {outbox_turn} (id) VALUES (1) ON DUPLICATE KEY UPDATE id = 1;

CREATE OR REPLACE VIEW {outbox_view} AS
SELECT id, slot, CONVERT(address USING utf8mb4) AS address, CONVERT(okey USING utf8mb4) AS okey,
    CONVERT(head USING utf8mb4) AS head, LENGTH(data) AS data_bytes, attempts,
    CONVERT(last_error USING utf8mb4) AS last_error,
    CASE WHEN due_at = 0 THEN NULL ELSE TIMESTAMP('1970-01-01') + INTERVAL due_at MICROSECOND END AS due_at,
    TIMESTAMP('1970-01-01') + INTERVAL created_at MICROSECOND AS created_at
FROM {outbox};

CREATE OR REPLACE VIEW {outbox_parked_view} AS
SELECT id, slot, CONVERT(address USING utf8mb4) AS address, CONVERT(okey USING utf8mb4) AS okey,
    CONVERT(head USING utf8mb4) AS head, LENGTH(data) AS data_bytes, attempts,
    CONVERT(last_error USING utf8mb4) AS last_error, CONVERT(reason USING utf8mb4) AS reason, holds_key,
    TIMESTAMP('1970-01-01') + INTERVAL created_at MICROSECOND AS created_at,
    TIMESTAMP('1970-01-01') + INTERVAL parked_at MICROSECOND AS parked_at
FROM {outbox_parked};

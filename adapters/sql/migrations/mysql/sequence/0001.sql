-- The last number that was drawn for a key.
CREATE TABLE IF NOT EXISTS {sequence} (
    address VARBINARY(512) NOT NULL,
    okey VARBINARY(256) NOT NULL,
    n BIGINT NOT NULL,
    used_at BIGINT NOT NULL,
    PRIMARY KEY (address, okey)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- How far each key of a consumer has come.
CREATE TABLE IF NOT EXISTS {sequence_progress} (
    consumer INT NOT NULL,
    -- Of the source and the ordering key.
    `key` BINARY(16) NOT NULL,
    source VARBINARY(1024) NOT NULL,
    okey VARBINARY(256) NOT NULL,
    -- The lowest number that came, and one above the highest.
    first_n BIGINT NOT NULL,
    next_n BIGINT NOT NULL,
    -- Those between them that did not, such as 3-5,9. NULL where nothing came.
    missing BLOB,
    -- What was followed before the producer's counter went back, and the like.
    aside VARBINARY(4096) NOT NULL DEFAULT '',
    -- Where it was last told that the key stands still; 0 if it does not.
    told_at BIGINT NOT NULL DEFAULT 0,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (consumer, `key`)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

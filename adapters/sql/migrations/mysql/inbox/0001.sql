CREATE TABLE IF NOT EXISTS {consumer} (
    id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARBINARY(512) NOT NULL,
    source VARBINARY(1024) NOT NULL,
    UNIQUE KEY by_name (name)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- The hour of the message's own time stands in front of the key, so that marks are written side by side.
CREATE TABLE IF NOT EXISTS {inbox} (
    consumer INT NOT NULL,
    hour INT NOT NULL,
    `key` BINARY(16) NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (consumer, hour, `key`),
    -- For the sweeper. MySQL has no index of some rows alone.
    KEY by_age (consumer, at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

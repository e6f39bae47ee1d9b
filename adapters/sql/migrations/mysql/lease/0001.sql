-- MySQL commits after each statement that makes a table: all of these can be run again after a crash between them.
CREATE TABLE IF NOT EXISTS {lease} (
    name VARBINARY(255) NOT NULL PRIMARY KEY,
    owner VARBINARY(255) NOT NULL,
    token BIGINT NOT NULL,
    until_at BIGINT NOT NULL,
    term BIGINT NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS {member} (
    grp VARBINARY(255) NOT NULL,
    member VARBINARY(255) NOT NULL,
    until_at BIGINT NOT NULL,
    term BIGINT NOT NULL,
    PRIMARY KEY (grp, member)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

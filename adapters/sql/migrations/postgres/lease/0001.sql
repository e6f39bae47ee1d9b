CREATE TABLE {lease} (
    name TEXT COLLATE "C" PRIMARY KEY,
    owner TEXT NOT NULL,
    token BIGINT NOT NULL,
    until_at BIGINT NOT NULL,
    term BIGINT NOT NULL
);

CREATE TABLE {member} (
    grp TEXT COLLATE "C" NOT NULL,
    member TEXT COLLATE "C" NOT NULL,
    until_at BIGINT NOT NULL,
    term BIGINT NOT NULL,
    PRIMARY KEY (grp, member)
);

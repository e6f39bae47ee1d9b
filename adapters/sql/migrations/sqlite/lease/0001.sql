CREATE TABLE {lease} (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    token INTEGER NOT NULL,
    until_at INTEGER NOT NULL,
    term INTEGER NOT NULL
);

CREATE TABLE {member} (
    grp TEXT NOT NULL,
    member TEXT NOT NULL,
    until_at INTEGER NOT NULL,
    term INTEGER NOT NULL,
    PRIMARY KEY (grp, member)
) WITHOUT ROWID;

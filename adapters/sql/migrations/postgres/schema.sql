CREATE TABLE IF NOT EXISTS {schema} (
    component TEXT COLLATE "C" PRIMARY KEY,
    version INT NOT NULL,
    min_code INT NOT NULL,
    applied_at BIGINT NOT NULL
);

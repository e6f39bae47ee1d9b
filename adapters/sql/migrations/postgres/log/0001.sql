-- One row: the number that this log has among those of the database. Locks of appenders carry it.
CREATE TABLE {log} (
    id SMALLINT PRIMARY KEY CHECK (id = 1),
    tag INT NOT NULL CHECK (tag BETWEEN 1 AND 32767)
);

CREATE TABLE {log_stream} (
    stream TEXT COLLATE "C" PRIMARY KEY,
    version BIGINT NOT NULL,
    -- 0 open, 1 archived, 2 deleted.
    state SMALLINT NOT NULL DEFAULT 0
) WITH (fillfactor = 80);
ALTER TABLE {log_stream} SET (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

CREATE TABLE {log_event} (
    pos BIGINT GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME {log_position} CACHE 1) PRIMARY KEY,
    stream TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    event_id TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    written_at BIGINT NOT NULL,
    head TEXT NOT NULL,
    data BYTEA NOT NULL,
    UNIQUE (stream, version),
    UNIQUE (stream, event_id)
);

-- A cache: states as they were, which the events make again.
CREATE TABLE {log_snapshot} (
    stream TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    schema_version BIGINT NOT NULL,
    version BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (stream, kind)
);

CREATE TABLE {log_subscription} (
    name TEXT COLLATE "C" PRIMARY KEY,
    -- The last event that was handled.
    pos BIGINT NOT NULL,
    -- Rises whenever somebody moves or stops it by hand.
    token BIGINT NOT NULL DEFAULT 0,
    -- Since when it stands still, and why; NULL while it runs.
    stopped_at BIGINT,
    stopped_why TEXT,
    -- The event that could not be handled.
    stopped_on BIGINT
) WITH (fillfactor = 50);

-- The number is one that no other log of this database has. Comments of sequences say which are taken, since they can be
-- read whatever the schema and its rights are.
DO $polybus$
DECLARE
    free INT;
BEGIN
    -- One migration at a time in a database, also where these statements are run by hand.
    PERFORM pg_advisory_xact_lock(31647709075240307);
    SELECT min(n) INTO free FROM generate_series(1, 32767) n
        WHERE 'polybus log ' || n NOT IN (
            SELECT d.description FROM pg_description d JOIN pg_class c ON c.oid = d.objoid AND c.relkind = 'S'
            WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND d.description LIKE 'polybus log %');
    INSERT INTO {log} (id, tag) VALUES (1, free);
    EXECUTE $comment$COMMENT ON SEQUENCE {log_position} IS $comment$ || quote_literal('polybus log ' || free);
END
$polybus$;

-- Appends to one stream. expected is its last version, 0 for a stream that is not there, -1 for anything, -2 for one that
-- has an event. outcome is 0 for written, 1 for repeated, 2 for a conflict: then first_version is the version that was
-- found, and places the stream's state.
--
-- The order of its steps is what readers rely on: first the floor, then the stream's lock, then positions.
CREATE FUNCTION {log_append} (
    of_stream TEXT, expected BIGINT, ids TEXT[], kinds TEXT[], heads TEXT[], payloads BYTEA[], written BIGINT
) RETURNS TABLE (outcome INT, first_version BIGINT, places BIGINT[]) LANGUAGE plpgsql AS $polybus$
DECLARE
    n BIGINT := cardinality(ids);
    log_tag BIGINT;
    setting TEXT;
    this_one TEXT := pg_current_xact_id()::text;
    last BIGINT;
    found_state SMALLINT;
    found_ids TEXT[];
BEGIN
    -- Once in a transaction: until it ends, nobody reads behind what was the last position before its first one. A
    -- savepoint that is rolled back takes both away, the lock and the setting.
    SELECT l.tag INTO STRICT log_tag FROM {log} l;
    setting := 'polybus.floor_' || log_tag;
    IF current_setting(setting, true) IS DISTINCT FROM this_one THEN
        SELECT CASE WHEN p.is_called THEN p.last_value ELSE 0 END INTO STRICT last FROM {log_position} p;
        PERFORM pg_advisory_xact_lock_shared(log_tag << 48 | last);
        PERFORM set_config(setting, this_one, true);
    END IF;

    LOOP
        IF expected <> 0 THEN
            UPDATE {log_stream} s SET version = s.version + n
                WHERE s.stream = of_stream AND s.state = 0 AND (expected < 0 OR s.version = expected)
                RETURNING s.version - n + 1 INTO first_version;
            EXIT WHEN FOUND;
        END IF;
        IF expected IN (0, -1) THEN
            INSERT INTO {log_stream} (stream, version) VALUES (of_stream, n) ON CONFLICT (stream) DO NOTHING;
            IF FOUND THEN
                first_version := 1;
                EXIT;
            END IF;
        END IF;
        SELECT s.version, s.state INTO last, found_state FROM {log_stream} s WHERE s.stream = of_stream FOR SHARE;
        -- It was made meanwhile.
        CONTINUE WHEN FOUND AND found_state = 0 AND expected = -1;
        first_version := NULL;
        EXIT;
    END LOOP;

    IF first_version > 1 AND EXISTS (
        SELECT FROM {log_event} e WHERE e.stream = of_stream AND e.event_id = ANY (ids)) THEN
        UPDATE {log_stream} s SET version = s.version - n WHERE s.stream = of_stream
            RETURNING s.version, s.state INTO last, found_state;
        first_version := NULL;
    END IF;

    IF first_version IS NULL THEN
        SELECT array_agg(e.event_id ORDER BY e.version), min(e.version), array_agg(e.pos ORDER BY e.version)
            INTO found_ids, first_version, places
            FROM {log_event} e WHERE e.stream = of_stream AND e.event_id = ANY (ids);
        -- Versions have no gaps.
        IF found_ids = ids AND (expected < 0 OR first_version = expected + 1) AND EXISTS (
            SELECT FROM {log_event} e
            WHERE e.stream = of_stream AND e.version = first_version + n - 1 AND e.event_id = ids[n]) THEN
            outcome := 1;
        ELSE
            outcome := 2;
            first_version := coalesce(last, 0);
            places := ARRAY[coalesce(found_state, 0)];
        END IF;
        RETURN NEXT;
        RETURN;
    END IF;

    outcome := 0;
    WITH made AS (
        INSERT INTO {log_event} (stream, version, event_id, kind, written_at, head, data)
        SELECT of_stream, first_version + r.place - 1, r.id, r.kind, written, r.head, r.payload
        FROM unnest(ids, kinds, heads, payloads) WITH ORDINALITY AS r (id, kind, head, payload, place)
        ORDER BY r.place
        RETURNING pos)
    SELECT array_agg(m.pos ORDER BY m.pos) INTO places FROM made m;
    RETURN NEXT;
END
$polybus$;

//! The ledger's tables.
//!
//! Texts throughout, so that a person with `sqlite3` can read them; times are milliseconds since
//! 1970.

use crate::sqlite::Schema;

pub(super) const SCHEMA: Schema = Schema {
    name: "ledger",
    durable: true,
    application: 0x62_66_6c_67,
    migrations: &[
        VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6, VERSION_7, VERSION_8,
        VERSION_9, VERSION_10, VERSION_11, VERSION_12,
    ],
    fill: super::chain::seal,
};

const VERSION_1: &str = "
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        route TEXT NOT NULL,
        source TEXT NOT NULL,
        tag TEXT NOT NULL,
        origin TEXT NOT NULL,
        repository TEXT NOT NULL,
        destination_tag TEXT NOT NULL,
        UNIQUE (route, source, tag, origin, repository, destination_tag)
    ) STRICT;
    CREATE INDEX jobs_by_source ON jobs (source);
    CREATE INDEX jobs_by_repository ON jobs (repository);

    -- a row for each change of a job's result; never deleted, and never changed but that an old one loses its texts
    CREATE TABLE outcomes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job INTEGER NOT NULL REFERENCES jobs (id),
        at INTEGER NOT NULL,
        run_id TEXT NOT NULL,
        host TEXT NOT NULL,
        config_hash TEXT NOT NULL,
        version TEXT NOT NULL,
        settled TEXT NOT NULL  -- JSON, as in reports
    ) STRICT;
    CREATE INDEX outcomes_by_job ON outcomes (job, id);

    -- the digest that each place names by our hand
    CREATE TABLE written (
        origin TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        digest TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (origin, repository, tag)
    ) STRICT, WITHOUT ROWID;

    -- digests that a place may name by our hand: announced, and not known to have been written or replaced since
    CREATE TABLE intents (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        origin TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        digest TEXT NOT NULL,
        UNIQUE (origin, repository, tag, digest)
    ) STRICT;
";

const VERSION_2: &str = "
    -- both sides named the digest, and nobody is known to have written it by our hand
    ALTER TABLE written ADD COLUMN agreed INTEGER NOT NULL DEFAULT 0;

    -- production digests that were reported as drift or existing: staging that comes to name one of them too settles nothing
    CREATE TABLE reported (
        origin TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (origin, repository, tag)
    ) STRICT, WITHOUT ROWID;
    INSERT OR REPLACE INTO reported (origin, repository, tag, digest)
        SELECT jobs.origin, jobs.repository, jobs.destination_tag, json_extract(newest.settled, '$.previous_digest')
        FROM jobs JOIN outcomes newest ON newest.id = (SELECT max(id) FROM outcomes WHERE job = jobs.id)
        WHERE json_extract(newest.settled, '$.result') IN ('drift', 'existing')
            AND json_extract(newest.settled, '$.previous_digest') IS NOT NULL;
";

const VERSION_3: &str = "
    -- what the place named when the digest was announced; null where that is not known, or where it named nothing
    ALTER TABLE intents ADD COLUMN replaces TEXT;
";

const VERSION_4: &str = "
    -- names this ledger; one row
    CREATE TABLE identity (id TEXT NOT NULL) STRICT;

    -- what happened; never deleted, and never changed but that an old row loses its texts
    CREATE TABLE rows (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        job INTEGER REFERENCES jobs (id),
        at INTEGER NOT NULL,
        run_id TEXT NOT NULL,
        host TEXT NOT NULL,
        config_hash TEXT NOT NULL,
        version TEXT NOT NULL,
        content TEXT NOT NULL,  -- JSON, as in reports
        whole TEXT NOT NULL,  -- the hash of the content as it was recorded
        kept TEXT NOT NULL,  -- the hash of the content without its texts
        hash TEXT NOT NULL  -- covers all of the row, and the hash of the row before
    ) STRICT;
    INSERT INTO rows (id, kind, job, at, run_id, host, config_hash, version, content, whole, kept, hash)
        SELECT id, 'outcome', job, at, run_id, host, config_hash, version, settled, '', '', '' FROM outcomes;
    DROP TABLE outcomes;
    CREATE INDEX rows_by_job ON rows (job, id);
";

const VERSION_5: &str = "
    -- one row: the last row that was read to drop its texts; the rows up to it are done
    CREATE TABLE texts_dropped (read_to INTEGER NOT NULL) STRICT;
    INSERT INTO texts_dropped (read_to) VALUES (0);
";

const VERSION_6: &str = "
    -- decisions among the rows
    CREATE TABLE decisions (
        row INTEGER PRIMARY KEY REFERENCES rows (id),
        repository TEXT,  -- where the target names exactly one
        tag TEXT,
        ended_by INTEGER REFERENCES rows (id)  -- null: in force until its own end
    ) STRICT;
    CREATE INDEX decisions_in_force ON decisions (row) WHERE ended_by IS NULL;

    -- rises with each decision
    ALTER TABLE identity ADD COLUMN decisions INTEGER NOT NULL DEFAULT 0;
";

const VERSION_7: &str = "
    -- when staging was first seen to name a digest, for the gate min_age
    CREATE TABLE first_seen (
        origin TEXT NOT NULL,
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (origin, repository, digest)
    ) STRICT, WITHOUT ROWID;
";

const VERSION_8: &str = "
    -- the names that events gave for pushes of a digest, for the gate approval
    CREATE TABLE pushers (
        origin TEXT NOT NULL,
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        pusher TEXT NOT NULL,
        PRIMARY KEY (origin, repository, digest, pusher)
    ) STRICT, WITHOUT ROWID;
";

const VERSION_9: &str = "
    -- the newest row of each job and its result: what is listed must not be searched among all rows
    ALTER TABLE jobs ADD COLUMN newest INTEGER REFERENCES rows (id);
    ALTER TABLE jobs ADD COLUMN result TEXT;
    UPDATE jobs SET newest = (SELECT max(id) FROM rows WHERE job = jobs.id);
    UPDATE jobs SET result = (SELECT json_extract(content, '$.result') FROM rows WHERE id = jobs.newest);
    CREATE INDEX jobs_by_newest ON jobs (newest);
    CREATE INDEX jobs_by_result ON jobs (result, newest);
";

const VERSION_10: &str = "
    -- namings of sets that have begun and are not over; JSON
    CREATE TABLE set_namings (
        name TEXT NOT NULL,
        tag TEXT NOT NULL,
        content TEXT NOT NULL,
        PRIMARY KEY (name, tag)
    ) STRICT, WITHOUT ROWID;
";

const VERSION_11: &str = "
    -- the last row that each receiver of notifications was told of, by a hash of its address and its events
    CREATE TABLE told (
        receiver TEXT PRIMARY KEY,
        row INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

const VERSION_12: &str = "
    -- the indexes (whole) from which manifests were chosen for a platform, from before they are named on
    CREATE TABLE chosen (
        origin TEXT NOT NULL,
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        whole TEXT NOT NULL,
        PRIMARY KEY (origin, repository, digest, whole)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX chosen_by_whole ON chosen (whole);
";

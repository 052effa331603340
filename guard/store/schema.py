"""The tables of the ledger, as a list of numbered steps from nothing to today's shape.

A step is never edited once released: a new one is appended. `guard/store/ledger.py` runs them after a verified copy
and refuses a ledger from the future. What is recorded where:

    drops     every file ever seen to settle, its journey and its verdict (`heirloom why`)
    files     admitted originals by sha256
    jobs      plans that were accepted; `plan` is frozen when the job starts
    versions  the immutable folders in models/; `record` is their version.json
    lines     branches with one active tip
    learnt    which examples of which file a version learnt under which objective (bitmap over ordinals)
    held_out_losses   how well each version still knows each set (`guard/store/matrix.py`)
    indexes   retrieval indexes;  backups: what the vault holds and when it was read back
    events    the audit trail, hash chained
    evaluations  what versions were measured to be worth (`heirloom eval`); only ever added to
"""

from __future__ import annotations

__all__ = ["SCHEMA_VERSION", "STEPS"]

_STEP_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY, utc TEXT NOT NULL, boot_id TEXT NOT NULL, actor TEXT NOT NULL, verb TEXT NOT NULL,
    subject TEXT NOT NULL, payload TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;

CREATE TABLE drops (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, source BLOB NOT NULL, origin TEXT NOT NULL,
    mode TEXT NOT NULL, state TEXT NOT NULL, forced_kind TEXT, options TEXT NOT NULL DEFAULT '{}', sha256 TEXT,
    reason TEXT NOT NULL DEFAULT '', verdict TEXT NOT NULL DEFAULT '{}', returned_to TEXT,
    attempts INTEGER NOT NULL DEFAULT 0, seen TEXT NOT NULL, updated TEXT NOT NULL
) STRICT;
CREATE INDEX drops_by_sha256 ON drops (sha256);
CREATE INDEX drops_by_name ON drops (name);
CREATE INDEX drops_open ON drops (state) WHERE state IN ('claiming', 'claimed', 'admitting', 'returning');

CREATE TABLE files (
    sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    examples INTEGER NOT NULL, tokens_approx INTEGER NOT NULL, description TEXT NOT NULL DEFAULT '',
    first_seen TEXT NOT NULL, current_doc INTEGER NOT NULL DEFAULT 0, record TEXT NOT NULL
) STRICT;
CREATE INDEX files_by_name ON files (name);

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, state TEXT NOT NULL, position INTEGER NOT NULL,
    stage TEXT NOT NULL, line TEXT NOT NULL, base_id INTEGER, slug TEXT NOT NULL, wanted_id INTEGER,
    output_id INTEGER, request TEXT NOT NULL DEFAULT '{}', plan TEXT NOT NULL DEFAULT '{}',
    reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0, progress INTEGER NOT NULL DEFAULT 0,
    created TEXT NOT NULL, updated TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, position);
CREATE TABLE job_files (
    job_id INTEGER NOT NULL REFERENCES jobs (id), ordinal INTEGER NOT NULL, sha256 TEXT NOT NULL REFERENCES files (sha256),
    PRIMARY KEY (job_id, ordinal)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_files_by_sha256 ON job_files (sha256);

CREATE TABLE versions (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, parent_id INTEGER REFERENCES versions (id), line TEXT NOT NULL,
    state TEXT NOT NULL, job_id INTEGER, created TEXT NOT NULL, tokens INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER NOT NULL DEFAULT 0, sums_sha256 TEXT NOT NULL, record TEXT NOT NULL
) STRICT;
CREATE INDEX versions_by_parent ON versions (parent_id);
CREATE TABLE version_inputs (
    version_id INTEGER NOT NULL REFERENCES versions (id), input_id INTEGER NOT NULL REFERENCES versions (id),
    role TEXT NOT NULL, PRIMARY KEY (version_id, input_id, role)
) STRICT, WITHOUT ROWID;
CREATE TABLE lines (
    name TEXT PRIMARY KEY, tip_id INTEGER NOT NULL REFERENCES versions (id), created TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE learnt (
    version_id INTEGER NOT NULL REFERENCES versions (id), sha256 TEXT NOT NULL REFERENCES files (sha256),
    objective TEXT NOT NULL, count INTEGER NOT NULL, bitmap TEXT NOT NULL,
    PRIMARY KEY (version_id, sha256, objective)
) STRICT, WITHOUT ROWID;
CREATE INDEX learnt_by_sha256 ON learnt (sha256);

CREATE TABLE indexes (
    id INTEGER PRIMARY KEY, state TEXT NOT NULL, created TEXT NOT NULL, record TEXT NOT NULL
) STRICT;
CREATE TABLE backups (
    what TEXT NOT NULL, name TEXT NOT NULL, vault TEXT NOT NULL, sums_sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    verified TEXT NOT NULL, other_device INTEGER NOT NULL, PRIMARY KEY (what, name, vault)
) STRICT, WITHOUT ROWID;
"""

# What the status asks every second, in a home that has seen a hundred thousand files.
_STEP_2 = """
CREATE INDEX drops_stayed ON drops (state) WHERE mode = 'copy' AND returned_to IS NULL;
CREATE INDEX events_of_copies ON events (seq) WHERE verb = 'backup.verified';
"""

# What `heirloom eval` measured: as JSON options, figures, and what they were made with.
_STEP_EVALUATIONS = """
CREATE TABLE evaluations (
    id INTEGER PRIMARY KEY, version_id INTEGER NOT NULL REFERENCES versions (id), kind TEXT NOT NULL, set_name TEXT NOT NULL,
    set_id TEXT NOT NULL, options TEXT NOT NULL, figures TEXT NOT NULL, made_with TEXT NOT NULL, sums_sha256 TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT;
CREATE INDEX evaluations_by_version ON evaluations (version_id, set_id);
"""

# The forgetting matrix, filled from what the versions sealed of themselves. A figure that is none (null) has no row.
_STEP_LOSSES = """
CREATE TABLE held_out_losses (
    version_id INTEGER NOT NULL REFERENCES versions (id), dataset TEXT NOT NULL, split TEXT NOT NULL, name TEXT NOT NULL,
    role TEXT NOT NULL, stage TEXT NOT NULL, loss REAL NOT NULL, parent_loss REAL, tokens INTEGER NOT NULL,
    loss_tokens INTEGER NOT NULL, examples INTEGER NOT NULL, PRIMARY KEY (version_id, dataset, split)
) STRICT, WITHOUT ROWID;
CREATE INDEX held_out_losses_by_set ON held_out_losses (split, dataset, version_id);
INSERT OR IGNORE INTO held_out_losses
    SELECT v.id, coalesce(json_extract(e.value, '$.dataset'), ''), coalesce(json_extract(e.value, '$.split'), 'val'),
           coalesce(json_extract(e.value, '$.name'), ''), coalesce(json_extract(e.value, '$.role'), ''),
           coalesce(json_extract(e.value, '$.stage'), ''), json_extract(e.value, '$.child_loss'),
           CASE WHEN json_type(e.value, '$.parent_loss') IN ('real', 'integer') THEN json_extract(e.value, '$.parent_loss') END,
           coalesce(json_extract(e.value, '$.tokens'), 0), coalesce(json_extract(e.value, '$.loss_tokens'), 0),
           coalesce(json_extract(e.value, '$.examples'), 0)
    FROM versions v, json_each(v.record, '$.metrics.evaluation') e
    WHERE json_type(e.value, '$.child_loss') IN ('real', 'integer');
"""

STEPS: tuple[str, ...] = (_STEP_1, _STEP_2, _STEP_EVALUATIONS, _STEP_LOSSES)
SCHEMA_VERSION = len(STEPS)

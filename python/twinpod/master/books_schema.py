"""The tables of the books, and the constraints that make double work impossible at the database itself.

- `one_live_group`: a prompt has at most one living group a pass over the data set.
- `one_training`: a prompt is trained at most once a pass on the surviving line.
- `one_segment`: a trajectory has at most one surviving segment of each index.
- `segments_join`: a surviving segment begins where the one before it ends: no token is stored twice, none is missing.
- `one_commit`: an iteration is committed at most once on the surviving line.

Token ids are little-endian int32, log-probs little-endian float32, one after the other. `rolled_back` rows belong to
a line that a resume gave up; they stay for the record and count for nothing.

Every question that a run asks again and again is answered by an index or a counter, so that it costs the same in
iteration 1,000 as in 1: `again` holds the prompts to be begun once more, the counter `opened` in `meta` how many were
begun at all, `trained` what a training adds to its prompt's history.
"""

SCHEMA_VERSION = 4  # PRAGMA user_version

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE data (                             -- the data set as the run began with it, and what came later
    first INTEGER PRIMARY KEY,                  -- place of the first item, in the source's order
    digests BLOB NOT NULL,                      -- 16 bytes an item
    taken INTEGER NOT NULL                      -- groups that had been begun when they came
);
CREATE TABLE prompts (
    prompt_id INTEGER PRIMARY KEY,
    text TEXT NOT NULL, answer TEXT NOT NULL, difficulty REAL NOT NULL, tokens BLOB NOT NULL,
    times_trained INTEGER NOT NULL DEFAULT 0,   -- on the surviving line, over all passes
    tries INTEGER NOT NULL DEFAULT 0, reward_sum REAL NOT NULL DEFAULT 0, right_count INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE groups (
    group_id INTEGER PRIMARY KEY AUTOINCREMENT,
    prompt_id INTEGER NOT NULL REFERENCES prompts, pass INTEGER NOT NULL,
    size INTEGER NOT NULL, born INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'finished', 'trained', 'dropped', 'rolled-back'))
);
CREATE UNIQUE INDEX one_live_group ON groups (prompt_id, pass) WHERE state IN ('open', 'finished', 'trained');
CREATE INDEX groups_waiting ON groups (born, group_id) WHERE state IN ('open', 'finished');
CREATE INDEX groups_dropped ON groups (born) WHERE state = 'dropped';
CREATE TABLE again (                            -- prompts whose groups were all given up, to be begun once more
    prompt_id INTEGER NOT NULL, pass INTEGER NOT NULL,
    since INTEGER NOT NULL,                     -- the first of those groups: the oldest comes first
    tries INTEGER NOT NULL,                     -- groups given up so far
    waiting INTEGER NOT NULL,                   -- 1: to be begun; 0: a group of it lives
    PRIMARY KEY (prompt_id, pass)
) WITHOUT ROWID;
CREATE INDEX again_waiting ON again (since) WHERE waiting = 1;
CREATE TABLE trajectories (
    trajectory_id INTEGER PRIMARY KEY,
    group_id INTEGER NOT NULL REFERENCES groups,
    stop TEXT NOT NULL DEFAULT '',              -- of the last segment; empty before the first
    terminal INTEGER NOT NULL DEFAULT 0,
    reward REAL,                                -- NULL until scored
    correct INTEGER NOT NULL DEFAULT 0,         -- wholly right, by the reward's own word
    masked TEXT NOT NULL DEFAULT '',            -- why no judge could score it; empty otherwise
    outcome TEXT CHECK (outcome IN ('scored', 'masked', 'lost', 'dropped')),  -- how it ended; NULL until then
    parent INTEGER REFERENCES trajectories,     -- the trajectory that this one was forked from, and after how many
    parent_position INTEGER,                    -- of its tokens; both NULL without a fork
    session TEXT                                -- sandbox session or snapshot that a paused trajectory goes on with
);
CREATE INDEX trajectories_by_group ON trajectories (group_id);
CREATE INDEX trajectories_by_parent ON trajectories (parent);
CREATE TABLE segments (
    segment_id INTEGER PRIMARY KEY,
    trajectory_id INTEGER NOT NULL REFERENCES trajectories,
    idx INTEGER NOT NULL, start INTEGER NOT NULL, count INTEGER NOT NULL CHECK (count > 0),
    version INTEGER NOT NULL, iteration INTEGER NOT NULL,
    pod TEXT NOT NULL, stop TEXT NOT NULL,
    kind TEXT NOT NULL DEFAULT 'generated' CHECK (kind IN ('generated', 'given')),
    rolled_back INTEGER NOT NULL DEFAULT 0,
    tokens BLOB NOT NULL, logps BLOB NOT NULL,  -- last: a row is read up to the column that is asked for. Given tokens
                                                -- have no log-probs and are never in the loss
    CHECK (length(tokens) = 4 * count AND length(logps) = CASE kind WHEN 'given' THEN 0 ELSE 4 * count END)
);
CREATE UNIQUE INDEX one_segment ON segments (trajectory_id, idx) WHERE rolled_back = 0;
CREATE INDEX segments_by_trajectory ON segments (trajectory_id);
CREATE INDEX segments_by_iteration ON segments (iteration, trajectory_id, count) WHERE rolled_back = 0;
CREATE INDEX segments_by_version ON segments (version, count) WHERE rolled_back = 0;
CREATE TRIGGER segments_join BEFORE INSERT ON segments
WHEN NEW.rolled_back = 0 AND NEW.start != coalesce((
    SELECT start + count FROM segments WHERE trajectory_id = NEW.trajectory_id AND rolled_back = 0
    ORDER BY idx DESC LIMIT 1
), 0)
BEGIN SELECT raise(ABORT, 'segment does not begin where the trajectory ends'); END;
CREATE TABLE archived (                         -- what was counted of groups that moved to Parquet files
    kind TEXT NOT NULL, name TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TABLE archived_segments (
    iteration INTEGER NOT NULL, pod TEXT NOT NULL, version INTEGER NOT NULL,
    segments INTEGER NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (iteration, pod, version)
) WITHOUT ROWID;
CREATE TABLE iterations (
    id INTEGER PRIMARY KEY,
    iteration INTEGER NOT NULL, line INTEGER NOT NULL, epoch INTEGER NOT NULL, version INTEGER NOT NULL,
    snapshot TEXT NOT NULL,
    groups INTEGER NOT NULL, samples INTEGER NOT NULL,
    reward REAL, right REAL, length REAL,
    tokens_generated INTEGER NOT NULL, tokens_trained INTEGER NOT NULL,
    loss REAL, weights_gap REAL, stats TEXT NOT NULL,
    settings TEXT NOT NULL DEFAULT '',          -- JSON of the settings that it ran under
    generate_s REAL NOT NULL, train_s REAL NOT NULL, weights_s REAL NOT NULL, switch_s REAL NOT NULL,
    snapshot_s REAL NOT NULL, other_s REAL NOT NULL,
    committed_at REAL NOT NULL, rolled_back INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX one_commit ON iterations (iteration) WHERE rolled_back = 0;
CREATE TABLE trained (
    prompt_id INTEGER NOT NULL, pass INTEGER NOT NULL, group_id INTEGER NOT NULL,  -- may be archived
    iteration INTEGER NOT NULL, line INTEGER NOT NULL, rolled_back INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL, reward_sum REAL NOT NULL, right_count INTEGER NOT NULL  -- scored trajectories of the group
);
CREATE UNIQUE INDEX one_training ON trained (prompt_id, pass) WHERE rolled_back = 0;
CREATE INDEX trained_by_iteration ON trained (iteration) WHERE rolled_back = 0;
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, iteration INTEGER NOT NULL, epoch INTEGER NOT NULL, digest TEXT NOT NULL,
    rolled_back INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE counters (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE evaluations (
    iteration INTEGER NOT NULL, prompt_id INTEGER NOT NULL, tokens BLOB NOT NULL, answer TEXT NOT NULL,
    reward REAL, correct INTEGER NOT NULL, masked TEXT NOT NULL,
    PRIMARY KEY (iteration, prompt_id)
) WITHOUT ROWID;
CREATE VIEW trajectory_states AS SELECT t.trajectory_id, t.group_id, CASE
    WHEN g.state = 'dropped' THEN 'dropped'
    WHEN g.state = 'trained' AND t.masked != '' THEN 'masked'
    WHEN g.state = 'trained' THEN 'trained'
    WHEN t.terminal = 1 THEN 'finished'
    WHEN t.stop != '' THEN 'saved'
    ELSE 'begun' END AS state
FROM trajectories t JOIN groups g USING (group_id);
CREATE VIEW chains AS SELECT trajectory_id, group_id, count(DISTINCT s.version) AS versions,
    min(idx) != 0 OR max(idx) != count(*) - 1 OR min(start) != 0 OR max(start + count) != sum(count) AS broken
FROM trajectories JOIN segments s USING (trajectory_id) WHERE s.rolled_back = 0 GROUP BY trajectory_id;
CREATE VIEW all_segments AS                     -- of the surviving line, those in the archive included
SELECT iteration, pod, version, count(*) AS segments, sum(count) AS tokens FROM segments WHERE rolled_back = 0
GROUP BY 1, 2, 3 UNION ALL SELECT iteration, pod, version, segments, tokens FROM archived_segments;
"""

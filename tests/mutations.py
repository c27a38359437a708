"""What the mutants change: each takes one rule of the protocol out of the code.

`old` has to stand in its file exactly once.
"""
# ruff: noqa: E501 - the texts stand as they stand in the code

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old` in `file` becomes `new`; then a test that `tests` (a pytest -k expression) selects must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


CLAIMING, SUBMITTING = "ledger/claiming.py", "ledger/submitting.py"
STEPPING = "ledger/stepping.py"
SWEEPING, OPERATING, DIALECTS = "ledger/sweeping.py", "ledger/operating.py", "ledger/dialects.py"
MUTANTS = [
    # 1: the token
    Mutant(
        "rule 1: the proof of a claim forgets the token (statement)", CLAIMING,
        '            c.claim_token == given("token", sa.String),\n', "", "rule_01",
    ),
    Mutant(
        "rule 1: the proof of a claim forgets the token (locked row)", CLAIMING,
        "row.claims == claim.claims and row.claim_token == claim.token\n", "row.claims == claim.claims\n", "rule_01",
    ),
    Mutant(
        "rule 1: the fence check is gone (statement)", CLAIMING,
        """            c.claims == given("claims", sa.Integer),
            c.claim_token == given("token", sa.String),
""", "", "rule_01",
    ),
    Mutant(
        "rule 1: the fence check is gone (locked row)", CLAIMING,
        " and row.claims == claim.claims and row.claim_token == claim.token\n", "\n", "rule_01",
    ),
    Mutant(
        "rule 1: a settle is taken for one's own by its number", CLAIMING,
        "row.state != states.RUNNING and row.claim_token == claim.token and", "row.state != states.RUNNING and", "rule_01",
    ),
    Mutant(
        "rule 1: a running row is taken for one's own without the token", CLAIMING,
        "if row.state == states.RUNNING and row.claim_token == token:", "if row.state == states.RUNNING:", "rule_01",
    ),
    Mutant("rule 1: renew forgets the token", CLAIMING, "c.claim_token.in_(list(tokens.values())),", "", "rule_01"),
    Mutant(
        "rule 1: lose forgets the token", CLAIMING,
        "self.in_state(states.RUNNING), c.claim_token == token)", "self.in_state(states.RUNNING))", "rule_01",
    ),
    Mutant("rule 1: a loss leaves the token", "states.py", '"claim_token": None}\n', "}\n", "rule_01"),
    # 2: the envelope's number
    Mutant(
        "rule 2: a claim ignores the envelope's number (statement)", CLAIMING,
        "sa.or_(number.is_(None), c.envelope_no == number),", "", "rule_02",
    ),
    Mutant(
        "rule 2: a claim ignores the envelope's number (locked row)", CLAIMING,
        "row.envelope_no != envelope_no:", "False:", "rule_02",
    ),
    Mutant(
        "rule 2: another message keeps the number", "ledger/moves.py",
        '"envelope_no": row.envelope_no + 1,', '"envelope_no": row.envelope_no,', "rule_02",
    ),
    Mutant(
        "rule 2: replace changes the identity", "ledger/moves.py",
        '"envelope": move.envelope.meta(),', '"task": move.envelope.headers["task"], "envelope": move.envelope.meta(),',
        "rule_02",
    ),
    # 3: the digest
    Mutant("rule 3: the digest folds case", "keys.py", 'f"{task}\\0{key}".encode', 'f"{task}\\0{key}".lower().encode', "rule_03"),
    Mutant("rule 3: the digest has no bound", "keys.py", 'f"{task}\\0{key}".encode', 'f"{task}{key}".encode', "rule_03"),
    Mutant("rule 3: NUL passes", "keys.py", 'if "\\0" in key or any(', "if any(", "rule_03"),
    Mutant("rule 3: half a surrogate pair passes", "keys.py", 'if "\\0" in key or any(', 'if "\\0" in key or all(', "rule_03"),
    Mutant(
        "rule 3: task ids are compared as people read them", "ledger/migrations/versions/v0001_initial.py",
        '"collation": "utf8mb4_bin"', '"collation": "utf8mb4_general_ci"', "rule_03",
    ),
    Mutant(
        "rule 3: a claim passes over trailing blanks", CLAIMING,
        "if row is not None and row.task_id != task_id:", "if False:", "rule_03",
    ),
    # 4: duplicates
    Mutant("rule 4: awaited duplicates collapse", SUBMITTING, "        if sub.awaited:\n            return self._alias", "        if False:\n            return self._alias", "rule_04"),
    Mutant(
        "rule 4: raise comes after the alias", SUBMITTING,
        'elif on_conflict == "raise" and not self._brought', 'elif on_conflict == "raise" and not sub.awaited and not self._brought',
        "rule_04",
    ),
    Mutant(
        "rule 4: a dead key is swallowed", SUBMITTING, "if first.state in {states.DEAD, states.CANCELLED}:", "if False:", "rule_04"
    ),
    Mutant(
        "rule 4: a cancelled key is swallowed", SUBMITTING,
        "if first.state in {states.DEAD, states.CANCELLED}:", "if first.state in {states.DEAD}:", "rule_04",
    ),
    Mutant(
        "rule 4: a replay keeps the old message", SUBMITTING, "envelope=sub.envelope.readdressed(first.task_id),", "", "rule_04"
    ),
    Mutant(
        "rule 4: a task id of another key is one's own", SUBMITTING,
        "(row.task_id, row.task, row.idempotency_key) != (sub.task_id, sub.task, sub.key)", "False", "rule_04",
    ),
    Mutant("rule 4: an alias owes nobody", "states.py", "    owed = token if owes else None\n    changes = into_terminal(first_state", "    owed = None\n    changes = into_terminal(first_state", "rule_04"),
    Mutant(
        "rule 4: a replayed alias runs", "ledger/replaying.py",
        "states.replay_alias(reason)", "states.replay(reason)", "replayed_alias",
    ),
    # 6, 7, 8: no row, queue and sweep
    Mutant("rule 6: a parked message has no failure kind", SUBMITTING, "failure_kind=failure.kind)", "failure_kind=None)", "rule_06"),
    Mutant(
        "rule 7: nothing asks for publish_at", "ledger/migrations/versions/v0001_initial.py",
        """"queued_rung": "state <> 'queued' OR publish_at IS NOT NULL OR observed = 1",""", "", "illegal_row",
    ),
    Mutant(
        "rule 7: an owed outcome has no time", "ledger/migrations/versions/v0001_initial.py",
        "(finished_at IS NOT NULL AND publish_at IS NOT NULL)", "(finished_at IS NOT NULL)", "illegal_row",
    ),
    Mutant(
        "rule 7: the publish_at move is gone", SWEEPING,
        '{"publish_at": self.dialect.clock_sql + micros(interval)}', '{"publish_at": c.publish_at}', "rule_07",
    ),
    Mutant("rule 7: intervals grow for ever", SWEEPING, "min(MAX_INTERVAL, self.republish_after * 2.0 ** min(row.rings, 10))", "self.republish_after * 2.0 ** min(row.rings, 10)", "rule_07"),
    Mutant("rule 7: intervals do not restart", "states.py", '"publish_at": when, "rings": 0, "deferrals": 0,', '"publish_at": when,', "rings and anew or rule_07 or release_queues"),
    Mutant("rule 7: a failed publish grows the interval", SWEEPING, "values(rings=c.rings - 1, ", "values(", "rule_07"),
    Mutant("rule 8: a busy queue puts off for ever", SWEEPING, "there and row.deferrals < MAX_DEFERRALS", "there", "rule_08"),
    Mutant("rule 8: an unknown depth counts", SWEEPING, "depths.get(row.queue, 0)", "depths.get(row.queue, 1)", "rule_08"),
    Mutant(
        "rule 8: every broker's rows are rung", SWEEPING,
        "due = (c.publish_at <= self.dialect.instant_sql, c.broker == broker)\n\n        def work", "due = (c.publish_at <= self.dialect.instant_sql,)\n\n        def work",
        "rule_08",
    ),
    # 10, 11: clocks and locks
    Mutant("rule 10: stored times are those of the statement's start", DIALECTS, '_PG.format("clock_timestamp()")', '_PG.format("now()")', "rule_10"),
    Mutant("rule 10: compared times are the wall clock's", DIALECTS, '_PG.format("now()")', '_PG.format("clock_timestamp()")', "plans and end_to_end"),
    Mutant("rule 11: renew waits for locked rows", CLAIMING, ".with_for_update(skip_locked=self.dialect.skip_locked)", ".with_for_update()", "rule_11"),
    Mutant(
        "rule 11: the sweep waits for locked rows", "ledger/moves.py",
        "skip_locked=bool(limit) and self.dialect.skip_locked", "skip_locked=False", "rule_11",
    ),
    # 13, 14, 15: outcomes
    Mutant("rule 13: a failure is not owed", "states.py", "owed=owed, ring=ring, failure_kind=failure.kind)", "owed=None, ring=ring, failure_kind=failure.kind)", "rule_13"),
    Mutant("rule 13: a cancellation is not owed", "states.py", '    changes = into_terminal(CANCELLED, owed=token if row.owes else None)\n    return Move("cancel"', '    changes = into_terminal(CANCELLED, owed=None)\n    return Move("cancel"', "rule_13"),
    Mutant("rule 13: an expiry is not owed", "states.py", 'owed=token if row.owes else None, failure_kind="expired"', 'owed=None, failure_kind="expired"', "rule_13 or rule_14"),
    Mutant("rule 13: poison is not owed", "states.py", 'owed=owed, failure_kind="poison"', 'owed=None, failure_kind="poison"', "rule_13"),
    Mutant("rule 13: any token clears", SWEEPING, "told = (c.task_id.in_(list(tokens)), c.continuation_pending.in_(list(tokens.values())))", "told = (c.task_id.in_(list(tokens)),)", "rule_13"),
    Mutant(
        "rule 13: a loss that runs again is owed", "states.py",
        'return Move("lose", QUEUED, into_queued() | counted, failure.message, failure)',
        'return Move("lose", QUEUED, into_queued() | counted | {"continuation_pending": owed}, failure.message, failure)', "rule_13",
    ),
    Mutant("rule 14: a flagged row that fails goes on", "states.py", '''    owed = token if owes else None
    if row.cancel_requested_at is not None:
        return Move("fail"''', '''    owed = token if owes else None
    if False:
        return Move("fail"''', "rule_14"),
    Mutant("rule 14: a flagged row that is lost goes on", "states.py", """    owed = token if row.owes else None
    if row.cancel_requested_at is not None:""", """    owed = token if row.owes else None
    if False:""", "rule_14"),
    Mutant("rule 14: a replay keeps the flag", "states.py", '"retries": 0, "cancel_requested_at": None, "cancel_reason": None,', '"retries": 0,', "rule_14"),
    Mutant("rule 14: an expired row can be claimed (statement)", CLAIMING, "sa.or_(c.deadline_at.is_(None), c.deadline_at > self.dialect.instant_sql), ", "", "rule_14"),
    Mutant("rule 15: a replay keeps the retries", "states.py", '"losses": 0, "retries": 0,', '"losses": 0,', "rule_15"),
    Mutant("rule 15: a replay keeps the losses", "states.py", '"losses": 0, "retries": 0,', '"retries": 0,', "rule_15"),
    Mutant("rule 15: a replay resets claims", "states.py", '"losses": 0, "retries": 0,', '"losses": 0, "retries": 0, "claims": 0,', "rule_15"),
    # 19, 23, 24, 25, 27: transactions
    Mutant(
        "rule 19: a refused claim is judged by the row as it was", CLAIMING,
        "            row = self._claim_at_once.first(connection, which | said)\n            if row is not None:",
        '            old = connection.execute(self._judged, {"v_ref": task_id}).first()\n'
        "            row = self._claim_at_once.first(connection, which | said)\n"
        "            if row is None:\n                return self._refused(old, token, envelope_no)\n            if row is not None:",
        "rule_19",
    ),
    Mutant("rule 19: a row is judged without its lock (FOR UPDATE)", CLAIMING, "self._judged.with_for_update()", "self._judged", "rule_19"),
    Mutant(
        "rule 19: a lent transaction judges by its snapshot", SUBMITTING,
        "seen = self._ask(query) or connection.execute(query).all()", "seen = connection.execute(query).all()", "rule_19",
    ),
    Mutant("rule 20: a lent transaction locks what it meets", SUBMITTING, "        if not self.db.lent:\n            return self.writer.lock(connection, where)", "        if True:\n            return self.writer.lock(connection, where)", "rule_20"),
    Mutant("rule 20: a lent alias locks its first", SUBMITTING, "        if not self.db.lent:  # there it", "        if True:  # there it", "rule_20"),
    Mutant("rule 20: a busy key is an outage", "ledger/borrowing.py", 'if fault == "busy" and kept:', "if False:", "rule_20"),
    Mutant("rule 20: the caller's patience is not given back", "ledger/borrowing.py", 'sa.func.set_config("lock_timeout", before, True)', 'sa.func.set_config("lock_timeout", "5s", True)', "rule_20"),
    Mutant("rule 21: rows of a lent transaction wait for their submitter", SUBMITTING, "        if self.db.lent:\n            return {", "        if False:\n            return {", "rule_21"),
    Mutant("rule 21: the release of a savepoint is a commit", "ledger/lending.py", "if session.in_nested_transaction():", "if False:", "rule_21"),
    Mutant("rule 25: a lent transaction is not begun", "ledger/lending.py", 'connection.execute(sa.text("BEGIN IMMEDIATE"))', "pass", "rule_25"),
    Mutant("rule 23: one's own row is a conflict", SUBMITTING, "        if own:\n            return self.replaced_by(connection, own[0], sub, actor) or self._own(own[0], sub)\n", "", "rule_23"),
    Mutant("rule 23: an outage while connecting is another error", DIALECTS, 'return "unavailable" if isinstance(error, exc.OperationalError | exc.InterfaceError) else None\n    # Conn', "return None\n    # Conn", "rule_23"),
    Mutant("rule 23: nobody learns that the outcome is unknown", "ledger/database.py", 'outcome = "unknown" if reached else "not recorded"', 'outcome = "not recorded"', "never_answers"),
    Mutant("rule 24: MariaDB keeps its isolation", DIALECTS, '"isolation_level": "READ COMMITTED",', "", "rule_24"),
    Mutant("rule 24: blobs end at 64 KiB", "ledger/migrations/versions/v0001_initial.py", "mysql.LONGBLOB()", "mysql.BLOB()", "rule_24"),
    Mutant("rule 24: deadlocks are passed on", DIALECTS, "{1213: ", "{0: ", "rule_24"),
    Mutant("rule 25: transactions begin deferred", DIALECTS, '"BEGIN IMMEDIATE"', '"BEGIN"', "rule_25"),
    Mutant("rule 25: commits are not synced", DIALECTS, "PRAGMA synchronous=FULL", "PRAGMA synchronous=NORMAL", "rule_25"),
    Mutant("rule 25: readers take the write lock", DIALECTS, "if not connection.get_execution_options().get(READ_ONLY):", "if True:", "rule_25"),
    Mutant("rule 27: the dead need no kind", "ledger/migrations/versions/v0001_initial.py", "(state = 'dead' AND failure_kind IS NOT NULL)", "(state = 'dead')", "illegal_row"),
    Mutant("rule 27: from is read without a lock", "ledger/replaying.py", "rows = self.writer.lock(connection, self.t.task.c.id == row_id)", "rows = connection.execute(sa.select(self.t.task).where(self.t.task.c.id == row_id)).all()", "rule_27"),
    # 22, and what rules 9 and 17 say of steps
    Mutant(
        "rule 22: a step is recorded whoever has the claim", STEPPING,
        "sa.update(self.t.task).where(*self._proof())", 'sa.update(self.t.task).where(c.id == given("row", sa.BigInteger))', "rule_22",
    ),
    Mutant(
        "rule 22: a step is done again after a lost reply to its commit", STEPPING,
        "                stands = self.step_stands(claim, name)\n", "                stands = None\n", "rule_22",
    ),
    Mutant(
        "rule 22: the row is locked while a step is done", STEPPING,
        "            with lent(connection, session) as given:\n                try:",
        "            self.writer.lock(connection, self.t.task.c.id == claim.row_id)\n"
        "            with lent(connection, session) as given:\n                try:",
        "rule_22",
    ),
    Mutant("rule 9: losses add up whatever steps are between", "states.py", "0 if row.progressed else row.losses + counted", "row.losses + counted", "rule_09"),
    Mutant("rule 9: a mere sign of death counts", "ledger/burying.py", ", counted=self._proven(connection, row))", ")", "bury and nothing_is_counted"),
    Mutant("rule 9: a sign that turned out true never counts", "ledger/burying.py", "counted=self._proven(connection, row))", "counted=0)", "bury and poison"),
    Mutant("rule 9: a sign counts although its worker lives", "ledger/burying.py", " ~alive.exists(),\n", "\n", "bury and false_signs"),
    Mutant("rule 9: a sign is acted on whatever its worker holds by now", "ledger/burying.py", ", w.c.lock_number == number)", ")", "bury and another_lock"),
    Mutant("rule 9: what must not be begun twice is taken away by a sign", "ledger/burying.py", """ c.lease_expires_at.is_not(None),
            c.on_loss == "retry",
""", " c.lease_expires_at.is_not(None),\n", "bury and begun_twice"),
    Mutant("rule 17: a new step leaves the series of waits", "states.py", '_NOT_WAITED | {"progressed": 1}', '{"progressed": 1}', "rule_17"),
    # What the machine has to find by itself, whichever order of verbs that takes.
    Mutant("machine: a settle forgets the fence", CLAIMING, " and row.claims == claim.claims and row.claim_token == claim.token\n", "\n", "machine and sqlite"),
    Mutant(
        "machine: a success forgets its proof", CLAIMING,
        """            c.claims == given("claims", sa.Integer),
            c.claim_token == given("token", sa.String),
""", "", "machine and sqlite",
    ),
    Mutant("machine: a parent ends whoever runs", CLAIMING, "self.in_state(states.RUNNING), c.claim_token == token)", "self.in_state(states.RUNNING))", "machine and sqlite"),
    Mutant("machine: renew revives whoever runs", CLAIMING, "c.claim_token.in_(list(tokens.values())),", "", "machine and sqlite"),
    Mutant("machine: what is done is claimed again", CLAIMING, 'return "owing" if row.continuation_pending else "done"', 'return "owing" if row.continuation_pending else "free"', "machine and sqlite"),
    Mutant("machine: a lost reply is taken for a lost lease", CLAIMING, "if row.state != states.RUNNING and row.claim_token == claim.token and", "if row.state == states.QUEUED and row.claim_token == claim.token and", "machine and sqlite"),
    Mutant("machine: a loss leaves the token", "states.py", '"claim_token": None}\n', "}\n", "machine and sqlite"),
    Mutant("machine: a claim leaves the next ring", CLAIMING, '"publish_at": None, "rings": 0, "deferrals": 0, "failure_kind": None,\n        })', '"rings": 0, "deferrals": 0, "failure_kind": None,\n        })', "machine and sqlite"),
    Mutant("machine: a sweep leaves the next ring", SWEEPING, ".values(counted | moved_on))", ".values(counted))", "machine and sqlite"),
    Mutant("machine: a busy queue puts off for ever", SWEEPING, "row.deferrals < MAX_DEFERRALS", "row.deferrals < 99", "machine and sqlite"),
    Mutant("machine: a retry counts as a loss", "states.py", '{"retries": retry.retries}', '{"retries": retry.retries, "losses": row.losses + 1}', "machine and sqlite"),
    Mutant("machine: a loss burns a retry", "states.py", 'changed = {"losses": losses,', 'changed = {"retries": row.retries + 1, "losses": losses,', "machine and sqlite"),
    Mutant("machine: a step stops no count of losses", "states.py", "0 if row.progressed else row.losses + counted", "row.losses + counted", "machine and sqlite"),
    Mutant("machine: a replay's outcome is cleared by an old token", SWEEPING, ", c.continuation_pending.in_(list(tokens.values())))", ", c.finished_at.is_not(None))", "machine and sqlite"),
    Mutant("machine: a replay leaves the flag of a cancellation", "states.py", '"progressed": 0, "losses": 0, "retries": 0, "cancel_requested_at": None, "cancel_reason": None,', '"progressed": 0, "losses": 0, "retries": 0, "cancel_reason": None,', "machine and sqlite"),
    Mutant("machine: giving up is counted from the last wait", "states.py", "first = row.waiting_from if again and row.waiting_from is not None else row.now", "first = row.now", "machine and sqlite"),
    Mutant("machine: a stale message is claimed", CLAIMING, 'return "stale"', 'return "free"', "machine and sqlite"),
    Mutant("machine: an alias of a dead task has no failure", "ledger/following.py", "if move.to == states.DEAD:", "if move.to == states.QUEUED:", "machine and sqlite"),
]  # fmt: skip

"""The rules of the protocol about outcomes (13 to 15) and lost replies (23), each with tests that need it."""

from __future__ import annotations

import json

import pytest
from celery.exceptions import Ignore, Reject

from celery_durable import DurableTask, LedgerUnavailable, ledger
from tests.waiting import wait_until
from tests.worker.kit import (
    alter,
    column,
    count,
    migrated,
    on_redis,
    over,
    reached,
    record,
    redis_of,
    revoke,
    settled,
    the_ledger,
    working,
)

FAR = 2**60


FAR = 2**60


def claimed(app, ref, *, token="somebody", lease=20.0):
    answer = the_ledger(app).claim(ref.id, token, owner="w", pid=1, lease=lease)
    assert answer.claim is not None
    return answer.claim


@pytest.mark.parametrize("how", ["succeeded", "dead", "cancelled"])
def test_rule_13_an_outcome_stays_owed_until_it_was_told(results, how):
    @results.task(base=DurableTask)
    def work():
        if how == "dead":
            raise ValueError("no")
        return 1

    result = work.delay()
    claim = claimed(results, result)
    if how == "cancelled":
        alter(results, result, state="queued", lease_owner=None, lease_expires_at=None, lease_pid=None, publish_at=FAR)
        ledger(results).cancel(result.id, "no")
    else:  # the process that ran it died after the settle: nobody was told
        from celery_durable import failures, states

        gone = failures.describe(ValueError("no"), "permanent", worker="w", claim=1)
        if how == "dead":
            the_ledger(results).settle(
                claim, lambda row: states.fail(row, gone, "owed", owes=True, ring=0, retry=None), actor="w"
            )
        else:
            the_ledger(results).succeed(claim, b"1", "application/json", owes=True, actor="w", continuation_grace=0)
    assert record(results, result).continuation_pending
    assert result.state == "PENDING"
    with working(results):
        row = settled(results, result)
        wait_until(lambda: result.state != "PENDING", timeout=30)

    told = {"succeeded": "SUCCESS", "dead": "FAILURE", "cancelled": "REVOKED"}
    assert (row.state, result.state) == (how, told[how])
    assert column(results, result, "publish_at") is None


def test_rule_13_a_run_leaves_its_outcome_owed_before_it_tells(results):
    owed = []

    class Watched(DurableTask):
        abstract = True

        def on_success(self, retval, task_id, args, kwargs):
            owed.append(record(results, task_id).continuation_pending)

    @results.task(base=Watched)
    def work():
        return 1

    with working(results):
        row = settled(results, work.delay())

    assert (bool(owed[0]), row.continuation_pending) == (True, None)


def test_rule_13_a_loss_that_will_run_again_tells_nobody(make, broker_url):
    app = make(result_backend=broker_url, durable_lease=1.5, durable_sweep_interval=0.1)
    states_seen = []

    @app.task(base=DurableTask, bind=True)
    def work(self):
        states_seen.append(self.AsyncResult(self.request.id).state)
        return "in the end"

    result = work.delay()
    claimed(app, result, lease=0.1)  # by a worker that is gone
    with working(app):
        assert result.get(timeout=30) == "in the end"
        row = settled(app, result)

    assert (row.losses, row.claims, states_seen) == (1, 2, ["PENDING"])


def test_rule_14_a_revoke_is_a_move_of_the_row_and_ends_there(results, broker_url):
    @results.task(base=DurableTask)
    def work(tag):
        return tag

    with working(results, concurrency=1):
        revoke(results, "mine")
        result = work.apply_async(("never",), task_id="mine")
        row = settled(results, result)
        over(results, work.delay("next"))

    assert (row.state, row.claims, result.state) == ("cancelled", 0, "REVOKED")
    assert column(results, result, "publish_at") is None
    assert on_redis(broker_url) == []


def test_rule_14_an_expiry_is_a_move_of_the_row_and_ends_there(results, broker_url):
    @results.task(base=DurableTask)
    def work(): ...

    result = work.apply_async(expires=600)
    message = json.loads(redis_of(broker_url).lpop("celery"))
    message["headers"]["expires"] = "2020-01-01T00:00:00+00:00"  # this worker's clock is ahead of the ledger's
    redis_of(broker_url).lpush("celery", json.dumps(message))
    with working(results):
        row = settled(results, result)

    assert (row.state, row.failure_kind, row.claims) == ("dead", "expired", 0)
    assert column(results, result, "publish_at") is None


@pytest.mark.parametrize(
    ("how", "state", "kind"),
    [
        ("ignore", "succeeded", None),
        ("reject", "dead", "rejected"),
        ("requeue", "waiting", None),
        ("unstorable", "dead", "permanent"),
    ],
)
def test_rule_15_how_a_body_may_end(results, how, state, kind):
    @results.task(base=DurableTask, autoretry_for=(TypeError,))
    def work():
        if how == "unstorable":
            return object()
        raise {"ignore": Ignore("x"), "reject": Reject("x"), "requeue": Reject("x", requeue=True)}[how]

    result = work.delay()
    with working(results):
        row = reached(results, result, state)

    assert (row.state, row.failure_kind, row.result) == (state, kind, None)
    if how == "requeue":
        assert (row.wait_kind, row.retries) == ("requeue", 0)


def test_rule_15_a_replay_resets_all_counters_but_claims(results):
    @results.task(base=DurableTask, bind=True, max_retries=1)
    def work(self):
        if record(results, self.request.id).claims < 3:
            raise self.retry(countdown=0)
        return self.request.retries

    result = work.delay()
    with working(results):
        assert settled(results, result).state == "dead"
        assert ledger(results).replay(result.id)
        row = reached(results, result, "succeeded")

    assert (row.claims, row.retries, row.losses, row.decoded_result()) == (3, 0, 0, 0)


def test_rule_23_a_submission_whose_fate_is_unknown_may_be_tried_again(make, postgres_server, broker_url):
    app = migrated(make(ledger_url=postgres_server.database()))

    @app.task(base=DurableTask)
    def work(): ...

    work.delay()
    postgres_server.kill()
    with pytest.raises(LedgerUnavailable) as caught:
        work.apply_async()
    postgres_server.start()
    task_id = caught.value.task_id
    assert task_id
    assert caught.value.outcome in {"unknown", "not recorded"}
    for _ in range(2):
        assert work.apply_async(task_id=task_id).id == task_id

    assert (count(app), len(on_redis(broker_url))) == (2, 2)

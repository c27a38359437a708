"""A customer's process that dies right after its COMMIT: `python -m tests.pains.buyer SIDE ORDER`.

The kill is the first of the hooks that run after a commit; sending is a later one on both sides.
"""

import os
import signal
import sys

import sqlalchemy as sa
from sqlalchemy.orm import Session

from celery_durable import ledger
from tests.pains.app import CONF, app

side, order = sys.argv[1], int(sys.argv[2])
charge = app.tasks["charge"]

with Session(sa.create_engine(CONF["shop"])) as session:
    sa.event.listen(session, "after_commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    session.execute(sa.text("INSERT INTO shop_order VALUES (:id)"), {"id": order})
    if side == "stock":
        sa.event.listen(session, "after_commit", lambda _: charge.delay(order))
    else:
        with ledger(app).transaction(session):
            charge.delay(order)
    session.commit()

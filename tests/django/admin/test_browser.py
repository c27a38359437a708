"""The admin in a browser: what an operator does at night, on a desk and on a phone, with and without scripts.

What it looked like is kept in ``artifacts/admin``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.test.testcases import LiveServerThread
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By

from celery_durable.contrib.django.models import Task
from tests.django.admin.conftest import LOOK, MOVE, user
from tests.django.admin.kit import history
from tests.services.browser import DESK, PHONE, scripted, shaped
from tests.waiting import wait_until

PICTURES = Path(__file__).parents[3] / "artifacts" / "admin"
LOOKS = {
    "desk-light": (DESK, False),
    "desk-dark": (DESK, True),
    "phone-light": (PHONE, False),
    "phone-dark": (PHONE, True),
}
#: How much wider than its screen a page may be, in pixels: not at all, but for a rounded border.
SLACK = 1
pytestmark = pytest.mark.xdist_group("browser")


class Visitor:
    """Somebody at a browser."""

    def __init__(self, driver, base):
        self.driver, self.base = driver, base

    def go(self, path):
        self.driver.get(f"{self.base}/admin/{path}")

    def enter(self, name):
        self.driver.delete_all_cookies()
        self.go("login/")
        self.write("username", name)
        self.write("password", name)
        self.press('input[type="submit"]')
        self.see("Log out")

    def write(self, name, text):
        self.driver.find_element(By.NAME, name).send_keys(text)

    def press(self, selector):
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def follow(self, text):
        self.driver.find_element(By.PARTIAL_LINK_TEXT, text).click()

    @property
    def text(self):
        return self.driver.find_element(By.TAG_NAME, "body").text

    def see(self, *texts):
        for text in texts:
            wait_until(lambda text=text: self._shows(text), 30, f"{text!r} on {self.driver.current_url}")

    def _shows(self, text):
        try:
            return text.lower() in self.text.lower()  # some texts are shown in capitals
        except (NoSuchElementException, StaleElementReferenceException):  # a page that is just coming
            return False

    def has(self, text):
        return bool(self.driver.find_elements(By.PARTIAL_LINK_TEXT, text))

    def picture(self, name):
        """Keep how the page looks on every screen; none of them has to be scrolled sideways."""
        still = "const s = document.createElement('style'); s.textContent = '* { transition: none !important }';"
        self.driver.execute_script(f"{still} document.head.append(s)")
        for look, (size, dark) in LOOKS.items():
            shaped(self.driver, size, dark=dark)
            self.driver.save_screenshot(str(PICTURES / f"{name}-{look}.png"))
            wide = self.driver.execute_script(
                "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert wide[0] <= wide[1] + SLACK, f"{name} has to be scrolled sideways on {look}: {wide}"
        shaped(self.driver, DESK)


@pytest.fixture(scope="session")
def live(shop):
    """The project as a server."""
    thread = LiveServerThread("127.0.0.1", StaticFilesHandler)
    thread.daemon = True
    thread.start()
    assert thread.is_ready.wait(60)
    assert thread.error is None
    yield f"http://127.0.0.1:{thread.port}"
    thread.terminate()


@pytest.fixture
def visitor(live, told, browser_driver):
    PICTURES.mkdir(parents=True, exist_ok=True)
    user("ann", *LOOK, *MOVE)
    user("bob", *LOOK)
    driver = browser_driver.open()
    yield Visitor(driver, live)
    driver.quit()


def test_an_operator_at_night(visitor, told, ledger):
    visitor.enter("ann")
    visitor.go("celery_durable/task/")
    visitor.see("ORD-13", "3 dead", "ConnectionError")
    visitor.picture("list")

    visitor.press('.durable-counts a[href="?state=dead"]')
    visitor.see("ORD-9", "ORD-7")
    assert "ORD-13" not in visitor.text
    visitor.picture("dead")

    visitor.follow("ORD-7")
    visitor.see("Failed for good", "dead since", "signal 9")
    visitor.press(".durable-failure details:last-of-type summary")
    visitor.picture("task")

    visitor.go("celery_durable/failuregroup/")
    visitor.see("2 dead now", "WorkerLostError")
    visitor.picture("groups")
    fingerprint = ledger.get("ORD-7").failure.fingerprint
    visitor.press(f'a[href$="replay/?fingerprint={fingerprint}"]')
    visitor.see("Replay 2 tasks")
    visitor.picture("replay")
    visitor.write("reason", "the gateway is back")
    visitor.press('input[value="Replay"]')
    visitor.see("2 tasks queued again")
    assert history(ledger, told["ORD-8"])[-1] == ("replay", "ann (admin)", "the gateway is back")

    for name, path in (
        ("running", f"task/{told['ORD-13']}/change/"), ("workers", "worker/"), ("worker", "worker/worker-1/change/"),
        ("failures", "failure/"), ("pause", "task/pause/?kind=queue&target=celery"),
    ):  # fmt: skip
        visitor.go(f"celery_durable/{path}")
        visitor.picture(name)


def test_without_scripts(visitor, told, ledger):
    scripted(visitor.driver, on=False)
    visitor.enter("ann")
    visitor.go("celery_durable/task/?state=dead")
    visitor.press(f'input[name="_selected_action"][value="{told["ORD-9"]}"]')
    visitor.press('select[name="action"] option[value="replay"]')
    visitor.press('button[name="index"]')
    visitor.see("Replay 1 task", "KeyError")
    visitor.write("reason", "currencies are known now")
    visitor.press('input[value="Replay"]')
    visitor.see("1 task queued again", "queued")
    assert Task.objects.get(pk=told["ORD-9"]).state == "queued"

    visitor.go("celery_durable/task/pause/?kind=queue&target=celery")
    visitor.write("reason", "stocktaking")
    visitor.press('input[value="Hold back"]')
    visitor.see("held back", "stocktaking")
    scripted(visitor.driver, on=True)
    visitor.picture("pauses")


def test_who_may_only_look(visitor, told):
    visitor.enter("bob")
    visitor.go(f"celery_durable/task/{told['ORD-7']}/change/")
    visitor.see("Failed for good")
    assert not visitor.has("Replay")
    visitor.go(f"celery_durable/task/replay/?ids={told['ORD-7']}")
    visitor.see("403 Forbidden")
    assert Task.objects.get(pk=told["ORD-7"]).state == "dead"

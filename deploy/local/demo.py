"""`just demo`: against a running `just up`, people register at a steady rate while the mail server fails and recovers.

    all is well ─► the mail server is down ─► the breaker opens ─► it is up ─► the breaker closes ─► the queue is out

It says what to look at on the console meanwhile. Each step waits for what it tells of; if that does not come, the demo
fails, with status 1. However it ends, the mail server is up again (killed: after 3 minutes). Standard library only.
"""

import argparse
import http.client
import json
import secrets
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from tasks import HOST, port, request

LOOK_EVERY_S = 0.3


class Failed(Exception):
    """The text says what did not happen."""


class Demo:
    """One run; `people` are registered by a thread of their own."""

    def __init__(self, every_s: float, well_s: float) -> None:
        self.every_s, self.well_s = every_s, well_s
        self.api, self.admin = port("HTTP_PORT", 8080), port("USER_METRICS_PORT", 9101)
        self.registered, self.refused = 0, 0
        self.began = time.monotonic()
        self.over = threading.Event()

    def run(self) -> None:
        """All steps. Raises `Failed`."""
        if self.breaker() != "closed":
            raise Failed("the breaker is not closed: `just breaker-close`, then again")
        before = self.ask(self.admin, "/ledger")
        self.say(
            f"Open http://{HOST}:{self.admin}. Somebody registers every {self.every_s:g} s: mail flows from the left to"
            " the right, and the inbox fills."
        )
        people = threading.Thread(target=self.people, daemon=True)
        people.start()
        try:
            self.until("a mail is sent", lambda: self.ask(self.admin, "/ledger")["sent"] > before["sent"], 30)
            self.over.wait(self.well_s)
            self.fail_and_recover()
        finally:
            self.over.set()
            people.join(30)
        books = self.until("the queue is out", self.all_out, 600)
        self.say(
            f"Done. {self.registered} people were registered, {self.refused} were not; {books['sent'] - before['sent']}"
            f" mails were sent meanwhile; the books' gap is {books['gap']}."
        )
        if books["gap"] > 0 or books["sent"] - before["sent"] < self.registered:
            raise Failed("not everybody has a mail: see the console's books and dead letters")

    def fail_and_recover(self) -> None:
        """From the first refusal to the closed breaker."""
        self.ask(self.admin, "/downtime", {"for": "3m"})  # ended sooner; by itself, if the demo is killed
        try:
            self.say(
                "The mail server is down, for 3 min or until the demo ends it. Watch the verdicts' chart: the next"
                " mails fail, and go back to the queue."
            )
            self.until("the breaker opens", lambda: self.breaker() == "open", 120)
            self.say(
                "The breaker is open: the queue is paused on the broker, so no worker tries. Its depth and age grow,"
                " and people register as before: accepted/s has not changed."
            )
            waiting = self.ask(self.admin, "/queue")["size"] + 3
            self.until("the queue grows", lambda: self.ask(self.admin, "/queue")["size"] >= waiting, 60)
        finally:
            self.ask(self.admin, "/downtime", {"end": True})
        self.say("The mail server is up again. The breaker does not know it yet: see when its next attempt is due.")
        self.until("the breaker closes", lambda: self.breaker() == "closed", 300)
        self.say("A few probes went through, and the breaker closed: its transitions say why. The queue drains.")

    def people(self) -> None:
        """Registers one after the other until it is over."""
        due = time.monotonic()
        while not self.over.wait(max(0.0, due - time.monotonic())):
            due += self.every_s
            try:
                self.ask(self.api, "/v1/users", {"email": f"demo.{secrets.token_hex(6)}@example.com", "name": "Demo"})
                self.registered += 1
            except Failed:
                self.refused += 1

    def breaker(self) -> str:
        """The breaker's state."""
        return str(self.ask(self.admin, "/circuit-breaker")["state"])

    def all_out(self) -> dict[str, Any] | None:
        """The books, once nothing is on its way."""
        books: dict[str, Any] = self.ask(self.admin, "/ledger")
        return None if books["in_outbox"] or books["in_queue"] else books

    def until(self, what: str, look: Callable[[], Any], within_s: float) -> Any:
        """What `look` finds, as soon as it finds something. Raises `Failed`."""
        end = time.monotonic() + within_s
        while not (found := look()):
            if time.monotonic() > end:
                raise Failed(f"{what}: not within {within_s:g} s")
            time.sleep(LOOK_EVERY_S)
        return found

    def ask(self, of: str, path: str, body: object = None) -> Any:
        """The JSON of an answer. Raises `Failed`."""
        asked = request(of, path, body)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310  an http URL of ours
                return json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            if exc.code == 401:
                raise Failed(f"{asked.full_url}: 401. Set ADMIN_TOKEN here as it is set for `just up`.") from exc
            raise Failed(f"{asked.full_url}: {exc.code} {exc.read(300).decode(errors='replace')}") from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise Failed(f"{asked.full_url}: {exc}. Is it running? `just up` starts it.") from exc

    def say(self, text: str) -> None:
        """A line, with the seconds since the beginning."""
        print(f"{time.monotonic() - self.began:5.0f} s  {text}", flush=True)


def main() -> int:
    """Runs the demo as the command line says; 1 if a step did not happen."""
    parser = argparse.ArgumentParser(prog="just demo", description="Let the mail server fail and recover under load.")
    parser.add_argument(
        "--every",
        type=float,
        default=2.0,
        metavar="S",
        help="somebody registers every S seconds (2); below 1 raise RATE_LIMIT_RPM (60), or the queue does not run out",
    )
    parser.add_argument("--well", type=float, default=10.0, metavar="S", help="all is well for so many seconds (10)")
    given = parser.parse_args()
    if not (0.01 <= given.every <= 10 and 0 <= given.well <= 3600):
        parser.error("--every takes 0.01 to 10 seconds, --well 0 to 3600")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # or the downtime would stay
    try:
        Demo(given.every, given.well).run()
    except Failed as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

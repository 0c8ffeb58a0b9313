# SPDX-License-Identifier: Apache-2.0
"""S2: twenty clients of Consul's locks, each with sessions of its own, take and give back a few
locks while the server is killed and started again, and while the agent that half of the sessions
belong to goes away. Every answer is noted with its beginning and end. There must be one order of
all of them in which each lock has one holder at a time, and when all is quiet who is gone holds
nothing; `cargo xtask locks` (todc-utils) decides.

Each round has locks of its own, so that a history stays short."""

import collections
import http.client
import itertools
import json
import random
import subprocess
import sys
import threading
import time

import requests

from drill import HERE

sys.path.insert(0, str(HERE.parent))
from mesh import ROOT, WEFT, until  # noqa: E402
from test_store import Server  # noqa: E402

CLIENTS = 20
LOCKS = ("one", "two", "three", "four")
# The clients' pace: what is judged is what happens at the same time, not how often.
PAUSE = 0.04


class Refused(Exception):
    """Nobody was there: nothing was sent."""


class Silence(Exception):
    """No answer came; `late` when whoever was asked may still be at it."""

    def __init__(self, late):
        super().__init__(late)
        self.late = late


class Notes:
    """What all clients did and were told."""

    def __init__(self):
        self.order, self.count = itertools.count(1), itertools.count(1)
        self.locks = collections.defaultdict(list)
        self.ended, self.destroyed, self.sessions = set(), set(), {}
        self.many = 0

    def now(self):
        """A moment; later ones are greater."""
        return next(self.order)

    def add(self, lock, began, ended, what, session, answer):
        self.locks[lock].append(dict(began=began, ended=ended, what=what, session=session,
                                     answer=answer))
        self.many = next(self.count)

    def answers(self, *kinds):
        return sum(note["answer"] in kinds for notes in self.locks.values() for note in notes)


class Client(threading.Thread):
    def __init__(self, drill, number):
        super().__init__(daemon=True)
        self.drill, self.notes = drill, drill.notes
        self.chance = random.Random(number)
        self.node = "host" if number % 2 else None
        self.session, self.touched, self.broke = None, set(), None

    def run(self):
        try:
            while not self.drill.stopping.is_set():
                self.turn()
                time.sleep(PAUSE)
            self.last_word()
        except Exception as error:  # whatever it is: from here on it shows nothing
            self.broke = error

    def turn(self):
        lock = f"{self.drill.round}/{self.chance.choice(LOCKS)}"
        if self.session is None and not self.begin():
            return
        answer = self.write(lock, "take", "acquire")
        if answer == "yes":
            self.look(lock)
            time.sleep(PAUSE * self.chance.random())
            # One that may end with its machine is not destroyed: nobody could tell which came first.
            if self.node or self.chance.random() < 0.7:
                self.write(lock, "give", "release")
            else:
                self.destroy()
        elif answer == "no" and self.chance.random() < 0.25:
            self.look(lock)

    # -- requests ----------------------------------------------------------------------------

    def ask(self, method, path, body=""):
        """Status and text. A connection for each, so that a killed server is seen at once."""
        link = http.client.HTTPConnection("127.0.0.1", self.drill.server.consul_port, timeout=10)
        try:
            try:
                link.connect()
            except OSError as error:
                raise Refused from error
            try:
                link.request(method, path, body)
                answer = link.getresponse()
                return answer.status, answer.read().decode()
            except TimeoutError as error:
                raise Silence(late=True) from error
            except (OSError, http.client.HTTPException) as error:
                raise Silence(late=False) from error
        finally:
            link.close()

    def insist(self, method, path, wanted=(200,)):
        """For what may be asked twice."""
        deadline = time.monotonic() + 60
        while True:
            try:
                status, text = self.ask(method, path)
                if status in wanted:
                    return text
            except (Refused, Silence):
                pass
            assert time.monotonic() < deadline, f"{method} {path} is not answered"
            time.sleep(PAUSE)

    def begin(self):
        body = {"LockDelay": "0s", **({"Node": self.node} if self.node else {})}
        try:
            status, text = self.ask("PUT", "/v1/session/create", json.dumps(body))
        except (Refused, Silence):
            return False
        if status != 200:
            # The machine of its node is away.
            time.sleep(PAUSE)
            return False
        self.session, self.touched = json.loads(text)["ID"], set()
        self.notes.sessions[self.session] = self.node
        return True

    def write(self, lock, what, how):
        began, session = self.notes.now(), self.session
        self.touched.add(lock)
        try:
            status, text = self.ask("PUT", f"/v1/kv/lock/{lock}?{how}={session}", what)
        except Refused:
            self.insist("GET", "/v1/status/leader")
            return None
        except Silence as silence:
            # What was under way at a server that is dead cannot happen any more once the next one
            # answers.
            self.insist("GET", "/v1/status/leader")
            ended = None if silence.late else self.notes.now()
            self.notes.add(lock, began, ended, what, session, "unknown")
            return "unknown"
        gone = status == 500 and "invalid session" in text
        assert status == 200 or gone, f"{what}: {status} {text}"
        answer = "gone" if gone else {"true": "yes", "false": "no"}[text.strip()]
        if gone:
            self.over()
        self.notes.add(lock, began, self.notes.now(), what, session, answer)
        return answer

    def look(self, lock):
        began = self.notes.now()
        try:
            status, text = self.ask("GET", f"/v1/kv/lock/{lock}?consistent")
        except (Refused, Silence):
            return
        assert status in (200, 404), f"{status} {text}"
        holder = json.loads(text)[0].get("Session") if status == 200 else None
        self.notes.add(lock, began, self.notes.now(), "look", holder, "yes")

    def destroy(self):
        began = self.notes.now()
        self.insist("PUT", f"/v1/session/destroy/{self.session}")
        ended = self.notes.now()
        # It lets go of what it held of any round.
        for lock in self.touched:
            self.notes.add(lock, began, ended, "end", self.session, "yes")
        self.notes.destroyed.add(self.session)
        self.session = None

    def over(self):
        assert self.node, "a session of the server's own node ended"
        self.notes.ended.add(self.session)
        self.session = None

    def last_word(self):
        """Whether the last session is still there: one that ended unseen may have let go."""
        if self.session and not json.loads(
                self.insist("GET", f"/v1/session/info/{self.session}?consistent")):
            self.over()


class Drill:
    def __init__(self, folder):
        self.folder, self.notes, self.round = folder, Notes(), 0
        self.server = Server(folder / "data").start()
        self.stopping, self.agent = threading.Event(), None
        self.log = open(folder / "agent.log", "ab")
        token = requests.post(f"{self.server.api}/v1/weft/tokens", json={"host": "host"}, timeout=10)
        self.start_agent("--token", token.json()["token"])
        self.clients = [Client(self, number) for number in range(CLIENTS)]

    def start_agent(self, *more):
        self.agent = subprocess.Popen(
            [str(WEFT), "agent", "--server", self.server.doors["xds"], "--name", "host", "--data",
             str(self.folder / "agent"), *more], stdout=self.log, stderr=self.log)
        node = {"Node": "host", "Address": "127.0.0.1"}

        def heard():
            base = self.server.consul
            known = requests.put(f"{base}/v1/catalog/register", json=node, timeout=10)
            made = requests.put(f"{base}/v1/session/create", json={"Node": "host"}, timeout=10)
            return known.ok and made.ok
        until("sessions may belong to the agent's node", heard)

    def more(self, count):
        wanted = self.notes.many + count
        until("clients go on", lambda: self.notes.many >= wanted or self.complain(), 120, 0.01)

    def complain(self):
        """A client that broke ends the drill."""
        broken = [client.broke for client in self.clients if client.broke]
        if broken:
            raise RuntimeError(f"a client broke: {broken[0]!r}") from broken[0]

    def kill_server(self):
        self.server.kill()
        self.server.start()

    def kill_agent(self):
        before = len(self.notes.ended)
        self.agent.kill()
        self.agent.wait()
        until("its sessions end", lambda: len(self.notes.ended) > before or self.complain())
        self.start_agent()

    def run(self, rounds, each):
        for client in self.clients:
            client.start()
        for number in range(rounds):
            self.round = number
            self.more(each)
            # Most of them take the server, which takes answers along.
            (self.kill_agent if number % 3 == 1 else self.kill_server)()
            self.more(each)
        self.stopping.set()
        for client in self.clients:
            client.join(90)
            assert not client.is_alive(), "a client does not end"
        self.complain()
        self.rest()

    def rest(self):
        """All is quiet: what is held then is held by somebody who is there."""
        gone = self.notes.ended | self.notes.destroyed
        for lock in sorted(self.notes.locks):
            deadline = time.monotonic() + 20
            while True:
                began, holder = self.notes.now(), self.holder(lock)
                if holder not in gone or time.monotonic() > deadline:
                    break
                time.sleep(PAUSE)
            self.notes.add(lock, began, self.notes.now(), "rest", holder, "yes")

    def holder(self, lock):
        answer = requests.get(f"{self.server.consul}/v1/kv/lock/{lock}?consistent", timeout=10)
        assert answer.status_code in (200, 404), answer.text
        return answer.json()[0].get("Session") if answer.ok else None

    def stop(self):
        self.agent.kill()
        self.agent.wait()
        self.log.close()
        self.server.stop()
        for log in (self.server.log_text(), (self.folder / "agent.log").read_text()):
            assert "panicked" not in log, log[-3000:]


def run(whole, folder):
    folder.mkdir(parents=True, exist_ok=True)
    rounds, each = (30, 400) if whole else (3, 200)
    drill = Drill(folder)
    try:
        drill.run(rounds, each)
    finally:
        drill.stopping.set()
        drill.stop()
    notes = drill.notes
    file = folder / "history.json"
    file.write_text(json.dumps({"ended": sorted(notes.ended), "locks": notes.locks}))
    judged = subprocess.run(["cargo", "xtask", "locks", str(file)], cwd=ROOT, capture_output=True,
                            text=True, timeout=900)
    agents = sum(number % 3 == 1 for number in range(rounds))
    text = (f"S2 locks, {CLIENTS} clients, {rounds - agents} kills of the server and {agents} of an "
            f"agent: {judged.stdout.strip()}; {notes.answers('no')} times refused, "
            f"{notes.answers('unknown')} answers lost, {len(notes.sessions)} sessions, "
            f"{len(notes.destroyed)} destroyed, {len(notes.ended)} ended with their agent")
    assert judged.returncode == 0, f"{text}\n{judged.stderr[-4000:]}"
    takes = sum(note["what"] == "take" and note["answer"] == "yes"
                for all_ in notes.locks.values() for note in all_)
    assert takes > 50 * rounds and notes.answers("no") and notes.ended and notes.destroyed, text
    return text

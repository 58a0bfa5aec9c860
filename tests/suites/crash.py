#!/usr/bin/env python3
"""The inbox under kill -9: nothing that was answered 2xx is lost, and nothing is made again but for a kill.

    python3 tests/suites/crash.py target/dist/countersign --store sqlite --runs 300
    python3 tests/suites/crash.py target/dist/countersign --store postgres --runs 100

Each run starts the gateway on what the one before left and kills it at a moment that is drawn: while it starts, after an event was sent, after a
destination has answered, or at any other. Senders post all the while and repeat whatever was not answered 2xx. Two destinations fail at random,
`plain` and `ordered`; the events of an object are sent one after the other, so that their order is known. At the end the gateway is left
alone until nothing is left to be delivered. Fails if
- an event that was answered 2xx was never delivered to one of the two, or not byte for byte, or not signed;
- a delivery came after its 2xx, and neither a kill between that answer and a second later nor its lateness explains it;
- a delivery's id changed, an attempt's number came twice or fell, or an ordered event was tried before the one before it was delivered;
- an event that was answered 2xx is missing in the audit log though no kill followed its answers at once, or `countersign audit verify` does not hold.
"""
import argparse, asyncio, collections, glob, json, os, random, sys, time
from lab import Destination, Folder, Gateway, Postgres, Sender, event

# Longest time of an attempt; how soon after the answer it must be noted; and how soon a record is written, with what a busy machine adds.
TIMEOUT, NOTED, WRITTEN = 1.0, 1.0, 0.2
SENDERS, PER_OBJECT = 12, 3
KEYS = f'timeout = "{TIMEOUT:.0f}s"\nconcurrency = 16\nretry = {{ first = "50ms", longest = "1s", give_up = "1d" }}'


def body_of(name):
    """The body of the event with this id: `evt_`, the number of its sender, `x`, and its number there."""
    sender, count = name.removeprefix("evt_").split("x")
    return event(f"{sender}x{count}", f"in_{sender}x{int(count) // PER_OBJECT}")


def verdict():
    """How an attempt ends, and after how long."""
    drawn = random.random()
    for share, end, longest in [(0.15, "failure", 0.1), (0.08, "closed", 0.1), (0.03, "wait", 0), (0.15, "success", 0.4), (0.05, "slow body", 0.3)]:
        if drawn < share:
            return end, random.random() * longest
        drawn -= share
    return ("late success", TIMEOUT + 0.4) if drawn < 0.01 else ("success", 0)


class Suite:
    def __init__(self, gateway, senders, destinations):
        self.gateway, self.senders, self.destinations = gateway, senders, destinations
        self.kills, self.moments, self.answers = [], collections.Counter(), collections.Counter()
        self.longest = 0
        self.accepted, self.is_over = collections.defaultdict(list), False
        self.sending = asyncio.Event()

    async def send(self, number, sender):
        """Events in bursts, each until it is answered 2xx."""
        count = 0
        while not self.is_over:
            for _ in range(random.randint(1, 6)):
                await self.until_accepted(sender, f"evt_{number}x{count}")
                count += 1
            await asyncio.sleep(random.random() * 1.2)
        sender.close()

    async def until_accepted(self, sender, name):
        while True:
            self.sending.set()
            began = time.monotonic()
            status, outcome = await sender.post(body_of(name))
            self.answers[f"{status or 'none'} {outcome}"] += 1
            if status == 200:
                self.accepted[name].append((began, time.monotonic()))
                # Stripe repeats some that it has an answer for.
                if random.random() < 0.98:
                    return
            await asyncio.sleep(random.random() * 0.2)

    async def until_killed(self):
        """Starts the gateway and kills it at a moment that is drawn."""
        self.gateway.start()
        moment = random.choice(["start", "acceptance", "delivery", "any"])
        if moment == "start":
            await asyncio.sleep(random.random() * 0.08)
        elif moment == "any":
            await asyncio.sleep(random.random() * 1.5)
        else:
            await asyncio.sleep(0.1 + random.random() * 0.9)
            what = self.sending if moment == "acceptance" else random.choice(self.destinations).answering
            what.clear()
            try:
                await asyncio.wait_for(what.wait(), 2)
            except asyncio.TimeoutError:
                moment = "any"
            await asyncio.sleep(random.choice([0, random.random() * 0.02]))
        assert self.gateway.process.poll() is None, f"it ended by itself\n{self.gateway.said()}"
        self.moments[moment] += 1
        self.kills.append(time.monotonic())
        self.gateway.kill()

    async def run(self, runs):
        for number in range(runs):
            await self.until_killed()
            if number % 50 == 49:
                print(f"{number + 1} runs, {len(self.accepted)} events accepted", file=sys.stderr, flush=True)
        self.gateway.start()

    def explained(self, success):
        """Why a delivery may come again that was answered 2xx; `None` if nothing explains it."""
        if success.end == "late success":
            return "late"
        _, start = success.by
        # The last one was not killed.
        after = self.kills[start - 1] - success.answered if start <= len(self.kills) else float("inf")
        if after > NOTED:
            return None
        self.longest = max(self.longest, after)
        return "killed under way" if after <= 0 else "killed before it was noted"

    def judged(self, destination, name):
        """What is wrong with what a destination saw, and counts of it."""
        wrong, counts = list(destination.wrong), collections.Counter()
        lost = [event for event in self.accepted if event not in destination.delivered]
        wrong += [f"{event} was answered 2xx and never delivered" for event in lost]
        by_event = collections.defaultdict(list)
        for attempt in destination.attempts:
            counts["attempts"] += 1
            by_event[attempt.event].append(attempt)
        for event, attempts in by_event.items():
            if len({attempt.delivery for attempt in attempts}) > 1:
                wrong.append(f"{event} has several delivery ids")
            if any(next.number <= last.number for last, next in zip(attempts, attempts[1:])):
                wrong.append(f"the attempts of {event} are {[attempt.number for attempt in attempts]}")
            for place, attempt in enumerate(attempts[:-1]):
                if attempt.is_success:
                    reason = self.explained(attempt)
                    counts[f"made again after a 2xx: {reason or 'unexplained'}"] += 1
                    if not reason:
                        wrong.append(f"{event} was made again after its 2xx: {attempts[place:place + 2]}")
        if name == "ordered":
            wrong += self.out_of_order(destination, by_event)
        return wrong, counts

    def out_of_order(self, destination, by_event):
        for second, attempts in by_event.items():
            sender, count = second.split("x")
            first = f"{sender}x{int(count) - 1}"
            if int(count) % PER_OBJECT and attempts[0].came < destination.delivered.get(first, float("inf")):
                yield f"{second} was tried before {first} was delivered"

    def audited(self):
        """Events that the audit log does not know of, and whether it verifies."""
        known = set()
        for file in glob.glob(os.path.join(self.gateway.state, "audit", "*.jsonl")):
            with open(file) as lines:
                known |= {record.get("event") for record in map(json.loads, lines) if record.get("outcome") in ("accepted", "duplicate")}
        missing = {event: times for event, times in self.accepted.items() if event not in known}
        near = lambda times: any(times[0] <= kill <= times[1] + WRITTEN for kill in self.kills)
        wrong = [f"{event} is missing in the audit log" for event, times in missing.items() if not all(map(near, times))]
        verified = self.gateway.command("audit", "verify", os.path.join(self.gateway.state, "audit"))
        if verified.returncode:
            wrong.append(f"audit verify: {verified.stdout} {verified.stderr}")
        return wrong, len(missing), verified.stdout.strip().splitlines()


async def suite(options, folder, postgres):
    destinations = {name: Destination(verdict, expected=body_of) for name in ("plain", "ordered")}
    for destination in destinations.values():
        await destination.open()
    keys = {"plain": KEYS, "ordered": KEYS + "\nordered = true"}
    gateway = Gateway(options.program, folder, {name: (destination.port, keys[name]) for name, destination in destinations.items()},
                      postgres=postgres and postgres.database())
    senders = [Sender(folder, gateway.port) for _ in range(SENDERS)]
    this = Suite(gateway, senders, list(destinations.values()))
    tasks = [asyncio.create_task(this.send(number, sender)) for number, sender in enumerate(senders)]
    began = time.monotonic()
    try:
        await this.run(options.runs)
        this.is_over = True
        await asyncio.wait_for(asyncio.gather(*tasks), 120)
        # What there is is counted every five seconds.
        await asyncio.sleep(6)
        left = await asyncio.to_thread(gateway.until_drained, 300)
        await asyncio.sleep(2)
    finally:
        for task in tasks:
            task.cancel()
        code = await asyncio.to_thread(gateway.stop)
    return report(this, destinations, left, code, time.monotonic() - began)


def report(this, destinations, left, code, took):
    wrong = [f"{left} deliveries are left"] if left != 0 else []
    wrong += [f"the gateway ended with {code}"] if code != 0 else []
    print(f"{len(this.kills)} kills in {took:.0f} s: {dict(this.moments)}")
    print(f"{len(this.accepted)} events answered 2xx; all answers: {dict(this.answers)}")
    for name, destination in destinations.items():
        found, counts = this.judged(destination, name)
        wrong += found
        ends = collections.Counter(attempt.end for attempt in destination.attempts)
        print(f"{name}: {len(destination.delivered)} events delivered; {dict(counts)}; {dict(ends)}")
    print(f"longest from a 2xx to the kill that had it made again: {this.longest * 1000:.0f} ms")
    found, missing, verified = this.audited()
    wrong += found
    print(f"audit log: {verified[0]}; {missing} acceptances were killed before they were written")
    print("\n".join(wrong[:20]) or "nothing lost, nothing unexplained")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    random.seed(options.seed)
    print(f"{options.store}, {options.runs} runs, seed {options.seed}")
    postgres = Postgres() if options.store == "postgres" else None
    try:
        with Folder() as folder:
            return asyncio.run(suite(options, folder, postgres))
    finally:
        if postgres:
            postgres.stop()


if __name__ == "__main__":
    sys.exit(main())

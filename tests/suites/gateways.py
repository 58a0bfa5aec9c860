#!/usr/bin/env python3
"""Two gateways on one PostgreSQL, one of them killed and started again and again, and three services, one of them dead for a while.

    python3 tests/suites/gateways.py target/dist/countersign

Needs PostgreSQL. Senders post to both and repeat at the other what one did not answer 2xx. Fails if
- an event that was answered 2xx was not delivered to one of the three, or not byte for byte, or not signed;
- an attempt, which is a delivery's id and a number, was seen twice, or its number was not above those before it;
- two attempts of one delivery were under way at the same time, but for one that was cut off with the gateway that made it;
- a delivery came after its 2xx, and it was not the gateway that was killed that had made it, before it could be noted;
- a gateway that was not killed made nothing, or the other nothing.
"""
import argparse, asyncio, collections, random, sys, time
from lab import Destination, Folder, Gateway, Postgres, Sender, event

TIMEOUT, NOTED, SENDERS = 2.0, 1.0, 24
KEYS = f'timeout = "{TIMEOUT:.0f}s"\nconcurrency = 16\nretry = {{ first = "50ms", longest = "2s", give_up = "1d" }}'


def verdict():
    """Services that fail now and then, and are slow now and then."""
    drawn = random.random()
    return ("failure", 0) if drawn < 0.05 else ("closed", 0) if drawn < 0.07 else ("success", random.random() * 0.1 if drawn < 0.2 else 0)


class Suite:
    def __init__(self, options, steady, killed, destinations, senders):
        self.steady, self.killed, self.destinations, self.senders = steady, killed, destinations, senders
        self.numbers, self.accepted = iter(range(options.events)), set()
        self.answers, self.kills = collections.Counter(), []

    async def send(self, sender):
        for number in self.numbers:
            name = f"evt_{number}"
            while name not in self.accepted:
                status, outcome = await sender.post(body_of(name))
                self.answers[f"{status or 'none'} {outcome}"] += 1
                if status == 200:
                    self.accepted.add(name)
                else:
                    await asyncio.sleep(random.random() * 0.1)
            if number % 50 == 0:
                # To the other one.
                sender.turn()
        sender.close()

    async def kill_and_revive(self):
        while True:
            self.killed.start()
            await asyncio.sleep(0.3 + random.random() * 2)
            assert self.killed.process.poll() is None, self.killed.said()
            self.kills.append(time.monotonic())
            self.killed.kill()
            await asyncio.sleep(random.random() * 0.5)

    def explained(self, success):
        """Whether the gateway that made it was killed before it could note it."""
        gateway, start = success.by
        return gateway == self.killed.name and start <= len(self.kills) and self.kills[start - 1] <= success.answered + NOTED

    def was_cut(self, attempt, then):
        """Whether the gateway that made it was gone when something happened."""
        gateway, start = attempt.by
        return gateway == self.killed.name and start <= len(self.kills) and self.kills[start - 1] <= then

    def judged(self, destination):
        wrong, counts = list(destination.wrong), collections.Counter()
        wrong += [f"{event} was answered 2xx and never delivered" for event in self.accepted - set(destination.delivered)]
        by_delivery = collections.defaultdict(list)
        for attempt in destination.attempts:
            counts[f"by {attempt.by[0]}"] += 1
            by_delivery[attempt.delivery].append(attempt)
        if len(by_delivery) != len(destination.delivered):
            wrong.append(f"{len(by_delivery)} deliveries of {len(destination.delivered)} events")
        for delivery, attempts in by_delivery.items():
            for last, next in zip(attempts, attempts[1:]):
                if next.number <= last.number:
                    wrong.append(f"attempt {next.number} of {delivery} came after {last.number}")
                if not (last.answered and last.answered <= next.came) and not self.was_cut(last, next.came):
                    wrong.append(f"two attempts at one time: {last} {next}")
                if last.is_success:
                    counts["made again after a 2xx"] += 1
                    if not self.explained(last):
                        wrong.append(f"made again after its 2xx: {last} {next}")
        if not (counts[f"by {self.steady.name}"] and counts[f"by {self.killed.name}"]):
            wrong.append(f"one of the gateways made nothing: {dict(counts)}")
        return wrong, counts


def body_of(name):
    return event(name.removeprefix("evt_"), f"in_{int(name.removeprefix('evt_')) % 1000}")


async def suite(options, folder, postgres):
    destinations = {name: Destination(verdict, expected=body_of) for name in ("first", "second", "dead")}
    for name, destination in destinations.items():
        if name != "dead":
            await destination.open()
    deliver = {name: (destination.port, KEYS) for name, destination in destinations.items()}
    url = postgres.database()
    steady, killed = (Gateway(options.program, folder, deliver, name, url) for name in ("steady", "killed"))
    steady.start()
    await asyncio.to_thread(steady.wait)
    senders = [Sender(folder, *random.sample([steady.port, killed.port], 2)) for _ in range(SENDERS)]
    this = Suite(options, steady, killed, destinations, senders)
    began = time.monotonic()
    killing = asyncio.create_task(this.kill_and_revive())
    try:
        sending = asyncio.gather(*map(this.send, senders))
        while len(this.accepted) < options.events / 2:
            assert not killing.done(), killing.result()
            await asyncio.sleep(0.1)
        print(f"dead for {time.monotonic() - began:.0f} s, while {len(this.accepted)} events were accepted", file=sys.stderr, flush=True)
        await destinations["dead"].open()
        await sending
        accepted_in = time.monotonic() - began
        until = time.monotonic() + 300
        while any(len(destination.delivered) < options.events for destination in destinations.values()) and time.monotonic() < until:
            await asyncio.sleep(0.2)
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        left = await asyncio.to_thread(steady.until_drained, 60)
        await asyncio.sleep(2)
    finally:
        killing.cancel()
        code = await asyncio.to_thread(steady.stop)
        await asyncio.to_thread(killed.stop)
    return report(this, left, code, accepted_in, time.monotonic() - began)


def report(this, left, code, accepted_in, took):
    wrong = [f"{left} deliveries are left"] if left != 0 else []
    wrong += [f"the gateway that was not killed ended with {code}"] if code != 0 else []
    print(f"{len(this.accepted)} events answered 2xx in {accepted_in:.0f} s, all delivered in {took:.0f} s; {len(this.kills)} kills; all answers: {dict(this.answers)}")
    for name, destination in this.destinations.items():
        found, counts = this.judged(destination)
        wrong += found
        print(f"{name}: {len(destination.delivered)} events delivered in {len(destination.attempts)} attempts; {dict(counts)}")
    for gateway in (this.steady, this.killed):
        verified = gateway.command("audit", "verify", f"{gateway.state}/audit")
        print(f"audit log of {gateway.name}: {verified.stdout.strip().splitlines()[0]}")
        wrong += [verified.stderr] if verified.returncode else []
    print("\n".join(wrong[:20]) or "nothing lost, nothing twice at one time")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    random.seed(options.seed)
    print(f"{options.events} events, seed {options.seed}")
    postgres = Postgres()
    try:
        with Folder() as folder:
            return asyncio.run(suite(options, folder, postgres))
    finally:
        postgres.stop()


if __name__ == "__main__":
    sys.exit(main())

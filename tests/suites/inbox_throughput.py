#!/usr/bin/env python3
"""What it costs to accept an event durably: Countersign over SQLite and over PostgreSQL, beside the common recipe in Node.

    python3 tests/suites/inbox_throughput.py target/dist/countersign

All get the same signed events from the same wrk over kept-alive connections, in rounds that take turns; medians are printed. Each event is a new
one, so each is an insert. Countersign does more in this than the recipe does: TLS, where the recipe is asked over plain HTTP; an audit log; and with
each event a delivery is kept, for a service that takes connections and never answers, so that no delivery is made. Each has the same PostgreSQL
server with the settings that Debian ships. Needs wrk, PostgreSQL, Node and what node-webhook/package-lock.json names.

Fails if anything was not answered 2xx or not kept, or if the recipe makes more than a fifth of Countersign's events in a second of the receiving process.
"""
import argparse, os, socket, sqlite3, statistics, subprocess, sys, time
from lab import Folder, Gateway, PATH, Postgres, STRIPES, free_port, seconds_of
from load import Events, HERE

AIM = 5


class Receiver:
    """Someone who takes events: a process, where it is asked, and how many it has kept."""

    def __init__(self, name, process, origin, kept, postgres=None, stop=None):
        self.name, self.process, self.origin, self.kept, self.postgres, self.stop = name, process, origin, kept, postgres, stop
        self.rounds = []

    def round(self, events, seconds, connections):
        before, database = seconds_of(self.process.pid), self.postgres and self.postgres.seconds()
        kept = self.kept()
        load = events.send(self.origin, seconds, connections)
        own = (seconds_of(self.process.pid) - before) / load.requests * 1e6
        database = (self.postgres.seconds() - database) / load.requests * 1e6 if self.postgres else 0
        missing = load.requests - (self.kept() - kept)
        self.rounds.append((load.rate, own, database, load.p50, load.p99))
        return load.failed + ([f"{missing} events are not in the store"] if missing > 0 else [])

    def medians(self):
        return [statistics.median(column) for column in zip(*self.rounds)]


def sqlite(program, folder, hanging):
    gateway = Gateway(program, folder, {"service": (hanging, 'timeout = "10m"')}, "sqlite").start()
    gateway.wait()
    count = lambda: sqlite3.connect(f"file:{gateway.state}/inbox/inbox.sqlite?mode=ro", uri=True).execute("SELECT count(*) FROM events").fetchone()[0]
    return Receiver("Countersign, SQLite", gateway.process, f"https://127.0.0.1:{gateway.port}{PATH}", count, stop=gateway.stop)


def postgres(program, folder, hanging, server):
    gateway = Gateway(program, folder, {"service": (hanging, 'timeout = "10m"')}, "postgres", server.database("countersign")).start()
    gateway.wait()
    count = lambda: int(server.sql("SELECT count(*) FROM countersign.events"))
    return Receiver("Countersign, PostgreSQL", gateway.process, f"https://127.0.0.1:{gateway.port}{PATH}", count, server, gateway.stop)


def node(server):
    sample = os.path.join(HERE, "node-webhook")
    if not os.path.isdir(os.path.join(sample, "node_modules")):
        subprocess.run(["npm", "ci", "--ignore-scripts", "--silent", "--no-audit", "--no-fund"], cwd=sample, check=True)
    port = free_port()
    process = subprocess.Popen(["node", "server.mjs", str(port), server.database("recipe")], cwd=sample, stdout=subprocess.PIPE,
                               env=dict(os.environ, STRIPE_WEBHOOK_SECRET=STRIPES, NODE_ENV="production"))
    assert process.stdout.readline() == b"listening\n"
    count = lambda: int(server.sql("SELECT count(*) FROM events", "recipe"))
    return Receiver("Express, stripe-node, pg", process, f"http://127.0.0.1:{port}{PATH}", count, server,
                    lambda: (process.terminate(), process.wait()))


def measured(options, folder, server):
    hanging = socket.create_server(("127.0.0.1", 0), backlog=128)
    service, wrong, receivers = hanging.getsockname()[1], [], []
    try:
        if "sqlite" in options.of:
            receivers.append(sqlite(options.program, folder, service))
        if "postgres" in options.of:
            receivers.append(postgres(options.program, folder, service, server))
        if "node" in options.of:
            receivers.append(node(server))
        for number in range(options.rounds + 1):
            for receiver in receivers:
                events = Events(folder, options.most * options.seconds)
                wrong += [f"{receiver.name}: {failed}" for failed in receiver.round(events, options.seconds, options.connections)]
                # What the store puts off is not the next one's to pay.
                if server:
                    server.sql("CHECKPOINT", "postgres")
                time.sleep(1)
                if number == 0:
                    # The first round is for warming up.
                    receiver.rounds.clear()
                else:
                    print(f"{receiver.name}: {[round(value, 1) for value in receiver.rounds[-1]]}", file=sys.stderr, flush=True)
    finally:
        for receiver in receivers:
            receiver.stop()
    return receivers, wrong


def report(options, receivers, wrong):
    print("| receiver | events/s | its processor time | the database's | 50 % within | 99 % within |\n|---|---|---|---|---|---|")
    for receiver in receivers:
        rate, own, database, p50, p99 = receiver.medians()
        print(f"| {receiver.name} | {rate:,.0f} | {own:.0f} µs | {f'{database:.0f} µs' if receiver.postgres else ''} | {p50:.1f} ms | {p99:.1f} ms |")
    recipe = next((receiver.medians() for receiver in receivers if receiver.name.startswith("Express")), None)
    for receiver in receivers:
        _, own, database, _, _ = receiver.medians()
        if not recipe or options.smoke or receiver.medians() == recipe:
            continue
        print(f"{receiver.name}: {recipe[1] / own:.1f} times the recipe's events in a second of its own processor time")
        if recipe[1] / own < AIM:
            wrong.append(f"{receiver.name} is less than {AIM} times the recipe")
        if receiver.postgres and database > recipe[2]:
            wrong.append(f"{receiver.name} takes {database / recipe[2]:.2f} times the recipe's time of the database")
    print("\n".join(wrong))
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--of", nargs="+", choices=["sqlite", "postgres", "node"], default=["sqlite", "postgres", "node"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--most", type=int, default=25_000, help="events that are made for each second")
    parser.add_argument("--smoke", action="store_true", help="one short round, and only that nothing fails")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.seconds = 1, 2
    server = Postgres() if {"postgres", "node"} & set(options.of) else None
    try:
        with Folder() as folder:
            return report(options, *measured(options, folder, server))
    finally:
        if server:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A million events that are still to be delivered, for their service is down: acceptance beside that of an empty inbox, memory, the tools, and how
fast the service gets them when it is back.

    python3 tests/suites/backlog.py target/dist/countersign --store sqlite
    python3 tests/suites/backlog.py target/dist/countersign --store postgres

The events are put into the store by SQL. Each round has a new empty inbox, and both inboxes' service refuses connections. Needs wrk and haproxy (as
the service), and PostgreSQL for that. Fails if acceptance is slower than 80 % of an empty inbox's, the process takes more than 160 MiB, `inbox
list` takes a second, or fewer than 500 events a second are delivered when the service is back.
"""
import argparse, json, os, sqlite3, statistics, subprocess, sys, time
from lab import Folder, Gateway, PATH, Postgres, event, free_port, resident_mib
from load import Events

LEAST_SHARE, MOST_MIB, MOST_SECONDS, LEAST_RATE = 0.8, 160, 1.0, 500
KEYS = 'concurrency = 32'
FILL_POSTGRES = """
INSERT INTO countersign.events (seq, webhook, id, type, livemode, account, object, received, content_type)
    SELECT nextval('countersign.events_seq'), '{path}', 'evt_old' || n, 'invoice.paid', true, NULL, 'in_old' || n, now(), 'application/json'
    FROM generate_series(1, {count}) n;
INSERT INTO countersign.bodies (event, body) SELECT seq, convert_to(replace('{body}', 'evt_old', id), 'UTF8') FROM countersign.events;
INSERT INTO countersign.deliveries (number, id, destination, object, state, attempts, due, since)
    SELECT seq * 65536, gen_random_uuid(), 'service', object, 0, 0, received, received FROM countersign.events;
VACUUM ANALYZE;"""


def fill_sqlite(gateway, count):
    with sqlite3.connect(f"{gateway.state}/inbox/inbox.sqlite") as store:
        store.execute("PRAGMA synchronous = OFF")
        now, numbers = int(time.time() * 1e6), range(1, count + 1)
        store.executemany("INSERT INTO events VALUES (?, ?, ?, 'invoice.paid', 1, NULL, ?, ?, 'application/json')",
                          ((number, PATH, f"evt_old{number}", f"in_old{number}", now) for number in numbers))
        store.executemany("INSERT INTO bodies VALUES (?, ?)", ((number, event(f"old{number}")) for number in numbers))
        store.executemany("INSERT INTO deliveries VALUES (?, ?, 'service', ?, 0, 0, ?, ?, NULL, NULL)",
                          ((number * 65536, f"00000000-0000-7000-8000-{number:012x}", f"in_old{number}", now, now) for number in numbers))
    store.close()


class Inbox:
    """Gateways over a store of one kind, whose service has a port and is down."""

    def __init__(self, options, folder, server):
        self.options, self.folder, self.server, self.service, self.count = options, folder, server, free_port(), 0

    def made(self):
        """A new one, empty, that runs."""
        self.count += 1
        url = self.server and self.server.database(f"inbox{self.count}")
        gateway = Gateway(self.options.program, self.folder, {"service": (self.service, KEYS)}, f"gateway{self.count}", url)
        gateway.start().wait()
        return gateway

    def filled(self):
        gateway = self.made()
        gateway.stop()
        began = time.monotonic()
        if self.server:
            body = event("old").decode()
            for statement in FILL_POSTGRES.format(path=PATH, count=self.options.events, body=body).split(";\n"):
                self.server.sql(statement, "inbox1")
        else:
            fill_sqlite(gateway, self.options.events)
        print(f"filled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        began = time.monotonic()
        gateway.start().wait()
        print(f"start with {self.options.events:,} events to be delivered: {time.monotonic() - began:.2f} s")
        return gateway


def acceptance(options, folder, gateway):
    load = Events(folder, options.most * options.seconds).send(f"https://127.0.0.1:{gateway.port}{PATH}", options.seconds)
    return load


def compared(options, folder, inbox, full):
    """Rounds that take turns; what is wrong."""
    rates, failed, p99 = {"empty": [], "full": []}, [], {"empty": [], "full": []}
    for number in range(options.rounds):
        empty = inbox.made()
        for name, gateway in (("empty", empty), ("full", full)):
            load = acceptance(options, folder, gateway)
            rates[name].append(load.rate)
            p99[name].append(load.p99)
            failed += [f"{name}: {line}" for line in load.failed]
        memory = resident_mib(empty.process.pid, "VmHWM")
        empty.stop()
        print(f"round {number + 1}: {rates['empty'][-1]:,.0f} and {rates['full'][-1]:,.0f} events/s", file=sys.stderr, flush=True)
    empty, full = (statistics.median(rates[name]) for name in ("empty", "full"))
    share = statistics.median(full / empty for full, empty in zip(rates["full"], rates["empty"]))
    print(f"memory of the empty one at most {memory:.0f} MiB")
    print(f"acceptance, service down: {empty:,.0f} events/s empty, {full:,.0f} full, share {share:.2f}; "
          f"99 % within {statistics.median(p99['empty']):.0f} and {statistics.median(p99['full']):.0f} ms")
    return failed + ([f"acceptance is {share:.2f} of that of an empty inbox"] if share < LEAST_SHARE and not options.smoke else [])


def tools(gateway):
    wrong = []
    for arguments in (["list"], ["list", "--state", "dead"], ["list", "--destination", "service", "--type", "invoice.paid", "--limit", "1000"],
                      ["list", "--account", "acct_none"], ["stats"]):
        began = time.monotonic()
        ran = gateway.command("inbox", *arguments, "--config", gateway.config)
        took = time.monotonic() - began
        print(f"inbox {' '.join(arguments)}: {took:.2f} s, {len(ran.stdout.splitlines())} lines, exit {ran.returncode}")
        if ran.returncode or (arguments[0] == "list" and took > MOST_SECONDS):
            wrong.append(f"inbox {' '.join(arguments)}: {took:.2f} s, exit {ran.returncode} {ran.stderr[:300]}")
    return wrong


def caught_up(options, folder, gateway, service):
    """How fast the service gets them once it is back, alone and beside acceptance."""
    folder.write("service.conf", f"global\n  nbthread 1\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  timeout connect 5s\n"
                                 f"frontend service\n  bind 127.0.0.1:{service}\n  http-request return status 200\n")
    delivered = lambda: sum(value for name, value in gateway.metrics().items()
                            if name.startswith("countersign_delivery_attempts_total") and 'outcome="delivered"' in name)
    haproxy = subprocess.Popen(["haproxy", "-q", "-f", folder.file("service.conf")])
    try:
        time.sleep(3)
        began, before = time.monotonic(), delivered()
        time.sleep(options.seconds)
        rate = (delivered() - before) / (time.monotonic() - began)
        began, before = time.monotonic(), delivered()
        load = acceptance(options, folder, gateway)
        beside = (delivered() - before) / (time.monotonic() - began)
    finally:
        haproxy.terminate()
        haproxy.wait()
    print(f"service back: {rate:,.0f} deliveries/s; beside {load.rate:,.0f} events/s that are accepted {beside:,.0f} deliveries/s")
    least = 1 if options.smoke else LEAST_RATE
    return load.failed + ([f"only {rate:.0f} deliveries/s"] if rate < least else []) + (["none beside acceptance"] if not beside else [])


def suite(options, folder, server):
    inbox = Inbox(options, folder, server)
    full = inbox.filled()
    wrong = compared(options, folder, inbox, full)
    if not options.without_tools:
        wrong += tools(full)
    began = time.monotonic()
    while (full.open_deliveries() or 0) <= options.events and time.monotonic() - began < 60:
        time.sleep(0.1)
    print(f"the metrics have {full.open_deliveries() or 0:,.0f} deliveries {time.monotonic() - began:.1f} s after they were asked for")
    wrong += caught_up(options, folder, full, inbox.service)
    peak = resident_mib(full.process.pid, "VmHWM")
    print(f"memory at most {peak:.0f} MiB, now {resident_mib(full.process.pid):.0f} MiB")
    wrong += [f"the process took {peak:.0f} MiB"] if peak > MOST_MIB else []
    wrong += [f"it ended with {full.stop()}"] if full.stop() != 0 else []
    print("\n".join(wrong))
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--most", type=int, default=20_000, help="events that are made for each second")
    parser.add_argument("--without-tools", action="store_true", help="leave out `countersign inbox`")
    parser.add_argument("--smoke", action="store_true", help="few events and one short round, and nothing that depends on speed")
    options = parser.parse_args()
    if options.smoke:
        options.events, options.rounds, options.seconds, options.without_tools = 5000, 1, 2, True
    server = Postgres() if options.store == "postgres" else None
    print(f"{options.store}, {options.events:,} events")
    try:
        with Folder() as folder:
            return suite(options, folder, server)
    finally:
        if server:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())

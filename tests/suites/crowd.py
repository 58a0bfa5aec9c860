#!/usr/bin/env python3
"""Measures what a crowd does to an honest client: 10,000 idle connections and 1,000 slow ones.

Starts the gateway with a configuration of its own and a service behind it, asks at leisure, lets the crowd in from
several addresses of the loopback network, and asks again. Prints the latencies and the gateway's memory. Exits 1 if
the crowd did not get in or an honest request failed.

The idle have asked once and say nothing more. Of the slow a third drips a head, a third drips a body, and a third
reads a large answer a little at a time; whoever is cut comes again, as an attacker would.

    cargo build --release && python3 tests/suites/crowd.py
"""

import argparse
import hashlib
import hmac
import http.server
import json
import multiprocessing
import pathlib
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

SECRET = "absec_crowd_0123456789abcdef0123456789abcdef"
USER, ACCOUNT = "usr_Crowd0001", "acct_Crowd0001"
LARGE = 8 * 1024 * 1024
ADDRESSES = [f"127.0.0.{last}" for last in range(2, 10)]


def signed(method, path, more=""):
    payload = f'{{"user_id":"{USER}","account_id":"{ACCOUNT}"}}'
    at = int(time.time())
    tag = hmac.new(SECRET.encode(), f"{at}.{payload}".encode(), hashlib.sha256).hexdigest()
    return (
        f"{method} {path} HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: t={at},v1={tag}\r\n"
        f"Stripe-User-Id: {USER}\r\nStripe-Account-Id: {ACCOUNT}\r\n{more}\r\n"
    ).encode()


class Service(http.server.BaseHTTPRequestHandler):
    """The service behind the gateway."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        body = b"x" * LARGE if self.path == "/large" else b"ok"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 4096
    daemon_threads = True

    def handle_error(self, *_):
        pass


def serve(port):
    server = Server(("127.0.0.1", 0), Service)
    port.value = server.server_address[1]
    server.serve_forever()


def tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def connect(context, gateway, source):
    raw = socket.socket()
    raw.bind((source, 0))
    raw.settimeout(30)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.connect(gateway)
    return context.wrap_socket(raw, server_hostname="gw.test")


def answer(stream):
    """Reads an answer with a length and tells its status."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = stream.recv(65536)
        if not part:
            raise ConnectionError("closed")
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    while len(body) < length:
        body += stream.recv(65536)
    return int(head.split()[1])


def be_idle(gateway, count, inside, leave, part):
    """Has `count` connections ask once, and keeps them."""
    context, kept, lock = tls(), [], threading.Lock()

    def come(number):
        for place in range(number, count, 4):
            try:
                stream = connect(context, gateway, ADDRESSES[(part + place) % len(ADDRESSES)])
                stream.sendall(signed("GET", "/"))
                if answer(stream) == 200:
                    with lock:
                        kept.append(stream)
                    with inside.get_lock():
                        inside.value += 1
            except OSError:
                pass

    comers = [threading.Thread(target=come, args=(number,)) for number in range(4)]
    for thread in comers:
        thread.start()
    for thread in comers:
        thread.join()
    leave.wait()
    gone = 0
    for stream in kept:
        stream.setblocking(False)
        try:
            gone += stream.recv(1) == b""
        except ssl.SSLWantReadError:
            pass
        except OSError:
            gone += 1
    with inside.get_lock():
        inside.value -= gone


class Slow:
    """A client that takes its time."""

    def __init__(self, context, gateway, number):
        self.kind = ("head", "body", "reader")[number % 3]
        self.stream = connect(context, gateway, ADDRESSES[number % len(ADDRESSES)])
        if self.kind == "body":
            more = "Content-Type: application/json\r\nContent-Length: 100000\r\n"
            self.stream.sendall(signed("POST", "/", more))
        elif self.kind == "reader":
            self.stream.sendall(signed("GET", "/large"))
        self.stream.setblocking(False)

    def step(self):
        if self.kind == "reader":
            if self.stream.recv(1024) == b"":
                raise ConnectionError("closed")
        else:
            self.stream.send(b"G" if self.kind == "head" else b" ")
            try:
                if self.stream.recv(1) == b"":
                    raise ConnectionError("closed")
            except ssl.SSLWantReadError:
                pass


def be_slow(gateway, count, inside, leave):
    """Keeps `count` slow connections going, a byte or a little more of each in a second."""
    context, crowd = tls(), {}
    while not leave.is_set():
        began = time.monotonic()
        for number in range(count):
            if leave.is_set():
                return
            try:
                if number not in crowd:
                    crowd[number] = Slow(context, gateway, number)
                crowd[number].step()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError:
                if number in crowd:
                    crowd.pop(number).stream.close()
        inside.value = len(crowd)
        leave.wait(max(0.0, 1 - (time.monotonic() - began)))


def latencies(gateway, count):
    """The milliseconds of `count` requests on one connection, and of as many with a connection each."""
    context, failed = tls(), 0
    kept, fresh = [], []
    stream = connect(context, gateway, "127.0.0.1")
    for _ in range(count):
        began = time.monotonic()
        stream.sendall(signed("GET", "/"))
        failed += answer(stream) != 200
        kept.append((time.monotonic() - began) * 1000)
        time.sleep(0.005)
    stream.close()
    for _ in range(count):
        began = time.monotonic()
        stream = connect(context, gateway, "127.0.0.1")
        stream.sendall(signed("GET", "/"))
        failed += answer(stream) != 200
        fresh.append((time.monotonic() - began) * 1000)
        stream.close()
        time.sleep(0.005)
    return kept, fresh, failed


def told(name, values):
    values = sorted(values)
    at = lambda share: values[min(len(values) - 1, int(len(values) * share))]
    print(f"  {name:<34} median {at(0.5):8.2f} ms   p99 {at(0.99):8.2f} ms   most {values[-1]:8.2f} ms")


def memory(process):
    """Resident memory now and at its peak, in KiB."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    value = lambda name: next(int(line.split()[1]) for line in lines if line.startswith(name))
    return value("VmRSS:"), value("VmHWM:")


def wait_until(what, is_so, seconds):
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            print(f"{what}: not within {seconds} s")
            return False
        time.sleep(0.1)
    return True


def configuration(folder, port, service):
    names = ["-subj", "/CN=gw.test", "-addext", "subjectAltName=DNS:gw.test", "-days", "30"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / "key.pem"]
    made = ["openssl", "req", "-x509", *key, "-out", folder / "cert.pem", *names]
    subprocess.run(made, check=True, stderr=subprocess.DEVNULL)
    (folder / "secret").write_text(SECRET)
    # The idle are to stay for as long as it takes.
    (folder / "crowd.toml").write_text(
        f"""version = 1
[listener]
address = "127.0.0.1:{port}"
certificate = "cert.pem"
private_key = "key.pem"
[apps.crowd]
secrets = [{{ file = "secret" }}]
accounts = ["{ACCOUNT}"]
[limits]
idle_timeout = "1h"
[log]
access = "access.jsonl"
[upstreams.service]
servers = ["http://127.0.0.1:{service}"]
[[routes]]
path = "/"
app = "crowd"
upstream = "service"
"""
    )


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--program", type=pathlib.Path, default=root / "target/release/countersign")
    options.add_argument("--idle", type=int, default=10_000)
    options.add_argument("--slow", type=int, default=1_000)
    options.add_argument("--requests", type=int, default=500)
    options.add_argument("--json", action="store_true", help="print the figures once more as JSON")
    options = options.parse_args()

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, inside_idle, inside_slow = (multiprocessing.Value("i", 0) for _ in range(3))
    leave = multiprocessing.Event()
    processes = [multiprocessing.Process(target=serve, args=(port,), daemon=True)]
    processes[0].start()
    wait_until("the service", lambda: port.value, 10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gateway = free.getsockname()

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        configuration(folder, gateway[1], port.value)
        said = open(folder / "stderr", "w")
        program = subprocess.Popen([options.program, "run", "--config", folder / "crowd.toml"], stderr=said)
        try:
            return measure(options, gateway, program, processes, inside_idle, inside_slow, leave)
        finally:
            leave.set()
            program.terminate()
            program.wait(60)
            for process in processes:
                process.kill()


def measure(options, gateway, program, processes, inside_idle, inside_slow, leave):
    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(gateway) == 0

    wait_until("the gateway", listens, 10)
    latencies(gateway, 50)
    rss_before, _ = memory(program.pid)
    before = latencies(gateway, options.requests)

    began = time.monotonic()
    halves = [options.idle // 2, options.idle - options.idle // 2]
    for part, count in enumerate(halves):
        arguments = (gateway, count, inside_idle, leave, part)
        processes.append(multiprocessing.Process(target=be_idle, args=arguments))
        processes[-1].start()
    complete = wait_until("the idle", lambda: inside_idle.value >= options.idle, 300)
    took = time.monotonic() - began
    rss_idle, peak_idle = memory(program.pid)
    with_idle = latencies(gateway, options.requests)

    processes.append(multiprocessing.Process(target=be_slow, args=(gateway, options.slow, inside_slow, leave)))
    processes[-1].start()
    # Those who drip a head are cut and come again all the time.
    complete &= wait_until("the slow", lambda: inside_slow.value >= options.slow * 9 // 10, 120)
    time.sleep(5)
    with_all = latencies(gateway, options.requests)
    rss_all, peak_all = memory(program.pid)
    slow = inside_slow.value
    leave.set()
    for process in processes[1:]:
        process.join(60)
    stayed = inside_idle.value

    print(f"{options.idle} idle connections came in {took:.0f} s, {stayed} were still there at the end; {slow} slow ones")
    figures = {"idle": stayed, "slow": slow}
    for name, (kept, fresh, failed) in (("alone", before), ("with the idle", with_idle), ("with all", with_all)):
        print(f"{name}: {failed} of {2 * options.requests} requests failed")
        told("on a connection that is kept", kept)
        told("with a connection of its own", fresh)
        figures[name] = {"kept": sorted(kept)[len(kept) // 2], "fresh": sorted(fresh)[len(fresh) // 2], "failed": failed}
        complete &= failed == 0
    each = (rss_idle - rss_before) / max(1, options.idle)
    print(f"memory: {rss_before} KiB at first, {rss_idle} KiB with the idle ({each:.1f} KiB each, peak {peak_idle} KiB),")
    print(f"        {rss_all} KiB with all, peak {peak_all} KiB")
    if options.json:
        print(json.dumps(figures | {"rss_idle_kib": rss_idle, "rss_each_kib": each, "peak_kib": peak_all}))
    return 0 if complete and stayed >= options.idle else 1


if __name__ == "__main__":
    sys.exit(main())

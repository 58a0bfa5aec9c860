#!/usr/bin/env python3
"""Asks an instrumented gateway for what gateways are asked for, so that the compiler sees which code is run and how often.

usage: training.py PATH_OF_THE_GATEWAY FOLDER_FOR_PROFILES [SECONDS]

`.ci/dist` builds with what comes of it; what is not asked for here is taken for code that need not be fast. Over HTTP/1.1: verified GETs,
POSTs with the ids in a JSON body, a larger one, an upload and an answer of some size, preflights, refusals, on connections that are kept
and on new ones. The like over HTTP/2, as browsers do (by h2load). Events from Stripe, into the inbox and out to a service.
"""
import hashlib, hmac, http.client, http.server, itertools, json, pathlib, subprocess, sys, tempfile, threading, time
import smoke

CLIENTS = 8
WEBHOOK_SECRET = "whsec_training_0123456789abcdef"
IDS = {"user_id": smoke.USER, "account_id": smoke.ACCOUNT}
HEADERS = {"Stripe-User-Id": smoke.USER, "Stripe-Account-Id": smoke.ACCOUNT}
BROWSER = {"Origin": "null", "Accept": "application/json", "User-Agent": "Mozilla/5.0", "Accept-Encoding": "gzip, br"}
JSON = {"Content-Type": "application/json"}
TARGET = "/api/orders/in_1?expand=lines"


class Upstream(smoke.Upstream):
    """Answers with 1 KiB, or 1 MiB where /large is asked for."""

    def do_GET(self):
        self.answer(b"x" * (1 << 20 if self.path.startswith("/large") else 1024))

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"y" * 300)

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def signed(payload, secret=smoke.SECRET):
    """A signature over a whole body."""
    at = int(time.time())
    return {"Stripe-Signature": f"t={at},v1={hmac.new(secret.encode(), f'{at}.{payload}'.encode(), hashlib.sha256).hexdigest()}"}


def body(extras):
    """As a browser sends it: what the app has of its own, and the ids behind it."""
    return json.dumps(extras | IDS, separators=(",", ":"))


SMALL = body({"invoice": "in_1", "note": "n" * 100})
LARGE = body({"rows": [{"id": number, "name": f"row {number}", "share": 0.5} for number in range(200)]})


def requests():
    """What is asked for, again and again: (method, target, body, headers, expected status)."""
    preflight = BROWSER | {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "stripe-signature"}
    for number in itertools.count():
        verified = HEADERS | BROWSER | {"Stripe-Signature": smoke.signature()}
        yield from [("GET", TARGET, None, verified, 200)] * 16
        yield from [("POST", TARGET, SMALL, BROWSER | JSON | signed(SMALL), 200)] * 6
        yield "POST", TARGET, LARGE, BROWSER | JSON | signed(LARGE), 200
        yield from [("OPTIONS", TARGET, None, preflight, 204)] * 2
        yield "GET", TARGET, None, HEADERS | BROWSER | {"Stripe-Signature": smoke.signature("absec_other")}, 401
        yield "GET", TARGET, None, BROWSER, 401
        if number % 8 == 0:
            yield "GET", "/large", None, verified, 200
            yield "POST", TARGET, b"z" * (1 << 20), verified | {"Content-Type": "application/octet-stream"}, 200


def events(client):
    """Events of Stripe, each another."""
    for number in itertools.count():
        event = json.dumps({"id": f"evt_{client}x{number}", "object": "event", "type": "invoice.paid", "livemode": True, "created": 1760000000,
                            "data": {"object": {"id": f"in_{number}", "object": "invoice", "lines": "x" * 700}}})
        yield "POST", "/stripe", event, JSON | {"User-Agent": "Stripe/1.0"} | signed(event, WEBHOOK_SECRET), 200


def ask(port, tls, until, wanted, failures):
    """Asks until then; one request in ten is the last on its connection."""
    connection = None
    for count, (method, target, body, headers, expected) in enumerate(wanted):
        if time.monotonic() > until:
            return
        connection = connection or http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=tls)
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != expected:
            failures.append(f"{method} {target}: {response.status} {answer!r}, not {expected}")
            return
        if count % 10 == 9 or response.will_close:
            connection.close()
            connection = None


def together(port, tls, seconds, streams):
    """Asks for what each of the streams wants, at one time."""
    failures, until = [], time.monotonic() + seconds
    clients = [threading.Thread(target=ask, args=(port, tls, until, wanted, failures)) for wanted in streams]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert not failures, "\n".join(failures)


def over_http2(port, seconds, headers, *more):
    """Asks on eight connections, four times at one time on each."""
    names = itertools.chain.from_iterable(("-H", f"{name}: {value}") for name, value in headers.items())
    said = subprocess.run(["h2load", "-D", str(seconds), "-c", "8", "-m", "4", *names, *more, f"https://127.0.0.1:{port}{TARGET}"],
                          check=True, capture_output=True, text=True).stdout
    assert " 0 failed, 0 errored" in said and ", 0 3xx, 0 4xx, 0 5xx" in said and "status codes: 0 2xx" not in said, said


def main(program, profiles, seconds=10):
    seconds = int(seconds)
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    upstream.daemon_threads = True
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        # It can write nowhere but in its own folder.
        settings = {"LLVM_PROFILE_FILE": "state/%p.profraw", "WEBHOOK_SECRET": WEBHOOK_SECRET}
        with smoke.started(program, upstream.server_port, work, **settings) as (port, _, tls):
            together(port, tls, seconds, [requests() for _ in range(CLIENTS)])
            over_http2(port, seconds, HEADERS | BROWSER | {"Stripe-Signature": smoke.signature()})
            (work / "body").write_text(SMALL)
            over_http2(port, max(seconds // 2, 1), BROWSER | JSON | signed(SMALL), "-d", str(work / "body"))
            together(port, tls, max(seconds // 2, 1), [events(client) for client in range(CLIENTS)])
        for profile in (work / "state").glob("*.profraw"):
            (pathlib.Path(profiles) / profile.name).write_bytes(profile.read_bytes())


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])

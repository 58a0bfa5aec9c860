#!/usr/bin/env python3
"""The built gateway with the configuration it is measured with: a valid request passes, invalid ones do not, and a request on a
kept connection costs two receives and two sends, not a system call more.

usage: smoke.py PATH_OF_THE_GATEWAY
"""
import contextlib, hashlib, hmac, http.client, http.server, json, os, pathlib, signal, socket, ssl, subprocess, sys, tempfile, threading, time

HERE = pathlib.Path(__file__).resolve().parent
SECRET = "absec_smoke_0123456789abcdef"
USER, ACCOUNT = "usr_SmokeUser1", "acct_SmokeAccount1"


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers with the headers it got, and counts the requests."""
    protocol_version = "HTTP/1.1"
    requests = 0
    wbufsize = 1 << 16  # head and body in one packet

    def do_GET(self):
        Upstream.requests += 1
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def signature(secret=SECRET, at=None):
    at = int(time.time()) if at is None else at
    payload = json.dumps({"user_id": USER, "account_id": ACCOUNT}, separators=(",", ":"))
    return f"t={at},v1={hmac.new(secret.encode(), f'{at}.{payload}'.encode(), hashlib.sha256).hexdigest()}"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(port, tls, header):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=tls)
    headers = {"Stripe-User-Id": USER, "Stripe-Account-Id": ACCOUNT}
    connection.request("GET", "/api/thing", headers=headers | ({"Stripe-Signature": header} if header else {}))
    response = connection.getresponse()
    status, body = response.status, response.read()
    connection.close()
    return status, body


def system_calls(pid, port, tls, work):
    """How many times a request has bytes received or sent, on connections that are kept; how many reads of files come on top; and which."""
    count, table = 300, work / "strace"
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=tls)

    def ask(times):
        header = signature()
        for _ in range(times):
            connection.request("GET", "/api/thing", headers={"Stripe-User-Id": USER, "Stripe-Account-Id": ACCOUNT, "Stripe-Signature": header})
            response = connection.getresponse()
            assert (response.status, len(response.read()) > 0) == (200, True), response.status
    ask(20)
    traced = "trace=recvfrom,recvmsg,recvmmsg,read,readv,sendto,sendmsg,sendmmsg,writev"
    strace = subprocess.Popen(["strace", "-f", "-c", "-e", traced, "-o", str(table), "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert "attached" in strace.stderr.readline(), "strace could not attach"
    time.sleep(0.2)
    ask(count)
    strace.send_signal(signal.SIGINT)
    strace.wait(20)
    connection.close()
    calls = {line.split()[-1]: int(line.split()[3]) for line in table.read_text().splitlines() if line.strip().endswith(tuple(traced[6:].split(",")))}
    reads = calls.get("read", 0)  # never of a socket: those are received from
    return (sum(calls.values()) - reads) / count, reads / count, calls


@contextlib.contextmanager
def started(binary, upstream, work, **more):
    """The gateway with its bench configuration, in `work` and for an upstream on this port: its port, process, and clients' TLS. It must
    stop cleanly behind what is done with it; what it said is shown where something fails."""
    cert, key, log, port = work / "cert.pem", work / "given-key.pem", work / "log", free_port()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
                   check=True, stderr=subprocess.DEVNULL)
    env = dict(os.environ, LISTEN=str(port), CERT=str(cert), KEY=str(key), SECRET=SECRET, TOLERANCE="315360000", MODE="auth",
               UPSTREAM=f"127.0.0.1:{upstream}", ROUTES="0", WORK=str(work), GATEWAY_BIN=str(pathlib.Path(binary).resolve()), **more)
    with log.open("wb") as out:
        gateway = subprocess.Popen([str(HERE / "gateway/start")], cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        wait_for(port, gateway)
        yield port, gateway, ssl.create_default_context(cafile=str(cert))
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(40) == 0, f"stopped with {gateway.returncode}"
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        if gateway.poll() is None:
            gateway.kill()
            gateway.wait()


def wait_for(port, gateway):
    end = time.time() + 30
    while time.time() < end and gateway.poll() is None:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
    sys.exit("the gateway did not come up")


def main(binary):
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as work:
        with started(binary, upstream.server_port, pathlib.Path(work)) as (port, gateway, tls):
            status, body = get(port, tls, signature())
            assert status == 200, f"valid: {status} {body!r}"
            seen = json.loads(body)
            names = [name.lower() for name in (HERE / "gateway/identity").read_text().split()]
            assert [seen.get(name) for name in names] == [USER, ACCOUNT], f"identity not passed on: {seen}"
            for what, header in [("no signature", None), ("wrong secret", signature("absec_other")), ("stale", signature(at=1)),
                                 ("garbled", "t=,v1=zz")]:
                status, body = get(port, tls, header)
                assert status == 401, f"{what}: {status} {body!r}"
            assert Upstream.requests == 1, f"the upstream got {Upstream.requests} requests, not 1"
            each, reads, calls = system_calls(gateway.pid, port, tls, pathlib.Path(work))
            assert 3.9 <= each <= 4.1, f"{each:.2f} receives and sends a request: {calls}"
            # Files are read by the clock, of what may be exchanged in use, so many more of them on a slow machine.
            assert reads <= 0.5, f"{reads:.2f} reads a request: {calls}"
    print("smoke: one valid request passed, four invalid ones were refused, 4 system calls a request, stopped cleanly")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])

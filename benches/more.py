#!/usr/bin/env python3
"""What the bench beside this project does not measure: preflights, refusals, uploads, many apps, two workers, starting.

usage: more.py BENCH_FOLDER [preflight | refused | upload | apps | workers | start ...]

BENCH_FOLDER is the folder whose lib/bench.py gives the load and the measuring; GATEWAY_BIN names the gateway. Each figure is
the median of ROUNDS interleaved rounds, and each ratio the median of what each round's pair gave.
"""
import os, pathlib, shlex, socket, statistics, sys, threading, time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(pathlib.Path(sys.argv[1]) / "lib"))
import bench  # noqa: E402

GATEWAY = str(HERE / "gateway")
UPLOAD_MIB = 100


def load(peer, method="GET", headers=None, seconds=bench.SECONDS):
    """wrk with these headers; all its answers count, whatever their status."""
    text = "\n".join(f"{k}: {v}" for k, v in (headers or bench.get_headers()).items())
    env = dict(os.environ, OPENSSL_CONF=str(bench.TMP / "client.cnf"), B_METHOD=method, B_PATHS="", B_BODY="", B_HEADERS=text)
    argv = ["wrk", "-t1", f"-c{bench.CONNS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(bench.HERE / "lib/wrk.lua"), bench.url(peer, "/api/thing")]

    def run():
        return bench.json.loads(bench.re.search(r"^RESULT (.*)$", bench.loaded(argv, env), bench.re.M).group(1))
    r = bench.measured(peer, run)
    return {"cpu_us": 1e6 * (r["user"] + r["sys"]) / max(1, r["requests"]), "rps": r["requests"] / (r["us"] / 1e6),
            "status": r["status"], "requests": r["requests"], "rss": r["rss"]}


def expect_only(peer, method, headers, status):
    got = peer.request(method, "/api/thing", headers)[0]
    assert got == status, f"{method}: {got}, not {status}"


def upload(peer, path):
    """Four clients at a time, each sending the file once for each second of a run."""
    head = [part for k, v in {**bench.get_headers(), "Content-Type": "application/octet-stream", "Expect": ""}.items() for part in ("-H", f"{k}: {v}")]
    once = ["-sk", "--http1.1", "-X", "POST", "-o", "/dev/null", "-w", "%{http_code}\\n", "-T", str(path), *head, bench.url(peer, "/api/thing")]
    each = shlex.join(["curl", *([*once, "--next"] * (bench.SECONDS - 1)), *once])

    def run():
        env = dict(os.environ, OPENSSL_CONF=str(bench.TMP / "client.cnf"))
        out = bench.loaded(["sh", "-c", f"{each} & {each} & {each} & {each} & wait"], env)
        assert set(out.split()) == {"200"}, out
        return {"requests": len(out.split())}
    r = bench.measured(peer, run)
    return {"cpu_us_mib": 1e6 * (r["user"] + r["sys"]) / (r["requests"] * UPLOAD_MIB), "rss": r["rss"], "uploads": r["requests"]}


def sink(port):
    """An upstream that reads whatever length a request declares and answers it; the bench's own takes small ones only."""
    def serve(client):
        space, held = bytearray(1 << 18), b""
        while True:
            while b"\r\n\r\n" not in held:
                part = client.recv(65536)
                if not part:
                    return
                held += part
            head, _, held = held.partition(b"\r\n\r\n")
            length = bench.re.search(rb"(?i)content-length: *(\d+)", head)
            left = int(length.group(1)) - len(held) if length else 0
            held = b"" if length else held
            while left > 0:
                left -= client.recv_into(space, min(left, len(space)))
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def gateway(label, **variables):
    return ",".join([f"{label}={GATEWAY}", *(f"{k}={v}" for k, v in variables.items())])


def rounds(peers, measure):
    """{label: [figures]} over interleaved rounds."""
    runs = {}
    for n in range(bench.ROUNDS):
        for place, spec in enumerate(peers):
            peer = bench.Peer(spec, place)
            try:
                assert peer.up(), f"{peer.label} did not start"
                time.sleep(0.3)
                for label, figures in measure(peer).items():
                    runs.setdefault(label, []).append(figures)
                    print(f"  round {n + 1} {label}: " + " ".join(f"{k}={v:.4g}" for k, v in figures.items()), file=sys.stderr, flush=True)
            finally:
                peer.down()
    return runs


def tell(title, runs, key, over):
    print(f"\n## {title}\n\n| | {' | '.join(next(iter(runs.values()))[0])} | ×{over} |\n|" + "---|" * (2 + len(next(iter(runs.values()))[0])))
    for label, figures in runs.items():
        medians = [statistics.median(f[k] for f in figures) for k in figures[0]]
        ratio = statistics.median(f[key] / o[key] for f, o in zip(figures, runs[over]))
        print(f"| {label} | " + " | ".join(f"{m:.4g}" for m in medians) + f" | {ratio:.2f} |", flush=True)


def preflight():
    ask = {"Origin": "null", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "stripe-signature"}

    def measure(peer):
        expect_only(peer, "OPTIONS", ask, 204)
        load(peer, seconds=1)
        return {"GET": load(peer), "preflight": load(peer, "OPTIONS", ask)}
    tell("preflight", rounds([gateway("countersign")], measure), "cpu_us", "GET")


def refused():
    wrong = bench.get_headers(bench.signature(secret="absec_wrong"))
    none = {"Accept": "*/*"}

    def measure(peer):
        load(peer, seconds=1)
        good = load(peer)
        bad, missing = load(peer, headers=wrong), load(peer, headers=none)
        assert bad["status"] == bad["requests"] and missing["status"] == missing["requests"], "something was not refused"
        again = load(peer, headers=wrong)
        return {"GET": good, "wrong signature": bad, "no signature": missing, "wrong signature, later": again}
    tell("refused", rounds([gateway("countersign")], measure), "cpu_us", "GET")


def uploads():
    path = bench.TMP / "upload"
    path.write_bytes(os.urandom(1 << 20) * UPLOAD_MIB)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    upstream = bench.start([sys.executable, __file__, sys.argv[1], "sink", str(port)], bench.CPU_LOAD)
    assert bench.wait_port(port, upstream, 5)
    kept, bench.UPSTREAM_PORT = bench.UPSTREAM_PORT, port
    try:
        # Verifying, that one looks for the ids in a body.
        peers = [gateway("countersign", STREAM_BYTES="1GiB"), "haproxy:pass"]
        tell("upload", rounds(peers, lambda peer: {peer.label: upload(peer, path)}), "cpu_us_mib", "haproxy:pass")
    finally:
        bench.UPSTREAM_PORT = kept
        bench.stop(upstream)


def apps():
    def measure(peer):
        load(peer, seconds=1)
        return {peer.label: dict(load(peer), start_s=peer.start_seconds)}
    tell("apps", rounds([gateway("one app"), gateway("1000 apps", APPS="1000")], measure), "cpu_us", "one app")


def workers():
    """A worker for each core that the process may use; the load has to share the second core."""
    def measure(peer):
        load(peer, seconds=1)
        return {peer.label: load(peer)}
    runs = {}
    for n in range(bench.ROUNDS):
        for label, cores in (("one core", "0"), ("two cores", "0,1")):
            bench.CPU_PROXY, bench.ROUNDS, kept = cores, 1, bench.ROUNDS
            try:
                for name, figures in rounds([gateway(label)], measure).items():
                    runs.setdefault(name, []).extend(figures)
            finally:
                bench.ROUNDS = kept
    tell("workers", runs, "cpu_us", "one core")


def start():
    def measure(peer):
        # What writes the configuration is left out: the program is started again as it was, and each start is timed by itself, from
        # the process to the first answer to a signed request.
        proc = pathlib.Path(f"/proc/{peer.proc.pid}")
        argv = [os.fsdecode(word) for word in (proc / "cmdline").read_bytes().split(b"\0")[:-1]]
        env = dict(os.fsdecode(line).split("=", 1) for line in (proc / "environ").read_bytes().split(b"\0") if b"=" in line)
        times = []
        for _ in range(20):
            peer.down()
            began = time.perf_counter()
            peer.proc = bench.start(argv, bench.CPU_PROXY, env, peer.work / "log", cwd=peer.work)
            while True:
                try:
                    status = peer.request("GET", "/api/thing", bench.get_headers())[0]
                    break
                except ConnectionRefusedError:
                    assert peer.proc.poll() is None and time.perf_counter() - began < 60, f"{peer.label} did not start again"
                    time.sleep(0.001)
            times.append(time.perf_counter() - began)
            assert status == 200
        return {peer.label: {"first_answer_ms": 1e3 * statistics.median(times), "rss_mib": bench.memory(peer.pids())}}
    tell("start", rounds([gateway("countersign"), "haproxy"], measure), "first_answer_ms", "haproxy")


def main():
    scenarios = {"preflight": preflight, "refused": refused, "upload": uploads, "apps": apps, "workers": workers, "start": start}
    if sys.argv[2:3] == ["sink"]:
        sink(int(sys.argv[3]))
    names = sys.argv[2:] or list(scenarios)
    up = bench.prepare()
    try:
        for name in names:
            scenarios[name]()
    finally:
        bench.stop(up)


if __name__ == "__main__":
    main()

"""The public suites, run against each proxy in turn. Raw results stay in target/suites/run/SUITE/results."""
import csv, json, os, re, subprocess, sys, time

from proxies import NAMES, SCRATCH, HeldConnections, HonestClient, Lab, table, versions

SECONDS_PER_ATTACK = int(os.environ.get("SECONDS_PER_ATTACK", "75"))
SLOW_CONNECTIONS = int(os.environ.get("SLOW_CONNECTIONS", "1000"))


def run(lab, name, command, seconds, stdin=None):
    """Runs a suite's tool within a time, its output into a file; returns that output and the exit status, None past the time."""
    path = lab.folder / "results" / f"{name}.txt"
    with path.open("wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                   cwd=path.parent)
        lab.processes.append(process)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
    return path.read_text(errors="replace"), status


def testssl(lab, upstream, names):
    """testssl.sh: the grade, and each finding that is worse than information."""
    rows, findings = [], []
    # To a stranger Countersign's answer is a refusal; what the administrator adds to answers is on those that pass.
    for label, name, headers in [("Countersign, signed", names[0], lab.headers()), *((name, name, {}) for name in names)]:
        proxy = lab.proxy(name, upstream)
        raw = "testssl-" + label.replace(", ", "-")
        report = lab.folder / "results" / f"{raw}.json"
        run(lab, raw, [os.environ["TESTSSL"], "--quiet", "--color", "0", "--warnings", "off", "--nodns", "min", "--ip", "127.0.0.1",
                       "--add-ca", lab.folder / "ca.pem", "--jsonfile", report,
                       *(part for field, value in headers.items() for part in ("--reqheader", f"{field}: {value}")),
                       f"https://localhost:{proxy.port}/"], 900)
        proxy.stop()
        entries = json.loads(report.read_text())
        found = {entry["id"]: entry["finding"] for entry in entries}
        value = lambda key: found.get(key, "none")
        # What it says of the openssl program it uses itself is no finding about a server.
        worse = [entry for entry in entries
                 if entry["severity"] in ("LOW", "MEDIUM", "HIGH", "CRITICAL", "WARN", "FATAL") and entry["id"] != "engine_problem"]
        reasons = "; ".join(entry["finding"] for entry in entries if entry["id"].startswith("grade_cap_reason"))
        rows.append([label, value("overall_grade"), value("final_score"), value("protocol_support_score"), value("key_exchange_score"),
                     value("cipher_strength_score"), len(worse), reasons or "–"])
        findings += [[label, entry["id"], entry["severity"], re.sub(r"\s+", " ", entry["finding"])[:140].replace("|", "/")]
                     for entry in worse]
    table("testssl.sh: the grade", ["", "grade", "score", "protocols", "key exchange", "ciphers", "findings", "why not better"], rows)
    table("testssl.sh: findings", ["", "id", "severity", "finding"], findings)
    grades = {row[0]: row[1] for row in rows}
    return grades["Countersign, signed"] == "A+" and grades["Countersign"] in ("A+", "A")


def sslyze(lab, upstream, names):
    """sslyze: whether the TLS is Mozilla's `intermediate`."""
    rows = []
    for name in names:
        proxy = lab.proxy(name, upstream)
        text, status = run(lab, f"sslyze-{name}", [SCRATCH / "venv/bin/sslyze", "--mozilla_config", "intermediate", "--sni", "localhost",
                                                   "--certinfo_ca_file", lab.folder / "ca.pem", f"127.0.0.1:{proxy.port}"], 300)
        proxy.stop()
        verdict = text.rpartition("COMPLIANCE AGAINST")[2]
        reasons = re.findall(r"^\s+\* (.+)$", verdict, re.M)
        rows.append([name, "compliant" if "OK - Compliant" in verdict and status == 0 else "not compliant", "; ".join(reasons) or "–"])
    table("sslyze, --mozilla_config intermediate", ["", "verdict", "why"], rows)
    return all(row[1] == "compliant" for row in rows if row[0] == "Countersign")


def slowhttptest(lab, upstream, names):
    """slowhttptest: what becomes of slow connections, and of an honest client beside them."""
    attacks = [("slow head", ["-H", "-i", "10"], {}, "/", "GET"),
               ("slow body", ["-B", "-i", "10", "-s", "8192", "-f", "application/json"], {}, "/", "POST"),
               ("slow body, signed", ["-B", "-i", "10", "-s", "8192", "-f", "application/json"], {"signed": True}, "/", "POST"),
               ("ranges", ["-R", "-a", "5", "-b", "3000"], {"signed": True}, "/large", "HEAD"),
               ("slow read", ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3"], {"signed": True}, "/large", "GET")]
    rows = []
    for attack, options, extra, path, verb in attacks:
        for name in names:
            if attack.endswith("signed") and name != "Countersign":
                continue
            proxy = lab.proxy(name, upstream)
            honest = lab.headers() if name == "Countersign" else {}
            # It can send no header of the caller's choice but Cookie, whose value it does not look into.
            cookie = [f"suites=1\r\n" + "\r\n".join(f"{field}: {value}" for field, value in honest.items())] \
                if honest and extra.get("signed") else []
            label = f"slowhttptest-{attack.replace(', ', '-').replace(' ', '-')}-{name}"
            command = ["slowhttptest", *options, "-c", SLOW_CONNECTIONS, "-r", "200", "-l", SECONDS_PER_ATTACK, "-p", "3", "-t", verb,
                       "-u", f"https://127.0.0.1:{proxy.port}{path}", "-g", "-o", label, *(["-j", *cookie] if cookie else [])]
            with HonestClient(lab, proxy.port, honest) as client, HeldConnections(proxy.port) as held:
                run(lab, label, command, SECONDS_PER_ATTACK + 30)
            alive = proxy.alive()
            memory = f"{proxy.memory('VmHWM') / 2**20:.0f}" if alive else "–"
            proxy.stop()
            rows.append([attack, name, *held.figures(), probed(lab.folder / "results" / f"{label}.csv"), *client.figures(), memory,
                         "yes" if alive else "no"])
    table(f"slowhttptest, {SLOW_CONNECTIONS} connections, at most {SECONDS_PER_ATTACK} s",
          ["attack", "", "held at most", "half let go after", "all let go after", "its own probe was answered", "honest: median ms", "p99",
           "worst", "failed", "peak MiB", "alive"], rows)
    return all(row[9].startswith("0 of") for row in rows if row[1] == "Countersign")


def probed(path):
    """From slowhttptest's statistics, whether its own probe was answered: always, or in how many seconds of all."""
    with path.open() as file:
        # Seconds, closed, pending, connected, service available.
        available = [row[4].strip() != "0" for row in csv.reader(file) if row and row[0].strip().isdigit()]
    return "always" if all(available) else f"{sum(available)} of {len(available)} s"


def h2load(lab, upstream, names):
    """h2load: are all requests answered, over HTTP/2 and HTTP/1.1."""
    # The last asks for more at once than an upstream may have in flight and waiting: what is too much is refused, and nothing breaks.
    kinds = [("HTTP/2, 10 connections, 100 streams each", ["-n", "50000", "-c", "10", "-m", "100"], False),
             ("HTTP/2, 1,000 connections, one stream each", ["-n", "50000", "-c", "1000", "-m", "1"], False),
             ("HTTP/1.1, 100 connections", ["--h1", "-n", "20000", "-c", "100"], False),
             ("HTTP/2, 50 connections, 100 streams each", ["-n", "50000", "-c", "50", "-m", "100"], True)]
    rows, good = [], True
    for kind, options, may_refuse in kinds[:1] if len(names) == 1 else kinds:
        for name in names:
            proxy = lab.proxy(name, upstream)
            headers = lab.headers() if name == "Countersign" else {}
            label = "h2load-" + re.sub(r"\W+", "-", f"{kind} {name}")
            text, _ = run(lab, label, ["h2load", *options, *(part for field, value in headers.items() for part in ("-H", f"{field}: {value}")),
                                       f"https://localhost:{proxy.port}/"], 180)
            memory = proxy.memory("VmHWM")
            proxy.stop()
            number = lambda pattern: int((re.search(pattern, text) or [0, -1])[1])
            total, fine, refused = number(r"requests: (\d+) total"), number(r"codes: (\d+) 2xx"), number(r"(\d+) 5xx")
            errors = number(r"(\d+) errored,") + number(r"(\d+) timeout")
            rate = re.search(r"finished in \S+, ([\d.]+) req/s", text)
            times = re.search(r"time for request:\s+\S+\s+(\S+)\s+(\S+)", text)
            rows.append([kind, name, total, fine, refused, errors, f"{float(rate[1]):.0f}", times[2], times[1], f"{memory / 2**20:.0f}"])
            good &= name != "Countersign" or (errors == 0 and total == fine + (refused if may_refuse else 0) > 0)
    table("h2load, one thread", ["", "", "requests", "2xx", "5xx", "errors", "requests/s", "mean", "worst", "peak MiB"], rows)
    return good


SUITES = {"testssl": testssl, "sslyze": sslyze, "slowhttptest": slowhttptest, "h2load": h2load}


def main(arguments):
    smoke = arguments[:1] == ["--smoke"]
    wanted = arguments[1:] if smoke else arguments
    if set(wanted) - SUITES.keys():
        sys.exit(f"suites are {', '.join(SUITES)}")
    if not smoke:
        print(versions())
    bad = []
    for name in wanted or SUITES:
        began = time.monotonic()
        with Lab(f"{'smoke' if smoke else 'run'}/{name}") as lab:
            (lab.folder / "results").mkdir()
            if not SUITES[name](lab, lab.upstream(), NAMES[:1] if smoke else NAMES):
                bad.append(f"{name} (see {lab.folder / 'results'})")
        print(f"\n{name}: {time.monotonic() - began:.0f} s", flush=True)
    if bad:
        sys.exit(f"Countersign falls short in {', '.join(bad)}")


if __name__ == "__main__":
    main(sys.argv[1:])

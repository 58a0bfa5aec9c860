#!/usr/bin/env python3
"""Reloads under load: 50 changes of the configuration and 20 of the certificate beside wrk, which keeps asking.

    python3 tests/suites/reload.py target/dist/countersign

Needs wrk, haproxy (as the service) and openssl. Fails if a single request got anything but a 200, a connection broke, fewer than 2,000 requests a second
were answered, or a change was not taken.
"""
import hashlib, hmac, os, re, subprocess, sys, tempfile, threading, time

PROGRAM = os.path.abspath(sys.argv[1])
SECRET, USER, ACCOUNT = "absec_suite", "usr_Suite", "acct_Suite"
RELOADS, CERTIFICATES, LEAST = 50, 20, 2000


def replace(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def certificate(folder):
    made = [os.path.join(folder, name) for name in ("made.key", "made.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj",
         "/CN=gw.test", "-addext", "subjectAltName=DNS:gw.test,IP:127.0.0.1", "-keyout", made[0], "-out", made[1]],
        check=True, stderr=subprocess.DEVNULL)
    for path, name in zip(made, ("key.pem", "cert.pem")):
        with open(path) as file:
            replace(os.path.join(folder, name), file.read())


def main():
    folder = tempfile.mkdtemp()
    upstream = os.path.join(folder, "upstream.conf")
    port, service = 18443, 18444
    with open(upstream, "w") as file:
        file.write(
            f"global\n  nbthread 1\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  timeout connect 5s\n"
            f"frontend service\n  bind 127.0.0.1:{service}\n  http-request return status 200 content-type text/plain string ok\n")
    served = subprocess.Popen(["haproxy", "-f", upstream, "-q"])
    certificate(folder)
    with open(os.path.join(folder, "secret"), "w") as file:
        file.write(SECRET)
    os.chmod(os.path.join(folder, "secret"), 0o600)
    config = os.path.join(folder, "countersign.toml")
    text = lambda headers: f"""version = 1
[listener]
address = "127.0.0.1:{port}"
certificate = "cert.pem"
private_key = "key.pem"
[log]
access = "/dev/null"
[limits]
headers = {headers}
[apps.suite]
secrets = [{{ file = "secret" }}]
accounts = ["{ACCOUNT}"]
[[routes]]
path = "/"
app = "suite"
upstream = "http://127.0.0.1:{service}"
"""
    replace(config, text(100))
    gateway = subprocess.Popen([PROGRAM, "run", "--config", config], stderr=subprocess.PIPE, text=True)
    said = []
    reading = threading.Thread(target=lambda: said.extend(iter(gateway.stderr.readline, "")), daemon=True)
    reading.start()
    taken = lambda: sum("is in force" in line for line in said)
    while not any("listening" in line for line in said):
        assert gateway.poll() is None, said
        time.sleep(0.05)
    now = int(time.time())
    payload = f'{{"user_id":"{USER}","account_id":"{ACCOUNT}"}}'
    tag = hmac.new(SECRET.encode(), f"{now}.{payload}".encode(), hashlib.sha256).hexdigest()
    seconds = 40
    load = subprocess.Popen(
        ["wrk", "-t", "1", "-c", "16", "-d", f"{seconds}s", "-H", f"Stripe-Signature: t={now},v1={tag}", "-H", f"Stripe-User-Id: {USER}",
         "-H", f"Stripe-Account-Id: {ACCOUNT}", f"https://127.0.0.1:{port}/a"], stdout=subprocess.PIPE, text=True)
    certificates = 0
    for number in range(RELOADS):
        before = taken()
        replace(config, text(101 + number))
        while taken() == before:
            time.sleep(0.01)
        if number % 5 < 2:
            certificates += 1
            before = taken()
            certificate(folder)
            while taken() == before:
                time.sleep(0.01)
    assert load.poll() is None, "the load ended before the reloads"
    report = load.communicate()[0]
    gateway.terminate()
    code = gateway.wait(60)
    served.terminate()
    rate = float(re.search(r"Requests/sec:\s*([\d.]+)", report).group(1))
    broken = [line.strip() for line in report.splitlines() if "Socket errors" in line or "Non-2xx" in line]
    print(f"{RELOADS} reloads, {certificates} certificates, {rate:.0f} requests/s, {broken or 'nothing lost'}, exit {code}")
    return 0 if rate >= LEAST and not broken and certificates == CERTIFICATES and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

"""Countersign, nginx and HAProxy before one upstream, each as its administrator would set it up; started and ended here."""
import fcntl, json, os, pathlib, resource, shutil, signal, socket, ssl, subprocess, sys, threading, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRATCH = ROOT / "target/suites"
COUNTERSIGN = os.environ.get("COUNTERSIGN", str(ROOT / "target/dist/countersign"))
NAMES = ["Countersign", "nginx", "HAProxy"]
USER, ACCOUNT = "usr_SuitesUser1", "acct_SuitesAccount1"
HSTS = "max-age=63072000"
KEEP = "75s"

# Mozilla's "intermediate", guidelines 5.7.
CIPHERS = ":".join(["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
                    "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"])

COUNTERSIGN_TOML = """
version = 1
state_directory = "state"
[listener]
address = "127.0.0.1:{port}"
certificate = "{cert}"
private_key = "{key}"
[apps.suites]
secrets = [{{ file = "secret" }}]
accounts = ["{account}"]
# A run is longer than a signature lives.
unsafe_tolerance = "4h"
[[routes]]
path = "/"
app = "suites"
upstream = "http://127.0.0.1:{upstream}"
[routes.response_headers.set]
Strict-Transport-Security = "{hsts}"
[log]
access = "access.log"
[limits]
idle_timeout = "{keep}"
{more}
"""

NGINX_CONF = """
daemon off;
{user}
worker_processes auto;
worker_rlimit_nofile {files};
pid nginx.pid;
error_log error.log;
events {{ worker_connections 20000; }}
http {{
  access_log access.log;
  client_body_temp_path tmp-body; proxy_temp_path tmp-proxy; fastcgi_temp_path tmp-f; uwsgi_temp_path tmp-u; scgi_temp_path tmp-s;
  keepalive_requests 1000000;
  keepalive_timeout {keep};
  client_max_body_size 16m;
  upstream service {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} ssl http2 backlog=4096;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ciphers {ciphers};
    ssl_ecdh_curve X25519:prime256v1:secp384r1;
    ssl_prefer_server_ciphers off;
    ssl_session_cache shared:tls:10m;
    ssl_session_timeout 1d;
    ssl_session_tickets off;
    add_header Strict-Transport-Security "{hsts}" always;
    location / {{
      proxy_pass http://service;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_max_temp_file_size 0;
    }}
  }}
}}
"""

HAPROXY_CFG = """
global
  maxconn 20000
  # Where the machine's limit of open files is lower, that limit counts.
  no strict-limits
  ssl-default-bind-ciphers {ciphers}
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
  ssl-default-bind-options prefer-client-ciphers ssl-min-ver TLSv1.2 no-tls-tickets
defaults
  mode http
  timeout connect 5s
  timeout client {client}
  timeout server 60s
  timeout http-request 10s
  timeout http-keep-alive {keep}
frontend public
  bind 127.0.0.1:{port} ssl crt {pem} alpn h2,http/1.1 curves X25519:P-256:P-384 backlog 4096
  http-after-response set-header Strict-Transport-Security "{hsts}"
  default_backend service
backend service
  http-reuse always
  server service 127.0.0.1:{upstream}
"""

# The upstream of the suites: answers at once, and has 1 MiB to read slowly.
UPSTREAM_CONF = """
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile {files};
pid nginx.pid;
error_log error.log;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  client_body_temp_path tmp-body; proxy_temp_path tmp-proxy; fastcgi_temp_path tmp-f; uwsgi_temp_path tmp-u; scgi_temp_path tmp-s;
  keepalive_requests 1000000;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {folder};
    location / {{ return 200 "fine\\n"; }}
    location /large {{ }}
  }}
}}
"""


class Lab:
    """A scratch folder, a certificate of an authority of its own, and the processes that were started: ended when it is left."""

    def __init__(self, name):
        self.folder = SCRATCH / name
        self.processes = []

    def __enter__(self):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
        self.files = allow_files(65536)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.lock = self.folder.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"another run uses {self.folder}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.authority()
        secret = self.folder / "secret"
        secret.touch(mode=0o600)
        secret.write_text("absec_suites_0123456789abcdef")
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            end(process)
        self.lock.close()

    def authority(self):
        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def key(name):
            openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name)
            (self.folder / name).chmod(0o600)
        key("ca.key")
        openssl("req", "-x509", "-new", "-key", "ca.key", "-sha256", "-days", "90", "-subj", "/CN=Suites",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-out", "ca.pem")
        key("key.pem")
        openssl("req", "-new", "-key", "key.pem", "-subj", "/CN=localhost", "-out", "request.pem")
        (self.folder / "extensions").write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
            "extendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        openssl("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-sha256", "-days", "90",
                "-extfile", "extensions", "-out", "cert.pem")
        both = self.folder / "both.pem"
        both.touch(mode=0o600)
        both.write_text((self.folder / "cert.pem").read_text() + (self.folder / "key.pem").read_text())

    def tls(self, *protocols):
        """What an honest client uses: it trusts the lab's authority and nobody else."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def start(self, command, folder, port):
        """Starts a server and waits until it listens."""
        with (folder / "output").open("ab") as output:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.processes.append(process)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return process
            except OSError:
                time.sleep(0.05)
        sys.exit(f"{command[0]} does not listen on {port}:\n{(folder / 'output').read_text()}")

    def upstream(self):
        folder = self.place("upstream")
        (folder / "large").write_bytes(os.urandom(1 << 20))
        port = free_port()
        (folder / "nginx.conf").write_text(UPSTREAM_CONF.format(user=nginx_user(), files=self.files, port=port, folder=folder))
        self.start([program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")], folder, port)
        return port

    def proxy(self, name, upstream, more="", keep=KEEP):
        """Starts one of NAMES, which keeps idle connections for `keep`; `more` is added to Countersign's limits."""
        folder, port = self.place(name), free_port()
        values = dict(port=port, upstream=upstream, cert=self.folder / "cert.pem", key=self.folder / "key.pem", hsts=HSTS,
                      pem=self.folder / "both.pem", ciphers=CIPHERS, account=ACCOUNT, user=nginx_user(),
                      files=self.files, more=more, keep=keep,
                      client="30s" if keep == KEEP else keep)
        if name == "Countersign":
            shutil.copy2(self.folder / "secret", folder / "secret")
            (folder / "countersign.toml").write_text(COUNTERSIGN_TOML.format(**values))
            command = [COUNTERSIGN, "run", "--config", str(folder / "countersign.toml")]
        elif name == "nginx":
            (folder / "nginx.conf").write_text(NGINX_CONF.format(**values))
            command = [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
        else:
            (folder / "haproxy.cfg").write_text(HAPROXY_CFG.format(**values))
            command = [program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        return Proxy(name, port, self.start(command, folder, port))

    def place(self, name):
        folder = self.folder / name.lower()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def signed(self, *arguments, method="GET", path="/"):
        """A request that Countersign lets pass, as `countersign sign` gives it: headers and body."""
        command = [COUNTERSIGN, "sign", "--secret-file", str(self.folder / "secret"), "--user", USER, "--account", ACCOUNT,
                   "--format", "json", *arguments, method, f"https://localhost{path}"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    def headers(self):
        """The headers of a signed request without a body."""
        return self.signed("--carrier", "headers")["headers"]


class Proxy:
    def __init__(self, name, port, process):
        self.name, self.port, self.process = name, port, process

    def pids(self):
        """The process and its children, for nginx has workers."""
        pid = self.process.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def memory(self, field):
        """VmRSS or VmHWM in bytes, of all its processes together."""
        total = 0
        for pid in self.pids():
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1]) * 1024
        return total

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        end(self.process)


class HonestClient:
    """Asks on a new connection twenty times a second, and remembers how long each answer took."""

    def __init__(self, lab, port, headers):
        self.tls, self.port = lab.tls("http/1.1"), port
        self.request = "".join([f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n",
                                *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]).encode()
        self.seconds, self.failures, self.stopped = [], 0, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()

    def run(self):
        while not self.stopped.wait(0.05):
            began = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", self.port), 10) as raw:
                    with self.tls.wrap_socket(raw, server_hostname="localhost") as stream:
                        stream.sendall(self.request)
                        answer = stream.recv(4096)
                if answer.startswith(b"HTTP/1.1 200"):
                    self.seconds.append(time.monotonic() - began)
                else:
                    self.failures += 1
            except OSError:
                self.failures += 1

    def figures(self):
        """Median, 99th percentile and worst in milliseconds; failures of all."""
        ordered = sorted(self.seconds) or [float("nan")]
        at = lambda share: f"{1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))]:.1f}"
        return [at(0.5), at(0.99), at(1), f"{self.failures} of {len(self.seconds) + self.failures}"]


class HeldConnections:
    """Counts, each second, the connections at a port that its server has not closed: what the client's side sees comes later, once it
    has read what lies in between."""

    # Those of an honest client and of a suite's probe.
    FEW = 5

    def __init__(self, port):
        self.suffix, self.counts, self.stopped = f":{port:04X}", [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.began = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()

    def run(self):
        while not self.stopped.wait(1):
            sockets = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
            # ESTABLISHED or CLOSE_WAIT, and still somebody's.
            held = sum(1 for socket in sockets if socket[1].endswith(self.suffix) and socket[3] in ("01", "08") and socket[9] != "0")
            self.counts.append((time.monotonic() - self.began, held))

    def figures(self):
        """The most that were held, and after how many seconds of the attack half of those, and all, were let go."""
        most = max((held for _, held in self.counts), default=0)
        peak = next((at for at, held in self.counts if held == most), 0)
        after = lambda left: next((f"{at:.0f} s" for at, held in self.counts if at > peak and held <= left), "not")
        return [most, *(["–", "–"] if most <= 4 * self.FEW else [after(most / 2), after(self.FEW)])]


def end(process):
    """Ends one process that was started here: politely, and after ten seconds not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            # Countersign and HAProxy drain on the first signal.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def allow_files(count):
    """Raises the limit of open files as far as the machine lets it, for this process and those it starts; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(soft, count if hard == resource.RLIM_INFINITY else min(count, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def program(name):
    """A server's path, also where only the administrator's PATH has it."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    return found or sys.exit(f"missing here: {name}")


def nginx_user():
    return "user root;" if os.geteuid() == 0 else ""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def versions():
    """What is compared, in one line."""
    def first(*command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout.splitlines()[0]
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    return (f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores: {first(COUNTERSIGN, '--version')} (tree {commit}), "
            f"{first(program('nginx'), '-v').removeprefix('nginx version: ')}, "
            f"{first(program('haproxy'), '-v').split(' - ')[0].replace(' version ', '/').split('-')[0]}")


def table(title, head, rows):
    """Prints a table as the documentation shows it."""
    print(f"\n{title}\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    sys.stdout.flush()

"""What the suites of the webhooks share: a gateway, a PostgreSQL server, a sender that is to Stripe what a mirror is, and services that get
the events. Everything listens on 127.0.0.1, and every process that is started here is ended here."""
import asyncio, glob, hashlib, hmac, json, os, pwd, re, shutil, signal, socket, ssl, subprocess, tempfile, time
from dataclasses import dataclass

STRIPES, OURS = "whsec_of_stripe_0123456789abcdef", "whsec_of_the_service_0123456789"
PATH = "/stripe/events"
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def signature(secret, body, now=None):
    now = int(time.time() if now is None else now)
    return f"t={now},v1={hmac.new(secret.encode(), b'%d.' % now + body, hashlib.sha256).hexdigest()}"


def event(name, of=None, more=""):
    """An event of live mode, about 1 KiB long as most are."""
    of = of or f"in_{name}"
    return (f'{{"id":"evt_{name}","object":"event","api_version":"2025-09-30.clover","created":1760000000,"type":"invoice.paid","livemode":true,'
            f'"pending_webhooks":1,"request":{{"id":null,"idempotency_key":null}},"data":{{"object":{{"id":"{of}","object":"invoice",'
            f'"amount_due":2000,"lines":"{more or "x" * 700}"}}}}}}').encode()


def seconds_of(pid):
    """The processor time of a process so far, with that of its ended children."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


def resident_mib(pid, key="VmRSS"):
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(rf"^{key}:\s+(\d+)", file.read(), re.M).group(1)) / 1024


class Folder:
    """A temporary folder with a certificate and the secrets. At the end it is removed, and the gateways that still run in it are ended."""

    def __init__(self):
        self.gateways = []
        self.path = tempfile.mkdtemp(prefix="countersign-suite-")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=gw.test",
             "-addext", "subjectAltName=DNS:gw.test,IP:127.0.0.1", "-keyout", self.file("key.pem"), "-out", self.file("cert.pem")],
            check=True, stderr=subprocess.DEVNULL)
        self.write("stripe.whsec", STRIPES)
        self.write("ours.whsec", OURS)

    def file(self, name):
        return os.path.join(self.path, name)

    def write(self, name, text):
        with open(os.open(self.file(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for gateway in self.gateways:
            gateway.stop(10)
        shutil.rmtree(self.path, ignore_errors=True)


class Gateway:
    """A gateway with one webhook, on ports of its own. `deliver` are its destinations: name -> (port, more keys)."""

    def __init__(self, program, folder, deliver, name="gateway", postgres=None, more=""):
        self.program, self.folder, self.name = os.path.abspath(program), folder, name
        self.port, self.operations, self.process = free_port(), free_port(), None
        self.config, self.state, self.log = (folder.file(f"{name}{end}") for end in (".toml", ".state", ".log"))
        self.starts = 0
        folder.gateways.append(self)
        if postgres:
            folder.write(f"{name}.url", postgres)
        destinations = "".join(
            f'[[webhooks.deliver]]\nname = "{to}"\nto = "http://127.0.0.1:{port}/in"\nsecret = {{ file = "ours.whsec" }}\n{keys}\n'
            for to, (port, keys) in deliver.items())
        inbox = f'[inbox]\npostgres = {{ file = "{name}.url" }}\n' if postgres else ""
        self.text = f"""version = 1
state_directory = "{name}.state"
[listener]
address = "127.0.0.1:{self.port}"
certificate = "cert.pem"
private_key = "key.pem"
[log]
access = "/dev/null"
[operations]
address = "127.0.0.1:{self.operations}"
{more}
{inbox}
[[webhooks]]
path = "{PATH}"
secrets = [{{ file = "stripe.whsec" }}]
{destinations}"""

    def start(self):
        """Starts it; its name and which start it was stand in the path of what it delivers."""
        self.starts += 1
        self.folder.write(f"{self.name}.toml", self.text.replace("/in\"", f"/{self.name}/{self.starts}\""))
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([self.program, "run", "--config", self.config], stderr=log, stdin=subprocess.DEVNULL)
        return self

    def wait(self, patience=60):
        """Returns when it takes connections."""
        until = time.monotonic() + patience
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 5).close()
            except OSError:
                assert self.process.poll() is None and time.monotonic() < until, self.said()
                time.sleep(0.005)

    def said(self):
        with open(self.log) as log:
            return log.read()[-4000:]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, patience=60):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                return self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process and self.process.returncode

    def command(self, *arguments):
        return subprocess.run([self.program, *arguments], capture_output=True, text=True, timeout=300)

    def metrics(self):
        """What the operations listener says: `name{labels}` -> value."""
        with socket.create_connection(("127.0.0.1", self.operations), 20) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.M)}

    def open_deliveries(self):
        """How many are pending or under way, as of some seconds ago; `None` as long as it was not counted."""
        counts = [value for name, value in self.metrics().items()
                  if name.startswith("countersign_deliveries{") and re.search(r'state="(pending|delivering)"', name)]
        return sum(counts) if counts else None

    def until_drained(self, patience):
        """Waits until nothing is left to be delivered; what is left when patience ends."""
        until = time.monotonic() + patience
        while (left := self.open_deliveries()) != 0 and time.monotonic() < until:
            time.sleep(0.5)
        return left


class Postgres:
    """A server in a temporary folder, with the settings that Debian ships. A folder of root's is no place for it, so it has its own."""

    def __init__(self):
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
        assert programs, "no PostgreSQL here: apt-get install postgresql"
        self.programs, self.port = programs[-1], free_port()
        self.folder = tempfile.mkdtemp(prefix="countersign-postgres-")
        self.user = {}
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            self.user = {"user": "postgres", "group": owner.pw_gid}
        data = os.path.join(self.folder, "data")
        subprocess.run([f"{self.programs}/initdb", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres", "--pgdata", data],
                       check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.user)
        self.process = subprocess.Popen(
            [f"{self.programs}/postgres", "-D", data, "-p", str(self.port), "-k", self.folder, "-c", "listen_addresses=127.0.0.1"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, **self.user)
        until = time.monotonic() + 60
        while subprocess.run(self._psql("postgres", "SELECT 1"), capture_output=True).returncode:
            assert time.monotonic() < until, "PostgreSQL does not answer"
            time.sleep(0.05)

    def _psql(self, database, sql):
        return [f"{self.programs}/psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database, "-XAtqc", sql]

    def sql(self, sql, database="countersign"):
        return subprocess.run(self._psql(database, sql), check=True, capture_output=True, text=True).stdout.strip()

    def database(self, name="countersign"):
        """An empty database, and where it is."""
        self.sql(f"CREATE DATABASE {name}", "postgres")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def seconds(self):
        """The processor time of all of its processes so far."""
        first = self.process.pid
        with open(f"/proc/{first}/task/{first}/children") as file:
            return seconds_of(first) + sum(map(seconds_of, file.read().split()))

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Attempt:
    """One that a destination saw. `by` is the gateway's name and which of its starts it was. Times are the clock's of this process."""
    by: tuple
    event: str
    delivery: str
    number: int
    came: float
    end: str = "under way"
    answered: float = None

    @property
    def is_success(self):
        return self.end in ("success", "late success")


class Destination:
    """A service that takes events and fails as `verdict` says, which gives how an attempt ends, and after how long."""

    def __init__(self, verdict=lambda: ("success", 0), port=None, expected=None):
        self.verdict, self.port, self.expected = verdict, port or free_port(), expected
        self.attempts, self.wrong, self.server, self.connections = [], [], None, set()
        self.delivered, self.answering = {}, asyncio.Event()

    async def open(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        return self

    async def close(self):
        """Nobody can reach it until it is opened again."""
        self.server.close()
        for writer in list(self.connections):
            writer.close()

    async def _serve(self, reader, writer):
        self.connections.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _one(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        _, gateway, start = first.split()[1].split("/")
        attempt = Attempt((gateway, int(start)), headers["countersign-event"], headers["countersign-delivery"],
                          int(headers["countersign-attempt"]), time.monotonic())
        self.attempts.append(attempt)
        body = await reader.readexactly(int(headers["content-length"]))
        self._judge(attempt, headers, body)
        end, pause = self.verdict()
        return await self._answer(writer, attempt, end, pause)

    def _judge(self, attempt, headers, body):
        if self.expected and body != self.expected(attempt.event):
            self.wrong.append(f"the body of {attempt.event} is not the one that was sent")
        now = re.match(r"t=(\d+),", headers.get("stripe-signature", ""))
        if not now or headers["stripe-signature"] != signature(OURS, body, int(now.group(1))):
            self.wrong.append(f"{attempt.event} is not signed by us")

    async def _answer(self, writer, attempt, end, pause):
        def ended():
            attempt.end, attempt.answered = end, time.monotonic()
            if attempt.is_success:
                self.delivered.setdefault(attempt.event, attempt.answered)
                self.answering.set()
        if end == "slow body":
            # The head decides: the next of its object may come before the body has ended.
            end = "success"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            ended()
            await writer.drain()
            await asyncio.sleep(pause)
            writer.write(b"ok")
            await writer.drain()
            return True
        if pause:
            await asyncio.sleep(pause)
        if end == "closed":
            ended()
            return False
        status = {"failure": "500 No", "wait": "503 Later\r\nRetry-After: 1"}.get(end, "200 OK")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        ended()
        await writer.drain()
        return True


class Sender:
    """One connection of Stripe's, opened when it is needed. `ports` are the gateways', one after the other after a failure."""

    def __init__(self, folder, *ports):
        self.ports, self.at, self.streams = ports, 0, None
        self.tls = ssl.create_default_context(cafile=folder.file("cert.pem"))

    async def post(self, body, patience=30):
        """The status and outcome, or (None, reason) if there was no answer."""
        try:
            return await asyncio.wait_for(self._post(body), patience)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ssl.SSLError) as error:
            self.turn()
            return None, type(error).__name__

    async def _post(self, body):
        if not self.streams:
            port = self.ports[self.at % len(self.ports)]
            self.streams = await asyncio.open_connection("127.0.0.1", port, ssl=self.tls)
        reader, writer = self.streams
        writer.write((f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json; charset=utf-8\r\n"
                      f"Stripe-Signature: {signature(STRIPES, body)}\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        answer = await reader.readexactly(int(re.search(r"content-length: (\d+)", head).group(1)))
        if "connection: close" in head:
            self.close()
        if (status := int(head.split()[1])) == 503:
            self.turn()
        said = json.loads(answer)
        return status, said.get("outcome") or said.get("code") or said.get("error")

    def turn(self):
        """Asks the next of the gateways from now on."""
        self.close()
        self.at += 1

    def close(self):
        if self.streams:
            self.streams[1].close()
        self.streams = None

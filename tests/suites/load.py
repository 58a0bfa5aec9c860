"""Load as wrk makes it: events that were signed before, each sent once."""
import itertools, os, re, subprocess
from dataclasses import dataclass
from lab import PATH, STRIPES, event, signature

HERE = os.path.dirname(os.path.abspath(__file__))
UNITS = {"us": 1e-3, "ms": 1, "s": 1000, "m": 60000}


@dataclass
class Load:
    """What wrk counted. Times in milliseconds."""
    requests: int
    rate: float
    p50: float
    p99: float
    failed: list


class Events:
    """A file of requests; every event in it is another than in any file before."""
    numbers = itertools.count()

    def __init__(self, folder, count):
        self.file = folder.file("events")
        with open(self.file, "wb") as file:
            for number in itertools.islice(self.numbers, count):
                body = event(f"load{number}")
                request = (f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\nAccept: */*\r\n"
                           f"Content-Type: application/json; charset=utf-8\r\nStripe-Signature: {signature(STRIPES, body)}\r\n"
                           f"Content-Length: {len(body)}\r\n\r\n").encode() + body
                file.write(b"%08d" % len(request) + request)

    def send(self, origin, seconds, connections=64):
        """Sends them for so long. There must be enough of them."""
        said = subprocess.run(
            ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--latency", "--timeout", "30s", "-s", f"{HERE}/events.lua", origin],
            env=dict(os.environ, EVENTS=self.file), check=True, capture_output=True, text=True).stdout
        quantile = lambda share: (lambda found: float(found[1]) * UNITS[found[2]])(re.search(rf"^\s+{share}%\s+([\d.]+)(\w+)", said, re.M))
        count = lambda pattern: float(re.search(pattern, said).group(1))
        took = re.search(r"requests in ([\d.]+)s", said)
        assert float(took.group(1)) > 0.9 * seconds, f"there were too few events\n{said}"
        failed = [line.strip() for line in said.splitlines() if "Socket errors" in line or "Non-2xx" in line]
        return Load(int(count(r"(\d+) requests in")), count(r"Requests/sec:\s*([\d.]+)"), quantile(50), quantile(99), failed)

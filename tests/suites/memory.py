"""Peak memory in three situations, each with a fresh process of each proxy."""
import asyncio, json, os, socket, sys, time

from proxies import NAMES, Lab, allow_files, free_port, table, versions

CONNECTIONS = int(os.environ.get("CONNECTIONS", "10000"))
SIZE = int(os.environ.get("SIZE", str(10 << 30)))
UPLOADS = int(os.environ.get("UPLOADS", "1000"))
UPLOAD = 1 << 20
# Enough that no upload is turned away: what memory that takes.
ROOM = 'buffered_bytes = "2GiB"\nbuffered_bytes_per_address = "2GiB"'


def idle(lab, upstream):
    """Connections of which each has asked once and then asks nothing."""
    rows = []
    for name in NAMES:
        # Long enough for all to be there at one time on a slow machine too.
        proxy = lab.proxy(name, upstream, keep="10m")
        before = proxy.memory("VmRSS")
        headers = lab.headers() if name == "Countersign" else {}
        served, resting = asyncio.run(ask_and_rest(lab, proxy, headers))
        rows.append([name, served, mib(before), mib(resting), mib(proxy.memory("VmHWM")), f"{(resting - before) / max(1, served) / 1024:.1f} KiB"])
        proxy.stop()
    table(f"{CONNECTIONS} idle TLS connections (MiB)", ["", "answered", "at start", "at rest", "peak", "a connection"], rows)
    return all(row[1] == CONNECTIONS for row in rows if row[0] == "Countersign")


async def ask_and_rest(lab, proxy, headers):
    context, kept, turn = lab.tls("http/1.1"), [], asyncio.Semaphore(100)
    request = head("GET", "/", proxy.port, headers)

    async def connect(number):
        async with turn:
            # A source address has some 28,000 ports: addresses of the loopback range in turn leave room.
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", proxy.port, ssl=context, server_hostname="localhost", ssl_handshake_timeout=60,
                    local_addr=(f"127.0.0.{2 + number % 10}", 0))
                writer.write(request)
                status, _ = await asyncio.wait_for(answer(reader), 60)
            except (OSError, EOFError, asyncio.TimeoutError):
                return False
            kept.append((reader, writer))
            return status == 200
    served = sum(await asyncio.gather(*map(connect, range(CONNECTIONS))))
    await asyncio.sleep(3)
    resting = proxy.memory("VmRSS")
    still_open = sum(1 for reader, _ in kept if not reader.at_eof())
    for _, writer in kept:
        writer.transport.abort()
    # They are closed in the loop's next rounds, and the next proxy needs their descriptors.
    await asyncio.sleep(1)
    return min(served, still_open), resting


def download(lab, upstream):
    """One long answer, which the upstream makes as fast as it is taken."""
    rows = []
    for name in NAMES:
        proxy = lab.proxy(name, upstream)
        headers = lab.headers() if name == "Countersign" else {}
        began = time.monotonic()
        got = fetch(lab, proxy, headers)
        seconds = time.monotonic() - began
        rows.append([name, "all of it" if got == SIZE else f"{got} bytes", mib(proxy.memory("VmHWM")), f"{got / seconds / 2**20:.0f} MiB/s"])
        proxy.stop()
    table(f"a download of {SIZE / 2**30:g} GiB", ["", "arrived", "peak MiB", "rate"], rows)
    return all(row[1] == "all of it" for row in rows if row[0] == "Countersign")


def fetch(lab, proxy, headers):
    with socket.create_connection(("127.0.0.1", proxy.port), 60) as raw:
        with lab.tls("http/1.1").wrap_socket(raw, server_hostname="localhost") as stream:
            stream.sendall(head("GET", f"/bytes/{SIZE}", proxy.port, headers | {"Connection": "close"}))
            got = bytearray()
            while b"\r\n\r\n" not in got:
                part = stream.recv(4096)
                if not part:
                    return 0
                got += part
            start, _, rest = bytes(got).partition(b"\r\n\r\n")
            if b"chunked" in start.lower():
                sys.exit(f"{proxy.name} passes an answer of a known length on without it")
            count, buffer = len(rest), memoryview(bytearray(1 << 18))
            while part := stream.recv_into(buffer):
                count += part
            return count


def uploads(kind, lab, upstream):
    """Uploads of 1 MiB, each of them halfway before any goes on: read whole where the body is JSON, else passed on as it comes."""
    rows = []
    content = "application/json" if kind == "json" else "application/octet-stream"
    plans = [(name, name, "") for name in NAMES]
    if kind == "json":
        plans.insert(1, ("Countersign, buffered_bytes = 2GiB", "Countersign", ROOM))
    for label, name, more in plans:
        proxy = lab.proxy(name, upstream, more)
        before = proxy.memory("VmRSS")
        headers, body = upload(lab, kind)
        headers |= {"Content-Type": content, "Content-Length": str(len(body)), "Connection": "close"}
        began = time.monotonic()
        fine, refused, lost = asyncio.run(upload_all(lab, proxy, headers, body))
        seconds = time.monotonic() - began
        rows.append([label, fine, refused, lost, mib(before), mib(proxy.memory("VmHWM")), f"{seconds:.1f} s"])
        proxy.stop()
    table(f"{UPLOADS} uploads of 1 MiB at once, {content}",
          ["", "whole at the upstream", "503", "otherwise", "at start MiB", "peak MiB", "took"], rows)
    return all(row[3] == 0 and row[1] > 0 for row in rows if row[0].startswith("Countersign"))


def upload(lab, kind):
    """The same body and headers for every proxy: one that is signed."""
    if kind != "json":
        return lab.headers(), os.urandom(UPLOAD)
    path = lab.folder / "body.json"
    path.write_text(json.dumps({"pad": "x" * (UPLOAD - len('{"pad":""}'))}, separators=(",", ":")))
    return lab.signed("--carrier", "headers", "--body", str(path), method="POST")["headers"], path.read_bytes()


async def upload_all(lab, proxy, headers, body):
    """How many were answered as the upstream does that got the whole of it, how many with 503, and how many otherwise."""
    context, request = lab.tls("http/1.1"), head("POST", "/count", proxy.port, headers)
    halfway, arrived = asyncio.Event(), 0
    turn = asyncio.Semaphore(100)
    half = len(body) // 2

    async def connect(number):
        async with turn:
            return await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context, server_hostname="localhost", ssl_handshake_timeout=60,
                                                 local_addr=(f"127.0.0.{2 + number % 10}", 0))

    async def send(pair):
        nonlocal arrived
        reader, writer = pair
        first = asyncio.ensure_future(answer(reader))
        counted = False
        try:
            try:
                writer.write(request)
                writer.write(body[:half])
                await writer.drain()
                arrived, counted = arrived + 1, True
                if arrived == UPLOADS:
                    halfway.set()
                # Who is answered early need not go on; and nobody waits for ever for the others.
                await asyncio.wait({first, asyncio.ensure_future(halfway.wait())}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
                if not first.done():
                    writer.write(body[half:])
                    await writer.drain()
            except OSError:
                if not counted:
                    arrived += 1
            status, text = await asyncio.wait_for(first, 60)
            return "fine" if (status, text.strip()) == (200, str(len(body)).encode()) else "refused" if status == 503 else "otherwise"
        except (OSError, EOFError, ValueError, asyncio.TimeoutError):
            return "otherwise"
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)
    pairs = await asyncio.gather(*map(connect, range(UPLOADS)))
    outcomes = await asyncio.gather(*map(send, pairs))
    return [outcomes.count(outcome) for outcome in ("fine", "refused", "otherwise")]


def mib(count):
    return f"{count / 2**20:.0f}"


def head(method, path, port, headers):
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{fields}\r\n".encode()


async def read_head(reader):
    """The first line and the fields by lower-case name."""
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = dict(line.split(":", 1) for line in text[1:] if line)
    return text[0], {name.lower(): value.strip() for name, value in fields.items()}


async def read_body(reader, fields):
    """The body's bytes: of a stated length, or in chunks."""
    if "chunked" in fields.get("transfer-encoding", ""):
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return
    left = int(fields.get("content-length", "0"))
    while left > 0:
        part = await reader.read(min(left, 1 << 16))
        if not part:
            raise EOFError("cut short")
        left -= len(part)
        yield part


async def answer(reader):
    """Status and body of an answer."""
    first, fields = await read_head(reader)
    body = b"".join([part async for part in read_body(reader, fields)])
    return int(first.split()[1]), body


async def serve(port):
    """The upstream: `/bytes/N` answers with N bytes from memory, everything else with the number of bytes it was sent."""
    block = os.urandom(1 << 20)

    async def connection(reader, writer):
        try:
            while True:
                first, fields = await read_head(reader)
                path, count = first.split()[1], 0
                async for part in read_body(reader, fields):
                    count += len(part)
                left = int(path.removeprefix("/bytes/")) if path.startswith("/bytes/") else 0
                text = b"" if left else f"{count}\n".encode()
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {left or len(text)}\r\n\r\n".encode() + text)
                while left > 0:
                    writer.write(block[:left])
                    await writer.drain()
                    left -= len(block)
                await writer.drain()
        except (OSError, EOFError, ValueError):
            pass
        finally:
            writer.close()
    allow_files(65536)
    server = await asyncio.start_server(connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


SITUATIONS = {"idle": idle, "download": download, "json": lambda *given: uploads("json", *given),
              "stream": lambda *given: uploads("stream", *given)}


def main(arguments):
    if arguments[:1] == ["--upstream"]:
        return asyncio.run(serve(int(arguments[1])))
    if set(arguments) - SITUATIONS.keys():
        sys.exit(f"situations are {', '.join(SITUATIONS)}")
    bad = []
    with Lab("memory") as lab:
        upstream, folder = free_port(), lab.place("upstream")
        lab.start([sys.executable, os.path.abspath(__file__), "--upstream", str(upstream)], folder, upstream)
        print(versions(), flush=True)
        for name in arguments or SITUATIONS:
            if not SITUATIONS[name](lab, upstream):
                bad.append(name)
    if bad:
        sys.exit(f"Countersign falls short: {', '.join(bad)}")


if __name__ == "__main__":
    main(sys.argv[1:])

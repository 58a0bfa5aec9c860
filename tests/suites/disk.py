#!/usr/bin/env python3
"""A disk that hangs, and one that is full, under the state folder of a gateway that is asked all the while.

    python3 tests/suites/disk.py target/dist/countersign

The disk is a file system of its own, of 64 MiB, which is frozen and filled. Needs root, for a loop device, fsfreeze and mkfs.ext4. Fails if an answer takes
too long, a request passes that the audit log does not have with `on_error = "refuse"`, one is refused with "serve", the gateway is
ready when it is not or the other way round, it does not heal, the chain is broken, or an event that was answered 2xx is not delivered.
"""
import asyncio, json, os, re, signal, socket, ssl, subprocess, sys, time

from lab import Destination, Folder, Gateway, Sender, event, free_port, signature

SECRET, USER, ACCOUNT = "absec_suite", "usr_Suite", "acct_Suite"
PATIENCE, TROUBLE = 12, 16
ROUTES = f"""[audit]
on_error = "%s"
[apps.suite]
secrets = [{{ file = "app.absec" }}]
accounts = ["{ACCOUNT}"]
[[routes]]
path = "/"
app = "suite"
upstream = "http://127.0.0.1:%d"
"""


class Disk:
    """A file system in a file, where the state of a gateway is to be."""

    def __init__(self, folder, at):
        self.image, self.at, self.filler = folder.file("disk"), at, os.path.join(at, "filler")
        os.makedirs(at)
        with open(self.image, "wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self.image], check=True)
        subprocess.run(["mount", "-o", "loop", self.image, at], check=True)

    def hang(self):
        subprocess.run(["fsfreeze", "--freeze", self.at], check=True)

    def fill(self):
        with open(self.filler, "wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    pass

    def heal(self):
        subprocess.run(["fsfreeze", "--unfreeze", self.at], stderr=subprocess.DEVNULL)
        if os.path.exists(self.filler):
            os.remove(self.filler)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.heal()
        subprocess.run(["umount", "--lazy", self.at], check=True)


class Asker:
    """Asks a route again and again: when, how long it took, and the status."""

    def __init__(self, folder, port):
        self.port, self.tls, self.answers = port, ssl.create_default_context(cafile=folder.file("cert.pem")), []

    async def run(self, until):
        streams = None
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                streams = streams or await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
                status, stays = await asyncio.wait_for(self._ask(*streams), PATIENCE)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                status, stays = type(error).__name__, False
            self.answers.append((began, time.monotonic() - began, status))
            if not stays:
                streams = None
            await asyncio.sleep(0.05)

    async def _ask(self, reader, writer):
        payload = json.dumps({"user_id": USER, "account_id": ACCOUNT}, separators=(",", ":")).encode()
        writer.write((f"GET /a HTTP/1.1\r\nHost: 127.0.0.1\r\nStripe-Signature: {signature(SECRET, payload)}\r\n"
                      f"Stripe-User-Id: {USER}\r\nStripe-Account-Id: {ACCOUNT}\r\n\r\n").encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(re.search(r"content-length: (\d+)", head).group(1)))
        return int(head.split()[1]), "connection: close" not in head


async def upstream():
    async def serve(reader, writer):
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, OSError):
            writer.close()
    port = free_port()
    return await asyncio.start_server(serve, "127.0.0.1", port), port


def readiness(gateway):
    with socket.create_connection(("127.0.0.1", gateway.operations), 20) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return int(text.split()[1]), text.partition("\r\n\r\n")[2].strip().replace("\n", "; ")


async def trouble(program, kind, on_error):
    """One disk, one trouble. What went wrong, as a list."""
    wrong = []
    server, service = await upstream()
    destination = await Destination().open()
    with Folder() as folder:
        folder.write("app.absec", SECRET)
        gateway = Gateway(program, folder, {"service": (destination.port, "")}, more=ROUTES % (on_error, service))
        with Disk(folder, gateway.state) as disk:
            gateway.start().wait()
            asker, sender = Asker(folder, gateway.port), Sender(folder, gateway.port)
            kept, outcomes = [], []

            async def send(until):
                number = 0
                while time.monotonic() < until:
                    number += 1
                    name = f"{kind}{on_error}{number}"
                    began = time.monotonic()
                    status, _ = await sender.post(event(name), PATIENCE)
                    outcomes.append((began, time.monotonic() - began, status))
                    if status == 200:
                        kept.append(f"evt_{name}")
                    await asyncio.sleep(0.2)

            began = time.monotonic()
            working = asyncio.gather(asker.run(began + 2 + TROUBLE + 10), send(began + 2 + TROUBLE + 10))
            await asyncio.sleep(2)
            before = await asyncio.to_thread(readiness, gateway)
            broke = time.monotonic()
            await asyncio.to_thread(disk.hang if kind == "hang" else disk.fill)
            await asyncio.sleep(TROUBLE - 1)
            during = await asyncio.to_thread(readiness, gateway)
            healed = time.monotonic()
            await asyncio.to_thread(disk.heal)
            await working
            after = await asyncio.to_thread(readiness, gateway)
            left = await asyncio.to_thread(gateway.until_drained, 30)
            code = await asyncio.to_thread(gateway.stop)
            verified = gateway.command("audit", "verify", os.path.join(gateway.state, "audit"), "--public-key", os.path.join(gateway.state, "audit", "public.pem"))
            records = []
            for segment in sorted(os.listdir(os.path.join(gateway.state, "audit"))):
                if segment.endswith(".jsonl"):
                    with open(os.path.join(gateway.state, "audit", segment)) as file:
                        records += map(json.loads, file)
        # It had seven seconds to heal.
        late = [status for at, _, status in asker.answers if at > healed + 7]
        amid = [status for at, _, status in asker.answers if broke + 3.5 < at < healed - 0.5]
        passed = sum(status == 200 for _, _, status in asker.answers)
        slowest = max(took for _, took, _ in asker.answers)
        slowest_event = max(took for _, took, _ in outcomes)
        recorded = sum(record["kind"] == "decision" and record.get("decision") == "permitted" for record in records)
        lost = sum(record.get("lost", 0) for record in records if record["kind"] == "torn")
        # A full disk may have room for one more, in what it gave before.
        began = broke + (3.5 if kind == "full" else 0.5)
        events = [status for at, took, status in outcomes if began < at + took < healed]

        def check(holds, text):
            if not holds:
                wrong.append(text)
        check(before[0] == 200 and after[0] == 200, f"ready before and after: {before}, {after}")
        check(during[0] == 503 and "audit: cannot be written" in during[1], f"ready while it is so: {during}")
        # Where nobody passes, nothing may have been tried that the inbox could have failed at.
        check("inbox: the inbox" in during[1] or on_error == "refuse", f"ready while it is so: {during}")
        check(amid and set(amid) == ({503} if on_error == "refuse" else {200}), f"answers while it is so: {set(amid)}, {len(amid)}")
        check(late and set(late) == {200}, f"answers after it: {set(late)}, {len(late)}")
        check(slowest < 2.5 and slowest_event < PATIENCE, f"an answer took {slowest:.1f} s, one to an event {slowest_event:.1f} s")
        check(events and set(events) == {503}, f"answers to events while it is so: {set(events)}")
        check(recorded + lost >= passed if on_error == "serve" else recorded >= passed, f"{passed} passed, {recorded} are recorded, {lost} lost")
        check(not lost or on_error == "serve", f"{lost} lost")
        check(verified.returncode == 0, f"the chain: {verified.stdout}{verified.stderr}")
        check(left == 0 and set(kept) <= set(destination.delivered), f"{len(kept)} events kept, {len(destination.delivered)} delivered, {left} left")
        check(code == 0 and "panicked" not in gateway.said(), f"exit status {code}: {gateway.said()}")
        print(f"{kind}, {on_error}: {passed} passed, {len(asker.answers) - passed} refused, {recorded} recorded, {lost} lost; slowest {slowest:.2f} s; "
              f"{len(kept)} events of {len(outcomes)} kept, slowest {slowest_event:.1f} s; {during[1]}", flush=True)
    await destination.close()
    server.close()
    return [f"{kind}, {on_error}: {text}" for text in wrong]


def main():
    wrong = [text for kind in ("hang", "full") for on_error in ("refuse", "serve")
             for text in asyncio.run(trouble(os.path.abspath(sys.argv[1]), kind, on_error))]
    for text in wrong:
        print(f"WRONG {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())

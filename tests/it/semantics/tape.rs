//! An upstream that keeps every byte of every connection, and a lint over what it kept.

use std::{
    collections::BTreeSet,
    fmt,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use crate::support::{ACCOUNT, USER, find};

/// What one connection brought, byte for byte, in the order in which it came.
pub(super) struct Tape {
    pub(super) address: SocketAddr,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A request as it reached the upstream, without the fields that are the gateway's own, which the lint has checked.
/// Field lines are sorted, for their order means nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrived {
    line: String,
    fields: Vec<String>,
    body: Framed,
    is_whole: bool,
}

/// A body and the framing that announces it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Framed {
    None,
    Length(Vec<u8>),
    Chunked(Vec<u8>),
}

impl Arrived {
    /// A whole request without a body: method and target, and the lines of the client's fields that go on.
    pub(super) fn new(line: &str, fields: &[&str]) -> Self {
        let mut fields: Vec<String> = fields.iter().map(|&field| field.to_owned()).collect();
        fields.sort();
        Self { line: format!("{line} HTTP/1.1"), fields, body: Framed::None, is_whole: true }
    }

    /// The same with a body of an announced length.
    pub(super) fn length(self, body: impl AsRef<[u8]>) -> Self {
        Self { body: Framed::Length(body.as_ref().to_vec()), ..self }
    }

    /// The same with a body in chunks.
    pub(super) fn chunked(self, body: impl AsRef<[u8]>) -> Self {
        Self { body: Framed::Chunked(body.as_ref().to_vec()), ..self }
    }

    /// The same, broken off: its end never comes.
    pub(super) fn broken_off(self) -> Self {
        Self { is_whole: false, ..self }
    }
}

impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (framing, body) = match &self.body {
            Framed::None => ("no body", &[][..]),
            Framed::Length(body) => ("a length", &body[..]),
            Framed::Chunked(body) => ("chunks", &body[..]),
        };
        let end = if self.is_whole { "whole" } else { "broken off" };
        write!(f, "[{:?} {:?} {framing} {:?} {end}]", self.line, self.fields, latin1(body))
    }
}

impl Tape {
    /// Answers every request with 200 and `ok`, as long as what comes is HTTP/1.1.
    pub(super) fn start() -> Self {
        Self::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())
    }

    /// Answers every request with the bytes that `answer` makes of its first line, and closes behind one for
    /// [`HANG_UP`].
    pub(super) fn answering(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (Arc::clone(&connections), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &kept, &*answer));
            }
        });
        Self { address, connections }
    }

    pub(super) fn route(&self) -> String {
        format!(
            "[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"http://{}\"\nmethods = [\"GET\", \"HEAD\", \"POST\", \"PUT\"]\n",
            self.address
        )
    }

    /// Every byte that came, connection by connection.
    pub(super) fn bytes(&self) -> Vec<Vec<u8>> {
        self.connections.lock().unwrap().clone()
    }

    /// The requests that came, or what of the bytes is not as the gateway writes requests.
    ///
    /// A request on any connection must be followed by nothing, by another or by the beginning of one.
    pub(super) fn arrived(&self) -> Result<Vec<Arrived>, String> {
        let host = self.address.to_string();
        let mut all = Vec::new();
        for connection in self.bytes() {
            let mut rest = &connection[..];
            while !rest.is_empty() {
                let told = |what: String| format!("{what} in {:?}", latin1(&connection));
                let (arrived, length) = read(rest, &host).map_err(told)?;
                all.push(arrived);
                rest = &rest[length..];
            }
        }
        all.sort();
        Ok(all)
    }
}

fn serve(mut stream: TcpStream, kept: &Mutex<Vec<Vec<u8>>>, answer: &dyn Fn(&str) -> Vec<u8>) {
    let host = stream.local_addr().unwrap().to_string();
    let place = {
        let mut kept = kept.lock().unwrap();
        kept.push(Vec::new());
        kept.len() - 1
    };
    let (mut space, mut read_until) = ([0; 16 * 1024], 0);
    while let Ok(count @ 1..) = stream.read(&mut space) {
        let mut answers = Vec::new();
        {
            let mut kept = kept.lock().unwrap();
            kept[place].extend_from_slice(&space[..count]);
            while read_until < kept[place].len() {
                match read(&kept[place][read_until..], &host) {
                    Ok((Arrived { line, is_whole: true, .. }, length)) => {
                        answers.push((answer(&line), line.contains(HANG_UP)));
                        read_until += length;
                    }
                    Ok(_) => break,
                    Err(_) => return,
                }
            }
        }
        let hangs_up = answers.iter().any(|(_, hangs_up)| *hangs_up);
        let answers: Vec<_> = answers.into_iter().flat_map(|(answer, _)| answer).collect();
        if stream.write_all(&answers).is_err() || hangs_up {
            return;
        }
    }
}

/// Reads the request at the beginning of `bytes`, which came for `host`, and its length; one that is not there to
/// its end is not whole. Refuses whatever the gateway does not write.
fn read(bytes: &[u8], host: &str) -> Result<(Arrived, usize), String> {
    let Some(head) = find(bytes, b"\r\n\r\n") else {
        let part = Arrived { line: latin1(bytes), fields: Vec::new(), body: Framed::None, is_whole: false };
        return Ok((part, bytes.len()));
    };
    let text = latin1(&bytes[..head]);
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default();
    check_line(line)?;
    let mut fields = Vec::new();
    for line in lines {
        fields.push(check_field(line)?);
    }
    check_ours(&fields, host)?;
    let (body, length, is_whole) = read_body(&fields, &bytes[head + 4..])?;
    let own = |(name, _): &&(String, String)| !OURS.contains(&name.as_str()) && !FRAMING.contains(&name.as_str());
    let mut own: Vec<_> = fields.iter().filter(own).map(|(name, value)| format!("{name}: {value}")).collect();
    own.sort();
    Ok((Arrived { line: line.to_owned(), fields: own, body, is_whole }, head + 4 + length))
}

fn check_line(line: &str) -> Result<(), String> {
    let parts: Vec<_> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Err(format!("the first line {line:?}")) };
    if !["GET", "HEAD", "POST", "PUT"].contains(&method) {
        return Err(format!("the method {method:?}"));
    }
    if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic()) || target.contains('#') {
        return Err(format!("the target {target:?}"));
    }
    let path = target.split('?').next().unwrap_or_default().to_ascii_lowercase();
    let two_readings = ["//", "\\", "%2f", "%5c", "%25", "%2e", "%00"].iter().any(|part| path.contains(part))
        || path.split('/').any(|segment| [".", ".."].contains(&segment.split(';').next().unwrap_or_default()));
    if two_readings { Err(format!("the path {path:?}")) } else { Ok(()) }
}

fn check_field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(": ").ok_or(format!("the field line {line:?}"))?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(format!("the field name {name:?}"));
    }
    if value.chars().any(|c| (c < ' ' && c != '\t') || c == '\u{7f}') {
        return Err(format!("a control character in {line:?}"));
    }
    let stripped = name.strip_prefix("x-").unwrap_or(name);
    let forbidden = FORBIDDEN.contains(&name)
        || ["proxy-", "stripe"].iter().any(|prefix| stripped.starts_with(prefix))
        || (["countersign", "x-forwarded", "forwarded"]
            .iter()
            .any(|part| stripped.contains(part) || name.contains(part))
            && !OURS.contains(&name));
    if forbidden { Err(format!("the field {line:?}")) } else { Ok((name.to_owned(), value.to_owned())) }
}

/// Each field of the gateway's is there once and says what it must.
fn check_ours(fields: &[(String, String)], host: &str) -> Result<(), String> {
    for name in OURS {
        let values: Vec<_> =
            fields.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect();
        let [value] = values[..] else { return Err(format!("{name} is there {} times", values.len())) };
        let fits = match *name {
            "host" => value == host,
            "countersign-user" => value == USER,
            "countersign-account" => value == ACCOUNT,
            "countersign-app" => value == "test",
            "countersign-signed" => ["identity", "body"].contains(&value),
            "x-forwarded-for" => value == "127.0.0.1",
            "x-forwarded-proto" => value == "https",
            "x-request-id" => value.len() == 36 && value.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'),
            "traceparent" => value.len() == 55 && value.starts_with("00-") && value.ends_with("-00"),
            _ => value.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_[]".contains(&b)) && !value.is_empty(),
        };
        if !fits {
            return Err(format!("{name} is {value:?}"));
        }
    }
    Ok(())
}

/// The body behind a head, its length in bytes with its framing, and whether it has come to its end.
fn read_body(fields: &[(String, String)], bytes: &[u8]) -> Result<(Framed, usize, bool), String> {
    let framing: Vec<_> = fields.iter().filter(|(name, _)| FRAMING.contains(&name.as_str())).collect();
    let [(name, value)] = framing[..] else {
        let told = format!("{} framings", framing.len());
        return if framing.is_empty() { Ok((Framed::None, 0, true)) } else { Err(told) };
    };
    if name == "content-length" {
        let length: usize = value.parse().map_err(|_| format!("the length {value:?}"))?;
        if length.to_string() != *value {
            return Err(format!("the length {value:?}"));
        }
        let here = length.min(bytes.len());
        return Ok((Framed::Length(bytes[..here].to_vec()), here, here == length));
    }
    if value != "chunked" {
        return Err(format!("the coding {value:?}"));
    }
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = find(&bytes[at..], b"\r\n") else { return Ok((Framed::Chunked(body), bytes.len(), false)) };
        let size = latin1(&bytes[at..at + line]);
        let plain = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = usize::from_str_radix(&size, 16).ok().filter(|_| plain).ok_or(format!("the chunk size {size:?}"))?;
        at += line + 2;
        let here = size.min(bytes.len() - at);
        body.extend_from_slice(&bytes[at..at + here]);
        at += here;
        let end = &bytes[at..bytes.len().min(at + 2)];
        if !b"\r\n".starts_with(end) {
            return Err(format!("{:?} behind a chunk", latin1(end)));
        }
        if here < size || end.len() < 2 {
            return Ok((Framed::Chunked(body), bytes.len(), false));
        }
        at += 2;
        if size == 0 {
            return Ok((Framed::Chunked(body), at, true));
        }
    }
}

/// Each byte as the character of its number, so that nothing is lost or refused.
pub(super) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

/// The path of a request behind whose answer the upstream closes.
pub(super) const HANG_UP: &str = "/hang-up";

/// What the gateway says of itself in every request, each once.
const OURS: &[&str] = &[
    "host",
    "countersign-user",
    "countersign-account",
    "countersign-app",
    "countersign-signed",
    "x-request-id",
    "traceparent",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
];

const FRAMING: &[&str] = &["content-length", "transfer-encoding"];

/// What never goes on, whatever the case.
const FORBIDDEN: &[&str] = &[
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
    "cookie",
    "authorization",
    "via",
    "x-original-url",
    "x-rewrite-url",
    "x-http-method-override",
    "x-real-ip",
    "remote-user",
];

#[test]
fn the_lint_sees_what_the_gateway_must_not_write() {
    let ours: Vec<String> = [
        ("host", "up:1"),
        ("countersign-user", USER),
        ("countersign-account", ACCOUNT),
        ("countersign-app", "test"),
        ("countersign-signed", "body"),
        ("x-request-id", "01234567-89ab-7def-8123-456789abcdef"),
        ("traceparent", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "gw.test"),
    ]
    .map(|(name, value)| format!("{name}: {value}\r\n"))
    .into();
    let request = |line: &str, fields: &str, rest: &str| format!("{line}\r\n{}{fields}\r\n{rest}", ours.concat());
    let read = |text: &str| read(text.as_bytes(), "up:1");
    let good = request("POST /a;x=1?b=//%2f HTTP/1.1", "x-y: z\r\ncontent-length: 2\r\n", "ok");
    let expected = Arrived::new("POST /a;x=1?b=//%2f", &["x-y: z"]).length("ok");
    assert_eq!(read(&good), Ok((expected, good.len())));
    assert_eq!(read(&format!("{good}GET")).unwrap().1, good.len());
    assert!(!read(&good[..good.len() - 1]).unwrap().0.is_whole);
    for line in &ours {
        let (without, twice) = (good.replace(line, ""), good.replace(line, &line.repeat(2)));
        assert!(read(&without).is_err() && read(&twice).is_err(), "{line}");
    }
    let (line, chunked) = ("POST /a HTTP/1.1", "transfer-encoding: chunked\r\n");
    assert!(read(&request(line, chunked, "1\r\nx\r\n0\r\n\r\n")).unwrap().0.is_whole);
    for bad in [
        request("POST  /a HTTP/1.1", "", ""),
        request("POST /a HTTP/1.0", "", ""),
        request("post /a HTTP/1.1", "", ""),
        request("POST /a/../b HTTP/1.1", "", ""),
        request("POST /a%2Fb HTTP/1.1", "", ""),
        request("POST https://gw.test/a HTTP/1.1", "", ""),
        request(line, "X-Upper: x\r\n", ""),
        request(line, "x_y: x\r\n", ""),
        request(line, "x: a\nb\r\n", ""),
        request(line, "x: \0\r\n", ""),
        request(line, "cookie: x\r\n", ""),
        request(line, "x-countersign-user: x\r\n", ""),
        request(line, "countersign-other: x\r\n", ""),
        request(line, "x-forwarded-user: x\r\n", ""),
        request(line, "stripe-signature: x\r\n", ""),
        request(line, "content-length: 2\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        request(line, "content-length: 2\r\ncontent-length: 2\r\n", "ok"),
        request(line, "content-length: 02\r\n", "ok"),
        request(line, "transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        request(line, chunked, "1;x=y\r\nx\r\n0\r\n\r\n"),
        request(line, chunked, "0\r\nX: y\r\n\r\n"),
        good.replace(USER, "usr_Other"),
    ] {
        assert!(read(&bad).is_err(), "{bad:?}");
    }
    let names: BTreeSet<_> = OURS.iter().chain(FORBIDDEN).chain(FRAMING).collect();
    assert_eq!(names.len(), OURS.len() + FORBIDDEN.len() + FRAMING.len(), "each name has one place");
}

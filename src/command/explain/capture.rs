//! A captured request, brought into the form in which it would come over the wire.
//!
//! Three forms are read: raw HTTP, the `curl` line that a browser's developer tools copy, and the HAR file that they
//! save.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use serde_json::Value;

/// The longest capture that is looked at.
const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// A request as raw HTTP/1.1, and what had to be changed or assumed for that.
#[derive(Debug)]
pub(super) struct Capture {
    pub(super) bytes: Vec<u8>,
    pub(super) notes: Vec<String>,
}

/// The bytes of `file`, or of standard input for none or `-`.
pub(super) fn read(file: Option<&Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = match file.filter(|path| path.as_os_str() != "-") {
        Some(path) => File::open(path)?.take(LIMIT_BYTES + 1).read_to_end(&mut bytes)?,
        None => io::stdin().take(LIMIT_BYTES + 1).read_to_end(&mut bytes)?,
    };
    if length as u64 > LIMIT_BYTES {
        return Err(io::Error::other("it is larger than 64 MiB"));
    }
    Ok(bytes)
}

impl Capture {
    /// Recognises the form of `bytes` and brings it into that of the wire.
    ///
    /// # Errors
    /// What is missing in a `curl` line or a HAR file, as a sentence.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, String> {
        let begin = bytes.trim_ascii_start();
        if begin.starts_with(b"curl ") || begin.starts_with(b"curl.exe ") {
            let text = std::str::from_utf8(begin).map_err(|_| "the curl line is not UTF-8".to_owned())?;
            return Request::of_curl(&words(text)?).map(Request::into_capture);
        }
        if begin.starts_with(b"{") {
            let har: Value =
                serde_json::from_slice(begin).map_err(|error| format!("the HAR file is not JSON: {error}"))?;
            return Request::of_har(&har).map(Request::into_capture);
        }
        let line = begin.split(|b| *b == b'\n').next().unwrap_or_default();
        if !line.windows(6).any(|part| part == b" HTTP/") {
            return Err(
                "this is neither raw HTTP, whose first line ends with a version, nor a curl line, nor a HAR file"
                    .to_owned(),
            );
        }
        Ok(Self::of_http(bytes))
    }

    /// Raw HTTP: an editor may have taken its carriage returns, or a tool the length of its body.
    fn of_http(bytes: &[u8]) -> Self {
        let find = |what: &[u8]| bytes.windows(what.len()).position(|part| part == what);
        let mut notes = Vec::new();
        let (end, gap) = match (find(b"\r\n\r\n"), find(b"\n\n")) {
            (Some(at), _) => (at, 4),
            (None, Some(at)) => (at, 2),
            (None, None) => (bytes.trim_ascii_end().len(), 0),
        };
        let mut head = bytes.get(..end).unwrap_or_default().to_vec();
        let body = if gap == 0 { &[][..] } else { bytes.get(end + gap..).unwrap_or_default() };
        if !head.contains(&b'\r') && head.contains(&b'\n') {
            notes.push("the lines end in bare line feeds; taken as if they ended in CR LF".to_owned());
            head = head.split(|b| *b == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]);
        }
        let line = head.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(head.len());
        if let Some(version) = head.get(..line).and_then(|line| line.strip_suffix(b" HTTP/2").map(<[u8]>::len)) {
            notes.push("the first line says HTTP/2, as tools print it; taken as if it were HTTP/1.1".to_owned());
            head.splice(version..line, *b" HTTP/1.1");
        }
        let is_framed = head.split(|b| *b == b'\n').any(|line| {
            let name = line.split(|b| *b == b':').next().unwrap_or_default();
            name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding")
        });
        if !is_framed && !body.is_empty() {
            notes.push("the request has a body but no Content-Length; taken as if it had one".to_owned());
            head.extend_from_slice(format!("\r\nContent-Length: {}", body.len()).as_bytes());
        }
        head.extend_from_slice(b"\r\n\r\n");
        head.extend_from_slice(body);
        Self { bytes: head, notes }
    }
}

/// A request as other tools write it down.
#[derive(Debug, Default)]
struct Request {
    method: Option<String>,
    url: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// Source: curl(1), for the options that a request's content rests on.
    fn of_curl(words: &[String]) -> Result<Self, String> {
        const WITH_VALUE: [&str; 18] = [
            "-b",
            "--cookie",
            "-A",
            "--user-agent",
            "-e",
            "--referer",
            "-u",
            "--user",
            "-o",
            "--output",
            "-m",
            "--max-time",
            "--connect-timeout",
            "--cacert",
            "--cert",
            "--key",
            "--resolve",
            "-w",
        ];
        let mut request = Self::default();
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().map(String::as_str).ok_or_else(|| format!("{word} has no value"));
            match word.as_str() {
                "-X" | "--request" => request.method = Some(value()?.to_owned()),
                "-I" | "--head" => request.method = Some("HEAD".to_owned()),
                "--url" => value()?.clone_into(&mut request.url),
                "-H" | "--header" => {
                    let (name, text) = value()?.split_once(':').unwrap_or_default();
                    request.headers.push((name.to_owned(), text.trim().to_owned()));
                }
                "-d" | "--data" | "--data-raw" | "--data-binary" | "--data-ascii" => {
                    let text = value()?;
                    let file = text.strip_prefix('@').filter(|_| word != "--data-raw");
                    let data = match file {
                        Some(file) => std::fs::read(file).map_err(|error| format!("{file} cannot be read: {error}"))?,
                        None => text.as_bytes().to_vec(),
                    };
                    if let Some(body) = &mut request.body {
                        body.push(b'&');
                        body.extend_from_slice(&data);
                    } else {
                        request.body = Some(data);
                    }
                }
                known if WITH_VALUE.contains(&known) => drop(value()?),
                option if option.starts_with('-') => {}
                url => url.clone_into(&mut request.url),
            }
        }
        if request.url.is_empty() {
            return Err("the curl line has no URL".to_owned());
        }
        let typed = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if request.body.is_some() && !typed {
            request.headers.push(("Content-Type".to_owned(), "application/x-www-form-urlencoded".to_owned()));
        }
        Ok(request)
    }

    /// The last request of the file that carries a signature, else the last that is no preflight.
    ///
    /// Source: HTTP Archive 1.2, `log.entries[].request`.
    fn of_har(har: &Value) -> Result<Self, String> {
        let entries = har
            .pointer("/log/entries")
            .and_then(Value::as_array)
            .ok_or("this JSON is no HAR file: it has no log.entries")?;
        let requests: Vec<Self> = entries.iter().filter_map(|entry| Self::of_entry(entry.get("request")?)).collect();
        let signed =
            |request: &Self| request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("stripe-signature"));
        let place = requests.iter().rposition(signed);
        let place = place.or_else(|| requests.iter().rposition(|request| request.method.as_deref() != Some("OPTIONS")));
        place.and_then(|place| requests.into_iter().nth(place)).ok_or_else(|| "the HAR file has no request".to_owned())
    }

    fn of_entry(request: &Value) -> Option<Self> {
        let text = |value: &Value, name: &str| value.get(name)?.as_str().map(str::to_owned);
        let headers = request.get("headers")?.as_array()?.iter();
        let headers = headers.filter_map(|pair| Some((text(pair, "name")?, text(pair, "value")?)));
        Some(Self {
            method: Some(text(request, "method")?),
            url: text(request, "url")?,
            headers: headers.filter(|(name, _)| !name.starts_with(':')).collect(),
            body: request.get("postData").and_then(|data| text(data, "text")).map(String::into_bytes),
        })
    }

    fn into_capture(self) -> Capture {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let (host, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let target = target.split('#').next().unwrap_or_default();
        let slash = if target.starts_with('/') { "" } else { "/" };
        let method = self.method.as_deref().unwrap_or(if self.body.is_some() { "POST" } else { "GET" });
        let mut head = format!("{method} {slash}{target} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in &self.headers {
            let framing = ["host", "content-length", "transfer-encoding", "connection", "expect"];
            if !framing.iter().any(|known| name.eq_ignore_ascii_case(known)) {
                head.extend([name, ": ", value, "\r\n"]);
            }
        }
        let body = self.body.unwrap_or_default();
        if !body.is_empty() {
            head.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
        }
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&body);
        Capture { bytes, notes: Vec::new() }
    }
}

/// The words of a POSIX shell's command line, `$'…'` included, as browsers copy it.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&'\n') => drop(chars.next()),
            '\\' if chars.peek() == Some(&'\r') => drop((chars.next(), chars.next())),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '\'' => {
                let word = word.get_or_insert_default();
                closed(&mut chars, '\'', |_, c| word.push(c))?;
            }
            '"' => {
                let word = word.get_or_insert_default();
                closed(&mut chars, '"', |chars, c| match (c, chars.peek()) {
                    ('\\', Some('"' | '\\' | '$' | '`')) => word.extend(chars.next()),
                    ('\\', Some('\n')) => drop(chars.next()),
                    _ => word.push(c),
                })?;
            }
            '$' if chars.peek() == Some(&'\'') => {
                chars.next();
                let word = word.get_or_insert_default();
                closed(&mut chars, '\'', |chars, c| word.extend(if c == '\\' { escape(chars) } else { Some(c) }))?;
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

type Chars<'c> = std::iter::Peekable<std::str::Chars<'c>>;

/// Hands each character up to `quote` to `take`.
fn closed<'c>(chars: &mut Chars<'c>, quote: char, mut take: impl FnMut(&mut Chars<'c>, char)) -> Result<(), String> {
    while let Some(c) = chars.next() {
        if c == quote {
            return Ok(());
        }
        take(chars, c);
    }
    Err("the curl line has a quote that is not closed".to_owned())
}

/// What an escape in `$'…'` stands for.
fn escape(chars: &mut Chars<'_>) -> Option<char> {
    Some(match chars.next()? {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        kind @ ('u' | 'x') => {
            let most = if kind == 'u' { 4 } else { 2 };
            let mut code = 0;
            for _ in 0..most {
                let Some(digit) = chars.peek().and_then(|c| c.to_digit(16)) else { break };
                chars.next();
                code = code << 4 | digit;
            }
            char::from_u32(code)?
        }
        itself => itself,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(capture: &str) -> String {
        String::from_utf8(Capture::of(capture.as_bytes()).unwrap().bytes).unwrap()
    }

    #[test]
    fn a_copied_curl_line_is_read_as_a_shell_reads_it() {
        let line = "curl 'https://gw.test:8443/a?b=%20' \\\n  -X 'PUT' -H 'Stripe-Signature: t=1,v1=x' --compressed \\\n  -H \"A: \\\"b\\\"\" -b 'c=d' --data-raw $'{\"n\":\"it\\'s \\u0021\"}'";
        let request = "PUT /a?b=%20 HTTP/1.1\r\nHost: gw.test:8443\r\nStripe-Signature: t=1,v1=x\r\nA: \"b\"\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 14\r\n\r\n{\"n\":\"it's !\"}";
        assert_eq!(raw(line), request);
        assert_eq!(raw("curl https://gw.test"), "GET / HTTP/1.1\r\nHost: gw.test\r\n\r\n");
        assert!(Capture::of(b"curl 'https://gw.test").is_err());
        assert!(Capture::of(b"curl -X").is_err());
    }

    #[test]
    fn the_signed_request_of_a_har_file_is_taken() {
        let har = r#"{"log":{"entries":[
            {"request":{"method":"OPTIONS","url":"https://gw.test/a","headers":[]}},
            {"request":{"method":"POST","url":"https://gw.test/a#x","headers":[{"name":":authority","value":"gw.test"},{"name":"stripe-signature","value":"t=1"},
              {"name":"content-length","value":"9"}],"postData":{"text":"{\"a\":1}"}}},
            {"request":{"method":"GET","url":"https://elsewhere.test/","headers":[]}}]}}"#;
        assert_eq!(
            raw(har),
            "POST /a HTTP/1.1\r\nHost: gw.test\r\nstripe-signature: t=1\r\nContent-Length: 7\r\n\r\n{\"a\":1}"
        );
        assert!(Capture::of(b"{}").is_err());
    }

    #[test]
    fn raw_http_is_left_as_it_is_where_that_is_possible() {
        let whole = "POST / HTTP/1.1\r\nHost: a\r\nX: \u{fffd}\r\nContent-Length: 2\r\n\r\nab";
        assert_eq!(raw(whole), whole);
        let edited = Capture::of(b"POST / HTTP/2\nHost: a\n\nab\n").unwrap();
        assert_eq!(edited.bytes, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab\n");
        assert_eq!(edited.notes.len(), 3);
        assert_eq!(raw("GET / HTTP/1.1\r\nHost: a\r\n"), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
}

//! Hides what may be a secret in the lines and words that an error shows.
//!
//! A configuration holds no secrets, but its mistakes do: one pasted in place of a path, left in a comment, given to
//! the wrong key. So everything shown passes here, and what looks like a secret, or stands where one is expected, is
//! replaced by three asterisks, whatever its length.

use std::ops::Range;

/// What stands in place of a secret.
pub(super) const MASK: &str = "***";

/// Whatever follows one of these is a secret, wherever it stands.
const ANYWHERE: [&str; 7] = ["absec_", "whsec_", "sk_live_", "sk_test_", "rk_live_", "rk_test_", "-----BEGIN"];
/// These may also end a longer word, such as `task_`.
const AT_A_BORDER: [&str; 2] = ["sk_", "rk_"];
/// Parts of key names under which a secret is expected.
const NAMES: [&str; 9] = ["secret", "token", "passw", "auth", "api_key", "api-key", "apikey", "cookie", "absec"];
/// The keys of a reference to a secret, whose values are places and not secrets.
const REFERENCE: [&str; 3] = ["file", "env", "credential"];

/// A part of the text that is not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Masked {
    pub range: Range<usize>,
    /// It may be a secret, so not even its length may be told.
    pub hot: bool,
}

/// Whether `value` as a whole is or contains something that looks like a secret.
pub(super) fn looks_secret(value: &str) -> bool {
    secret_in(value).is_some() || ["Bearer ", "Basic "].iter().any(|scheme| value.starts_with(scheme))
}

/// `text` with everything that looks like a secret masked, up to the end of its word.
pub(crate) fn masked(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut from = 0;
    for range in secrets_in(text) {
        shown.push_str(text.get(from..range.start).unwrap_or_default());
        shown.push_str(MASK);
        from = range.end;
    }
    shown.push_str(text.get(from..).unwrap_or_default());
    shown
}

/// `value` in back quotes, fit for one line of a terminal; all of it masked if a part looks like a secret.
pub(super) fn quoted(value: &str) -> String {
    if looks_secret(value) {
        return format!("`{MASK}`");
    }
    let mut short: String = value.chars().take(120).flat_map(char::escape_debug).collect();
    if value.chars().nth(120).is_some() {
        short.push('…');
    }
    format!("`{}`", short.replace("\\\"", "\"").replace("\\'", "'"))
}

/// The words of `text` that look like secrets.
pub(super) fn secrets_in(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(rest) = text.get(from..)
        && let Some(at) = secret_in(rest)
    {
        let start = from + at;
        let word = text.get(start..).unwrap_or_default();
        let end = start + word.find(|c: char| c.is_whitespace() || "\"'`,;)]}>".contains(c)).unwrap_or(word.len());
        found.push(start..end);
        from = end;
    }
    found
}

/// Where the first thing that looks like a secret begins: a known prefix and at least one character, or what follows
/// `://` in an address with a user.
fn secret_in(text: &str) -> Option<usize> {
    let goes_on = |end: usize| {
        text.get(end..)
            .and_then(|rest| rest.chars().next())
            .is_some_and(|c| !c.is_whitespace() && !"\"'`,;)]}>".contains(c))
    };
    let at_border = |at: usize| {
        text.get(..at).and_then(|before| before.chars().next_back()).is_none_or(|c| !c.is_alphanumeric() && c != '_')
    };
    let anywhere = ANYWHERE.iter().flat_map(|prefix| text.match_indices(*prefix));
    let border = AT_A_BORDER.iter().flat_map(|prefix| text.match_indices(*prefix)).filter(|(at, _)| at_border(*at));
    let prefixed = anywhere.chain(border).filter(|(at, prefix)| goes_on(at + prefix.len())).map(|(at, _)| at);
    let users = text.match_indices("://").filter_map(|(at, _)| {
        let word = text.get(at + 3..)?.split(char::is_whitespace).next()?;
        word.contains('@').then_some(at + 3)
    });
    prefixed.chain(users).min()
}

/// Whether a secret is expected under the key `name`, dotted or not.
fn expects_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|part| name.contains(part))
        || name.split('.').any(|part| ["secret", "secrets"].iter().any(|known| strsim::osa_distance(part, known) <= 2))
}

/// The parts of `text`, a TOML document, that are not shown, in their order.
///
/// This reads the document by its quotes, keys and brackets only, for it must serve broken ones too. In a `broken`
/// one brackets may not be trusted, so there everything is masked that does not stand behind a harmless key on its
/// own line.
pub(super) fn scan(text: &str, broken: bool) -> Vec<Masked> {
    Scanner {
        text,
        broken,
        at: 0,
        depth: 0,
        sensitive: None,
        header: false,
        key: "",
        line: Line::default(),
        found: Vec::new(),
    }
    .run()
}

struct Scanner<'t> {
    text: &'t str,
    broken: bool,
    at: usize,
    depth: usize,
    /// The depth at which the key stands under which a secret is expected.
    sensitive: Option<usize>,
    /// Such a key is part of the table's header.
    header: bool,
    key: &'t str,
    line: Line,
    found: Vec<Masked>,
}

/// What was seen of the current line.
#[derive(Default)]
struct Line {
    begun: bool,
    has_key: bool,
    sensitive: bool,
}

impl<'t> Scanner<'t> {
    fn run(mut self) -> Vec<Masked> {
        while let Some(byte) = self.peek() {
            match byte {
                b'\n' => self.end_line(),
                b'#' => self.comment(),
                b'"' | b'\'' => self.string(byte),
                b'[' if !self.line.begun && self.depth == 0 && self.sensitive.is_none() => self.table_header(),
                b'[' | b'{' => self.step(|this| {
                    this.depth += 1;
                    this.key = "";
                }),
                b']' | b'}' => self.step(Self::close),
                b',' => self.step(|this| {
                    this.key = "";
                    if !this.broken && this.depth > 0 && this.sensitive == Some(this.depth) {
                        this.sensitive = None;
                    }
                }),
                _ if is_bare(byte) => self.bare(),
                _ => self.at += 1,
            }
        }
        self.found
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn step(&mut self, act: impl FnOnce(&mut Self)) {
        self.line.begun = true;
        act(self);
        self.at += 1;
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.key = "";
        if self.sensitive.is_some_and(|depth| self.depth < depth) {
            self.sensitive = None;
        }
    }

    fn end_line(&mut self) {
        if self.sensitive.is_some_and(|depth| self.depth <= depth) {
            self.sensitive = None;
        }
        self.line = Line { sensitive: self.expecting(), ..Line::default() };
        self.at += 1;
    }

    fn expecting(&self) -> bool {
        self.header || self.sensitive.is_some()
    }

    fn comment(&mut self) {
        let end = self.at + self.rest().find('\n').unwrap_or(self.rest().len());
        if self.line.sensitive || self.expecting() {
            self.found.push(Masked { range: self.at + 1..end, hot: false });
        }
        self.at = end;
    }

    fn table_header(&mut self) {
        let header = self.rest().split('\n').next().unwrap_or_default();
        let name = header.split('#').next().unwrap_or_default();
        self.header = expects_secret(name.trim_matches(|c: char| c == '[' || c == ']' || c.is_whitespace()));
        self.line.begun = true;
        self.line.sensitive = self.header;
        self.at += name.len();
    }

    fn string(&mut self, quote: u8) {
        let rest = self.rest();
        let many = if quote == b'"' { "\"\"\"" } else { "'''" };
        let (multi, open) = if rest.starts_with(many) { (true, 3) } else { (false, 1) };
        let inner = rest.get(open..).unwrap_or_default();
        let (length, closed) = string_end(inner, quote, multi);
        let value = inner.get(..length).unwrap_or_default();
        let start = self.at + open;
        self.at = start + length + if closed { open } else { 0 };
        self.line.begun = true;
        if self.is_key() {
            return self.key(value);
        }
        let looks = looks_secret(value) || (quote == b'"' && hides_letters(value, multi));
        let unsure = self.broken && (multi || !self.line.has_key);
        if looks || unsure || self.expecting() {
            let reference = self.sensitive.is_some() || self.header;
            let hot = looks || unsure || !(reference && REFERENCE.contains(&self.key));
            self.found.push(Masked { range: start..start + length, hot });
        }
        if multi {
            self.line = Line { begun: true, has_key: self.line.has_key, sensitive: self.expecting() };
        }
    }

    fn bare(&mut self) {
        let rest = self.rest();
        let length = rest.bytes().position(|byte| !is_bare(byte)).unwrap_or(rest.len());
        let word = rest.get(..length).unwrap_or_default();
        let start = self.at;
        self.at += length;
        self.line.begun = true;
        if self.is_key() {
            self.key(word);
        } else if self.expecting() || (self.broken && !self.line.has_key && self.depth > 0) {
            self.found.push(Masked { range: start..start + length, hot: true });
        }
    }

    /// Whether what was just read is a key, or a part of one.
    fn is_key(&self) -> bool {
        self.rest().trim_start_matches([' ', '\t']).starts_with(['=', '.'])
    }

    fn key(&mut self, name: &'t str) {
        self.key = name.rsplit('.').next().unwrap_or(name).trim();
        self.line.has_key = true;
        if self.sensitive.is_none() && expects_secret(name) {
            self.sensitive = Some(self.depth);
        }
        self.line.sensitive |= self.expecting();
    }
}

fn is_bare(byte: u8) -> bool {
    !byte.is_ascii_whitespace() && !byte.is_ascii_control() && !b"[]{},=#\"'".contains(&byte)
}

/// The length of a string's inside, and whether its end was found.
fn string_end(inner: &str, quote: u8, multi: bool) -> (usize, bool) {
    let bytes = inner.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match *byte {
            b'\\' if quote == b'"' && bytes.get(at + 1).is_some_and(|next| multi || *next != b'\n') => at += 1,
            b'\n' if !multi => return (at, false),
            byte if byte == quote => {
                let run = bytes.iter().skip(at).take_while(|byte| **byte == quote).count();
                if !multi {
                    return (at, true);
                }
                if run >= 3 {
                    return (at + (run - 3).min(2), true);
                }
                at += run - 1;
            }
            _ => {}
        }
        at += 1;
    }
    (inner.len(), false)
}

/// Whether a basic string spells characters in a way that keeps them from being recognised.
fn hides_letters(value: &str, multi: bool) -> bool {
    ["\\u", "\\U", "\\x"].iter().any(|escape| value.contains(escape)) || (multi && value.contains('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, broken: bool) -> String {
        let mut out = String::new();
        let mut from = 0;
        for masked in scan(text, broken) {
            out.push_str(&text[from..masked.range.start]);
            out.push_str(MASK);
            from = masked.range.end;
        }
        out + &text[from..]
    }

    #[test]
    fn what_looks_like_a_secret_is_masked_in_words() {
        for (text, out) in [
            ("see absec_123, or not", "see ***, or not"),
            ("(whsec_), absec_ and sk_", "(whsec_), absec_ and sk_"),
            ("/task_list/ is none", "/task_list/ is none"),
            ("sk_live_1 xrk_test_2", "*** x***"),
            ("http://user:pass@host/ x", "http://*** x"),
        ] {
            assert_eq!(masked(text), out);
        }
        assert_eq!(quoted("absec_01 23"), "`***`");
        assert_eq!(quoted("a\u{1b}[1m"), "`a\\u{1b}[1m`");
    }

    #[test]
    fn strings_under_secrets_are_masked_and_others_are_not() {
        for (text, out) in [
            ("secrets = [\"x\"] # y\na = \"b\"", "secrets = [\"***\"] #***\na = \"b\""),
            (
                "secrets = [\n 'x', # y\n \"\"\"z\nw\"\"\"\n]\na = 'b'",
                "secrets = [\n '***', #***\n \"\"\"***\"\"\"\n]\na = 'b'",
            ),
            (
                "r = { secret = { A = \"x\" }, set = { B = \"y\" } }",
                "r = { secret = { A = \"***\" }, set = { B = \"y\" } }",
            ),
            ("[a.secrets]\nx = \"y\"\n[b]\nx = \"y\"", "[a.secrets]\nx = \"***\"\n[b]\nx = \"y\""),
            ("secrt = 12\nsecrets = x", "secrt = ***\nsecrets = ***"),
            ("a.\"secrets\" = 'x'", "a.\"secrets\" = '***'"),
            ("a = \"\\u0061bsec_1\"", "a = \"***\""),
            ("a = [\n \"b\"\n]", "a = [\n \"b\"\n]"),
            ("a = \"x\\\"absec_1\" # b", "a = \"***\" # b"),
        ] {
            assert_eq!(shown(text, false), out, "{text}");
        }
    }

    #[test]
    fn in_a_broken_document_only_what_stands_behind_a_harmless_key_is_shown() {
        for (text, out) in [
            ("a = \"b\nc = \"d\"", "a = \"b\nc = \"d\""),
            ("secrets = [\"x\nq = \"y\"\n", "secrets = [\"***\nq = \"***\"\n"),
            ("secrets = []\n\"x\"]", "secrets = []\n\"***\"]"),
            ("a = \"\"\"\nsecrets = [\"x\"]", "a = \"\"\"***"),
            ("secrets = 'a', 'b'", "secrets = '***', '***'"),
        ] {
            assert_eq!(shown(text, true), out, "{text}");
        }
    }

    #[test]
    fn the_place_of_a_secret_is_masked_but_its_length_may_be_told() {
        let hot = |text| scan(text, false).iter().map(|masked| masked.hot).collect::<Vec<_>>();
        assert_eq!(hot("secrets = [{ file = \"a\" }, { env = 'b' }]"), [false, false]);
        assert_eq!(hot("secrets = [\"a\", { file = \"absec_1\" }]"), [true, true]);
        assert_eq!(hot("secrets = [{ file = \"a\" }, \"b\", { file = [\"c\"] }]"), [false, true, true]);
    }
}

//! JSON bodies: checked strictly, looked into, and printed as JavaScript prints them.
//!
//! Two parties must read a signed body alike, so whatever parsers disagree about is refused at the door: a byte order
//! mark, text that is not UTF-8, a key that comes twice, nesting beyond [`MAX_DEPTH`]. What remains is kept as a flat
//! row of nodes over the caller's bytes; a value that JavaScript would print as it stands is later copied, not printed.
//!
//! Source: RFC 8259; ECMA-262, `JSON.parse`, `JSON.stringify`, `OrdinaryOwnPropertyKeys` and `Number::toString`.

mod number;
mod scan;
mod string;

use std::borrow::Cow;
use std::fmt;

use scan::{Kind, Node};
pub(crate) use string::print_quoted as print_text;

/// How many arrays and objects may stand inside each other; `[[1]]` has two levels.
pub const MAX_DEPTH: usize = 100;

/// Why a text is not a [`Document`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The grammar does not allow what stands `offset` bytes into the text, or the text ends there too early.
    Syntax { offset: usize },
    /// The text is not UTF-8.
    Utf8,
    /// The text starts with U+FEFF, which some parsers skip and others refuse.
    ByteOrderMark,
    /// An object names the same member twice, of which one parser takes the first and another the last.
    DuplicateKey,
    /// Arrays and objects are nested deeper than [`MAX_DEPTH`].
    TooDeep,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { offset } => write!(f, "found no valid JSON at byte {offset}"),
            Self::Utf8 => f.write_str("found bytes that are not UTF-8, expected JSON in UTF-8"),
            Self::ByteOrderMark => f.write_str("found a byte order mark, expected JSON without one"),
            Self::DuplicateKey => f.write_str("found an object with the same key twice, expected each key once"),
            Self::TooDeep => write!(f, "found values nested deeper than {MAX_DEPTH} levels"),
        }
    }
}

impl std::error::Error for Error {}

/// A JSON text that was checked strictly.
///
/// It borrows the text and holds one small node for each key and value in it.
pub struct Document<'a> {
    text: &'a str,
    /// The root, then its descendants in the order of the text.
    nodes: Vec<Node>,
}

impl<'a> Document<'a> {
    /// Checks `text` from its first byte to its last.
    ///
    /// Takes what `JSON.parse` takes, without the texts that [`Error`] names, in time that grows no faster than
    /// n log n. Escapes of lone surrogates and numbers out of range are accepted, as JavaScript accepts them; for the
    /// latter see [`Document::has_lossy_number`].
    ///
    /// # Errors
    /// The first fault that was found. A text beyond 4 GiB is [`Error::Syntax`] at the first byte beyond.
    pub fn parse(text: &'a [u8]) -> Result<Self, Error> {
        let text = str::from_utf8(text).map_err(|_| Error::Utf8)?;
        if text.starts_with('\u{feff}') {
            return Err(Error::ByteOrderMark);
        }
        let nodes = scan::scan(text)?;
        Ok(Self { text, nodes })
    }

    /// Tells whether the text is an object rather than another value.
    pub fn is_object(&self) -> bool {
        matches!(self.root().node.kind, Kind::Object { .. })
    }

    /// The value of the member `key`, compared after unescaping; `None` also where the text is not an object.
    pub fn member(&self, key: &str) -> Option<Element<'_>> {
        self.root().member(key)
    }

    /// The keys and values of an object in the order of the text; none where the text is another value.
    pub fn members(&self) -> impl Iterator<Item = (Element<'_>, Element<'_>)> {
        self.root().members()
    }

    /// Tells whether JavaScript prints a number of the text with another value than the text gives it.
    ///
    /// Two texts that differ only in such a number are printed alike, so what was signed cannot be told from the print.
    /// `9007199254740993` and `1e400` are lossy. `0.1` is not: the binary number in between is not what is compared.
    pub fn has_lossy_number(&self) -> bool {
        self.root().has_lossy_number()
    }

    /// Appends `JSON.stringify(JSON.parse(text))` to `out`.
    pub fn print(&self, out: &mut Vec<u8>) {
        self.root().print(out);
    }

    /// Appends `JSON.stringify({...rest, k1: v1, k2: v2})`, where `last` holds the keys with their values and `rest` is
    /// this object without those keys.
    ///
    /// A key in `last` comes once and is not an integer, which JavaScript would not print last. A text that is not an
    /// object has no members to rearrange and is printed as by [`Document::print`].
    pub fn print_with_last(&self, last: &[(&str, &str)], out: &mut Vec<u8>) {
        let root = self.root();
        match root.node.kind {
            Kind::Object { shuffled } => root.print_object(shuffled, last, out),
            _ => root.print(out),
        }
    }

    fn root(&self) -> Element<'_> {
        #[expect(clippy::expect_used, reason = "a scan that succeeds has stored one value and its descendants")]
        Row { text: self.text, nodes: &self.nodes }.next().expect("a document has a root")
    }
}

/// Tells the length only: the text is a request's body.
impl fmt::Debug for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("bytes", &self.text.len()).finish_non_exhaustive()
    }
}

/// One value in a [`Document`].
#[derive(Clone, Copy)]
pub struct Element<'d> {
    text: &'d str,
    node: &'d Node,
    descendants: &'d [Node],
}

impl<'d> Element<'d> {
    /// Tells whether the value is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self.node.kind, Kind::Null)
    }

    /// The string without its escapes; `None` for another value and for a string with a lone surrogate.
    pub fn as_str(&self) -> Option<Cow<'d, str>> {
        match self.node.kind {
            Kind::String { escaped: false } => Some(Cow::Borrowed(self.between_quotes())),
            Kind::String { escaped: true } => string::unescape(self.between_quotes()).map(Cow::Owned),
            _ => None,
        }
    }

    /// The values of an array in their order; `None` for another value.
    pub fn items(&self) -> Option<impl Iterator<Item = Element<'d>> + use<'d>> {
        matches!(self.node.kind, Kind::Array).then(|| self.children())
    }

    /// The value of the member `key`, compared after unescaping; `None` also where the value is not an object.
    pub fn member(&self, key: &str) -> Option<Element<'d>> {
        let (_, value) = self.members().find(|(name, _)| name.as_str().is_some_and(|name| name == key))?;
        Some(value)
    }

    /// Tells the same as [`Document::has_lossy_number`] for the numbers within this value.
    pub fn has_lossy_number(&self) -> bool {
        self.node.lossy
    }

    /// Appends the value to `out` as `JSON.stringify` prints it.
    pub fn print(&self, out: &mut Vec<u8>) {
        match self.node.kind {
            _ if !self.node.altered => out.extend_from_slice(self.spelling().as_bytes()),
            Kind::Null | Kind::Boolean => out.extend_from_slice(self.spelling().as_bytes()),
            Kind::Number => number::print(self.spelling(), out),
            Kind::String { .. } => {
                out.push(b'"');
                string::print(self.between_quotes(), out);
                out.push(b'"');
            }
            Kind::Array => self.print_array(out),
            Kind::Object { shuffled } => self.print_object(shuffled, &[], out),
        }
    }

    fn print_array(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        let mut items = self.children();
        if let Some(first) = items.next() {
            first.print(out);
        }
        for item in items {
            out.push(b',');
            item.print(out);
        }
        out.push(b']');
    }

    fn print_object(&self, shuffled: bool, last: &[(&str, &str)], out: &mut Vec<u8>) {
        out.push(b'{');
        let start = out.len();
        let mut print = |key: Element<'d>, value: Element<'d>| {
            let is_last = !last.is_empty() && key.as_str().is_some_and(|key| last.iter().any(|(name, _)| *name == key));
            if !is_last {
                separate(start, out);
                key.print(out);
                out.push(b':');
                value.print(out);
            }
        };
        if shuffled {
            // The sort is stable and no index is as large as u32::MAX: names follow the indices in their own order.
            let mut members: Vec<_> = self.members().collect();
            members.sort_by_cached_key(|(key, _)| key.array_index().unwrap_or(u32::MAX));
            for (key, value) in members {
                print(key, value);
            }
        } else {
            for (key, value) in self.members() {
                print(key, value);
            }
        }
        for (key, value) in last {
            separate(start, out);
            string::print_quoted(key, out);
            out.push(b':');
            string::print_quoted(value, out);
        }
        out.push(b'}');
    }

    /// The keys and values of an object; none for another value.
    fn members(&self) -> impl Iterator<Item = (Element<'d>, Element<'d>)> + use<'d> {
        let mut row = match self.node.kind {
            Kind::Object { .. } => self.children(),
            _ => Row { text: self.text, nodes: &[] },
        };
        std::iter::from_fn(move || Some((row.next()?, row.next()?)))
    }

    fn children(&self) -> Row<'d> {
        Row { text: self.text, nodes: self.descendants }
    }

    fn array_index(&self) -> Option<u32> {
        string::array_index(&string::printed(self.between_quotes(), self.node.altered))
    }

    fn spelling(&self) -> &'d str {
        &self.text[self.node.start as usize..self.node.end as usize]
    }

    fn between_quotes(&self) -> &'d str {
        &self.text[self.node.start as usize + 1..self.node.end as usize - 1]
    }
}

/// Tells the length only: the value is a part of a request's body.
impl fmt::Debug for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Element").field("bytes", &self.spelling().len()).finish_non_exhaustive()
    }
}

/// Values that stand side by side, each followed by its descendants.
struct Row<'d> {
    text: &'d str,
    nodes: &'d [Node],
}

impl<'d> Iterator for Row<'d> {
    type Item = Element<'d>;

    fn next(&mut self) -> Option<Element<'d>> {
        let (node, rest) = self.nodes.split_first()?;
        let (descendants, rest) = rest.split_at_checked(node.descendants as usize)?;
        self.nodes = rest;
        Some(Element { text: self.text, node, descendants })
    }
}

/// Puts a comma in front of every member but the first, which stands at `start`.
fn separate(start: usize, out: &mut Vec<u8>) {
    if out.len() > start {
        out.push(b',');
    }
}

#[cfg(test)]
mod tests;

//! One pass over the text that checks the grammar and notes where each value stands.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{Error, MAX_DEPTH, number, string};

/// A value or a key, as it stands in the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// JavaScript prints it otherwise than it is spelled here.
    pub(super) altered: bool,
    /// JavaScript prints a number in it with another value.
    pub(super) lossy: bool,
    /// Offset of its first byte, with the quote or bracket.
    pub(super) start: u32,
    /// Offset behind its last byte.
    pub(super) end: u32,
    /// How many of the nodes that follow lie within it.
    pub(super) descendants: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Number,
    /// `escaped`: holds a backslash.
    String {
        escaped: bool,
    },
    /// Followed by its items.
    Array,
    /// Followed by key and value in turns. `shuffled`: JavaScript prints the members in another order.
    Object {
        shuffled: bool,
    },
}

/// The root of `text` and its descendants.
pub(super) fn scan(text: &str) -> Result<Vec<Node>, Error> {
    if u32::try_from(text.len()).is_err() {
        return Err(Error::Syntax { offset: u32::MAX as usize });
    }
    let nodes = Vec::with_capacity(text.len() / TYPICAL_BYTES_PER_NODE + 1);
    let mut scanner = Scanner { text, at: 0, depth: 0, nodes, keys: Vec::new(), altered_until: 0, lossy_until: 0 };
    scanner.skip_space();
    scanner.value()?;
    scanner.skip_space();
    if scanner.at < text.len() {
        return Err(scanner.unexpected());
    }
    Ok(scanner.nodes)
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    nodes: Vec<Node>,
    /// The keys so far of every object that is still open, as JavaScript prints them.
    keys: Vec<Cow<'a, str>>,
    /// Offset behind the latest spelling that JavaScript prints otherwise: what starts before it contains it.
    altered_until: usize,
    /// Offset behind the latest lossy number.
    lossy_until: usize,
}

impl<'a> Scanner<'a> {
    fn value(&mut self) -> Result<(), Error> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'{') => self.object(),
            Some(b'[') => self.array(),
            Some(b't') => self.word("true", Kind::Boolean),
            Some(b'f') => self.word("false", Kind::Boolean),
            Some(b'n') => self.word("null", Kind::Null),
            _ => Err(self.unexpected()),
        }
    }

    fn object(&mut self) -> Result<(), Error> {
        let (node, start) = self.open()?;
        let first_key = self.keys.len();
        if self.peek() != Some(b'}') {
            loop {
                let (raw, altered) = self.string()?;
                self.keys.push(string::printed(raw, altered));
                self.skip_space();
                self.expect(b':')?;
                self.skip_space();
                self.value()?;
                self.skip_space();
                if self.peek() == Some(b'}') {
                    break;
                }
                self.expect(b',')?;
                self.skip_space();
            }
        }
        self.at += 1;

        let keys = self.keys.get(first_key..).unwrap_or_default();
        if has_duplicate(keys) {
            return Err(Error::DuplicateKey);
        }
        let shuffled = is_shuffled(keys);
        if shuffled {
            self.altered_until = self.at;
        }
        self.keys.truncate(first_key);
        self.close(node, Kind::Object { shuffled }, start);
        Ok(())
    }

    fn array(&mut self) -> Result<(), Error> {
        let (node, start) = self.open()?;
        if self.peek() != Some(b']') {
            loop {
                self.value()?;
                self.skip_space();
                if self.peek() == Some(b']') {
                    break;
                }
                self.expect(b',')?;
                self.skip_space();
            }
        }
        self.at += 1;
        self.close(node, Kind::Array, start);
        Ok(())
    }

    /// Stores a node ahead of what it contains, passes the bracket and tells the index of the node and its start.
    fn open(&mut self) -> Result<(usize, usize), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        let (node, start) = (self.nodes.len(), self.at);
        self.store(Kind::Null, start);
        self.at += 1;
        self.skip_space();
        Ok((node, start))
    }

    /// Completes the node that [`Scanner::open`] stored, now that its last byte is known.
    fn close(&mut self, node: usize, kind: Kind, start: usize) {
        self.depth -= 1;
        let complete = Node { descendants: offset(self.nodes.len() - node - 1), ..self.node(kind, start) };
        if let Some(stored) = self.nodes.get_mut(node) {
            *stored = complete;
        }
    }

    /// Passes a string; tells what stands between its quotes, and whether JavaScript may print that otherwise.
    fn string(&mut self) -> Result<(&'a str, bool), Error> {
        let start = self.at;
        self.expect(b'"')?;
        let mut escaped = false;
        let mut altered = false;
        loop {
            self.at = string::find_special(self.text.as_bytes(), self.at).unwrap_or(self.text.len());
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    altered |= self.escape()?;
                }
                _ => return Err(self.unexpected()),
            }
        }
        let raw = &self.text[start + 1..self.at];
        self.at += 1;
        if altered {
            self.altered_until = self.at;
        }
        self.store(Kind::String { escaped }, start);
        Ok((raw, altered))
    }

    /// Passes an escape and tells whether JavaScript may spell it otherwise.
    fn escape(&mut self) -> Result<bool, Error> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(false)
            }
            Some(b'/') => {
                self.at += 1;
                Ok(true)
            }
            Some(b'u') => {
                for _ in 0..4 {
                    self.at += 1;
                    if !self.peek().is_some_and(|digit| digit.is_ascii_hexdigit()) {
                        return Err(self.unexpected());
                    }
                }
                self.at += 1;
                Ok(true)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn number(&mut self) -> Result<(), Error> {
        let start = self.at;
        let number = number::scan(self.text, start).map_err(|offset| Error::Syntax { offset })?;
        self.at = number.end;
        if number.altered {
            self.altered_until = self.at;
        }
        if number.lossy {
            self.lossy_until = self.at;
        }
        self.store(Kind::Number, start);
        Ok(())
    }

    fn word(&mut self, word: &str, kind: Kind) -> Result<(), Error> {
        let start = self.at;
        for letter in word.bytes() {
            self.expect(letter)?;
        }
        self.store(kind, start);
        Ok(())
    }

    fn skip_space(&mut self) {
        if matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
            while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
                self.at += 1;
            }
            self.altered_until = self.at;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Error> {
        if self.peek() != Some(byte) {
            return Err(self.unexpected());
        }
        self.at += 1;
        Ok(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn unexpected(&self) -> Error {
        Error::Syntax { offset: self.at }
    }

    fn store(&mut self, kind: Kind, start: usize) {
        let node = self.node(kind, start);
        self.nodes.push(node);
    }

    /// A node for what stands between `start` and here.
    fn node(&self, kind: Kind, start: usize) -> Node {
        Node {
            kind,
            altered: self.altered_until > start,
            lossy: self.lossy_until > start,
            start: offset(start),
            end: offset(self.at),
            descendants: 0,
        }
    }
}

/// Tells whether two keys are equal. Keys that differ are printed differently, so prints are what is compared.
fn has_duplicate(keys: &[Cow<'_, str>]) -> bool {
    if keys.len() > MAX_PAIRWISE_KEYS {
        let mut seen = HashSet::with_capacity(keys.len());
        return !keys.iter().all(|key| seen.insert(key.as_bytes()));
    }
    let mut rest = keys;
    while let Some((key, others)) = rest.split_first() {
        if others.iter().any(|other| other.as_bytes() == key.as_bytes()) {
            return true;
        }
        rest = others;
    }
    false
}

/// Tells whether array indices stand anywhere but in front and ascending.
fn is_shuffled(keys: &[Cow<'_, str>]) -> bool {
    // A name counts as larger than any index, and names keep their order.
    !keys.is_sorted_by_key(|key| string::array_index(key).unwrap_or(u32::MAX))
}

#[expect(clippy::cast_possible_truncation, reason = "`scan` refuses a text with larger offsets")]
fn offset(at: usize) -> u32 {
    at as u32
}

/// Room for this many nodes is reserved at once; a text with more makes the row grow.
const TYPICAL_BYTES_PER_NODE: usize = 8;

/// Up to here comparing each key with each costs less than a hash table.
const MAX_PAIRWISE_KEYS: usize = 16;

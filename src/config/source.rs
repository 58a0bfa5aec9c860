//! The text of a configuration file, and where in it each value stands.

use std::{cell::OnceCell, collections::HashMap, ops::Range, sync::Arc};

use figment::value::{Dict, Empty, Num, Tag, Value};
use toml::de::{DeTable, DeValue};

use super::{
    mask::{self, MASK, Masked},
    problem::{Excerpt, Place, Problem},
};

/// The most characters of a line that are shown.
const SHOWN: usize = 160;

/// A file that was read.
#[derive(Debug)]
pub(super) struct Source {
    pub name: Arc<str>,
    text: String,
    /// The offset at which each line begins.
    lines: Vec<usize>,
    spans: HashMap<String, Spans>,
    broken: bool,
    masks: OnceCell<Vec<Masked>>,
}

/// Where a value stands: its key, if it has one, and itself.
#[derive(Clone, Debug)]
struct Spans {
    key: Option<Range<usize>>,
    value: Range<usize>,
}

impl Source {
    /// Parses `text` once, for its values and for their places.
    ///
    /// # Errors
    /// All mistakes in the syntax, at most one for each line, for one begets others.
    pub(super) fn parse(name: Arc<str>, text: String) -> Result<(Self, Dict), Vec<Problem>> {
        let begin = if text.starts_with('\u{feff}') { 3 } else { 0 };
        let lines = std::iter::once(begin).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let mut source = Self { name, text, lines, spans: HashMap::new(), broken: false, masks: OnceCell::new() };
        let text = std::mem::take(&mut source.text);
        let (table, mut errors) = DeTable::parse_recoverable(&text);
        let dict = if errors.is_empty() { source.table(table.get_ref(), "") } else { Dict::new() };
        drop(table);
        source.text = text;
        if errors.is_empty() {
            return Ok((source, dict));
        }
        source.broken = true;
        errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
        let mut problems: Vec<Problem> = Vec::new();
        for error in errors {
            let place = source.place(error.span().unwrap_or(begin..begin));
            let again = problems.last().is_some_and(|last| match (&last.place, &place) {
                (Place::Line { line: before, .. }, Place::Line { line, .. }) => before == line,
                _ => false,
            });
            if !again {
                problems.push(source.syntax_problem(place, error.message()));
            }
        }
        Err(problems)
    }

    fn syntax_problem(&self, place: Place, message: &str) -> Problem {
        let suggestion = match message {
            "duplicate key" => Some("each key and each table stands once; keep one of them"),
            _ if message.starts_with("string values must be quoted") => Some("put the value in quotes"),
            _ if message.starts_with("invalid") && message.contains("expected nothing") => {
                Some("text stands in quotes: address = \"0.0.0.0:8443\"")
            }
            _ if message.contains("unclosed") || message.contains("missing") => {
                Some("close what is open: brackets, braces and quotes come in pairs")
            }
            _ => Some("a line of TOML is `key = value`, `[table]` or `[[table]]`; text stands in quotes"),
        };
        Problem {
            file: self.name.clone(),
            place,
            message: mask::masked(message),
            suggestion: suggestion.map(str::to_owned),
        }
    }

    /// Where the value at `path` stands; for one that does not exist, where its table does.
    pub(super) fn value_span(&self, path: &str) -> Range<usize> {
        self.nearest(path).map_or(0..0, |spans| spans.value.clone())
    }

    /// Where the key of the value at `path` stands.
    pub(super) fn key_span(&self, path: &str) -> Range<usize> {
        self.nearest(path).map_or(0..0, |spans| spans.key.clone().unwrap_or_else(|| spans.value.clone()))
    }

    fn nearest(&self, path: &str) -> Option<&Spans> {
        let mut path = path;
        loop {
            match self.spans.get(path) {
                Some(spans) => return Some(spans),
                None => path = path.rsplit_once('.')?.0,
            }
        }
    }

    /// The line of an offset, from 1.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.lines.partition_point(|begin| *begin <= offset).max(1)
    }

    /// The place of a part of the text, ready to be shown.
    pub(super) fn place(&self, span: Range<usize>) -> Place {
        let line = self.line_of(span.start);
        let begin = self.lines.get(line - 1).copied().unwrap_or_default();
        let rest = self.text.get(begin..).unwrap_or_default();
        let end = begin + rest.split('\n').next().unwrap_or_default().trim_end_matches('\r').len();
        let start = span.start.clamp(begin, end);
        let stop = span.end.clamp(start, end);
        let masks = self.masks_between(begin, end);
        let column = 1 + match masks.iter().find(|masked| masked.hot && masked.range.start < start) {
            Some(masked) => self.characters(begin..masked.range.start),
            None => self.characters(begin..start),
        };
        Place::Line { line, column, excerpt: self.excerpt(begin..end, start..stop, &masks) }
    }

    fn characters(&self, range: Range<usize>) -> usize {
        self.text.get(range).unwrap_or_default().chars().count()
    }

    /// What may not be shown of the line between two offsets.
    fn masks_between(&self, begin: usize, end: usize) -> Vec<Masked> {
        let all = self.masks.get_or_init(|| mask::scan(&self.text, self.broken));
        let first = all.partition_point(|masked| masked.range.end < begin);
        let mut here: Vec<Masked> = all
            .iter()
            .skip(first)
            .take_while(|masked| masked.range.start <= end)
            .map(|masked| Masked {
                range: masked.range.start.clamp(begin, end)..masked.range.end.clamp(begin, end),
                ..masked.clone()
            })
            .collect();
        let line = self.text.get(begin..end).unwrap_or_default();
        let inside = |at: usize| here.iter().any(|masked| masked.range.contains(&at));
        let words: Vec<Masked> = mask::secrets_in(line)
            .into_iter()
            .map(|word| Masked { range: begin + word.start..begin + word.end, hot: true })
            .filter(|word| !inside(word.range.start))
            .collect();
        here.extend(words);
        here.sort_by_key(|masked| masked.range.start);
        here
    }

    fn excerpt(&self, line: Range<usize>, part: Range<usize>, masks: &[Masked]) -> Excerpt {
        let mut shown: Vec<char> = Vec::new();
        // Offsets and the characters that are shown before them.
        let mut places = Vec::new();
        let mut at = line.start;
        for masked in masks {
            self.show(at..masked.range.start, &mut shown, &mut places);
            if masked.range.end >= at {
                places.push((masked.range.start.max(at), shown.len()));
                shown.extend(MASK.chars());
                at = masked.range.end;
            }
        }
        self.show(at..line.end, &mut shown, &mut places);
        places.push((line.end, shown.len()));
        let from = places.get(places.partition_point(|(offset, _)| *offset <= part.start).saturating_sub(1));
        let to = places.get(places.partition_point(|(offset, _)| *offset < part.end));
        let (from, to) = (from.map_or(0, |place| place.1), to.map_or(shown.len(), |place| place.1));
        let cut = if shown.len() > SHOWN { from.saturating_sub(SHOWN / 2) } else { 0 };
        let mut text: String = shown.iter().skip(cut).take(SHOWN).collect();
        let (before, width) = (from - cut, to.saturating_sub(from).max(1));
        let mut shift = 0;
        if cut > 0 {
            text.insert(0, '…');
            shift = 1;
        }
        if shown.len() > cut + SHOWN {
            text.push('…');
        }
        Excerpt { text: text.trim_end().to_owned(), before: before + shift, width: width.min((SHOWN - before).max(1)) }
    }

    fn show(&self, range: Range<usize>, shown: &mut Vec<char>, places: &mut Vec<(usize, usize)>) {
        let begin = range.start;
        for (at, c) in self.text.get(range).unwrap_or_default().char_indices() {
            places.push((begin + at, shown.len()));
            match c {
                '\t' => shown.extend("    ".chars()),
                c if c.is_control() || is_invisible(c) => shown.push('\u{fffd}'),
                c => shown.push(c),
            }
        }
    }

    fn table(&mut self, table: &DeTable<'_>, path: &str) -> Dict {
        let mut dict = Dict::new();
        for (key, value) in table {
            let path = joined(path, key.get_ref());
            let begin = key.span();
            let converted = self.value(value.get_ref(), &path);
            self.spans.insert(path, Spans { key: Some(begin), value: value.span() });
            dict.insert(key.get_ref().clone().into_owned(), converted);
        }
        dict
    }

    fn value(&mut self, value: &DeValue<'_>, path: &str) -> Value {
        let tag = Tag::Default;
        match value {
            DeValue::String(text) => Value::String(tag, text.clone().into_owned()),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Num(tag, Num::I128(number)),
                Err(_) => Value::Num(tag, Num::I128(i128::MAX)),
            },
            DeValue::Float(number) => Value::Num(tag, Num::F64(number.as_str().parse().unwrap_or(f64::NAN))),
            DeValue::Boolean(flag) => Value::Bool(tag, *flag),
            // No key takes a date.
            DeValue::Datetime(_) => Value::Empty(tag, Empty::Unit),
            DeValue::Array(items) => {
                let mut converted = Vec::with_capacity(items.len());
                for (place, item) in items.iter().enumerate() {
                    let path = joined(path, &place.to_string());
                    converted.push(self.value(item.get_ref(), &path));
                    self.spans.insert(path, Spans { key: None, value: item.span() });
                }
                Value::Array(tag, converted)
            }
            DeValue::Table(table) => Value::Dict(tag, self.table(table, path)),
        }
    }
}

/// The path of `name` in the table at `path`. A name that holds more than letters, digits, `-` and `_` is quoted, so
/// that a path has one reading.
pub(super) fn joined(path: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let dot = if path.is_empty() { "" } else { "." };
    if bare { format!("{path}{dot}{name}") } else { format!("{path}{dot}{name:?}") }
}

/// Characters that change how a terminal shows others.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

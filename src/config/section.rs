//! Reads tables key by key, and goes on after a mistake, so that all of them are told at once.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::HashMap,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use figment::value::{Dict, Num, Value};

use super::{
    Scrutiny, SourceKind, Sources, Warning,
    environment::Environment,
    file,
    mask::{self, quoted},
    problem::{Place, Problem},
    source::{Source, joined},
    units,
};

/// What reading a configuration needs, and what it found out.
pub(super) struct Context<'c> {
    pub source: &'c Source,
    pub environment: &'c Environment,
    /// Where relative paths start.
    pub folder: PathBuf,
    pub now: SystemTime,
    /// The variables that set keys, by the keys' paths.
    pub overrides: HashMap<String, String>,
    pub scrutiny: Scrutiny<'c>,
    sources: RefCell<Sources>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<(usize, Warning)>>,
}

/// A table.
#[derive(Clone)]
pub(super) struct Section<'c> {
    pub context: &'c Context<'c>,
    path: String,
    /// The path in [`file::KEYS`].
    pattern: &'static str,
    dict: &'c Dict,
}

/// A value and its place.
#[derive(Clone)]
pub(super) struct Item<'c> {
    pub context: &'c Context<'c>,
    pub path: String,
    value: Cow<'c, Value>,
    /// It is a string of the environment, which may stand for a value of any kind.
    from_environment: bool,
}

impl<'c> Context<'c> {
    pub(super) fn new(
        source: &'c Source,
        environment: &'c Environment,
        folder: &Path,
        now: SystemTime,
        overrides: HashMap<String, String>,
        scrutiny: Scrutiny<'c>,
        sources: Sources,
    ) -> Self {
        let (problems, warnings, sources) = (RefCell::default(), RefCell::default(), RefCell::new(sources));
        let folder = folder.to_owned();
        Self { source, environment, folder, now, overrides, scrutiny, sources, problems, warnings }
    }

    /// Notes that `item` names a file of that kind, before it is read.
    pub(super) fn note_source(&self, item: &Item<'_>, kind: SourceKind, path: &Path) {
        self.sources.borrow_mut().note(&item.path, kind, path);
    }

    pub(super) fn report(&self, place: Place, message: &str, suggestion: Option<&str>) {
        self.problems.borrow_mut().push(Problem {
            file: self.source.name.clone(),
            place,
            message: message.to_owned(),
            suggestion: suggestion.map(str::to_owned),
        });
    }

    /// What was found wrong, what is to be warned of in the order of the file, and what was read.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Warning>, Sources) {
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|(offset, _)| *offset);
        let warnings = warnings.into_iter().map(|(_, warning)| warning).collect();
        (self.problems.into_inner(), warnings, self.sources.into_inner())
    }

    /// The path of a file that the configuration names.
    pub(super) fn file(&self, named: &str) -> PathBuf {
        self.folder.join(named)
    }
}

impl<'c> Section<'c> {
    /// The document itself. Unknown keys are reported here, as in every table.
    pub(super) fn root(context: &'c Context<'c>, dict: &'c Dict) -> Self {
        let root = Self { context, path: String::new(), pattern: "", dict };
        root.report_unknown();
        root
    }

    /// The value of a key.
    pub(super) fn item(&self, name: &str) -> Option<Item<'c>> {
        let value = Cow::Borrowed(self.dict.get(name)?);
        let path = joined(&self.path, name);
        let from_environment = self.context.overrides.contains_key(&path);
        Some(Item { context: self.context, path, value, from_environment })
    }

    /// The value of a key that must be there; it is reported missing with `example`, a line to write.
    pub(super) fn required(&self, name: &str, example: &str) -> Option<Item<'c>> {
        let item = self.item(name);
        if item.is_none() {
            let table = if self.path.is_empty() { String::new() } else { format!(" in {}", self.title()) };
            self.error(&format!("`{name}` is missing{table}"), Some(&format!("write {example}")));
        }
        item
    }

    /// Each name and value, in the order of the file.
    pub(super) fn names(&self) -> Vec<(String, Item<'c>)> {
        let mut names: Vec<_> = self.dict.keys().filter_map(|name| Some((name.clone(), self.item(name)?))).collect();
        names.sort_by_key(|(_, item)| self.context.source.key_span(&item.path).start);
        names
    }

    /// Whether nothing stands in it.
    pub(super) fn is_empty(&self) -> bool {
        self.dict.is_empty()
    }

    /// Reports a mistake of the table as a whole, at its head.
    pub(super) fn error(&self, message: &str, suggestion: Option<&str>) {
        let span = if self.path.is_empty() { 0..0 } else { self.context.source.value_span(&self.path) };
        self.context.report(self.context.source.place(span), message, suggestion);
    }

    /// The table as the file's reader knows it.
    fn title(&self) -> String {
        match self.pattern {
            "routes" => "this route".to_owned(),
            "listener.certificates" => "this certificate".to_owned(),
            "webhooks" => "this webhook".to_owned(),
            "webhooks.deliver" => "this destination".to_owned(),
            pattern
                if pattern.starts_with("routes.")
                    || pattern.starts_with("webhooks.")
                    || pattern.contains(".secrets") =>
            {
                "this table".to_owned()
            }
            _ => format!("[{}]", mask::masked(&self.path)),
        }
    }

    fn report_unknown(&self) {
        if file::find(self.pattern).is_some_and(|key| key.kind == file::Kind::Names) {
            return;
        }
        for name in self.dict.keys() {
            if file::names_in(self.pattern).any(|known| known == name) {
                continue;
            }
            let message = format!("unknown key {}", quoted(name));
            let span = self.context.source.key_span(&joined(&self.path, name));
            self.context.report(self.context.source.place(span), &message, Some(&self.meant_by(name)));
        }
    }

    fn meant_by(&self, name: &str) -> String {
        if file::LATER.contains(&name) {
            return format!("this version of countersign does not have `{name}` yet; remove it");
        }
        if let Some(known) = file::nearest(name, file::names_in(self.pattern)) {
            return format!("did you mean `{known}`?");
        }
        let elsewhere = file::KEYS.iter().find_map(|key| match key.path.rsplit_once('.') {
            Some((table, last)) if last == name && !table.contains("secret") => Some(table),
            _ => None,
        });
        match elsewhere {
            Some(table @ ("routes" | "listener.certificates" | "webhooks" | "webhooks.deliver")) => {
                format!("`{name}` belongs in a [[{table}]]")
            }
            Some(table) => format!("`{name}` belongs in [{table}]"),
            None => {
                let known: Vec<_> = file::names_in(self.pattern).map(|known| format!("`{known}`")).collect();
                format!("known here: {}", known.join(", "))
            }
        }
    }
}

impl<'c> Item<'c> {
    /// Where it stands.
    pub(super) fn place(&self) -> Place {
        if let Some(variable) = self.context.overrides.get(&self.path) {
            return Place::Variable(variable.clone());
        }
        self.context.source.place(self.context.source.value_span(&self.path))
    }

    /// Reports what is wrong with it.
    pub(super) fn error(&self, message: &str, suggestion: Option<&str>) {
        self.context.report(self.place(), message, suggestion);
    }

    /// Reports at its key that it should not be there.
    pub(super) fn key_error(&self, message: &str, suggestion: Option<&str>) {
        let place = match self.place() {
            Place::Variable(name) => Place::Variable(name),
            Place::File | Place::Line { .. } => self.context.source.place(self.context.source.key_span(&self.path)),
        };
        self.context.report(place, message, suggestion);
    }

    /// Whether it was set by a variable.
    pub(super) fn is_from_environment(&self) -> bool {
        self.from_environment
    }

    /// Tells of a risk in it.
    pub(super) fn warn(&self, text: &str) {
        let span = self.context.source.value_span(&self.path);
        let variable = self.context.overrides.contains_key(&self.path);
        let line = (!variable).then(|| self.context.source.line_of(span.start));
        let warning = Warning { key: mask::masked(&self.path), line, text: mask::masked(text) };
        self.context.warnings.borrow_mut().push((span.start, warning));
    }

    /// The line it stands on.
    pub(super) fn line(&self) -> usize {
        self.context.source.line_of(self.context.source.value_span(&self.path).start)
    }

    /// `text` as an error may show it: never, if it comes from the environment.
    pub(super) fn shown(&self, text: &str) -> String {
        if self.from_environment { "the value".to_owned() } else { quoted(text) }
    }

    /// What kind of value it is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match &*self.value {
            Value::String(..) | Value::Char(..) => "a string",
            Value::Bool(..) => "true or false",
            Value::Num(_, Num::F32(_) | Num::F64(_)) => "a fraction",
            Value::Num(..) => "a number",
            Value::Empty(..) => "a date",
            Value::Dict(..) => "a table",
            Value::Array(..) => "a list",
        }
    }

    /// What stands under `name`, if this is a table; without a report.
    pub(super) fn child(&self, name: &str) -> Option<Item<'c>> {
        let Cow::Borrowed(Value::Dict(_, dict)) = self.value else { return None };
        Some(Item { path: joined(&self.path, name), value: Cow::Borrowed(dict.get(name)?), ..self.clone() })
    }

    fn expected(&self, what: &str, suggestion: Option<&str>) {
        self.error(&format!("expected {what}, found {}", self.kind()), suggestion);
    }

    /// The string, if it is one, without a report.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &*self.value {
            Value::String(_, text) => Some(text),
            _ => None,
        }
    }

    /// A string that is not empty.
    pub(super) fn text(&self) -> Option<&str> {
        match self.as_text() {
            Some("") => self.error("this is empty", Some("write a value, or leave the key out")),
            Some(text) => return Some(text),
            None => self.expected("a string", Some("put the value in quotes")),
        }
        None
    }

    /// A table known as `pattern`.
    pub(super) fn section(&self, pattern: &'static str) -> Option<Section<'c>> {
        let Cow::Borrowed(Value::Dict(_, dict)) = self.value else {
            self.expected("a table", None);
            return None;
        };
        let section = Section { context: self.context, path: self.path.clone(), pattern, dict };
        section.report_unknown();
        Some(section)
    }

    /// The items of a list that is not empty. Of the environment, what stands between commas.
    pub(super) fn list(&self, example: &str) -> Option<Vec<Item<'c>>> {
        let items = self.list_or_empty(example)?;
        if items.is_empty() {
            self.error("this list is empty", Some(&format!("write {example}")));
            return None;
        }
        Some(items)
    }

    /// The items of a list.
    pub(super) fn list_or_empty(&self, example: &str) -> Option<Vec<Item<'c>>> {
        if let Cow::Borrowed(Value::Array(_, values)) = self.value {
            let path = |place: usize| joined(&self.path, &place.to_string());
            let item = |(place, value)| Item { path: path(place), value: Cow::Borrowed(value), ..self.clone() };
            return Some(values.iter().enumerate().map(item).collect());
        }
        match self.as_text() {
            Some(text) if self.from_environment => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Some(parts.map(|part| Item { value: Cow::Owned(part.into()), ..self.clone() }).collect())
            }
            _ => {
                self.expected("a list", Some(&format!("write {example}")));
                None
            }
        }
    }

    /// Whether it is `true` or `false`, without a report.
    pub(super) fn is_flag(&self) -> bool {
        match &*self.value {
            Value::Bool(..) => true,
            Value::String(_, text) => self.from_environment && ["true", "false"].contains(&text.as_str()),
            _ => false,
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Option<bool> {
        match (&*self.value, self.from_environment) {
            (Value::Bool(_, flag), _) => return Some(*flag),
            (Value::String(_, text), true) if text == "true" => return Some(true),
            (Value::String(_, text), true) if text == "false" => return Some(false),
            (_, true) => self.error("the value is neither true nor false", None),
            (_, false) => self.expected("true or false", Some("write it without quotes")),
        }
        None
    }

    /// A whole number within `range`.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match &*self.value {
            Value::Num(_, Num::I128(number)) => u64::try_from(*number).ok(),
            Value::String(_, text) if self.from_environment && text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().ok()
            }
            Value::String(..) if self.from_environment => {
                self.error(
                    "the value is not a whole number",
                    Some(&format!("it takes {}", units::between(&range, u64::to_string))),
                );
                return None;
            }
            _ => {
                self.expected("a whole number", Some("write digits, without quotes"));
                return None;
            }
        };
        self.within(number, &range, u64::to_string)
    }

    /// A duration within `range`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        const FORM: &str = "a duration is a number and a unit: \"500ms\", \"30s\", \"5m\", \"1h\" or \"1d\"";
        let Some(text) = self.as_text() else {
            self.expected("a duration", Some(FORM));
            return None;
        };
        let duration = match units::duration(text) {
            Ok(duration) => Some(duration),
            Err(units::Error::TooLarge) => None,
            Err(_) => {
                self.error(&format!("{} is not a duration", self.shown(text)), Some(FORM));
                return None;
            }
        };
        self.within(duration, &range, |duration| units::written_duration(*duration))
    }

    /// A size in bytes within `range`.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        const FORM: &str = "a size is a number of bytes, or a string such as \"64KiB\", \"1MiB\" or \"2GiB\"";
        let size = match &*self.value {
            Value::Num(_, Num::I128(number)) => u64::try_from(*number).ok(),
            Value::String(_, text) => match units::size(text) {
                Ok(size) => Some(size),
                Err(units::Error::TooLarge) => None,
                Err(_) => {
                    self.error(&format!("{} is not a size", self.shown(text)), Some(FORM));
                    return None;
                }
            },
            _ => {
                self.expected("a size", Some(FORM));
                return None;
            }
        };
        self.within(size, &range, |size| units::written_size(*size))
    }

    fn within<T: PartialOrd>(
        &self,
        value: Option<T>,
        range: &RangeInclusive<T>,
        write: impl Fn(&T) -> String,
    ) -> Option<T> {
        let within = value.filter(|value| range.contains(value));
        if within.is_none() {
            self.error("the value is out of range", Some(&format!("it takes {}", units::between(range, write))));
        }
        within
    }
}

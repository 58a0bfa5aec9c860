//! What is wrong with a configuration, and where.

use std::{fmt, sync::Arc};

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Debug)]
pub struct Errors(Vec<Problem>);

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named.
    pub file: Arc<str>,
    pub place: Place,
    pub message: String,
    /// What to do about it.
    pub suggestion: Option<String>,
}

/// Where a mistake stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole, which could not be read.
    File,
    Line {
        /// From 1.
        line: usize,
        /// From 1, in characters. Behind something that may be a secret it is the column of that, for it would tell
        /// its length.
        column: usize,
        excerpt: Excerpt,
    },
    /// An environment variable, whose value is never shown.
    Variable(String),
}

/// A line as it is shown: without secrets and control characters, and not longer than a terminal is wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    pub text: String,
    /// The characters of `text` before the part that is meant.
    pub before: usize,
    /// The characters of the part that is meant.
    pub width: usize,
}

impl Errors {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| a.order().cmp(&b.order()));
        problems.dedup();
        Self(problems)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none, which is never so.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl Problem {
    /// The line, where it stands in one.
    pub fn line(&self) -> Option<usize> {
        match &self.place {
            Place::Line { line, .. } => Some(*line),
            Place::File | Place::Variable(_) => None,
        }
    }

    /// The column, in characters from 1.
    pub fn column(&self) -> Option<usize> {
        match &self.place {
            Place::Line { column, .. } => Some(*column),
            Place::File | Place::Variable(_) => None,
        }
    }

    /// The environment variable, where it is one.
    pub fn variable(&self) -> Option<&str> {
        match &self.place {
            Place::Variable(name) => Some(name),
            Place::File | Place::Line { .. } => None,
        }
    }

    fn order(&self) -> (u8, usize, usize, &str) {
        match &self.place {
            Place::File => (0, 0, 0, ""),
            Place::Line { line, column, .. } => (1, *line, *column, ""),
            Place::Variable(name) => (2, 0, 0, name),
        }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if place == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.message)?;
        let indent = match &self.place {
            Place::File => {
                writeln!(f, "  --> {}", self.file)?;
                2
            }
            Place::Variable(name) => {
                writeln!(f, "  --> environment variable {name}")?;
                2
            }
            Place::Line { line, column, excerpt } => {
                let indent = line.to_string().len();
                writeln!(f, "{:indent$}--> {}:{line}:{column}", "", self.file)?;
                writeln!(f, "{:indent$} |", "")?;
                writeln!(f, "{line} | {}", excerpt.text)?;
                let (before, width) = (excerpt.before, excerpt.width);
                writeln!(f, "{:indent$} | {:before$}{:^<width$}", "", "", "")?;
                indent
            }
        };
        if let Some(suggestion) = &self.suggestion {
            writeln!(f, "{:indent$} = help: {suggestion}", "")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

impl std::error::Error for Problem {}

//! The environment of the program, and what of it is configuration.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use figment::{
    Metadata, Profile, Provider,
    value::{Dict, Map, Tag, Value},
};

use super::{
    file::{self, Kind},
    source::joined,
};

/// What every variable that may be configuration begins with.
const PREFIX: &str = "COUNTERSIGN_";
/// Variables of that form which are something else: the file's own place, and the program's log filter.
const OTHERS: [&str; 2] = ["COUNTERSIGN_CONFIG", "COUNTERSIGN_LOG"];

/// Environment variables by name. They may hold secrets: `Debug` prints none.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

/// A variable that is configuration: the key it sets, name by name, and what it sets it to.
pub(super) struct Override {
    pub variable: String,
    pub names: Vec<String>,
    pub text: String,
}

/// A variable that looks like configuration, but is none.
pub(super) struct Unknown {
    pub variable: String,
    pub message: String,
    pub suggestion: String,
}

impl Environment {
    /// The variables of this process. What is not UTF-8 in a value is replaced, so that it is refused where it
    /// matters; a variable whose name is not UTF-8 is left out.
    pub fn of_process() -> Self {
        let lossy = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        Self(std::env::vars_os().filter_map(lossy).collect())
    }

    /// The value of a variable.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The variables that set keys of the configuration whose file says `written`, in the order of their names. A
    /// variable is configuration if its name has `__` or is that of a key at the top; others are left alone, for
    /// Kubernetes sets `COUNTERSIGN_PORT` for a service of that name.
    pub(super) fn overrides(&self, written: &Dict) -> (Vec<Override>, Vec<Unknown>) {
        let mut known = Vec::new();
        let mut unknown = Vec::new();
        for (variable, text) in &self.0 {
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            let name = name.to_lowercase();
            let at_top = file::names_in("").any(|key| key == name);
            if OTHERS.contains(&variable.as_str()) || !(name.contains("__") || at_top) {
                continue;
            }
            let names: Vec<&str> = name.split("__").collect();
            match resolve(&names, written) {
                Ok(names) => known.push(Override { variable: variable.clone(), names, text: text.clone() }),
                Err(refusal) => unknown.push(refusal.told(variable, written)),
            }
        }
        (known, unknown)
    }
}

enum Refusal {
    Unknown,
    /// The key is a table.
    Table,
    /// The key can only stand in the file.
    FileOnly(&'static str),
}

/// The names of the key that a variable's `names` stand for, with the spelling that the file gave to those which are
/// the administrator's choice.
fn resolve(names: &[&str], written: &Dict) -> Result<Vec<String>, Refusal> {
    let mut pattern = String::new();
    let mut path = Vec::new();
    let mut table = Some(written);
    for name in names {
        let kind = file::find(&pattern).map(|key| key.kind);
        let spelled = match kind {
            Some(Kind::Tables) => return Err(Refusal::FileOnly("a list of tables")),
            Some(Kind::Names) => chosen(name, table).ok_or(Refusal::Unknown)?,
            _ => (*name).to_owned(),
        };
        pattern = joined(&pattern, if kind == Some(Kind::Names) { "NAME" } else { name });
        table = table.and_then(|table| table.get(&spelled)).and_then(Value::as_dict);
        path.push(spelled);
    }
    match file::find(&pattern).map(|key| key.kind) {
        None => Err(Refusal::Unknown),
        Some(Kind::Table | Kind::Names) => Err(Refusal::Table),
        Some(Kind::Tables) if pattern.ends_with("secrets") => Err(Refusal::FileOnly("a list of references to secrets")),
        Some(Kind::Tables) => Err(Refusal::FileOnly("a list of tables")),
        Some(Kind::Text | Kind::Texts | Kind::Count | Kind::Flag | Kind::Duration | Kind::Size) => Ok(path),
    }
}

/// The name in `table` that a variable's part means: variables have no small letters and no hyphens.
fn chosen(name: &str, table: Option<&Dict>) -> Option<String> {
    let folded = |known: &str| known.to_lowercase().replace(['-', '.'], "_");
    let mut names = table?.keys();
    names.clone().find(|known| *known == name).or_else(|| names.find(|known| folded(known) == name)).cloned()
}

impl Refusal {
    fn told(self, variable: &str, written: &Dict) -> Unknown {
        let (message, suggestion) = match self {
            Self::Unknown => {
                let all = settable(written);
                let near = file::nearest(variable, all.iter().map(String::as_str));
                let suggestion = match near {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => {
                        "a variable names its tables and its key, as in `COUNTERSIGN_LISTENER__ADDRESS`; an app or \
                             an upstream must be in the file"
                            .to_owned()
                    }
                };
                (format!("`{variable}` names no key of the configuration"), suggestion)
            }
            Self::Table => (
                format!("`{variable}` names a table, which has no value of its own"),
                format!("name one of its keys: `{variable}__…`"),
            ),
            Self::FileOnly(what) => (
                format!("`{variable}` names {what}, which only the file can hold"),
                "write it in the file; for a secret that is in the environment: `secrets = [{ env = \"NAME\" }]`"
                    .to_owned(),
            ),
        };
        Unknown { variable: variable.to_owned(), message, suggestion }
    }
}

/// The variables that would set something, given the apps and upstreams of the file.
fn settable(written: &Dict) -> Vec<String> {
    let mut all = Vec::new();
    for key in file::KEYS {
        let scalar = !matches!(key.kind, Kind::Table | Kind::Names | Kind::Tables);
        let in_list = key.path.starts_with("routes") || key.path.contains("secrets");
        if !scalar || in_list {
            continue;
        }
        let variable = |path: &str| format!("{PREFIX}{}", path.replace('.', "__").replace('-', "_").to_uppercase());
        match key.path.split_once(".NAME.") {
            None => all.push(variable(key.path)),
            Some((table, rest)) => {
                let names = written.get(table).and_then(Value::as_dict);
                all.extend(
                    names
                        .into_iter()
                        .flat_map(|names| names.keys())
                        .map(|name| variable(&format!("{table}.{}.{rest}", name.replace('.', "_")))),
                );
            }
        }
    }
    all
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The values of the file, for figment.
pub(super) struct FileProvider(pub Dict);

/// The values of the environment, for figment: strings as they came, for whoever reads a key knows what it takes.
pub(super) struct EnvironmentProvider<'o>(pub &'o [Override]);

impl Provider for FileProvider {
    fn metadata(&self) -> Metadata {
        Metadata::named("configuration file")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.0.clone())]))
    }
}

impl Provider for EnvironmentProvider<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment variables")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut dict = Dict::new();
        for set in self.0 {
            put(&mut dict, &set.names, &set.text);
        }
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

fn put(dict: &mut Dict, names: &[String], text: &str) {
    match names {
        [] => {}
        [last] => drop(dict.insert(last.clone(), Value::String(Tag::Default, text.to_owned()))),
        [first, rest @ ..] => {
            let table = dict.entry(first.clone()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
            if let Value::Dict(_, inner) = table {
                put(inner, rest, text);
            }
        }
    }
}

/// The variable that set each key, by the key's path.
pub(super) fn by_path(overrides: &[Override]) -> HashMap<String, String> {
    let path = |names: &[String]| names.iter().fold(String::new(), |path, name| joined(&path, name));
    overrides.iter().map(|set| (path(&set.names), set.variable.clone())).collect()
}

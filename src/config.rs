//! The configuration: as written in [`file`], as understood here.
//!
//! [`load`] reads everything that the file refers to, secrets, certificates and keys, and reports all that is wrong
//! with any of it, so that what it answers needs no second look.

use std::{
    fs, io,
    net::SocketAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use figment::{Figment, Profile, Provider as _, value::Dict};
use sha2::{Digest as _, Sha256};

use crate::{
    acme, audit, delivery::Destination, headers::Proxies, inbox as inboxes, limits::Limits, route::RouteTable, server,
    tls, upstream::Settings, webhook::Webhooks,
};

mod app;
mod audit_log;
mod certificate;
mod destinations;
mod environment;
pub mod file;
mod header_edits;
mod inbox;
mod limits;
mod listener;
mod mask;
mod obtained;
mod operations;
mod origin;
mod outline;
mod problem;
mod proxies;
mod reference;
mod routes;
mod section;
mod source;
mod units;
mod upstreams;
mod webhooks;

use environment::{EnvironmentProvider, FileProvider, Override};
use routes::Known;
use section::{Context, Section};
use source::Source;

pub use environment::Environment;
pub(crate) use mask::masked;
pub use outline::{Exchange, How, Outline, Seen, SourceKind, Sources};
pub use problem::{Errors, Excerpt, Place, Problem};

/// A configuration in which nothing is left to check: what it refers to was read, what it names exists.
#[derive(Debug)]
pub struct Config {
    /// SHA-256 over the configuration in force (the file's bytes and the environment's overrides), in hex; the log
    /// names it.
    pub hash: String,
    /// Its keys, to tell it from another.
    pub outline: Outline,
    pub state_directory: PathBuf,
    pub listener: Listener,
    /// Where the listener's own certificate is obtained; `None`: it is from files.
    pub acme: Option<acme::Settings>,
    /// Where health and metrics are told; `None`: nowhere.
    pub operations: Option<SocketAddr>,
    /// In the order in which routes refer to them.
    pub upstreams: Vec<Settings>,
    pub routes: RouteTable,
    pub webhooks: Webhooks,
    /// Where the events go that the inbox keeps.
    pub destinations: Vec<Destination>,
    /// How events are kept, if they are.
    pub inbox: inboxes::Settings,
    pub limits: Limits,
    pub access_log: AccessLog,
    pub audit: audit::Settings,
    /// What an administrator should know before trusting it, in the order of the file.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Whether there is a webhook that keeps its events.
    pub fn keeps_events(&self) -> bool {
        !self.destinations.is_empty()
    }
}

/// Where requests come in.
#[derive(Debug)]
pub struct Listener {
    pub address: SocketAddr,
    /// Those of the files; under ACME the own one is that which was obtained last, or stands in until one is.
    pub certificates: tls::Certificates,
    /// The authorities of whose certificates a client must have one; `None`: clients need none.
    pub client_ca: Option<Arc<rustls::RootCertStore>>,
    /// Lower-case host names; empty: any.
    pub names: Vec<String>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Proxies,
    /// Who begins each connection with a header of the PROXY protocol.
    pub proxy_protocol: Proxies,
}

impl From<Config> for server::Settings {
    fn from(config: Config) -> Self {
        Self {
            resolver: Arc::new(tls::Resolver::new(config.listener.certificates)),
            client_ca: config.listener.client_ca,
            config: config.hash.into(),
            names: config.listener.names,
            trusted_proxies: config.listener.trusted_proxies,
            proxy_protocol: config.listener.proxy_protocol,
            routes: config.routes,
            webhooks: config.webhooks,
            upstreams: config.upstreams,
            limits: config.limits,
            audit: None,
            intake: None,
            traces: None,
            workers: None,
        }
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    Stdout,
    File(PathBuf),
}

impl AccessLog {
    /// What takes the lines.
    ///
    /// # Errors
    /// The system's, if the file cannot be opened or made.
    pub fn open(&self) -> io::Result<Box<dyn io::Write + Send>> {
        Ok(match self {
            // Unbuffered, for the log gathers lines itself and must know what was written.
            Self::Stdout => Box::new(fs::File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            Self::File(path) => Box::new(fs::OpenOptions::new().append(true).create(true).open(path)?),
        })
    }
}

/// A risk that is allowed but should be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The configuration key it is about, such as `routes.0.path`.
    pub key: String,
    /// Its line in the file; `None` if it was set by the environment.
    pub line: Option<usize>,
    pub text: String,
}

/// How thoroughly a configuration is looked at.
#[derive(Clone, Copy, Debug)]
pub enum Scrutiny<'s> {
    /// As at start.
    Files,
    /// As while one is in force that was read from these: a certificate that has expired is refused, unless it is the one in
    /// force.
    Reload(&'s Sources),
    /// The names of upstreams must resolve as well.
    Names,
}

/// The largest file that is taken for a configuration.
const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// The file to load: the one given as `--config`, else that of `COUNTERSIGN_CONFIG`, else `config/countersign.toml` if
/// there is one, else `/etc/countersign/countersign.toml`.
pub fn default_path(given: Option<PathBuf>, environment: &Environment) -> PathBuf {
    let named = || environment.var("COUNTERSIGN_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    let local = || Some(PathBuf::from("config/countersign.toml")).filter(|path| path.exists());
    given.or_else(named).or_else(local).unwrap_or_else(|| "/etc/countersign/countersign.toml".into())
}

/// Loads the configuration at `path`, with what `environment` overrides; `now` decides which certificates are expired.
///
/// Reads the file and the secrets, certificates and keys it names, and nothing else: no name is resolved unless
/// `scrutiny` says so, no port is bound.
///
/// # Errors
/// [`Errors`], all of them at once, in the order of the file; mistakes in its syntax hide the others.
pub fn load(path: &Path, environment: &Environment, now: SystemTime, scrutiny: Scrutiny<'_>) -> Result<Config, Errors> {
    load_from(path, environment, now, scrutiny).0
}

/// The same, with the files that it was read from, or tried to be.
pub fn load_from(
    path: &Path,
    environment: &Environment,
    now: SystemTime,
    scrutiny: Scrutiny<'_>,
) -> (Result<Config, Errors>, Sources) {
    let mut sources = Sources::default();
    sources.note("", SourceKind::Configuration, path);
    let loaded = read_whole(path, environment, now, scrutiny, &mut sources);
    (loaded, sources)
}

fn read_whole(
    path: &Path,
    environment: &Environment,
    now: SystemTime,
    scrutiny: Scrutiny<'_>,
    sources: &mut Sources,
) -> Result<Config, Errors> {
    let name: Arc<str> = masked(&path.to_string_lossy()).into();
    let bytes = read(path, &name)?;
    let mut hash = Sha256::new();
    hash.update(&bytes);
    let text = String::from_utf8(bytes).map_err(|error| Errors::new(vec![not_text(&name, &error)]))?;
    let (source, written) = Source::parse(name.clone(), text).map_err(Errors::new)?;
    let (overrides, unknown) = environment.overrides(&written);
    for set in &overrides {
        for part in [&set.variable, &set.text] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
    }
    let merged = merged(written, &overrides).map_err(|error| {
        let message = masked(&error.kind.to_string());
        Errors::new(vec![Problem { file: name, place: Place::File, message, suggestion: None }])
    })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let overrides = environment::by_path(&overrides);
    let context = Context::new(&source, environment, folder, now, overrides, scrutiny, std::mem::take(sources));
    for refused in unknown {
        context.report(Place::Variable(refused.variable), &refused.message, Some(&refused.suggestion));
    }
    let config = assembled(&context, &merged, hex(&hash.finalize()));
    let (problems, warnings, read) = context.finish();
    *sources = read;
    match config {
        Some(config) if problems.is_empty() => Ok(Config { warnings, ..config }),
        _ => Err(Errors::new(problems)),
    }
}

fn read(path: &Path, name: &Arc<str>) -> Result<Vec<u8>, Errors> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes));
    let message = match read {
        Ok(length) if u64::try_from(length).is_ok_and(|length| length <= LIMIT_BYTES) => return Ok(bytes),
        Ok(_) => "the configuration is larger than 64 MiB".to_owned(),
        Err(error) => format!("the configuration cannot be read: {}", tls::reason(error.kind())),
    };
    let suggestion = "name the file with --config FILE or COUNTERSIGN_CONFIG; without either it is config/countersign.toml, or \
                      else /etc/countersign/countersign.toml";
    Err(Errors::new(vec![Problem {
        file: name.clone(),
        place: Place::File,
        message,
        suggestion: Some(suggestion.to_owned()),
    }]))
}

fn not_text(name: &Arc<str>, error: &std::string::FromUtf8Error) -> Problem {
    let valid = error.utf8_error().valid_up_to();
    let before = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default());
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
    let excerpt = Excerpt { text: mask::MASK.to_owned(), before: 0, width: mask::MASK.len() };
    let suggestion = Some("save the file as UTF-8".to_owned());
    Problem {
        file: name.clone(),
        place: Place::Line { line, column, excerpt },
        message: "this is not UTF-8".to_owned(),
        suggestion,
    }
}

#[expect(clippy::result_large_err, reason = "figment's own error, made at most once")]
fn merged(written: Dict, overrides: &[Override]) -> Result<Dict, figment::Error> {
    let figment = Figment::from(FileProvider(written)).merge(EnvironmentProvider(overrides));
    Ok(figment.data()?.remove(&Profile::Default).unwrap_or_default())
}

/// Reads every table, whatever is wrong with the others.
fn assembled<'c>(context: &'c Context<'c>, merged: &'c Dict, hash: String) -> Option<Config> {
    let root = Section::root(context, merged);
    let version = root.required("version", "`version = 1` at the top").and_then(|item| {
        let version = item.count(0..=u64::MAX)?;
        if version != 1 {
            item.error("this version of the configuration is not known", Some("write `version = 1`"));
        }
        Some(version)
    });
    let state_directory = match root.item("state_directory") {
        None => Some(context.file("state")),
        Some(item) => item.text().map(|text| context.file(text)),
    };
    let listener = listener::listener(&root, state_directory.as_deref());
    let operations = operations::operations(&root, listener.as_ref().map(|(listener, _)| listener.address));
    let apps = app::apps(&root);
    let mut upstreams = upstreams::Upstreams::read(&root);
    let limits = limits::limits(&root);
    let known = Known { apps: &apps, upstreams: &mut upstreams, limits: limits.as_ref() };
    let routes = RouteTable::new(routes::routes(&root, known));
    let webhooks = webhooks::webhooks(&root, &mut upstreams, routes.as_ref().ok(), limits.as_ref());
    let inbox = inbox::inbox(&root, state_directory.as_deref().unwrap_or(Path::new("state")));
    let access_log = access_log(&root);
    let audit = audit_log::audit_log(&root);
    version?;
    let state_directory = state_directory?;
    let (listener, acme) = listener?;
    let webhooks::Read { webhooks, destinations } = webhooks?;
    if let Some(item) = root.item("inbox").filter(|_| destinations.is_empty()) {
        item.warn("this has no effect: no webhook keeps its events");
    }
    Some(Config {
        hash,
        outline: Outline::of(merged),
        audit: audit::Settings { state_directory: state_directory.clone(), ..audit? },
        state_directory,
        listener,
        acme,
        operations: operations?,
        upstreams: upstreams.list,
        routes: routes.ok()?,
        webhooks,
        inbox: inbox?,
        destinations,
        limits: limits?,
        access_log: access_log?,
        warnings: Vec::new(),
    })
}

fn access_log(root: &Section<'_>) -> Option<AccessLog> {
    let Some(item) = root.item("log") else { return Some(AccessLog::Stdout) };
    let Some(item) = item.section("log")?.item("access") else { return Some(AccessLog::Stdout) };
    match item.text()? {
        "stdout" => Some(AccessLog::Stdout),
        "stderr" => {
            item.error(
                "the access log does not go to stderr",
                Some("write \"stdout\" or a file; stderr has the program's own log"),
            );
            None
        }
        path => writable(&item, root.context.file(path)).map(AccessLog::File),
    }
}

/// A file that can be appended to, or made in its folder.
fn writable(item: &section::Item<'_>, path: PathBuf) -> Option<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let open = match fs::OpenOptions::new().append(true).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder.is_dir() => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("its folder does not exist".to_owned()),
        Err(error) => Err(error.kind().to_string()),
        Ok(_) => Ok(()),
    };
    if let Err(why) = open {
        let suggestion = "name a file in a folder that exists and that this service may write, or \"stdout\"";
        item.error(&format!("the access log cannot be written: {why}"), Some(suggestion));
        return None;
    }
    Some(path)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

//! Putting another configuration in force while the gateway runs.
//!
//! One thread waits for a signal or for a change of the files that the configuration in force was read from, reads it anew as
//! at start, and either puts all of it in force or says why not and leaves everything as it is.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Instant, SystemTime},
};

use crate::{
    acme,
    audit::Audit,
    clock::unix_seconds,
    config::{self, AccessLog, Config, Environment, Exchange, How, Outline, Scrutiny, SourceKind, Sources, Warning},
    mailroom::Mailroom,
    record::Log,
    server::{self, House},
    service,
};

mod unused;
mod watcher;

use unused::Lookout;
use watcher::{PATIENCE, POLL, Watcher, settled};

/// Messages of one refusal that are told in a log.
const MOST_REASONS: usize = 100;

/// What the thread is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Something about the files may have changed.
    Look,
    /// Read the configuration whether anything has changed or not.
    Reload,
    /// Open the access log anew, for its file was moved away.
    Reopen,
    Stop,
}

/// What a reload does its work on.
#[derive(Debug)]
pub struct Parts {
    pub path: PathBuf,
    pub environment: Environment,
    pub house: Arc<House>,
    pub log: Log,
    pub audit: Audit,
    /// `None`: no events are kept.
    pub mailroom: Option<Arc<Mailroom>>,
    /// `None`: no certificate is obtained.
    pub trust: Option<acme::Trust>,
}

/// The configuration in force, as far as a later one is compared with it.
#[derive(Debug)]
pub struct InForce {
    hash: String,
    address: SocketAddr,
    operations: Option<SocketAddr>,
    state_directory: PathBuf,
    acme: Option<acme::Settings>,
    access_log: AccessLog,
    outline: Outline,
    sources: Sources,
    warnings: Vec<Warning>,
}

/// How reloading goes, for those who are asked.
#[derive(Debug)]
pub struct Status(Mutex<Standing>);

/// What a [`Status`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The hash of the configuration in force.
    pub config: String,
    /// When it was put in force.
    pub since: SystemTime,
    /// When a later one was refused, and the first reason, if the last one was.
    pub refused: Option<(SystemTime, String)>,
}

/// The thread.
#[derive(Debug)]
pub struct Reloader {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<()>,
}

impl InForce {
    /// Of `config`, which was read from `sources`.
    pub fn of(config: &mut Config, sources: Sources) -> Self {
        Self {
            hash: config.hash.clone(),
            address: config.listener.address,
            operations: config.operations,
            state_directory: config.state_directory.clone(),
            acme: config.acme.clone(),
            access_log: config.access_log.clone(),
            outline: std::mem::take(&mut config.outline),
            sources,
            warnings: std::mem::take(&mut config.warnings),
        }
    }
}

impl Status {
    /// Of a gateway that has just started under the configuration with this hash.
    pub fn new(config: String) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Standing { config, since: SystemTime::now(), refused: None })))
    }

    /// What there is to say at the moment.
    pub fn standing(&self) -> Standing {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Reloader {
    /// Starts watching; `orders` are those that come from elsewhere, and `sender` its other end.
    ///
    /// # Errors
    /// The system's, if no thread can be started.
    pub fn start(
        parts: Parts,
        in_force: InForce,
        status: Arc<Status>,
        (sender, orders): (mpsc::Sender<Order>, mpsc::Receiver<Order>),
    ) -> io::Result<Self> {
        let watcher = Watcher::new(sender.clone());
        let looked_at = in_force.sources.clone();
        let work = Work {
            parts,
            in_force,
            looked_at,
            refused: None,
            tried: Instant::now(),
            status,
            watcher,
            lookout: Lookout::default(),
        };
        let thread = std::thread::Builder::new().name("reload".into()).spawn(move || work.run(&orders))?;
        Ok(Self { orders: sender, thread })
    }

    /// Ends it.
    pub fn finish(self) {
        let _ = self.orders.send(Order::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that reloads panicked");
        }
    }
}

struct Work {
    parts: Parts,
    in_force: InForce,
    /// The files as they were when they were read last, for what is in force or for what was refused.
    looked_at: Sources,
    /// Why what was read last is not in force.
    refused: Option<Refusal>,
    /// When it was read last.
    tried: Instant,
    status: Arc<Status>,
    watcher: Watcher,
    lookout: Lookout,
}

/// Why the configuration is read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Asked,
    Changed,
    /// It was refused, and the reason may lie outside the files: a folder that is missing, descriptors that were all in use.
    Refused,
}

impl Work {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        // What changed before it was watched is told by nobody.
        let mut is_newly_watched = self.watcher.watch(&self.looked_at);
        loop {
            let mut order = if is_newly_watched { Order::Look } else { self.watcher.wait(orders) };
            let looks = order == Order::Look;
            if looks {
                order = settled(orders, PATIENCE, || self.looked_at.contents());
            }
            match order {
                Order::Stop => return,
                Order::Reopen => self.reopen(),
                Order::Reload => self.reload(Cause::Asked),
                Order::Look => {}
            }
            // What came in between is done, and it is still to be looked.
            if looks && order != Order::Reload {
                if self.looked_at.are_changed() {
                    self.reload(Cause::Changed);
                } else if self.refused.is_some() && self.tried.elapsed() >= POLL {
                    self.reload(Cause::Refused);
                }
            }
            is_newly_watched = self.watcher.watch(&self.looked_at);
            let secrets = || self.parts.house.apps().into_iter().chain(self.parts.house.webhook_secrets()).collect();
            self.lookout.look(secrets, unix_seconds(SystemTime::now()));
        }
    }

    fn reopen(&self) {
        let AccessLog::File(path) = &self.in_force.access_log else { return };
        match self.in_force.access_log.open() {
            Ok(sink) => {
                self.parts.log.reopen(sink);
                tracing::info!(file = %path.display(), "the access log was opened anew");
            }
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "the access log cannot be opened anew; it goes on in the old file");
            }
        }
    }

    fn reload(&mut self, cause: Cause) {
        if cause != Cause::Refused {
            service::reloading();
        }
        self.tried = Instant::now();
        let Parts { path, environment, .. } = &self.parts;
        let scrutiny = Scrutiny::Reload(&self.in_force.sources);
        let (loaded, sources) = config::load_from(path, environment, SystemTime::now(), scrutiny);
        let outcome = match loaded {
            Ok(config) => self.put_in_force(config, &sources),
            Err(errors) => Err(Refusal {
                reasons: errors.iter().map(|problem| problem.message.clone()).collect(),
                text: errors.to_string(),
            }),
        };
        let is_told = cause == Cause::Refused && outcome.as_ref().err() == self.refused.as_ref();
        if !is_told && cause == Cause::Refused {
            service::reloading();
        }
        match outcome {
            Ok(()) => {
                self.looked_at = sources;
                self.refused = None;
                service::reloaded("the configuration was read anew and is in force");
            }
            Err(refusal) => {
                self.looked_at = self.looked_at.followed_by(&sources);
                if !is_told {
                    self.refuse(&refusal);
                    service::reloaded(
                        "the configuration was read anew and is refused; the one of before stays in force",
                    );
                }
                self.refused = Some(refusal);
            }
        }
    }

    fn put_in_force(&mut self, mut config: Config, sources: &Sources) -> Result<(), Refusal> {
        self.check_fixed(&config)?;
        let (parts, before) = (&self.parts, &self.in_force);
        let sink = if config.access_log == before.access_log {
            None
        } else {
            let failed = |error: io::Error| {
                Refusal::one(format!(
                    "`log.access`: the file cannot be opened: {error}; one in another folder than before takes a restart"
                ))
            };
            Some(config.access_log.open().map_err(failed)?)
        };
        let changes = before.outline.changes(&config.outline);
        let exchanged = before.sources.exchanged(sources);
        let in_force = InForce::of(&mut config, sources.clone());
        let audit = config.audit.clone();
        let inbox = config.inbox.clone();
        let destinations = std::mem::take(&mut config.destinations);
        let mut settings = server::Settings::from(config);
        settings.fit_descriptors();
        let failed = |error: io::Error| Refusal::one(format!("it cannot be put in force: {error}"));
        let roots = in_force.acme.as_ref().map(|acme| acme.directory_ca.clone());
        let authorities = roots.map(acme::Authorities::new).transpose();
        let authorities =
            authorities.map_err(|error| Refusal::one(format!("`acme.directory_ca` cannot be used: {error}")))?;
        parts.house.replace(settings).map_err(failed)?;
        if let (Some(trust), Some(authorities)) = (&parts.trust, authorities) {
            trust.change(authorities);
        }
        parts.audit.change(audit);
        if let Some(mailroom) = &parts.mailroom {
            mailroom.change(destinations, &inbox, in_force.hash.as_str().into());
        }
        if let Some(sink) = sink {
            parts.log.reopen(sink);
        }

        for exchange in &exchanged {
            let how = exchange.how.of_a_file();
            match exchange.kind {
                SourceKind::Secret => parts.audit.secret_exchanged(how, &exchange.key),
                SourceKind::Certificate => {
                    parts.audit.certificate_exchanged(how, &exchange.key, exchange.fingerprint.as_deref());
                }
                SourceKind::Configuration | SourceKind::Addresses => {}
            }
        }
        // A key that came or went is among them, but not what its file holds.
        let is_news = |exchange: &&Exchange| exchange.how == How::Changed || exchange.kind == SourceKind::Certificate;
        let said = exchanged.iter().filter(is_news).map(ToString::to_string);
        let changes: Vec<_> = changes.iter().map(ToString::to_string).chain(said).collect();
        parts.audit.reloaded(&in_force.hash, &changes);
        for change in changes.iter().take(MOST_REASONS) {
            tracing::info!(change, "reloaded");
        }
        // Those of before were told.
        let is_new = |warning: &&Warning| {
            self.in_force.warnings.iter().all(|told| (&told.key, &told.text) != (&warning.key, &warning.text))
        };
        for warning in in_force.warnings.iter().filter(is_new) {
            tracing::warn!(key = warning.key, "{}", warning.text);
        }
        tracing::info!(
            config = in_force.hash,
            changes = changes.len(),
            "the configuration was read anew and is in force"
        );
        self.status.set(|standing| {
            *standing = Standing { config: in_force.hash.clone(), since: SystemTime::now(), refused: None };
        });
        self.in_force = in_force;
        Ok(())
    }

    /// Refuses what takes a restart.
    fn check_fixed(&self, config: &Config) -> Result<(), Refusal> {
        let before = &self.in_force;
        let fixed = [
            ("listener.address", config.listener.address == before.address),
            ("operations.address", config.operations == before.operations),
            ("state_directory", config.state_directory == before.state_directory),
            ("acme` with `listener.names", self.is_acme_the_same(config)),
            ("inbox", self.is_inbox_the_same(config)),
        ];
        let reasons: Vec<_> = fixed
            .into_iter()
            .filter(|(_, is_same)| !is_same)
            .map(|(key, _)| {
                format!("`{key}` cannot change while the gateway runs; restart it, or put the old value back")
            })
            .collect();
        if reasons.is_empty() { Ok(()) } else { Err(Refusal { text: reasons.join("\n"), reasons }) }
    }

    /// But for the authorities of the server's own certificate.
    fn is_acme_the_same(&self, config: &Config) -> bool {
        match (&config.acme, &self.in_force.acme) {
            (Some(now), Some(before)) => now.ask_for_the_same(before),
            (now, before) => now.is_none() && before.is_none(),
        }
    }

    /// One that is open stays so, even where no webhook keeps its events any more; one that was not is not opened.
    fn is_inbox_the_same(&self, config: &Config) -> bool {
        match (config.keeps_events(), &self.parts.mailroom) {
            (false, _) => true,
            (true, Some(mailroom)) => mailroom.is_kept_so(&config.inbox),
            (true, None) => false,
        }
    }

    fn refuse(&self, refusal: &Refusal) {
        let config = &self.in_force.hash;
        self.parts.audit.reload_refused(config, &refusal.reasons);
        tracing::error!(
            config,
            "the configuration was read anew and is refused; the one of before stays in force\n{}",
            refusal.text.trim_end()
        );
        let first = refusal.reasons.first().cloned().unwrap_or_default();
        // Since when it is so, whatever was tried in between.
        self.status.set(|standing| {
            let since = standing.refused.take().map_or_else(SystemTime::now, |(since, _)| since);
            standing.refused = Some((since, first));
        });
    }
}

/// Why a configuration is not put in force.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    reasons: Vec<String>,
    text: String,
}

impl Refusal {
    fn one(reason: String) -> Self {
        Self { text: reason.clone(), reasons: vec![reason] }
    }
}

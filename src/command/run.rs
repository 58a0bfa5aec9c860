//! `countersign run`: the gateway, until a signal ends it.

use std::{
    fs::DirBuilder,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};

use super::{CONFIGURATION, FINE, NEGATIVE, SOFTWARE, UNAVAILABLE, activation::Inherited, say_error};
use crate::{
    acme::{Acme, Keeper},
    audit::{Audit, Scribe},
    clock::Clock,
    config::{self, AccessLog, Config, Environment, Scrutiny},
    confine::{self, Confinement},
    mailroom::{self, Mailroom},
    operations::{Observed, Operations},
    record::{Log, Writer},
    reload::{InForce, Order, Parts, Reloader, Status},
    server::{self, Server, Stop},
    service,
    traces::{self, Traces},
};

/// How long the last lines of the access log may take to be written at the end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// How long the collector of traces may take for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Lines of the program's own log that wait for stderr; those beyond are dropped and counted.
const WAITING_LINES: usize = 4096;

pub(super) fn run(config: Option<PathBuf>) -> u8 {
    let inherited = Inherited::take();
    let environment = Environment::of_process();
    let path = config::default_path(config, &environment);
    let (loaded, sources) = config::load_from(&path, &environment, SystemTime::now(), Scrutiny::Files);
    let mut config = match loaded {
        Ok(config) => config,
        Err(errors) => {
            say_error(&errors.to_string());
            return CONFIGURATION;
        }
    };
    let sink = match config.access_log.open() {
        Ok(sink) => sink,
        Err(error) => {
            say_error(&format!("error: the access log cannot be opened: {error}; check `access` under [log]\n"));
            return UNAVAILABLE;
        }
    };
    // Before any thread is started, for only those that are started later are confined too.
    let confined = confined(&config);
    let _logging = start_logging();
    match confined {
        Ok(Confinement::Whole) => tracing::info!("confined: files are written below the state and beside the log only"),
        Ok(Confinement::Part) => tracing::info!("confined in part: this kernel's Landlock is an old one"),
        Ok(Confinement::None) => tracing::info!("not confined: this kernel has no Landlock"),
        Err(error) => tracing::warn!(%error, "not confined"),
    }
    if !config.keeps_events() {
        super::check::warn_of_orphans(&mut config, false);
    }
    for warning in &config.warnings {
        tracing::warn!(key = warning.key, "{}", warning.text);
    }
    let in_force = InForce::of(&mut config, sources);
    let (sender, orders) = mpsc::channel();
    let running = match start(config, sink, inherited, &Clock::System, &sender) {
        Ok(running) => running,
        Err(code) => return code,
    };
    let Running { server, log, audit, status, mailroom, keeper, .. } = &running;
    let house = Arc::clone(server.house());
    let (log, audit, mailroom, trust) =
        (log.clone(), audit.clone(), mailroom.clone(), keeper.as_ref().map(Keeper::trust));
    let parts = Parts { path, environment, house, log, audit, mailroom, trust };
    match Reloader::start(parts, in_force, Arc::clone(status), (sender, orders)) {
        Ok(reloader) => {
            service::ready(running.server.address());
            serve(running, Some(reloader))
        }
        Err(error) => {
            say_error(&format!("error: cannot start: {error}\n"));
            SOFTWARE
        }
    }
}

/// Has this thread and all that follow write nothing but state and logs.
fn confined(config: &Config) -> io::Result<Confinement> {
    let state = &config.state_directory;
    DirBuilder::new().recursive(true).mode(0o700).create(state)?;
    let log = match &config.access_log {
        AccessLog::Stdout => None,
        AccessLog::File(path) => Some(path.as_path()),
    };
    confine::writes(state, log)
}

/// Writes, when dropped, what of the program's own log still waits; for a second or so if nobody reads.
#[must_use]
pub(super) struct Logging;

/// Waits for the last lines; here, so that every way out of the process can end it.
static WAITING: Mutex<Option<WorkerGuard>> = Mutex::new(None);

impl Drop for Logging {
    fn drop(&mut self) {
        end_logging();
    }
}

fn end_logging() {
    let guard = WAITING.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(guard);
}

/// Stderr, by the one thread that may wait for it; says how many lines did not get there.
#[derive(Default)]
struct Diagnostics {
    dropped: Arc<OnceLock<ErrorCounter>>,
    said: usize,
}

impl Write for Diagnostics {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr();
        stderr.write_all(line)?;
        let dropped = self.dropped.get().map_or(0, ErrorCounter::dropped_lines);
        if dropped > self.said {
            self.said = dropped;
            writeln!(stderr, "{dropped} lines of this log dropped so far: it was not read fast enough")?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The program's own log, on stderr, for which nothing waits. What libraries say is capped at `info`.
pub(super) fn start_logging() -> Logging {
    use tracing_subscriber::{
        filter::{LevelFilter, Targets},
        prelude::*,
    };
    let level = ["COUNTERSIGN_LOG", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok());
    let level = level.and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    let filter = Targets::new().with_default(level.min(LevelFilter::INFO)).with_target("countersign", level);
    let diagnostics = Diagnostics::default();
    let dropped = Arc::clone(&diagnostics.dropped);
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_LINES).finish(diagnostics);
    let _ = dropped.set(writer.error_counter());
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).with_filter(filter);
    let _ = tracing_subscriber::registry().with(layer).try_init();
    Logging
}

/// A gateway and those who write for it.
#[derive(Debug)]
pub(super) struct Running {
    server: Server,
    log: Log,
    writer: Writer,
    audit: Audit,
    scribe: Scribe,
    keeper: Option<Keeper>,
    mailroom: Option<Arc<Mailroom>>,
    status: Arc<Status>,
    operations: Option<Operations>,
    spans: Option<traces::Sender>,
}

/// Watches for signals, opens the audit log, binds and starts, or tells why not and answers the exit code. `orders` is told
/// what signals ask for; without anyone at its other end they are ignored.
pub(super) fn start(
    mut config: Config,
    sink: Box<dyn Write + Send>,
    inherited: Inherited,
    clock: &Clock,
    orders: &mpsc::Sender<Order>,
) -> Result<Running, u8> {
    let failed = |error: io::Error| {
        say_error(&format!("error: cannot start: {error}\n"));
        SOFTWARE
    };
    // Once connections are accepted, a signal must already mean a drain.
    let stop = Stop::default();
    let signals = watch_signals(&stop, orders).map_err(failed)?;
    let operations = config.operations.map(|address| operations(address, &stop)).transpose()?;
    let (address, hash, keeping) = (config.listener.address, config.hash.clone(), config.audit.clone());
    let acme = config.acme.take();
    let inbox = config.keeps_events().then(|| config.inbox.clone());
    let destinations = std::mem::take(&mut config.destinations);
    let mut settings = server::Settings::from(config);
    settings.fit_descriptors();
    let handed = inherited.listener(address).map_err(|error| {
        say_error(&format!(
            "error: the sockets that were handed over cannot be used: {error}; the socket unit must have one `ListenStream=`, of TCP\n"
        ));
        UNAVAILABLE
    })?;
    let listener = handed.map_or_else(|| server::bind(address), Ok).map_err(|error| {
        say_error(&format!("error: cannot listen on {address}: {error}; is something else running there?\n"));
        UNAVAILABLE
    })?;
    let acme = acme.map(Acme::prepare).transpose().map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        say_error(&format!(
            "error: certificates cannot be obtained: {error}{cause}; check [acme] and `state_directory`\n"
        ));
        UNAVAILABLE
    })?;
    let inbox = inbox.map(mailroom::Opened::new).transpose().map_err(|error| {
        say_error(&format!("error: {error}\n"));
        UNAVAILABLE
    })?;
    let folder = keeping.state_directory.clone();
    let (audit, scribe) = Audit::start(keeping).map_err(|error| {
        let folder = folder.display();
        say_error(&format!(
            "error: the audit log in {folder} cannot be opened: {error}; `state_directory` must be a folder of this gateway's \
             own, which its user may write to\n"
        ));
        UNAVAILABLE
    })?;
    audit.started(&hash);
    settings.audit = Some(audit.clone());
    let (traces, spans) = traces(&Environment::of_process()).unzip();
    settings.traces = traces;
    let resolver = Arc::clone(&settings.resolver);
    let keeping = audit.clone();
    let started = Log::start(sink).and_then(|(log, writer)| {
        let records = (log.clone(), Some(keeping.clone()));
        let deliver = |inbox: mailroom::Opened| {
            inbox.deliver(destinations, records, hash.as_str().into(), clock.clone()).map(Arc::new)
        };
        let mailroom = inbox.map(deliver).transpose()?;
        settings.intake = mailroom.as_deref().map(Mailroom::intake);
        let server = Server::start(listener, settings, &log, clock, &stop)?;
        let keep = |acme: Acme| acme.start(resolver, Some(keeping), Clock::System, stop.draining());
        Ok((server, log, writer, acme.map(keep).transpose()?, mailroom))
    });
    let (server, log, writer, keeper, mailroom) = match started {
        Ok(started) => started,
        Err(error) => {
            scribe.finish(LAST_LINES);
            return Err(failed(error));
        }
    };
    signals.spawn(service::keep_watch(server.pulse(), stop));
    let public_key = scribe.public();
    let key = public_key.fingerprint();
    tracing::info!(%public_key, %key, folder = %folder.join("audit").display(), "the audit log is signed with this key");
    tracing::info!(address = %server.address(), config = hash, "listening");
    let status = Status::new(hash);
    if let Some(operations) = &operations {
        tracing::info!(address = %operations.address(), "health and metrics are told here");
        operations.observe(Observed {
            house: Arc::clone(server.house()),
            status: Arc::clone(&status),
            acme: keeper.as_ref().map(Keeper::status),
            mail: mailroom.as_deref().map(|mailroom| (mailroom.condition(), mailroom.gauge())),
        });
    }
    Ok(Running { server, log, writer, audit, scribe, keeper, mailroom, status, operations, spans })
}

/// Starts sending traces, if `environment` asks for it; what of that cannot be done is told, and no reason not to serve.
fn traces(environment: &Environment) -> Option<(Traces, traces::Sender)> {
    let (settings, warnings) = traces::Settings::read(|name| environment.var(name));
    for traces::Warning { variable, text } in warnings {
        tracing::warn!(variable, "{text}");
    }
    let settings = settings?;
    let collector = settings.collector();
    let started = Traces::start(settings);
    match &started {
        Ok(_) => tracing::info!(collector, "traces are sent here"),
        Err(error) => tracing::warn!(%error, "no traces are sent: they cannot be started"),
    }
    started.ok()
}

/// Binds the operations listener's address, and says there that the gateway is starting.
fn operations(address: SocketAddr, stop: &Stop) -> Result<Operations, u8> {
    server::bind(address).and_then(|listener| Operations::start(listener, stop)).map_err(|error| {
        say_error(&format!(
            "error: cannot listen on {address} for health and metrics: {error}; is something else running there?\n"
        ));
        UNAVAILABLE
    })
}

/// Serves until a signal and to the end of the drain.
pub(super) fn serve(running: Running, reloader: Option<Reloader>) -> u8 {
    let Running { server, writer, scribe, operations, keeper, mailroom, spans, .. } = running;
    server.join();
    if let Some(spans) = spans {
        spans.finish(LAST_SPANS);
    }
    if let Some(keeper) = keeper {
        keeper.join();
    }
    if let Some(reloader) = reloader {
        reloader.finish();
    }
    // Nobody else has it any more: requests ended with the server, reloads with their thread.
    if let Some(mailroom) = mailroom.and_then(Arc::into_inner) {
        mailroom.finish();
    }
    if let Some(operations) = operations {
        operations.finish();
    }
    writer.finish(LAST_LINES);
    scribe.finish(LAST_LINES);
    tracing::info!("stopped");
    FINE
}

/// Has the first signal to stop drain and a second one end the process at once; answers once both would, with the runtime
/// that does it. SIGHUP and SIGUSR1 become orders.
fn watch_signals(stop: &Stop, orders: &mpsc::Sender<Order>) -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let guard = runtime.enter();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut hangup, mut first) = (signal(SignalKind::hangup())?, signal(SignalKind::user_defined1())?);
    let mut second = signal(SignalKind::user_defined2())?;
    drop(guard);
    let (stop, orders) = (stop.clone(), orders.clone());
    let order = async move {
        loop {
            let order = tokio::select! {
                _ = hangup.recv() => Some(Order::Reload),
                _ = first.recv() => Some(Order::Reopen),
                _ = second.recv() => None,
            };
            if order.is_none_or(|order| orders.send(order).is_err()) {
                tracing::warn!("ignored a signal: nothing is done for it here");
            }
        }
    };
    let obey = async move {
        let mut any = async || tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} };
        any().await;
        tracing::info!("draining; a second signal stops at once");
        stop.drain();
        service::stopping();
        any().await;
        tracing::warn!("stopped at once");
        end_logging();
        std::process::exit(i32::from(NEGATIVE));
    };
    let both = async { tokio::join!(obey, order) };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(both))?;
    Ok(handle)
}

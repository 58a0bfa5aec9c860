//! The inbox in a PostgreSQL database, which several gateways may share: the schema `countersign`.
//!
//! One thread speaks with the server over three connections: one for events that come, one for what is delivered, one for
//! what takes long. What has come together meanwhile goes in one statement. Leases go by the server's clock.

use std::{
    error::Error,
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
    thread::JoinHandle,
    time::Duration,
};

use deadpool_postgres::{
    ConfigConnectImpl, Connect, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod,
    Runtime,
};
use futures_util::future::BoxFuture;
use tokio::{sync::mpsc, task::JoinHandle as TaskHandle};
use tokio_postgres::{Client, Config, NoTls, config::Host, error::SqlState};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::{
    Fault, Initialised, OpenError, Postgres,
    ask::{Command, Inquiry},
    marker::{Kind, Marker},
};

mod accept;
mod desk;
mod lease;
mod reader;
mod settle;
mod work;

pub(super) use desk::Desk;

/// What leads from one version of the schema to the next.
const STEPS: [&str; 1] = [include_str!("postgres/1.sql")];
/// Whoever changes the schema holds this lock, and whoever drops or takes up again what is old holds that one.
const SCHEMA_LOCK: i64 = 0x6373_696e_0001;
const RETENTION_LOCK: i64 = 0x6373_696e_0002;
/// How long the server is waited for: to connect, and to answer a statement.
const CONNECTING: Duration = Duration::from_secs(5);
const ANSWERING: Duration = Duration::from_secs(9);
/// What holds on each connection. A commit that the server answers is on its disk.
const SESSION: &str = "SET statement_timeout = '8s'; SET lock_timeout = '8s'; SET idle_in_transaction_session_timeout = '20s'; \
     SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";
/// Lists that were handed over are joined by hash: the planner takes them for short.
const FOR_LISTS: &str = "SET enable_nestloop = off; SET enable_mergejoin = off";

const ANOTHER: &str = "the database has another inbox than the one that was opened: bring that one back, or restart";

type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why the server did not do what it was asked to.
#[derive(Debug)]
enum Failure {
    Connection(PoolError),
    Statement(tokio_postgres::Error),
    Slow,
    /// The schema was made anew since the store was opened.
    Another,
    /// A row has what none of ours has.
    Unreadable,
}

/// A database, and how it is called in messages.
#[derive(Clone, Debug)]
struct Database {
    pool: Pool,
    place: String,
    identity: Identity,
}

/// Which store it must be, from when that is known: one that was made anew meanwhile is another.
type Identity = Arc<OnceLock<String>>;

/// What is asked of the store, and by which way.
pub(super) struct Channels {
    pub(super) arrivals: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) inquiries: mpsc::Receiver<Inquiry>,
    /// Where what is to be dropped goes to.
    pub(super) drops: mpsc::Sender<Command>,
}

/// Opens the store, makes it if it never was, and starts its thread.
pub(super) fn start(
    postgres: &Postgres,
    state_directory: &Path,
    channels: Channels,
) -> Result<Vec<JoinHandle<()>>, OpenError> {
    let place = place(postgres);
    let unavailable = |error: std::io::Error| OpenError::unavailable(&place, error);
    let runtime = runtime().map_err(unavailable)?;
    let identity = Identity::default();
    let arrivals = Database::of(postgres, 1, FOR_LISTS, &identity)?;
    let others = Database::of(postgres, 2, "", &identity)?;
    runtime.block_on(open(&others, state_directory, Access::Using))?;
    let Channels { arrivals: arriving, commands, inquiries, drops } = channels;
    let run = move || {
        let arrivals = work::Worker::new(arrivals).run(arriving);
        let deliveries = work::Worker::new(others.clone()).run(commands);
        let reader = reader::Reader::new(others, drops).run(inquiries);
        runtime.block_on(async { tokio::join!(arrivals, deliveries, reader) });
    };
    let thread = std::thread::Builder::new().name("inbox".into()).spawn(run).map_err(unavailable)?;
    Ok(vec![thread])
}

/// See [`super::init`].
pub(super) fn init(postgres: &Postgres, state_directory: &Path, accepts_loss: bool) -> Result<Initialised, OpenError> {
    let place = place(postgres);
    let unavailable = |error: std::io::Error| OpenError::unavailable(&place, error);
    let before = Marker::read(state_directory).map_err(unavailable)?;
    let (runtime, database) = (runtime().map_err(unavailable)?, Database::of(postgres, 1, "", &Identity::default())?);
    let error = match runtime.block_on(open(&database, state_directory, Access::Using)) {
        Ok(()) if before.is_some() => return Ok(Initialised::Whole),
        Ok(()) => return Ok(Initialised::Made),
        Err(error) => error,
    };
    let is_loss = matches!(error.fault, Fault::Missing | Fault::Empty | Fault::Another(_));
    if !accepts_loss || !is_loss {
        return Err(error);
    }
    std::fs::remove_file(Marker::path(state_directory)).map_err(unavailable)?;
    runtime.block_on(open(&database, state_directory, Access::Using))?;
    Ok(if matches!(error.fault, Fault::Another(_)) { Initialised::Adopted } else { Initialised::Made })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The database in words, without what is secret.
fn place(postgres: &Postgres) -> String {
    let reach = postgres.reach();
    let hosts: Vec<_> = reach
        .config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    format!("in the PostgreSQL database {:?} at {}", reach.config.get_dbname().unwrap_or_default(), hosts.join(", "))
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// To be used; it is made if it never was, and brought up to date.
    Using,
    Looking,
}

/// Looks whether the database has the store that it is to have.
async fn open(database: &Database, state_directory: &Path, access: Access) -> Result<(), OpenError> {
    let fault = |fault| OpenError { place: database.place.clone(), fault };
    let marker_path = Marker::path(state_directory);
    let unreadable = |error: std::io::Error| OpenError::unavailable(marker_path.display(), error);
    let marker = Marker::read(state_directory).map_err(unreadable)?;
    if marker.as_ref().is_some_and(|marker| marker.kind != Kind::Postgres) {
        return Err(fault(Fault::Another("in a file of SQLite")));
    }
    let may_make = access == Access::Using && marker.is_none();
    let identity = database.with(async |client| migrate(client, may_make).await).await;
    let identity = match identity.map_err(|failure| fault(Fault::Unavailable(Box::new(failure))))? {
        Schema::Ours(identity) => identity,
        Schema::Nothing => return Err(fault(if marker.is_some() { Fault::Empty } else { Fault::None })),
        Schema::Newer(version) => return Err(fault(Fault::Newer(version.into()))),
        Schema::Broken(what) => return Err(fault(Fault::Incomplete(what))),
    };
    match marker {
        Some(marker) if marker.identity != identity => {
            return Err(fault(Fault::Another("in another PostgreSQL database")));
        }
        None if access == Access::Using => {
            let marker = Marker { kind: Kind::Postgres, identity: identity.clone() };
            marker.write(state_directory).map_err(unreadable)?;
        }
        Some(_) | None => {}
    }
    database.identity.get_or_init(|| identity);
    Ok(())
}

/// What is in a database.
enum Schema {
    /// As this program has it; which store it is.
    Ours(String),
    Nothing,
    Newer(i32),
    Broken(String),
}

/// Brings the schema up to date in one transaction, behind a lock; from nothing only if it `may_make` it.
async fn migrate(client: &mut Object, may_make: bool) -> Result<Schema> {
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    let is_there = "SELECT to_regnamespace('countersign') IS NOT NULL, to_regclass('countersign.store') IS NOT NULL";
    let row = transaction.query_one(is_there, &[]).await?;
    let (has_schema, has_store): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let found = if has_store {
        let row = transaction.query_opt("SELECT identity, version FROM countersign.store", &[]).await?;
        let Some(row) = row else { return Ok(Schema::Broken("the table countersign.store has no row".to_owned())) };
        Some((row.try_get::<_, String>(0)?, row.try_get::<_, i32>(1)?))
    } else {
        None
    };
    let latest = i32::try_from(STEPS.len()).unwrap_or(i32::MAX);
    let (identity, version) = match found {
        Some((_, version)) if version > latest => return Ok(Schema::Newer(version)),
        Some(found) => found,
        None if !may_make => return Ok(Schema::Nothing),
        None => (Uuid::now_v7().to_string(), 0),
    };
    if !has_schema {
        transaction.batch_execute("CREATE SCHEMA countersign").await?;
    }
    for step in STEPS.iter().skip(usize::try_from(version).unwrap_or_default()) {
        transaction.batch_execute(step).await?;
    }
    if version == 0 {
        let insert = "INSERT INTO countersign.store (identity, version) VALUES ($1, $2)";
        transaction.execute(insert, &[&identity, &latest]).await?;
    } else {
        transaction.execute("UPDATE countersign.store SET version = $1 WHERE version <> $1", &[&latest]).await?;
    }
    for table in ["events", "bodies", "deliveries", "acts"] {
        let sql = format!("SELECT 1 FROM countersign.{table} LIMIT 1");
        match transaction.query(&sql, &[]).await {
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                return Ok(Schema::Broken(format!("the table countersign.{table} is missing")));
            }
            result => drop(result?),
        }
    }
    transaction.commit().await?;
    Ok(Schema::Ours(identity))
}

/// Refuses a connection to another store than the one that was opened.
async fn recognise(client: &tokio_postgres::Client, expected: Option<&String>) -> Result<(), HookError> {
    let Some(expected) = expected else { return Ok(()) };
    let row = client.query_opt("SELECT identity FROM countersign.store", &[]).await.map_err(HookError::Backend)?;
    let found = row.map(|row| row.try_get::<_, String>(0)).transpose().map_err(HookError::Backend)?;
    if found.as_ref() == Some(expected) {
        return Ok(());
    }
    Err(HookError::message(ANOTHER))
}

/// Connects as it is said at the time: a password or an authority may be another than at start.
struct Dial(Postgres);

impl Connect for Dial {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, TaskHandle<()>), tokio_postgres::Error>> {
        let reach = self.0.reach();
        Box::pin(async move {
            let mut config = reach.config.clone();
            if config.get_application_name().is_none() {
                config.application_name("countersign");
            }
            if config.get_connect_timeout().is_none() {
                config.connect_timeout(CONNECTING);
            }
            config.tcp_user_timeout(ANSWERING);
            match &reach.tls {
                None => ConfigConnectImpl { tls: NoTls }.connect(&config).await,
                Some(tls) => {
                    let tls = MakeRustlsConnect::new((**tls).clone());
                    ConfigConnectImpl { tls }.connect(&config).await
                }
            }
        })
    }
}

impl Database {
    /// The database, with so many connections at most, for each of which `more` is set.
    fn of(postgres: &Postgres, connections: usize, more: &'static str, identity: &Identity) -> Result<Self, OpenError> {
        let (place, expected) = (place(postgres), Arc::clone(identity));
        let how = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(postgres.reach().config.clone(), Dial(postgres.clone()), how);
        let pool = Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(ANSWERING))
            .create_timeout(Some(CONNECTING))
            .recycle_timeout(Some(CONNECTING))
            .post_create(Hook::async_fn(move |client, _| {
                let expected = Arc::clone(&expected);
                Box::pin(async move {
                    let sql = format!("{SESSION}; {more}");
                    client.batch_execute(&sql).await.map_err(HookError::Backend)?;
                    recognise(client, expected.get()).await
                })
            }))
            .build()
            .map_err(|error| OpenError::unavailable(&place, error))?;
        Ok(Self { pool, place, identity: Arc::clone(identity) })
    }

    /// Has `work` done over a connection, which is given up if it fails.
    async fn with<T>(&self, work: impl AsyncFnOnce(&mut Object) -> Result<T>) -> Result<T> {
        let mut client = self.pool.get().await.map_err(Failure::Connection)?;
        let result = tokio::time::timeout(ANSWERING, work(&mut client)).await.unwrap_or(Err(Failure::Slow));
        if result.is_err() {
            // It may stand within a transaction, or wait for an answer that nobody reads.
            drop(Object::take(client));
        }
        result
    }
}

impl Failure {
    /// Whether it may be the fault of what was asked, and not the server's.
    fn is_ones_own(&self) -> bool {
        let Self::Statement(error) = self else { return false };
        match error.code() {
            Some(code) => ["22", "23", "54"].iter().any(|class| code.code().starts_with(class)),
            // What cannot be sent is told without the server.
            None => !error.is_closed() && error.source().is_none_or(|cause| !cause.is::<std::io::Error>()),
        }
    }

    /// Whether another transaction was in the way.
    fn is_conflict(&self) -> bool {
        let Self::Statement(error) = self else { return false };
        error.code().is_some_and(|code| {
            *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE
        })
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Statement(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)))
            | Self::Statement(error) => {
                if let Some(error) = error.as_db_error() {
                    return write!(f, "{} ({})", error.message(), error.code().code());
                }
                error.fmt(f)?;
                let mut source = error.source();
                while let Some(cause) = source {
                    write!(f, ": {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
            Self::Connection(error) => error.fmt(f),
            Self::Another => f.write_str(ANOTHER),
            Self::Unreadable => f.write_str("a delivery is in a state that is none"),
            Self::Slow => write!(f, "the server did not answer within {} s", ANSWERING.as_secs()),
        }
    }
}

impl Error for Failure {}

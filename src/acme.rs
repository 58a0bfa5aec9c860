//! Certificates by ACME: obtained, kept, renewed and put in force, on a thread of its own beside the workers.
//!
//! How one is ordered stands in [`order`], what is kept in [`store`], when it is renewed in [`schedule`], how the server is
//! asked in [`client`], and what answers a challenge over HTTP in [`http01`].
//!
//! Source: RFC 8555 (ACME), RFC 8737 (tls-alpn-01), RFC 9773 (renewal information).

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use instant_acme::{Account, CertificateIdentifier};
use rustls_pki_types::{CertificateDer, Der};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    audit::{Arrival, Audit},
    clock::Clock,
    tls::{self, Certificate, Origin, Resolver},
};

mod client;
mod http01;
mod order;
mod schedule;
mod store;

use client::HttpsClient;
use order::Ordered;
use schedule::{Backoff, Renewal};
use store::Store;

pub use schedule::Patience;
pub use store::stored;

/// The longest sleep: then the clock is looked at again, which may have been set.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Characters that are told of an error.
const MOST_CHARACTERS: usize = 500;

/// What is asked for, of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The URL of the server's directory, `https://`.
    pub directory: String,
    /// The authorities of the server's own certificate; `None`: the system's.
    pub directory_ca: Option<Vec<CertificateDer<'static>>>,
    /// Where the authority may write to: `mailto:` URLs.
    pub contact: Vec<String>,
    pub challenge: Challenge,
    /// DNS names, at least one, all in one certificate.
    pub names: Vec<String>,
    /// Where account and certificate are kept.
    pub folder: PathBuf,
    pub patience: Patience,
}

/// How the server is shown that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// In a TLS handshake with the listener, which the server finds at port 443.
    TlsAlpn01,
    /// Over HTTP at this address, which the server finds at port 80.
    Http01 { address: SocketAddr },
}

/// How it goes, for whoever asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Since when there is no certificate but what stands in for it.
    pub standing_in_since: Option<SystemTime>,
    /// Why the last attempt failed; `None` once one has succeeded.
    pub last_error: Option<String>,
    /// When a certificate is asked for next.
    pub next_try: Option<SystemTime>,
}

/// A [`Report`] that is kept up to date.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<Report>>);

/// Why there is no new certificate.
#[derive(Debug)]
pub enum Error {
    /// What must be kept cannot be.
    Store(PathBuf, io::Error),
    /// Challenges cannot be answered at this address.
    Listen(SocketAddr, io::Error),
    /// The server's own certificate could never be trusted.
    Trust(tls::Error),
    /// The server was not reached, or said no.
    Server(instant_acme::Error),
    /// What the server found wrong with the names.
    Refused(String),
    /// The server does not offer the challenge for this name.
    NoChallenge(String),
    /// No key or request could be made.
    Request,
    /// What the server issued cannot be used.
    Issued(tls::Error),
    /// What the server issued is not for this name, or not valid now.
    Unfit(String),
    /// The attempt panicked.
    Fault,
}

/// Whose certificates the ACME server may show; clones are one.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ArcSwap<HttpsClient>>);

/// Authorities that can vouch for somebody.
#[derive(Debug)]
pub struct Authorities(HttpsClient);

/// All that can fail at start is done, and nothing is asked yet.
#[derive(Debug)]
pub struct Acme {
    settings: Settings,
    store: Store,
    trust: Trust,
    listener: Option<TcpListener>,
}

/// The thread that keeps a certificate.
#[derive(Debug)]
pub struct Keeper {
    status: Status,
    trust: Trust,
    thread: JoinHandle<()>,
}

impl Acme {
    /// Makes the folder, binds the address for challenges.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Listen`] or [`Error::Trust`].
    pub fn prepare(settings: Settings) -> Result<Self, Error> {
        let store = Store::open(&settings.folder)?;
        let client = HttpsClient::new(settings.directory_ca.clone()).map_err(Error::Trust)?;
        let trust = Trust(Arc::new(ArcSwap::from_pointee(client)));
        let listener = match settings.challenge {
            Challenge::TlsAlpn01 => None,
            Challenge::Http01 { address } => {
                Some(http01::bind(address).map_err(|error| Error::Listen(address, error))?)
            }
        };
        Ok(Self { settings, store, trust, listener })
    }

    /// Where challenges are answered over HTTP.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.local_addr().ok()
    }

    /// Keeps the own certificate of `resolver` valid until `stop`; what is put in force is recorded in `audit`.
    ///
    /// # Errors
    /// The system's, if no thread or runtime can be started.
    pub fn start(
        self,
        resolver: Arc<Resolver>,
        audit: Option<Audit>,
        clock: Clock,
        stop: CancellationToken,
    ) -> io::Result<Keeper> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let status = Status::default();
        status.report().standing_in_since = resolver.is_standing_in().then(|| clock.now());
        let tokens = http01::Tokens::default();
        let trust = self.trust.clone();
        let keeping = Keeping {
            store: self.store,
            trust: self.trust,
            resolver,
            audit,
            clock,
            status: status.clone(),
            tokens: tokens.clone(),
            renewal: Renewal::default(),
            backoff: Backoff::new(self.settings.patience),
            unkept: None,
            settings: self.settings,
        };
        let listener = self.listener;
        let work = async move {
            let answering = async {
                if let Some(listener) = listener {
                    http01::serve(listener, tokens).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                _ = async { tokio::join!(keeping.run(), answering) } => {}
            }
        };
        let run = move || {
            runtime.block_on(work);
            // A name look-up may hang.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("acme".into()).spawn(run)?;
        Ok(Keeper { status, trust, thread })
    }
}

impl Settings {
    /// Whether the same is asked for, of the same server, whoever vouches for that.
    pub fn ask_for_the_same(&self, other: &Self) -> bool {
        let of = |settings: &Self| Self { directory_ca: None, ..settings.clone() };
        of(self) == of(other) && self.directory_ca.is_some() == other.directory_ca.is_some()
    }
}

impl Authorities {
    /// Of these certificates, or the system's.
    ///
    /// # Errors
    /// They could never vouch for anybody.
    pub fn new(roots: Option<Vec<CertificateDer<'static>>>) -> Result<Self, tls::Error> {
        HttpsClient::new(roots).map(Self)
    }
}

impl Trust {
    /// Takes the word of these from the next question on.
    pub fn change(&self, authorities: Authorities) {
        self.0.store(Arc::new(authorities.0));
    }
}

impl Keeper {
    /// How it goes.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Whom it trusts.
    pub fn trust(&self) -> Trust {
        self.trust.clone()
    }

    /// Waits until it has ended, as it does at once when its `stop` is told.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread that keeps the certificate panicked");
        }
    }
}

impl Status {
    /// How it goes at the moment.
    pub fn read(&self) -> Report {
        self.report().clone()
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work of the thread.
struct Keeping {
    settings: Settings,
    store: Store,
    trust: Trust,
    resolver: Arc<Resolver>,
    audit: Option<Audit>,
    clock: Clock,
    status: Status,
    tokens: http01::Tokens,
    renewal: Renewal,
    backoff: Backoff,
    /// A certificate in force that is not on disk yet: its key, then its chain.
    unkept: Option<Zeroizing<String>>,
}

impl Keeping {
    async fn run(mut self) {
        loop {
            // A fault of ours costs an attempt, not all those to come.
            let turn = AssertUnwindSafe(self.turn()).catch_unwind().await;
            let until = turn.unwrap_or(Err(Error::Fault)).unwrap_or_else(|error| self.failed(&error));
            self.status.report().next_try = Some(until);
            let wait = until.duration_since(self.clock.now()).unwrap_or_default();
            tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
        }
    }

    /// Obtains a certificate if it is time to; when it is time next.
    async fn turn(&mut self) -> Result<SystemTime, Error> {
        self.keep();
        let due = self.next().await;
        if due > self.clock.now() {
            return Ok(due);
        }
        self.obtain().await?;
        self.keep();
        Ok(self.next().await)
    }

    /// When a certificate is to be asked for.
    async fn next(&mut self) -> SystemTime {
        let now = self.clock.now();
        if let Some(until) = self.backoff.until().filter(|until| *until > now) {
            return until;
        }
        let own = Arc::clone(self.resolver.current().own());
        if own.origin() != Origin::Acme || !self.settings.names.iter().all(|name| own.covers(name)) {
            return now;
        }
        if self.renewal.asks(now)
            && let Some(identifier) = identifier(&own)
        {
            match self.suggested(&identifier).await {
                Ok((info, again)) => self.renewal.suggest(&info.suggested_window, now, again),
                Err(error) => {
                    tracing::debug!(error = told(&error), "no renewal information");
                    self.renewal.unknown(now);
                }
            }
        }
        self.renewal.due(own.leaf())
    }

    /// When the authority would have the certificate renewed, and when to ask again.
    async fn suggested(
        &self,
        identifier: &CertificateIdentifier<'_>,
    ) -> Result<(instant_acme::RenewalInfo, Duration), Error> {
        let account = self.account().await?;
        account.renewal_info(identifier).await.map_err(Error::Server)
    }

    /// Obtains a certificate and puts it in force.
    async fn obtain(&mut self) -> Result<(), Error> {
        let before = Arc::clone(self.resolver.current().own());
        let is_first = before.origin() != Origin::Acme || before.leaf().names.is_empty();
        let replaced = if is_first || !self.renewal.is_suggested() || self.backoff.until().is_some() {
            None
        } else {
            identifier(&before)
        };
        tracing::info!(names = ?self.settings.names, directory = self.settings.directory, "asking for a certificate");
        let Ordered { certificate, pem } = match self.ordered(replaced).await {
            Err(error) if error.is_of("accountDoesNotExist") => {
                tracing::warn!("the ACME server does not know the account; making another");
                self.store.forget_account()?;
                self.ordered(None).await?
            }
            ordered => ordered?,
        };
        let renews = !is_first && self.settings.names.iter().all(|name| before.covers(name));
        let arrival = if renews { Arrival::Renewed } else { Arrival::Obtained };
        let not_after = schedule::time(certificate.leaf().not_after);
        self.resolver.renew(certificate.clone());
        if let Some(audit) = &self.audit {
            audit.certificate(certificate.names(), certificate.fingerprint(), not_after, arrival);
        }
        tracing::info!(
            names = ?certificate.names(),
            fingerprint = certificate.fingerprint(),
            until = %time::OffsetDateTime::from(not_after).date(),
            "certificate {}",
            arrival.as_str()
        );
        self.backoff.succeeded();
        self.renewal = Renewal::of_new(self.clock.now(), self.settings.patience.first);
        *self.status.report() = Report::default();
        self.unkept = Some(pem);
        Ok(())
    }

    /// Keeps what was obtained. Where that fails it is in force all the same, for authorities bound how many they issue.
    fn keep(&mut self) {
        let Some(pem) = self.unkept.take() else { return };
        let kept = self.store.keep(&self.settings.directory, &pem);
        self.status.report().last_error = kept.as_ref().err().map(|error| told(error));
        if let Err(error) = kept {
            tracing::error!(
                error = told(&error),
                "the certificate is in force, but could not be kept: it is tried again"
            );
            self.unkept = Some(pem);
        }
    }

    /// Tells of a failure; when it is tried again.
    fn failed(&mut self, error: &Error) -> SystemTime {
        let until = self.backoff.failed(self.clock.now(), error.is_of("rateLimited"));
        let error = told(error);
        let retry_seconds = until.duration_since(self.clock.now()).unwrap_or_default().as_secs();
        if self.resolver.is_standing_in() {
            tracing::warn!(
                error,
                retry_seconds,
                "no certificate yet: a self-signed one stands in, which browsers refuse"
            );
        } else {
            tracing::warn!(error, retry_seconds, "the certificate was not renewed: the old one stays");
        }
        self.status.report().last_error = Some(error);
        until
    }

    async fn ordered(&self, replaced: Option<CertificateIdentifier<'_>>) -> Result<Ordered, Error> {
        let account = self.account().await?;
        order::place(&account, &self.settings, replaced, &self.resolver, &self.tokens, self.clock.now()).await
    }

    /// The account that is kept, or a new one.
    async fn account(&self) -> Result<Account, Error> {
        let Settings { directory, contact, .. } = &self.settings;
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let builder = Account::builder_with_http(Box::new(HttpsClient::clone(&self.trust.0.load())));
        if let Some(kept) = self.store.account(directory) {
            let account = builder.from_credentials(kept.credentials()?).await.map_err(Error::Server)?;
            if kept.contact != contact {
                match account.update_contacts(&contact).await.map_err(Error::Server) {
                    Ok(()) => self.store.keep_account(&kept.credentials()?, &contact)?,
                    Err(error) if error.is_of("accountDoesNotExist") => return Err(error),
                    // Nobody is to be without a certificate for that.
                    Err(error) => {
                        tracing::warn!(
                            error = told(&error),
                            "the ACME server does not take the new `contact`: the account keeps the one it has"
                        );
                    }
                }
            }
            return Ok(account);
        }
        let new =
            instant_acme::NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&new, directory.clone(), None).await.map_err(Error::Server)?;
        self.store.keep_account(&credentials, &contact)?;
        tracing::info!(account = account.id(), "made an account with the ACME server");
        Ok(account)
    }
}

/// As the authority calls it; `None` if it does not say by whom it is.
fn identifier(certificate: &Certificate) -> Option<CertificateIdentifier<'static>> {
    let leaf = certificate.leaf();
    let authority = leaf.authority.as_deref()?;
    Some(CertificateIdentifier::new(Der::from_slice(authority), Der::from_slice(&leaf.serial)).into_owned())
}

/// An error with its causes, as far as a line goes: servers may have much to say.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    match text.char_indices().nth(MOST_CHARACTERS) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

impl Error {
    /// Whether the server answered with this type of problem.
    ///
    /// Source: RFC 8555, section 6.7.
    fn is_of(&self, kind: &str) -> bool {
        let Self::Server(instant_acme::Error::Api(problem)) = self else { return false };
        problem.r#type.as_ref().and_then(|full| full.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(path, _) => write!(f, "{} cannot be written or read", path.display()),
            Self::Listen(address, _) => write!(f, "challenges cannot be answered at {address}"),
            Self::Trust(_) => f.write_str("the server's authorities cannot be used"),
            Self::Server(_) => f.write_str("the ACME server"),
            Self::Refused(why) => write!(f, "the ACME server could not validate the names: {why}"),
            Self::NoChallenge(name) => write!(f, "the ACME server does not offer the configured challenge for {name}"),
            Self::Request => f.write_str("no key or request could be made"),
            Self::Issued(_) => f.write_str("the certificate that was issued"),
            Self::Unfit(why) => write!(f, "the certificate that was issued {why}"),
            Self::Fault => f.write_str("a fault of this program"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(_, error) | Self::Listen(_, error) => Some(error),
            Self::Trust(error) | Self::Issued(error) => Some(error),
            Self::Server(error) => Some(error),
            Self::Refused(_) | Self::NoChallenge(_) | Self::Request | Self::Unfit(_) | Self::Fault => None,
        }
    }
}

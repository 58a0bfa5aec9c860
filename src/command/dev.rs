//! `countersign dev`: the whole way on one machine, without a Stripe account.
//!
//! A throw-away secret, a certificate of our own, an upstream that echoes, and a page whose sandboxed frame signs and
//! calls as a UI extension in the Dashboard does.

use std::{
    fmt::Write as _,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::SystemTime,
};

use clap::Args;
use http::Method;

use super::{CONFIGURATION, SOFTWARE, UNAVAILABLE, activation::Inherited, run, say, say_error, sign};
use crate::{
    clock::{Clock, unix_seconds},
    config::{self, Environment, Scrutiny},
    identity::{AccountId, RoleId, UserId},
    signature::SigningKey,
};

mod echo;
mod page;

/// Who the page and the ready `curl` say they are.
const USER: &str = "usr_DevUser0001";
const ACCOUNT: &str = "acct_DevAccount0001";
/// Access records the page can ask for.
const RECENT_LIMIT: usize = 200;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where the gateway listens.
    #[arg(long, default_value = "127.0.0.1:8443")]
    address: SocketAddr,
    /// Where the page is served.
    #[arg(long, default_value = "127.0.0.1:8444")]
    page: SocketAddr,
    /// The folder for the certificate, the secret and the configuration.
    #[arg(long, default_value = "certs")]
    folder: PathBuf,
}

pub(super) fn run(options: &Options) -> u8 {
    let _logging = run::start_logging();
    match prepare(options) {
        Ok(prepared) => serve(options, prepared),
        Err(code) => code,
    }
}

/// What is made before anything is served.
struct Prepared {
    page: TcpListener,
    config: PathBuf,
    certificate: PathBuf,
    secret: String,
    key: SigningKey,
}

fn prepare(options: &Options) -> Result<Prepared, u8> {
    let bound = |address: SocketAddr| {
        TcpListener::bind(address).map_err(|error| {
            say_error(&format!(
                "error: cannot listen on {address}: {error}; choose others with --address and --page\n"
            ));
            UNAVAILABLE
        })
    };
    let page = bound(options.page)?;
    let echo = bound(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let upstream = echo.local_addr().map_err(|_| SOFTWARE)?;
    echo::serve(echo).map_err(|_| SOFTWARE)?;

    let written = write_files(options, upstream).map_err(|error| {
        say_error(&format!(
            "error: {} cannot be written: {error}; choose another with --folder\n",
            options.folder.display()
        ));
        UNAVAILABLE
    })?;
    let (config, certificate, secret_file, secret) = written;
    let key = sign::key_of_file(&secret_file)?;
    Ok(Prepared { page, config, certificate, secret, key })
}

type Written = (PathBuf, PathBuf, PathBuf, String);

fn write_files(options: &Options, upstream: SocketAddr) -> io::Result<Written> {
    std::fs::create_dir_all(&options.folder)?;
    let at = |name: &str| options.folder.join(name);
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), options.address.ip().to_string()];
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    std::fs::write(at("dev.pem"), made.cert.pem())?;
    write_private(&at("dev.key"), &made.signing_key.serialize_pem())?;
    let random: [u8; 24] = {
        let mut random = [0; 24];
        aws_lc_random(&mut random)?;
        random
    };
    let mut secret = "absec_dev_".to_owned();
    for byte in random {
        let _ = write!(secret, "{byte:02x}");
    }
    write_private(&at("dev.absec"), &secret)?;
    let config = format!(
        r#"# Made anew by each `countersign dev`.
version = 1

[listener]
address = "{address}"
certificate = "dev.pem"
private_key = "dev.key"

[apps.dev]
secrets = [{{ file = "dev.absec" }}]
accounts = ["{ACCOUNT}"]
tolerance = "10m"

[[routes]]
path = "/dev/"
app = "dev"
upstream = "http://{upstream}"
methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]

[[routes]]
path = "/dev/signed/"
app = "dev"
upstream = "http://{upstream}"
methods = ["GET", "POST"]
signed = "body"

[[routes]]
path = "/dev/admin/"
app = "dev"
upstream = "http://{upstream}"
methods = ["POST"]
roles = ["admin"]
signed = "body"
"#,
        address = options.address,
    );
    std::fs::write(at("dev.toml"), config)?;
    Ok((at("dev.toml"), at("dev.pem"), at("dev.absec"), secret))
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let _ = std::fs::remove_file(path);
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

fn aws_lc_random(bytes: &mut [u8]) -> io::Result<()> {
    crate::tls::provider().secure_random.fill(bytes).map_err(|_| io::Error::other("no random numbers"))
}

fn serve(options: &Options, prepared: Prepared) -> u8 {
    let environment = Environment::from_iter([]);
    let config = match config::load(&prepared.config, &environment, SystemTime::now(), Scrutiny::Files) {
        Ok(config) => config,
        Err(errors) => {
            say_error(&errors.to_string());
            return CONFIGURATION;
        }
    };
    let recent = Recent::default();
    let sink = Box::new(Tee { recent: recent.clone(), partial: Vec::new() });
    let running = match run::start(config, sink, Inherited::nothing(), &Clock::System, &mpsc::channel().0) {
        Ok(running) => running,
        Err(code) => return code,
    };
    let site = page::Site { gateway: options.address, secret: prepared.secret, recent };
    let page = prepared.page.local_addr().unwrap_or(options.page);
    if page::serve(prepared.page, site).is_err() {
        return SOFTWARE;
    }
    say(&welcome(options.address, page, &prepared.certificate, &prepared.key));
    run::serve(running, None)
}

/// What a newcomer needs to know, with a request that works when pasted.
fn welcome(gateway: SocketAddr, page: SocketAddr, certificate: &Path, key: &SigningKey) -> String {
    let url = format!("https://{gateway}/dev/orders/1001?expand=lines");
    let request = |method: Method, payload: Option<&'static str>, url: &str| {
        let request = sign::Request {
            method,
            url,
            user: UserId::parse(USER).ok(),
            account: AccountId::parse(ACCOUNT).map_err(|_| String::new())?,
            payload,
            roles: Vec::<RoleId>::new(),
            at: unix_seconds(SystemTime::now()),
            carrier: None,
            body: None,
        };
        sign::signed(request, key)
    };
    let certificate = certificate.to_string_lossy();
    let options = ["--silent", "--show-error", "--cacert", &certificate];
    let curl = request(Method::GET, None, &url).map(|signed| signed.curl(&options)).unwrap_or_default();
    format!(
        "\nThe gateway listens on https://{gateway}\nThe page is at          http://{page}/\n\n\
         Your browser does not know the gateway's certificate yet: open https://{gateway}/ once and accept it.\n\n\
         A signed request, good for ten minutes:\n\n  {curl}\n\nAccess records follow, one line a request. Ctrl-C stops.\n\n"
    )
}

/// The latest access records.
#[derive(Clone, Debug, Default)]
struct Recent(Arc<Mutex<Vec<String>>>);

impl Recent {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= RECENT_LIMIT {
            lines.remove(0);
        }
        lines.push(line);
    }

    /// The record of the request with `id`.
    fn of(&self, id: &str) -> Option<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().rev().find(|line| line.contains(id)).cloned()
    }
}

/// Access records go to stdout and to the page.
struct Tee {
    recent: Recent,
    partial: Vec<u8>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.recent.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        io::stdout().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

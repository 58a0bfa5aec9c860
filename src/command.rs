//! The command line.
//!
//! Answers go to stdout, logs to stderr; a closed pipe is no mistake. Exit codes: 0 fine, 1 a negative answer, 2 usage,
//! 69 a port or store that cannot be had, 70 our own fault, 78 configuration.

use std::{io::Write, path::PathBuf, time::SystemTime};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    config::{self, Config, Environment, Scrutiny},
    version,
};

mod activation;
mod audit;
pub mod check;
mod completions;
mod dev;
mod explain;
mod health;
mod inbox;
mod man;
mod manifest;
mod run;
mod sign;

/// What was asked was done.
pub const FINE: u8 = 0;
/// The answer is no.
pub const NEGATIVE: u8 = 1;
/// The command line cannot be understood.
pub const USAGE: u8 = 2;
/// A port or store cannot be had.
pub const UNAVAILABLE: u8 = 69;
/// Our own fault.
pub const SOFTWARE: u8 = 70;
/// The configuration cannot be used.
pub const CONFIGURATION: u8 = 78;

/// HTTPS gateway between private Stripe Apps and a company's internal HTTP services.
#[derive(Debug, Parser)]
#[command(name = "countersign", version = version::SHOWN)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway.
    Run {
        /// The configuration; else `COUNTERSIGN_CONFIG`, config/countersign.toml or /etc/countersign/countersign.toml.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Everything in one, without a Stripe account: gateway, echo upstream and a page that signs and calls.
    Dev(dev::Options),
    /// Loads the configuration as `run` does; shows its routes and warns of risks.
    Check {
        /// The configuration, found as `run` finds it.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Also resolves the names of upstreams.
        #[arg(long)]
        strict: bool,
        #[arg(long, value_enum, default_value_t)]
        format: TextOrJson,
    },
    /// Makes a signed request.
    Sign(Box<sign::Options>),
    /// Reads a captured request (raw HTTP, curl line or HAR file) and says whether the gateway would take it, and why not.
    Explain(explain::Options),
    /// Asks the gateway that runs with a configuration whether it is ready.
    Health {
        /// The configuration, found as `run` finds it.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Looks at the audit log.
    #[command(subcommand)]
    Audit(audit::Task),
    /// Looks at the inbox of webhooks, and does by hand what is to be done about a delivery; while the gateway runs or not.
    #[command(subcommand)]
    Inbox(inbox::Task),
    /// Prints the `connect-src` lines for stripe-app.json.
    Manifest {
        /// The configuration, found as `run` finds it.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Prints the script by which a shell completes this command line.
    Completions { shell: clap_complete::Shell },
    /// Prints the manual page, or writes those of all commands into a folder.
    Man {
        /// The folder, made if it is not there.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum TextOrJson {
    #[default]
    Text,
    Json,
}

/// Runs the command line of this process and answers its exit code.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { FINE };
        }
    };
    match cli.command {
        Command::Run { config } => run::run(config),
        Command::Dev(options) => dev::run(&options),
        Command::Check { config, strict, format } => {
            let environment = Environment::of_process();
            let path = config::default_path(config, &environment);
            let format = match format {
                TextOrJson::Text => check::Format::Text,
                TextOrJson::Json => check::Format::Json,
            };
            check::run(&path, strict, format, &environment, &mut std::io::stdout(), &mut std::io::stderr())
        }
        Command::Sign(options) => sign::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Health { config } => health::run(config),
        Command::Audit(task) => audit::run(&task),
        Command::Inbox(task) => inbox::run(&task),
        Command::Manifest { config } => manifest::run(config),
        Command::Completions { shell } => completions::run(shell),
        Command::Man { dir } => man::run(dir.as_deref()),
    }
}

/// The configuration that `given` or its defaults name, or the exit code after its errors were told.
fn loaded(given: Option<PathBuf>) -> Result<Config, u8> {
    let environment = Environment::of_process();
    let path = config::default_path(given, &environment);
    config::load(&path, &environment, SystemTime::now(), Scrutiny::Files).map_err(|errors| {
        say_error(&errors.to_string());
        CONFIGURATION
    })
}

/// Prints an answer. Nobody reading is no mistake.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints what is no answer.
fn say_error(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text.as_bytes());
}
